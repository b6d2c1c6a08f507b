//! Ports of the audit log.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use super::StoreError;
pub use crate::audit::checkpoint::Receipt;
use crate::{
    audit::{
        note::WitnessKey,
        tree::{Frontier, Hash},
    },
    domain::{name::Name, sealing::Sealed},
};

/// Filter for a list of audit records; `None` matches everything.
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
    /// Actor, as records write it: `operator:NAME`, `service:NAME`, `broker` or `unknown`.
    pub actor: Option<String>,
    /// Name of the event.
    pub event: Option<String>,
    /// Name of the outcome.
    pub outcome: Option<String>,
    /// Earliest time, inclusive.
    pub since: Option<Timestamp>,
    /// Latest time, exclusive.
    pub until: Option<Timestamp>,
}

/// Size of the log, and the root of the tree over its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Number of records.
    pub size: u64,
    /// Merkle tree hash (RFC 6962).
    pub root: Hash,
}

impl LogHead {
    /// Returns the head of a log with this edge.
    #[must_use]
    pub fn of(edge: &Frontier) -> Self {
        Self {
            size: edge.size(),
            root: edge.root(),
        }
    }
}

/// Result of reading the whole log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCheck {
    /// Roots of the log at the requested sizes. Sizes that the log has not had are absent.
    pub roots: BTreeMap<u64, Hash>,
    /// Description of an inconsistency; `None` if the log is consistent.
    pub fault: Option<String>,
}

/// A checkpoint in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCheckpoint {
    /// Number of records that the checkpoint covers.
    pub size: u64,
    /// Signed note.
    pub note: String,
    /// True once the checkpoint file holds this checkpoint or an earlier one.
    pub anchored: bool,
}

/// The newest checkpoint that the witness has cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignedCheckpoint {
    /// Number of records that the checkpoint covers.
    pub size: u64,
    /// Note with both signatures: the log's and the witness's.
    pub note: String,
}

/// A key that signs the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogKey {
    /// Public key, as [`crate::audit::note::Verifier`] writes it.
    pub verifier: String,
    /// Seed of the private key, sealed.
    pub seed: Sealed,
    /// Time from which the key signs.
    pub since: Timestamp,
    /// Checkpoint that announces this key, signed by the previous key.
    pub handover: Option<String>,
}

/// The checkpoint file: the newest checkpoint, outside the store.
#[async_trait]
pub trait CheckpointFile: Send + Sync {
    /// Returns the note that was saved last; `None` for none yet.
    async fn read(&self) -> Result<Option<String>, StoreError>;
    /// Replaces the note, durably and atomically.
    async fn write(&self, note: &str) -> Result<(), StoreError>;
}

/// The journal, also called the emergency file: revocations that must not be lost while the store
/// accepts no records.
#[async_trait]
pub trait EmergencyJournal: Send + Sync {
    /// Returns an id that was drawn at random when the file was created. Two live brokers never
    /// have the same id.
    async fn id(&self) -> Result<String, StoreError>;
    /// Appends an entry, durably.
    async fn add(&self, entry: &[u8]) -> Result<(), StoreError>;
    /// Returns all entries, oldest first.
    async fn entries(&self) -> Result<Vec<Vec<u8>>, StoreError>;
    /// Deletes all entries but `kept`, which are some of [`Self::entries`].
    async fn keep_only(&self, kept: &[Vec<u8>]) -> Result<(), StoreError>;
}

/// Reason why a sink or the witness did not accept a delivery, in words without a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

impl SinkError {
    /// Returns the error of a sink that did not answer within `limit`.
    #[must_use]
    pub fn late(limit: Duration) -> Self {
        Self(format!(
            "it did not answer within {} s",
            limit.as_secs_f32()
        ))
    }
}

/// A destination outside the broker to which the log is streamed.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Returns the name, under which the store remembers the sink's position.
    fn name(&self) -> &Name;
    /// Delivers these leaves, which follow each other in the log. When this returns, the sink has
    /// accepted them. May be cancelled at any moment. Leaves that the sink has not accepted, and
    /// perhaps some that it has, are delivered again.
    async fn deliver(&self, leaves: &[Vec<u8>]) -> Result<(), SinkError>;
}

/// Answer of a witness to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WitnessAnswer {
    /// Lines of signatures, the witness's own among them.
    Cosigned(String),
    /// The witness continues from another checkpoint; its size, if the witness reports one.
    Conflict(Option<u64>),
    /// The checkpoint does not extend the one that the witness knows.
    Inconsistent,
    /// Any other answer; its HTTP status.
    Refused(u16),
}

/// An independent party that cosigns each checkpoint, if the checkpoint extends those before.
#[async_trait]
pub trait Witness: Send + Sync {
    /// Returns the key that verifies the witness's signatures.
    fn key(&self) -> &WitnessKey;
    /// Sends the body of an `add-checkpoint` request. May be cancelled at any moment.
    async fn add_checkpoint(&self, body: String) -> Result<WitnessAnswer, SinkError>;
}
