//! A record with the proof that it is in the log, as one text with everything that a check needs.
//! <https://c2sp.org/tlog-proof>
//!
//! The record itself is the extra data of the proof.

use data_encoding::BASE64;

use super::{
    checkpoint::Checkpoint,
    note::{self, Verifier},
    tree::{Hash, includes, leaf_hash},
};

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// A record and its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// Bytes of the record.
    pub leaf: Vec<u8>,
    /// Number of records before this one.
    pub index: u64,
    /// Path from the record's hash to the root (the audit path of RFC 6962).
    pub hashes: Vec<Hash>,
    /// Signed checkpoint with the root that the path leads to.
    pub checkpoint: String,
}

/// Reasons why a text proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The text is not in the format.
    #[error("it is no C2SP tlog-proof that carries its record")]
    Format,
    /// The signed checkpoint is invalid.
    #[error("its checkpoint: {0}")]
    Checkpoint(String),
    /// The record is not in the log of the checkpoint.
    #[error("its record is not in the log that its checkpoint stands for")]
    NotIncluded,
}

impl InclusionProof {
    /// Returns the proof as a text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{HEADER}\nextra {}\nindex {}\n",
            BASE64.encode(&self.leaf),
            self.index
        );
        for hash in &self.hashes {
            text.push_str(&BASE64.encode(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Parses a proof.
    ///
    /// # Errors
    /// The text is no proof, or has no record.
    pub fn parse(text: &str) -> Result<Self, ProofError> {
        Self::read(text).ok_or(ProofError::Format)
    }

    fn read(text: &str) -> Option<Self> {
        let (head, checkpoint) = text.split_once("\n\n")?;
        let mut lines = head.lines();
        if lines.next()? != HEADER {
            return None;
        }
        let extra = lines.next()?.strip_prefix("extra ")?;
        let index = lines.next()?.strip_prefix("index ")?;
        let hash = |line: &str| BASE64.decode(line.as_bytes()).ok()?.try_into().ok();
        let proof = Self {
            leaf: BASE64.decode(extra.as_bytes()).ok()?,
            index: index.parse().ok()?,
            hashes: lines.map(hash).collect::<Option<_>>()?,
            checkpoint: checkpoint.to_owned(),
        };
        // Each number has exactly one spelling.
        (proof.index.to_string() == index).then_some(proof)
    }

    /// Checks that the record is in a log that one of `keys` has signed. Returns the checkpoint.
    ///
    /// # Errors
    /// The checkpoint is invalid, or the record is not in its log.
    pub fn verify(&self, keys: &[Verifier]) -> Result<Checkpoint, ProofError> {
        let text = note::open(&self.checkpoint, keys)
            .map_err(|error| ProofError::Checkpoint(error.to_string()))?;
        let checkpoint =
            Checkpoint::parse(text).map_err(|error| ProofError::Checkpoint(error.to_string()))?;
        let Checkpoint { size, root, .. } = &checkpoint;
        let leaf = leaf_hash(&self.leaf);
        if includes(root, *size, self.index, &leaf, &self.hashes) {
            Ok(checkpoint)
        } else {
            Err(ProofError::NotIncluded)
        }
    }
}
