//! What the use cases need from the outside, in words of the domain.

mod approvals;
mod authentication;
mod aws;
mod certificates;
mod identities;
mod keys;
mod log;
mod peers;

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;

pub use self::{
    approvals::*, authentication::*, aws::*, certificates::*, identities::*, keys::*, log::*,
    peers::*,
};
use crate::audit::tile::{Tile, Tiles};
use crate::domain::{
    admin_key::AdminKey,
    arn::{AccountId, RoleArn},
    audit::{AuditEvent, AuditRecord},
    credential::KeyId,
    denial::{Denial, Session},
    grant::Grant,
    lease::Lease,
    name::{GrantName, LeaseId, Name},
    request::RequestId,
    service::{Service, ServiceOverview, Suspension},
};

/// Why the store did not do as told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written and nothing is known: full, read-only, locked or gone.
    /// Retry later.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// What is stored is not what the caller took it for. Nothing was written.
    #[error("the store holds something else than expected")]
    Conflict,
    /// A stored row cannot be read back.
    #[error("table {table} holds a row that cannot be read: {detail}")]
    Inconsistent {
        /// Which table.
        table: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

/// A part of a long list: keys after `after`, `limit` of them at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Last key of the page before.
    pub after: Option<String>,
    /// 1 to 1,000.
    pub limit: u32,
}

/// Which leases to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseFilter {
    /// Of this service only.
    pub service: Option<Name>,
    /// In the state of this name only.
    pub state: Option<&'static str>,
}

/// How much there is of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Registered services.
    pub services: u64,
    /// Current grants.
    pub grants: u64,
    /// Leases that have not ended.
    pub live_leases: u64,
    /// Leases being issued.
    pub pending_leases: u64,
    /// Leases being taken away.
    pub revoking_leases: u64,
    /// Leases that AWS keeps refusing to let go.
    pub quarantined_leases: u64,
    /// Denials of sessions that AWS has not been seen to enforce.
    pub open_denials: u64,
    /// Denials of sessions that AWS enforces.
    pub refused_denials: u64,
    /// Records in the audit log.
    pub audit_records: u64,
}

/// What became of a lease that was to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is recorded.
    Recorded,
    /// The service has as many live leases as it may have; nothing was written.
    TooMany {
        /// When the first of them ends.
        next_end: Option<Timestamp>,
    },
    /// The request of this id has a lease already; nothing was written.
    Known(Box<Lease>),
}

/// What is revoked as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All that a service holds.
    Service(Name),
    /// What was issued under one grant.
    Grant(GrantName),
}

impl Target {
    /// Whose it is.
    #[must_use]
    pub const fn service(&self) -> &Name {
        match self {
            Self::Service(name) => name,
            Self::Grant(grant) => &grant.service,
        }
    }

    /// The one grant that it is about.
    #[must_use]
    pub const fn grant(&self) -> Option<&Name> {
        match self {
            Self::Service(_) => None,
            Self::Grant(grant) => Some(&grant.grant),
        }
    }
}

/// What was begun to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// When and why; of a service, the suspension that stands.
    pub suspension: Suspension,
    /// Each lease that had not ended.
    pub leases: Vec<Lease>,
    /// What sessions AWS is to refuse.
    pub denials: Vec<Denial>,
    /// How many more there are that cannot be read: nothing is known of their credentials.
    pub unreadable: u64,
}

/// Denials that AWS may still hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denials {
    /// Readable ones.
    pub known: Vec<Denial>,
    /// Number of the others, which cannot be read.
    pub unreadable: u64,
}

/// Sessions and roles that the admin key may have been used for, as far as the store knows.
#[derive(Clone, Debug, Default)]
pub struct KeyReach {
    /// The session that expires last, or has expired last, of each version of every grant at each
    /// role and user.
    pub sessions: Vec<Session>,
    /// The role that each version of a grant names, deleted ones included.
    pub roles: Vec<(RoleArn, GrantName, u64)>,
    /// Number of those that cannot be read.
    pub unreadable: u64,
}

/// What a service or a grant holds, as a store tells that is only read.
#[derive(Clone, Debug)]
pub struct Held {
    /// The account that the broker's users are in; `None` before AWS has named it.
    pub account: Option<AccountId>,
    /// Each lease that has not ended.
    pub leases: Vec<Lease>,
    /// What it would take to deny their sessions.
    pub denials: Vec<Denial>,
}

/// A lease, the revision that it replaces, and the record of why.
#[derive(Clone, Debug)]
pub struct LeaseChange {
    /// The stored revision that it follows.
    pub from: u64,
    /// As it is to be.
    pub lease: Lease,
    /// What happened.
    pub audit: AuditEvent,
}

/// Memory that outlives the process.
///
/// One method is one transaction, its audit record included: both are durable when it
/// returns, or neither is there. Methods may be called concurrently. A look-up that
/// finds nothing is `None`, not an error. An update that does not find what it expects
/// is [`StoreError::Conflict`] and changes nothing.
#[async_trait]
pub trait Store: Identities + Approvals {
    /// The other brokers that work on it; `None` where there can be none.
    fn peers(&self) -> Option<&dyn Peers>;
    /// Closes it in good order, once what waits has been written.
    async fn close(&self);
    /// Adds a record that belongs to no change.
    async fn record(&self, audit: AuditEvent) -> Result<Receipt, StoreError>;
    /// Records after the sequence number `page.after`, oldest first.
    async fn audit(
        &self,
        filter: &AuditFilter,
        page: &Page,
    ) -> Result<Vec<AuditRecord>, StoreError>;
    /// The sequence number of the newest record; 0 for an empty log.
    async fn audit_size(&self) -> Result<u64, StoreError>;

    /// The log as it is.
    async fn log_head(&self) -> Result<LogHead, StoreError>;
    /// Reads the whole log and compares it with itself; takes some seconds for each
    /// million records.
    async fn check_log(&self, sizes: &[u64]) -> Result<LogCheck, StoreError>;
    /// The bytes of the records after the first `start`, `limit` of them at most.
    async fn log_leaves(&self, start: u64, limit: u64) -> Result<Vec<Vec<u8>>, StoreError>;
    /// How many of the first records have been pruned: whole bundles of 256.
    async fn log_start(&self) -> Result<u64, StoreError>;
    /// How many of the first records are in full bundles, each of which ends before a time.
    async fn log_older(&self, before: Timestamp) -> Result<u64, StoreError>;
    /// Gives the first `count` records up; what proves the others stays. Conflict when as
    /// many have been given up already.
    async fn prune_log(&self, count: u64, audit: AuditEvent) -> Result<(), StoreError>;
    /// Deletes records that were given up, `limit` at most, without a record. Returns how
    /// many.
    async fn delete_pruned(&self, limit: u64) -> Result<u64, StoreError>;
    /// What the log holds of these tiles when it has `size` records, which it has.
    async fn log_tiles(&self, tiles: &BTreeSet<Tile>, size: u64) -> Result<Tiles, StoreError>;
    /// All keys that have signed the log, the newest last.
    async fn log_keys(&self) -> Result<Vec<LogKey>, StoreError>;
    /// Adds a newer one, the `number`th. Conflict when it is known, or there are more or fewer.
    async fn add_log_key(
        &self,
        number: u64,
        key: &LogKey,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Keeps how a key was announced, without a record: it tells of one. Conflict when
    /// the key is unknown.
    async fn hand_over_log_key(&self, verifier: &str, note: &str) -> Result<(), StoreError>;
    /// The newest signed checkpoint.
    async fn checkpoint(&self) -> Result<Option<KeptCheckpoint>, StoreError>;
    /// Keeps a checkpoint that this key has signed, without a record: it tells of records. One
    /// that is older than the kept one changes nothing. Conflict when another key has followed.
    async fn keep_checkpoint(&self, kept: &KeptCheckpoint, signer: &str) -> Result<(), StoreError>;
    /// The newest checkpoint that the witness has cosigned.
    async fn cosigned(&self) -> Result<Option<CosignedCheckpoint>, StoreError>;
    /// Keeps another in its place, without a record: it tells of records.
    async fn keep_cosigned(&self, cosigned: &CosignedCheckpoint) -> Result<(), StoreError>;
    /// Sequence number of the last record that the sink of this name has taken; 0 for
    /// none.
    async fn sink_cursor(&self, name: &Name) -> Result<u64, StoreError>;
    /// Keeps it, without a record: else the log would grow for ever.
    async fn keep_sink_cursor(&self, name: &Name, seq: u64) -> Result<(), StoreError>;

    /// Adds a service. Conflict when the name is taken.
    async fn create_service(&self, service: &Service, audit: AuditEvent) -> Result<(), StoreError>;
    /// Names of services, and of those that denials stand against, that begin so.
    async fn names_like(&self, head: &str) -> Result<Vec<Name>, StoreError>;
    /// One service with what it holds.
    async fn service(&self, name: &Name) -> Result<Option<ServiceOverview>, StoreError>;
    /// Services by name.
    async fn services(&self, page: &Page) -> Result<Vec<ServiceOverview>, StoreError>;
    /// Shuts a service out. Conflict when it is unknown or already suspended.
    async fn suspend_service(
        &self,
        name: &Name,
        suspension: &Suspension,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Lifts a suspension. Conflict when there is none.
    async fn reinstate_service(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError>;
    /// Removes a service with its tokens and grants. Conflict when it is unknown or
    /// holds leases that have not ended.
    async fn delete_service(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError>;
    /// Begins to revoke every lease that has not ended, and asks for the denial of their
    /// sessions, in one transaction; a service as a whole is shut out with it (an earlier
    /// suspension stands). Conflict when the service or grant is unknown.
    async fn revoke(
        &self,
        target: &Target,
        suspension: &Suspension,
        audit: AuditEvent,
    ) -> Result<(Revoked, Receipt), StoreError>;
    /// [`Self::update_lease`] for one that is being revoked, and the denial of its session,
    /// which is returned if there is one.
    async fn revoke_lease(
        &self,
        from: u64,
        lease: &Lease,
        audit: AuditEvent,
    ) -> Result<(Vec<Denial>, Receipt), StoreError>;
    /// Every denial that AWS may still hold.
    async fn denials(&self) -> Result<Denials, StoreError>;
    /// Those for which something is to be done at `now`: to be tried, or over.
    async fn denials_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Denial>, StoreError>;
    /// Those of a service.
    async fn denials_of(&self, service: &Name) -> Result<Vec<Denial>, StoreError>;
    /// Puts denials, each in the place of the revision before, or as first where there is
    /// none, and removes others of just this revision. Conflict, and nothing changes, when
    /// any is of another.
    async fn change_denials(
        &self,
        put: &[Denial],
        remove: &[Denial],
        audit: Vec<AuditEvent>,
    ) -> Result<(), StoreError>;
    /// Leases of a service, or of one grant of it, that have not ended, by their ids. One that
    /// cannot be read is passed over.
    async fn live_leases(
        &self,
        service: &Name,
        grant: Option<&Name>,
    ) -> Result<Vec<Lease>, StoreError>;
    /// The session that expires last, or has expired last, of each version of a service's grants,
    /// or of one grant, at each role and user. One that cannot be read is passed over.
    async fn last_sessions(
        &self,
        service: &Name,
        grant: Option<&Name>,
    ) -> Result<Vec<Session>, StoreError>;
    /// Sessions and roles that the admin key may have been used for.
    async fn reach_of_key(&self) -> Result<KeyReach, StoreError>;
    /// Leases of a service's sessions that are being taken away, by their ids.
    async fn revoking_sessions(
        &self,
        service: &Name,
        page: &Page,
    ) -> Result<Vec<Lease>, StoreError>;

    /// Adds a version of a grant; `grant.version` must be one above the newest ever
    /// (deleted ones included) and the service known, else Conflict.
    async fn put_grant(&self, grant: &Grant, audit: AuditEvent) -> Result<(), StoreError>;
    /// The current version of a grant.
    async fn grant(&self, name: &GrantName) -> Result<Option<Arc<Grant>>, StoreError>;
    /// A version of a grant that was in force at some time.
    async fn grant_version(
        &self,
        name: &GrantName,
        version: u64,
    ) -> Result<Option<Grant>, StoreError>;
    /// The newest version number of a grant, deleted or not; 0 for none.
    async fn newest_grant_version(&self, name: &GrantName) -> Result<u64, StoreError>;
    /// Current versions by name, of one service or all.
    async fn grants(&self, service: Option<&Name>, page: &Page) -> Result<Vec<Grant>, StoreError>;
    /// Ends a grant. Conflict when there is none.
    async fn delete_grant(
        &self,
        name: &GrantName,
        at: Timestamp,
        by: &Name,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;

    /// Adds a pending lease, unless its request has one or its service has `most` live
    /// leases of users, or of sessions, whichever the new one is. Conflict when its
    /// service is suspended or unknown, or its grant's current version is another.
    async fn begin_lease(
        &self,
        lease: &Lease,
        most: u64,
        audit: AuditEvent,
    ) -> Result<Begun, StoreError>;
    /// Replaces a lease by a later revision of it. Conflict when the stored revision is
    /// not `from`, or when it would be active with other credentials or a longer life
    /// and its service is suspended.
    async fn update_lease(
        &self,
        from: u64,
        lease: &Lease,
        audit: AuditEvent,
    ) -> Result<Receipt, StoreError>;
    /// [`Self::update_lease`] for many at once, in one transaction. Returns how many were
    /// replaced; one of another revision than expected is left as it is.
    async fn update_leases(&self, changes: &[LeaseChange]) -> Result<usize, StoreError>;
    /// Whether a lease is handed out, and nothing has begun to take it away.
    async fn is_active(&self, id: &LeaseId) -> Result<bool, StoreError>;
    /// One lease.
    async fn lease(&self, id: &LeaseId) -> Result<Option<Lease>, StoreError>;
    /// The lease that answers a service's request of this id.
    async fn lease_of_request(
        &self,
        service: &Name,
        request: &RequestId,
    ) -> Result<Option<Lease>, StoreError>;
    /// The lease whose key this is, or was when it ended.
    async fn lease_of_key(&self, key: &KeyId) -> Result<Option<Lease>, StoreError>;
    /// Leases, newest first.
    async fn leases(&self, filter: &LeaseFilter, page: &Page) -> Result<Vec<Lease>, StoreError>;
    /// Leases of IAM users for which something is to be done at `now`: pending past their
    /// deadline, active past their expiry, being taken away with an attempt due. Those
    /// that somebody has revoked come first, then the oldest.
    /// One that cannot be read is passed over.
    async fn users_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Lease>, StoreError>;
    /// The same for leases of sessions.
    async fn sessions_due(&self, now: Timestamp, limit: usize) -> Result<Vec<Lease>, StoreError>;
    /// Leases of IAM users that have not ended, by their users' names.
    async fn live_users(&self) -> Result<Vec<Lease>, StoreError>;

    /// The kept admin key.
    async fn admin_key(&self) -> Result<Option<AdminKey>, StoreError>;
    /// Replaces the admin key by a later revision of it, or keeps a first one where
    /// `from` is `None`. Conflict when another stands there.
    async fn replace_admin_key(
        &self,
        from: Option<u64>,
        key: &AdminKey,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;

    /// The id that this broker's users in AWS are told by from another broker's: 10
    /// characters `[0-9a-f]`, made with the store.
    async fn deployment(&self) -> Result<String, StoreError>;
    /// The AWS account that everything in this store is in; `None` until AWS has told.
    async fn account(&self) -> Result<Option<AccountId>, StoreError>;
    /// Keeps the account. Conflict when there is one already.
    async fn bind_account(&self, account: &AccountId, audit: AuditEvent) -> Result<(), StoreError>;
    /// How much there is of what.
    async fn counts(&self) -> Result<Counts, StoreError>;
}
