//! Checkpoints: size and root hash of the log's tree, as the text of a signed note.
//! <https://c2sp.org/tlog-checkpoint>

use std::{fmt, str::FromStr};

use data_encoding::BASE64;

use super::{note::Verifier, tree::Hash};

/// Prefix of the handover line that names the next key.
const SUCCESSOR: &str = "successor ";

/// A tree head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Globally unique name of the log, and of its key.
    pub origin: String,
    /// Number of records.
    pub size: u64,
    /// Root of the tree over these records.
    pub root: Hash,
}

/// Error of a text that is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no checkpoint: three lines with origin, size and root")]
pub struct CheckpointError;

impl Checkpoint {
    /// Returns the text to be signed.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            BASE64.encode(&self.root)
        )
    }

    /// Returns the text by which a key hands the log over to the next key: the checkpoint of the
    /// log that announces the next key, and a line that names this key.
    #[must_use]
    pub fn handover_text(&self, next: &Verifier) -> String {
        format!("{}{SUCCESSOR}{next}\n", self.text())
    }

    /// Returns the key that a signed text hands the log over to.
    #[must_use]
    pub fn successor(text: &str) -> Option<Verifier> {
        text.lines().nth(3)?.strip_prefix(SUCCESSOR)?.parse().ok()
    }

    /// Parses a signed text. Lines after the third are extensions, and are ignored.
    ///
    /// # Errors
    /// The text is no checkpoint.
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
        // Each number has exactly one spelling.
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

/// Proof that a record is in the log. Its owner can check it against any later log, which must
/// begin with the same `size` records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Sequence number of the record.
    pub seq: u64,
    /// Number of records in the log when this record was durable.
    pub size: u64,
    /// Root of the tree over these records.
    pub root: Hash,
}

/// Error of a text that is no receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a receipt is SEQ:SIZE:ROOT, as `issue` and `revoke` print it")]
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
