//! Checkpoints: how large the log's tree is and what its root, to be signed as a note.
//! <https://c2sp.org/tlog-checkpoint>

use std::{fmt, str::FromStr};

use data_encoding::BASE64;

use super::{note::Verifier, tree::Hash};

/// Begins the line of a handover that names the next key.
const SUCCESSOR: &str = "successor ";

/// A tree head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's own name in the world, and its key's.
    pub origin: String,
    /// How many records there are.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
}

/// A text is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no checkpoint: three lines with origin, size and root")]
pub struct CheckpointError;

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            BASE64.encode(&self.root)
        )
    }

    /// The text by which a key hands the log over to the next: the checkpoint of the log
    /// that announces it, and a line that names it.
    #[must_use]
    pub fn handover_text(&self, next: &Verifier) -> String {
        format!("{}{SUCCESSOR}{next}\n", self.text())
    }

    /// Whom a signed text hands the log over to.
    #[must_use]
    pub fn successor(text: &str) -> Option<Verifier> {
        text.lines().nth(3)?.strip_prefix(SUCCESSOR)?.parse().ok()
    }

    /// Reads a signed text; lines after the third are extensions and say nothing here.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError)?.split('\n');
        let mut line = || lines.next().filter(|line| !line.is_empty());
        let (Some(origin), Some(size), Some(root)) = (line(), line(), line()) else {
            return Err(CheckpointError);
        };
        let checkpoint = Self {
            origin: origin.to_owned(),
            size: size.parse().map_err(|_| CheckpointError)?,
            root: hash(root).ok_or(CheckpointError)?,
        };
        // One number has one spelling.
        let spelled = checkpoint.size.to_string() == size;
        let empty_lines = lines.any(str::is_empty);
        (spelled && !empty_lines)
            .then_some(checkpoint)
            .ok_or(CheckpointError)
    }
}

fn hash(text: &str) -> Option<Hash> {
    BASE64.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// That a record is in the log: what whoever is given it may hold against a later log,
/// which begins with these records and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The record's sequence number.
    pub seq: u64,
    /// How many records there were when this one was durable.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
}

/// A text is no receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a receipt is SEQ:SIZE:ROOT, as `issue` and `revoke` tell it")]
pub struct ReceiptError;

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seq, size, root } = self;
        write!(f, "{seq}:{size}:{}", BASE64.encode(root))
    }
}

impl FromStr for Receipt {
    type Err = ReceiptError;

    fn from_str(text: &str) -> Result<Self, ReceiptError> {
        let mut parts = text.split(':');
        let (Some(seq), Some(size), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ReceiptError);
        };
        let receipt = Self {
            seq: seq.parse().map_err(|_| ReceiptError)?,
            size: size.parse().map_err(|_| ReceiptError)?,
            root: hash(root).ok_or(ReceiptError)?,
        };
        let possible = (1..=receipt.size).contains(&receipt.seq);
        possible.then_some(receipt).ok_or(ReceiptError)
    }
}
