//! What the use cases need of a store that several brokers work on at a time.

use async_trait::async_trait;

use super::StoreError;
use crate::{broker::wait::Wait, domain::audit::AuditRecord};

/// A broker that has not said for so long that it lives is taken for dead.
pub const DEAD_AFTER: Wait = Wait::seconds(10);
/// The longest that a broker has something to itself without claiming it again.
pub const CLAIMED_FOR: Wait = Wait::seconds(60);

/// Who works on the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Living {
    /// How many brokers, the one that asks included.
    pub brokers: u64,
    /// How many were taken for dead just now. Of several who ask, one is told.
    pub buried: u64,
}

/// What others have done since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The record that was looked at last.
    pub read: u64,
    /// Those that tell of something that a broker may have in memory, oldest first.
    pub records: Vec<AuditRecord>,
}

/// The other brokers of a store, by way of it. A broker is known by its instance, as in its
/// records; times are the store's, so that no broker's clock matters. None of this has an
/// audit record.
#[async_trait]
pub trait Peers: Send + Sync {
    /// Says that `broker` lives, and that no other does which had the same emergency file
    /// ([`super::Spool::id`]).
    async fn appear(&self, broker: &str, file: &str) -> Result<Living, StoreError>;
    /// It lives no longer, and has nothing to itself.
    async fn leave(&self, broker: &str) -> Result<(), StoreError>;
    /// Whether it has been heard of within [`DEAD_AFTER`].
    async fn lives(&self, broker: &str) -> Result<bool, StoreError>;
    /// Gives `what` to `broker` alone, for [`CLAIMED_FOR`], unless another that lives has it.
    /// Returns the claim's number, one more than that of whoever had it before.
    async fn claim(&self, what: &str, broker: &str) -> Result<Option<u64>, StoreError>;
    /// Whether nobody has claimed `what` since that claim.
    async fn is_claimed(&self, what: &str, epoch: u64) -> Result<bool, StoreError>;
    /// Gives it back, unless somebody has claimed it since.
    async fn release(&self, what: &str, epoch: u64) -> Result<(), StoreError>;
    /// Records after the first `after` up to the first `size`, some hundred at most.
    async fn news(&self, after: u64, size: u64) -> Result<News, StoreError>;
}
