//! What the use cases need of the audit log.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use super::StoreError;
pub use crate::audit::checkpoint::Receipt;
use crate::{
    audit::{
        note::WitnessKey,
        tree::{Edge, Hash},
    },
    domain::{name::Name, seal::Sealed},
};

/// Which audit records to list; `None` matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// The service concerned.
    pub service: Option<String>,
    /// The grant concerned.
    pub grant: Option<String>,
    /// The lease concerned.
    pub lease_id: Option<String>,
    /// The access key concerned.
    pub access_key_id: Option<String>,
    /// Who did it.
    pub actor: Option<String>,
    /// What happened.
    pub event: Option<String>,
    /// How it went.
    pub outcome: Option<String>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
}

/// How much is in the log, and the root of the tree over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Records.
    pub size: u64,
    /// RFC 6962's Merkle tree hash.
    pub root: Hash,
}

impl LogHead {
    /// The head of a log with this edge.
    #[must_use]
    pub fn of(edge: &Edge) -> Self {
        Self {
            size: edge.size(),
            root: edge.root(),
        }
    }
}

/// What a reading of the whole log has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCheck {
    /// The roots when it had as many records as was asked; of those that it has had.
    pub roots: BTreeMap<u64, Hash>,
    /// What does not fit together, in words.
    pub fault: Option<String>,
}

/// A checkpoint in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCheckpoint {
    /// How many records it stands for.
    pub size: u64,
    /// The signed note.
    pub note: String,
    /// Whether it, or an earlier one, is beside the store as well.
    pub anchored: bool,
}

/// The newest checkpoint that the witness has cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignedCheckpoint {
    /// How many records it stands for.
    pub size: u64,
    /// The note, with both signatures.
    pub note: String,
}

/// A key that signs the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogKey {
    /// Its public half, as [`crate::audit::note::Verifier`] writes it.
    pub verifier: String,
    /// What it grows from, sealed.
    pub seed: Sealed,
    /// Since when it signs.
    pub since: Timestamp,
    /// The checkpoint, signed by the key before, of the log that announces this one.
    pub handover: Option<String>,
}

/// Where the newest checkpoint is kept beside the store.
#[async_trait]
pub trait Anchor: Send + Sync {
    /// The note that was kept last; `None` for none yet.
    async fn read(&self) -> Result<Option<String>, StoreError>;
    /// Keeps this one in its place, durably and in one step.
    async fn write(&self, note: &str) -> Result<(), StoreError>;
}

/// The emergency file: what must not be lost while the store takes no records.
#[async_trait]
pub trait Spool: Send + Sync {
    /// Drawn at random when the file was made: no two brokers that live have the same.
    async fn id(&self) -> Result<String, StoreError>;
    /// Adds an entry, durably.
    async fn add(&self, entry: &[u8]) -> Result<(), StoreError>;
    /// All entries, oldest first.
    async fn entries(&self) -> Result<Vec<Vec<u8>>, StoreError>;
    /// Deletes all entries but `kept`, which are some of [`Self::entries`].
    async fn keep_only(&self, kept: &[Vec<u8>]) -> Result<(), StoreError>;
}

/// Why a sink or the witness did not take what it was sent, in words without a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

impl SinkError {
    /// It took longer than it may.
    #[must_use]
    pub fn late(limit: Duration) -> Self {
        Self(format!(
            "it did not answer within {} s",
            limit.as_secs_f32()
        ))
    }
}

/// Somewhere else that the log is streamed to.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Its name, under which it is remembered how far it is.
    fn name(&self) -> &Name;
    /// Hands it these leaves, which follow each other in the log. It has taken them when
    /// this returns. May be cut off at any moment; what it has not taken, and perhaps
    /// some of what it has, is handed to it again.
    async fn deliver(&self, leaves: &[Vec<u8>]) -> Result<(), SinkError>;
}

/// What a witness answers to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WitnessAnswer {
    /// Lines of signatures, its own among them.
    Cosigned(String),
    /// It goes on from another checkpoint, of this size if it tells one.
    Conflict(Option<u64>),
    /// The checkpoint does not go on from the one that it knows.
    Inconsistent,
    /// Anything else: the HTTP status.
    Refused(u16),
}

/// Somebody else who signs each checkpoint, and only ones that go on from those before.
#[async_trait]
pub trait Witness: Send + Sync {
    /// What its signatures are checked with.
    fn key(&self) -> &WitnessKey;
    /// Sends it the body of an `add-checkpoint`. May be cut off at any moment.
    async fn add_checkpoint(&self, body: String) -> Result<WitnessAnswer, SinkError>;
}
