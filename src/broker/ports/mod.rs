//! Ports: the interfaces that the use cases need from outside, in terms of the domain.

mod approvals;
mod authentication;
mod aws;
mod certificates;
mod cluster;
mod identities;
mod keys;
mod log;

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;

pub use self::{
    approvals::*, authentication::*, aws::*, certificates::*, cluster::*, identities::*, keys::*,
    log::*,
};
use crate::audit::tile::{Tile, Tiles};
use crate::domain::{
    admin_key::AdminKey,
    arn::{AccountId, RoleArn},
    audit::{AuditEvent, AuditRecord},
    credential::KeyId,
    denial::{Denial, DenialSession},
    grant::Grant,
    lease::Lease,
    name::{GrantName, LeaseId, Name},
    request::RequestId,
    service::{Service, ServiceOverview, Suspension},
};

/// Error of the store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is full, read-only, locked or unreachable. Nothing was written or read. Retry
    /// later.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The stored state differs from what the caller expects. Nothing was written.
    #[error("concurrent update: the stored revision differs")]
    Conflict,
    /// A stored row cannot be read back.
    #[error("table {table} holds a row that cannot be read: {detail}")]
    Inconsistent {
        /// Table of the row.
        table: &'static str,
        /// Description of the defect.
        detail: String,
    },
}

/// A page of a long list: keys after `after`, at most `limit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Last key of the previous page; `None` for the first page.
    pub after: Option<String>,
    /// Largest number of entries in the page, 1 to 1,000.
    pub limit: u32,
}

/// Filter for a list of leases; `None` matches every lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseFilter {
    /// Service of the leases.
    pub service: Option<Name>,
    /// Name of the state of the leases.
    pub state: Option<&'static str>,
}

/// Numbers of objects in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Registered services.
    pub services: u64,
    /// Current grants.
    pub grants: u64,
    /// Leases that have not ended.
    pub live_leases: u64,
    /// Leases being issued.
    pub pending_leases: u64,
    /// Leases in state `revoking`: their credentials are being deleted.
    pub revoking_leases: u64,
    /// Leases in quarantine: AWS keeps refusing to delete their credentials.
    pub quarantined_leases: u64,
    /// Denials of sessions that AWS has not been seen to enforce.
    pub open_denials: u64,
    /// Denials of sessions that AWS enforces.
    pub refused_denials: u64,
    /// Records in the audit log.
    pub audit_records: u64,
}

/// Outcome of beginning a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginOutcome {
    /// The lease is recorded.
    Recorded,
    /// The service has as many live leases as its limit allows. Nothing was written.
    TooMany {
        /// Earliest expiry among those leases; `None` if none of them has an expiry yet.
        next_end: Option<Timestamp>,
    },
    /// The request with this id has a lease already. Nothing was written.
    Known(Box<Lease>),
}

/// Scope of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevokeTarget {
    /// All credentials of a service.
    Service(Name),
    /// All credentials that were issued under one grant.
    Grant(GrantName),
}

impl RevokeTarget {
    /// Returns the service.
    #[must_use]
    pub const fn service(&self) -> &Name {
        match self {
            Self::Service(name) => name,
            Self::Grant(grant) => &grant.service,
        }
    }

    /// Returns the grant, if the scope is one grant.
    #[must_use]
    pub const fn grant(&self) -> Option<&Name> {
        match self {
            Self::Service(_) => None,
            Self::Grant(grant) => Some(&grant.grant),
        }
    }
}

/// Result of beginning a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Time and reason; for a whole service, the suspension that is now in force.
    pub suspension: Suspension,
    /// Leases that had not ended.
    pub leases: Vec<Lease>,
    /// Denials of sessions, which AWS is to enforce.
    pub denials: Vec<Denial>,
    /// Number of further leases that cannot be read. Their credentials are unknown.
    pub unreadable: u64,
}

/// Denials that AWS policies may still contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denials {
    /// Denials that can be read.
    pub known: Vec<Denial>,
    /// Number of denials that cannot be read.
    pub unreadable: u64,
}

/// Sessions and roles that the admin key may have been used for, as far as the store knows.
#[derive(Clone, Debug, Default)]
pub struct KeyReach {
    /// Latest session, by expiry, of each version of every grant at each role and user. The session
    /// may have expired.
    pub sessions: Vec<DenialSession>,
    /// Roles that versions of grants name, each with its grant and version number. Deleted versions
    /// are included.
    pub roles: Vec<(RoleArn, GrantName, u64)>,
    /// Number of sessions and grant versions that cannot be read.
    pub unreadable: u64,
}

/// Holdings of a service or a grant, from a store that is only read.
#[derive(Clone, Debug)]
pub struct ServiceHoldings {
    /// AWS account of the broker's users; `None` until AWS has reported it.
    pub account: Option<AccountId>,
    /// Leases that have not ended.
    pub leases: Vec<Lease>,
    /// Denials that a revocation would request.
    pub denials: Vec<Denial>,
}

/// A change of a lease: its new revision, the revision that it replaces, and the audit event.
#[derive(Clone, Debug)]
pub struct LeaseTransition {
    /// Revision that must be stored before the change.
    pub from: u64,
    /// New revision of the lease.
    pub lease: Lease,
    /// Audit event of the change.
    pub audit: AuditEvent,
}

/// Durable state of the broker.
///
/// Each method is one transaction, which includes its audit record. When the method returns, both
/// are durable, or neither is written. Methods may be called concurrently. A look-up without a
/// result returns `None`, not an error. An update whose precondition fails returns
/// [`StoreError::Conflict`] and changes nothing.
#[async_trait]
pub trait Store: Identities + Approvals {
    /// Returns the port to the other replicas; `None` for a store that serves one broker only.
    fn peers(&self) -> Option<&dyn Peers>;
    /// Closes the store, after its queued writes are done.
    async fn close(&self);
    /// Adds an audit record that belongs to no other change.
    async fn record(&self, audit: AuditEvent) -> Result<Receipt, StoreError>;
    /// Returns records after the sequence number `page.after`, oldest first.
    async fn audit(
        &self,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Vec<AuditRecord>, StoreError>;
    /// Returns the sequence number of the newest record; 0 for an empty log.
    async fn audit_size(&self) -> Result<u64, StoreError>;

    /// Returns the current size and root of the log.
    async fn log_head(&self) -> Result<LogHead, StoreError>;
    /// Reads the whole log, checks that it is consistent, and computes its roots at `sizes`. Takes
    /// some seconds per million records.
    async fn check_log(&self, sizes: &[u64]) -> Result<LogCheck, StoreError>;
    /// Returns the bytes of the records after the first `start`, at most `limit` records.
    async fn log_leaves(&self, start: u64, limit: u64) -> Result<Vec<Vec<u8>>, StoreError>;
    /// Returns the number of pruned records, the oldest of the log: whole bundles of 256.
    async fn log_start(&self) -> Result<u64, StoreError>;
    /// Counts the oldest records of the log, in full bundles whose records are all older than
    /// `before`.
    async fn count_log_older_than(&self, before: Timestamp) -> Result<u64, StoreError>;
    /// Marks the first `count` records as pruned; the proof of the other records stays. Conflict
    /// when as many are pruned already, or the log is shorter.
    async fn prune_log(&self, count: u64, audit: AuditEvent) -> Result<(), StoreError>;
    /// Deletes pruned records, at most `limit`, without an audit record. Returns the number of
    /// deleted records.
    async fn delete_pruned(&self, limit: u64) -> Result<u64, StoreError>;
    /// Returns the hashes in these tiles for a log of `size` records. The log has at least `size`
    /// records.
    async fn log_tiles(&self, tiles: &BTreeSet<Tile>, size: u64) -> Result<Tiles, StoreError>;
    /// Returns all keys that have signed the log, newest last.
    async fn log_keys(&self) -> Result<Vec<LogKey>, StoreError>;
    /// Adds a newer signing key with the number `number`. Conflict when the key is known, or when
    /// the number of known keys is not `number - 1`.
    async fn add_log_key(
        &self,
        number: u64,
        key: &LogKey,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Saves the note that announces a key, without an audit record: the note itself covers a
    /// record. Conflict when the key is unknown.
    async fn hand_over_log_key(&self, verifier: &str, note: &str) -> Result<(), StoreError>;
    /// Returns the newest signed checkpoint.
    async fn checkpoint(&self) -> Result<Option<KeptCheckpoint>, StoreError>;
    /// Saves a checkpoint that the key `signer` has signed, without an audit record: the checkpoint
    /// itself covers records. A checkpoint older than the saved one changes nothing. Conflict when
    /// a newer key exists.
    async fn save_checkpoint(&self, kept: &KeptCheckpoint, signer: &str) -> Result<(), StoreError>;
    /// Returns the newest checkpoint that the witness has cosigned.
    async fn cosigned(&self) -> Result<Option<CosignedCheckpoint>, StoreError>;
    /// Replaces the newest cosigned checkpoint, without an audit record: the checkpoint itself
    /// covers records.
    async fn save_cosigned(&self, cosigned: &CosignedCheckpoint) -> Result<(), StoreError>;
    /// Returns the sequence number of the last record that the sink `name` has accepted; 0 for
    /// none.
    async fn sink_cursor(&self, name: &Name) -> Result<u64, StoreError>;
    /// Saves the position of a sink, without an audit record: otherwise the log would grow for
    /// ever.
    async fn save_sink_cursor(&self, name: &Name, seq: u64) -> Result<(), StoreError>;

    /// Adds a service. Conflict when the name is taken.
    async fn create_service(&self, service: &Service, audit: AuditEvent) -> Result<(), StoreError>;
    /// Returns the service names that begin with `head`. Names of deleted services that still have
    /// denials are included.
    async fn names_like(&self, head: &str) -> Result<Vec<Name>, StoreError>;
    /// Returns a service, its number of live leases and the time of its last issue.
    async fn service(&self, name: &Name) -> Result<Option<ServiceOverview>, StoreError>;
    /// Returns services, by name.
    async fn services(&self, page: &PageRequest) -> Result<Vec<ServiceOverview>, StoreError>;
    /// Suspends a service. Conflict when the service is unknown or already suspended.
    async fn suspend_service(
        &self,
        name: &Name,
        suspension: &Suspension,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Reinstates a service; sessions issued from then on are not denied. Conflict when the service
    /// is not suspended.
    async fn reinstate_service(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError>;
    /// Deletes a service with its tokens and grants. Conflict when the service is unknown or has
    /// leases that have not ended.
    async fn delete_service(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError>;
    /// Begins to revoke every lease that has not ended, and requests the denial of their sessions,
    /// in one transaction. If `target` is a whole service, the same transaction suspends it; an
    /// earlier suspension stays in force. Conflict when the service or grant is unknown.
    async fn revoke(
        &self,
        target: &RevokeTarget,
        suspension: &Suspension,
        audit: AuditEvent,
    ) -> Result<(Revoked, Receipt), StoreError>;
    /// Works like [`Self::update_lease`] for a lease that is being revoked, and requests the denial
    /// of its session. Returns the denial, if the lease is of a session.
    async fn revoke_lease(
        &self,
        from: u64,
        lease: &Lease,
        audit: AuditEvent,
    ) -> Result<(Vec<Denial>, Receipt), StoreError>;
    /// Returns every denial that AWS policies may still contain.
    async fn denials(&self) -> Result<Denials, StoreError>;
    /// Returns at most `limit` denials that are due at `now`: to be tried, or expired.
    async fn denials_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Denial>, StoreError>;
    /// Returns the denials that concern a service: its own, and those of scope `Everyone`.
    async fn denials_of(&self, service: &Name) -> Result<Vec<Denial>, StoreError>;
    /// Writes `put` and deletes `remove`. Each denial of `put` replaces the revision before its
    /// own, or is added if it is the first. Each denial of `remove` must be the stored revision.
    /// Conflict when any revision differs; then nothing changes.
    async fn change_denials(
        &self,
        put: &[Denial],
        remove: &[Denial],
        audit: Vec<AuditEvent>,
    ) -> Result<(), StoreError>;
    /// Returns the leases of a service, or of one of its grants, that have not ended, by id. A
    /// lease that cannot be read is skipped.
    async fn live_leases(
        &self,
        service: &Name,
        grant: Option<&Name>,
    ) -> Result<Vec<Lease>, StoreError>;
    /// Returns the latest session, by expiry, of each version of a service's grants, or of one
    /// grant, at each role and user. The session may have expired. A session that cannot be read is
    /// skipped.
    async fn last_sessions(
        &self,
        service: &Name,
        grant: Option<&Name>,
    ) -> Result<Vec<DenialSession>, StoreError>;
    /// Returns the sessions and roles that the admin key may have been used for.
    async fn reach_of_key(&self) -> Result<KeyReach, StoreError>;
    /// Returns a service's leases of sessions in state `revoking` or `quarantined`, by id.
    async fn revoking_sessions(
        &self,
        service: &Name,
        page: &PageRequest,
    ) -> Result<Vec<Lease>, StoreError>;

    /// Adds a version of a grant. Conflict unless `grant.version` is one above the newest ever
    /// (deleted versions included) and the service is known.
    async fn put_grant(&self, grant: &Grant, audit: AuditEvent) -> Result<(), StoreError>;
    /// Returns the current version of a grant.
    async fn grant(&self, name: &GrantName) -> Result<Option<Arc<Grant>>, StoreError>;
    /// Returns a version of a grant that is or was in force.
    async fn grant_version(
        &self,
        name: &GrantName,
        version: u64,
    ) -> Result<Option<Grant>, StoreError>;
    /// Returns the newest version number of a grant, deleted or not; 0 for none.
    async fn newest_grant_version(&self, name: &GrantName) -> Result<u64, StoreError>;
    /// Returns the current versions of grants, by name, of one service or all.
    async fn grants(
        &self,
        service: Option<&Name>,
        page: &PageRequest,
    ) -> Result<Vec<Grant>, StoreError>;
    /// Deletes a grant; its versions stay readable. Conflict when the grant is unknown.
    async fn delete_grant(
        &self,
        name: &GrantName,
        at: Timestamp,
        by: &Name,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;

    /// Adds a pending lease, unless its request has a lease already, or its service has `most` live
    /// leases of the same class: IAM users, or sessions. Conflict when the service is suspended or
    /// unknown, or when the grant has another current version.
    async fn begin_lease(
        &self,
        lease: &Lease,
        most: u64,
        audit: AuditEvent,
    ) -> Result<BeginOutcome, StoreError>;
    /// Replaces a lease by a later revision. Conflict when the stored revision is not `from`.
    /// Conflict also when the service is suspended and the new revision is active with other
    /// credentials or a longer life.
    async fn update_lease(
        &self,
        from: u64,
        lease: &Lease,
        audit: AuditEvent,
    ) -> Result<Receipt, StoreError>;
    /// Replaces many leases under the conditions of [`Self::update_lease`], in one transaction.
    /// Returns the number of replaced leases. A lease in conflict stays unchanged.
    async fn update_leases(&self, changes: &[LeaseTransition]) -> Result<usize, StoreError>;
    /// Returns whether a lease is issued and its removal has not begun.
    async fn is_active(&self, id: &LeaseId) -> Result<bool, StoreError>;
    /// Returns one lease.
    async fn lease(&self, id: &LeaseId) -> Result<Option<Lease>, StoreError>;
    /// Returns the lease that answers the request with this id of a service.
    async fn lease_of_request(
        &self,
        service: &Name,
        request: &RequestId,
    ) -> Result<Option<Lease>, StoreError>;
    /// Returns the lease that has this access key, or had it when the lease ended.
    async fn lease_of_key(&self, key: &KeyId) -> Result<Option<Lease>, StoreError>;
    /// Returns leases, newest first.
    async fn leases(
        &self,
        filter: &LeaseFilter,
        page: &PageRequest,
    ) -> Result<Vec<Lease>, StoreError>;
    /// Returns at most `limit` leases of IAM users that are due at `now`: pending past their
    /// deadline, active past their expiry, or being removed with an attempt due. Revoked leases
    /// come first, then those due the longest. A lease that cannot be read is skipped.
    async fn users_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Lease>, StoreError>;
    /// Returns due leases of sessions in the same way, but those due the longest come first.
    async fn sessions_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Lease>, StoreError>;
    /// Returns the leases of IAM users that have not ended, by the names of their users.
    async fn live_users(&self) -> Result<Vec<Lease>, StoreError>;

    /// Returns the stored admin key.
    async fn admin_key(&self) -> Result<Option<AdminKey>, StoreError>;
    /// Replaces the admin key by a later revision, or stores the first one if `from` is `None`.
    /// Conflict when another revision is stored.
    async fn replace_admin_key(
        &self,
        from: Option<u64>,
        key: &AdminKey,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;

    /// Returns the id that separates this broker's users in AWS from those of other deployments: 10
    /// characters `[0-9a-f]`, created with the store.
    async fn deployment(&self) -> Result<String, StoreError>;
    /// Returns the AWS account of everything in this store; `None` until AWS has reported it.
    async fn account(&self) -> Result<Option<AccountId>, StoreError>;
    /// Stores the account. Conflict when an account is stored already.
    async fn bind_account(&self, account: &AccountId, audit: AuditEvent) -> Result<(), StoreError>;
    /// Returns the numbers of objects in the store.
    async fn counts(&self) -> Result<StoreCounts, StoreError>;
}
