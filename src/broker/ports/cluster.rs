//! Port to a store that several replicas share.

use async_trait::async_trait;

use super::StoreError;
use crate::{broker::wait::Wait, domain::audit::AuditRecord};

/// Time without a heartbeat after which a replica counts as dead.
pub const DEAD_AFTER: Wait = Wait::seconds(10);
/// Longest time that a replica holds a lock without locking again.
pub const CLAIMED_FOR: Wait = Wait::seconds(60);

/// Live replicas on the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Members {
    /// Number of live replicas, the calling one included.
    pub brokers: u64,
    /// Number of replicas newly declared dead. Each death is reported to exactly one replica.
    pub buried: u64,
}

/// Changes that replicas have recorded since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Sequence number of the last record that was examined.
    pub read: u64,
    /// Records of changes to what a replica may hold in memory, oldest first.
    pub records: Vec<AuditRecord>,
}

/// Coordination with the other replicas, through the store. The name of a replica is its instance,
/// as in its audit records. Times are the store's, so that no replica's clock matters. None of
/// these methods writes an audit record.
#[async_trait]
pub trait Peers: Send + Sync {
    /// Records a heartbeat of `broker`, and that any other replica with the same emergency file
    /// ([`super::EmergencyJournal::id`]) is dead.
    async fn appear(&self, broker: &str, file: &str) -> Result<Members, StoreError>;
    /// Records that `broker` has ended, which frees its locks.
    async fn leave(&self, broker: &str) -> Result<(), StoreError>;
    /// Returns whether `broker` has had a heartbeat within [`DEAD_AFTER`].
    async fn lives(&self, broker: &str) -> Result<bool, StoreError>;
    /// Locks `what` for `broker` alone, for [`CLAIMED_FOR`], unless another live replica has the
    /// lock. Returns the fencing token, one more than that of the previous lock; `None` if the lock
    /// is not free.
    async fn claim(&self, what: &str, broker: &str) -> Result<Option<u64>, StoreError>;
    /// Returns whether `what` has not been locked again since the lock with this fencing token.
    async fn is_claimed(&self, what: &str, epoch: u64) -> Result<bool, StoreError>;
    /// Releases the lock, unless `what` has been locked again since.
    async fn release(&self, what: &str, epoch: u64) -> Result<(), StoreError>;
    /// Returns records after the first `after`, up to the first `size`; examines some hundred at
    /// most.
    async fn news(&self, after: u64, size: u64) -> Result<News, StoreError>;
}
