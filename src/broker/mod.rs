//! The use cases, one file each: the order of steps between decision, store and AWS.

pub mod error;
pub mod ports;
pub mod wait;

mod account;
mod admin_key;
mod aggregation;
mod approvals;
mod audit;
mod background;
mod bindings;
mod canary;
mod cleanup;
mod credential_stream;
mod delivery;
mod denial_maintenance;
mod denial_outcome;
mod deny;
mod enrollment;
mod grants;
mod iam_reconcile;
mod idempotency;
mod issue;
mod journal;
mod locks;
mod login;
mod lookup;
mod membership;
mod notifications;
mod operators;
mod policy_writer;
mod prune;
mod rate_limit;
mod reinstatement;
mod removal;
mod renew;
mod revoke;
mod second_checks;
mod services;
mod session_cache;
mod signing;
mod signing_key;
mod single_flight;
mod status;
mod stolen;
mod time;
mod witness;

use std::{
    future::Future,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, atomic::AtomicBool},
    time::Duration,
};

use data_encoding::HEXLOWER;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    admin_key::{AdminKeyPolicy, AdminKeyStatus},
    canary::PROOF_LIMIT,
    credential_stream::{CredentialUpdate, Subscription},
    denial_outcome::DenialOutcome,
    error::Error,
    iam_reconcile::Reconciliation,
    issue::IssuedLease,
    login::Staying,
    lookup::KeyOwner,
    notifications::{RevocationNotice, Watch},
    operators::NewOperator,
    removal::RemovalOutcome,
    renew::RenewedLease,
    revoke::{Preview, Progress, Revocation, RevokedLease, SeenEnd},
    services::NewToken,
    signing::SignedCheckpoint,
    status::Status,
    stolen::{StolenKeyReplaced, StolenProgress},
};
use crate::{
    broker::{
        aggregation::Aggregation,
        cleanup::InProgressIds,
        journal::PendingRevocations,
        locks::ClusterLocks,
        notifications::{Subscribers, SuspensionChannel},
        policy_writer::PolicyWriter,
        ports::{
            AdminKeyApi, Authentication, CertificateAuthority, CheckpointFile, DenyPolicyApi,
            EmergencyJournal, Inventory, Issuer, Store, StoreError, Witness,
        },
        rate_limit::RateLimiter,
        session_cache::SessionCache,
        signing_key::LogSigner,
        single_flight::SingleFlight,
    },
    domain::{
        access::Caller,
        arn::Partition,
        audit::{AuditEvent, Event},
        clock::Clock,
        denial::Placements,
        name::Name,
        random::Random,
        service::Limits,
    },
};

/// Dependencies of the broker.
pub struct Dependencies {
    /// Authentication of callers.
    pub authentication: Arc<dyn Authentication>,
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// Issue and deletion of credentials in AWS.
    pub issuer: Arc<dyn Issuer>,
    /// Listing of the broker's own users and keys in AWS.
    pub inventory: Arc<dyn Inventory>,
    /// Denial of sessions in AWS.
    pub denier: Arc<dyn DenyPolicyApi>,
    /// AWS policies in which denials are written.
    pub placements: Placements,
    /// The broker's admin key in AWS.
    pub keyring: Arc<dyn AdminKeyApi>,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Source of randomness.
    pub random: Arc<dyn Random>,
    /// AWS partition of the broker.
    pub partition: Partition,
    /// AWS region of the broker, for `status`.
    pub region: String,
    /// Limits of each service at the start.
    pub limits: Limits,
    /// Sealing and rotation of the admin key.
    pub custody: AdminKeyPolicy,
    /// Checkpoint file beside the store, which holds the newest signed checkpoint.
    pub anchor: Option<Arc<dyn CheckpointFile>>,
    /// Time for which log records are kept at least.
    pub keep: Duration,
    /// Time that AWS may take to enforce a denial before that is left to the background.
    pub proof_limit: Duration,
    /// The broker's own authority for client certificates.
    pub authority: Option<Arc<dyn CertificateAuthority>>,
    /// Witness that cosigns the log.
    pub witness: Option<Arc<dyn Witness>>,
    /// Journal of revocations while the store takes no records.
    pub spool: Arc<dyn EmergencyJournal>,
    /// True if some changes need a second operator.
    pub two_person: bool,
    /// Cancelled when the broker is to stop: background loops end.
    pub stop: CancellationToken,
}

/// The credential broker: every use case is a method.
pub struct Broker {
    parts: Dependencies,
    /// Current limits of each service.
    limits: RwLock<Limits>,
    started_at: jiff::Timestamp,
    /// True once the broker is to stop soon.
    is_leaving: AtomicBool,
    /// Id of this run in the log: 8 characters `[0-9a-f]`.
    instance: String,
    sagas: TaskTracker,
    under_way: SingleFlight,
    paces: RateLimiter,
    user_paces: RateLimiter,
    call_paces: RateLimiter,
    refused_paces: RateLimiter,
    aggregation: Aggregation,
    busy: Arc<InProgressIds>,
    reconciled: Mutex<Option<Reconciliation>>,
    /// AWS name of the user whose keys the last reconciliation checked last.
    last_checked: Mutex<String>,
    /// Set once the admin key is verified to belong to the store's account.
    account: tokio::sync::OnceCell<()>,
    signing: tokio::sync::Mutex<LogSigner>,
    /// Contradiction of the log by a checkpoint or the witness. While set, nothing is issued.
    log_doubt: OnceLock<Error>,
    /// Revocations that the store has not accepted yet.
    unrecorded: PendingRevocations,
    denying: PolicyWriter,
    /// Locks that this replica holds.
    claims: Arc<ClusterLocks>,
    watchers: Subscribers,
    shut_outs: SuspensionChannel,
    shared: SessionCache,
    /// Names of the sinks that receive the log.
    fed: Mutex<Vec<Name>>,
    /// Locked during a step of the admin key's replacement.
    rotating: tokio::sync::Mutex<()>,
}

/// Actor of an audit event.
#[derive(Clone, Copy)]
pub(crate) enum Actor<'a> {
    Caller(&'a Caller),
    Broker,
}

impl Broker {
    /// Creates a broker from its dependencies.
    #[must_use]
    pub fn new(parts: Dependencies) -> Arc<Self> {
        let started_at = parts.clock.now();
        let mut instance = [0; 4];
        parts.random.fill(&mut instance);
        let limits = RwLock::new(parts.limits);
        Arc::new(Self {
            parts,
            limits,
            started_at,
            is_leaving: AtomicBool::new(false),
            instance: HEXLOWER.encode(&instance),
            sagas: TaskTracker::new(),
            under_way: SingleFlight::default(),
            paces: RateLimiter::default(),
            user_paces: RateLimiter::default(),
            call_paces: RateLimiter::default(),
            refused_paces: RateLimiter::default(),
            aggregation: Aggregation::default(),
            busy: Arc::default(),
            reconciled: Mutex::default(),
            last_checked: Mutex::default(),
            account: tokio::sync::OnceCell::new(),
            signing: tokio::sync::Mutex::default(),
            log_doubt: OnceLock::new(),
            unrecorded: PendingRevocations::default(),
            denying: PolicyWriter::default(),
            claims: Arc::default(),
            watchers: Subscribers::default(),
            shut_outs: SuspensionChannel::default(),
            shared: SessionCache::default(),
            fed: Mutex::default(),
            rotating: tokio::sync::Mutex::default(),
        })
    }

    /// Returns the store, for authentication.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        self.parts.store.as_ref()
    }

    /// Returns the current time.
    #[must_use]
    pub fn now(&self) -> jiff::Timestamp {
        self.parts.clock.now()
    }

    /// Sets the limits of each service.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the AWS partition of the broker.
    #[must_use]
    pub const fn partition(&self) -> Partition {
        self.parts.partition
    }

    /// Waits until all operations in progress have ended.
    pub async fn wait_for_tasks(&self) {
        self.sagas.close();
        self.sagas.wait().await;
    }

    /// Runs `work` in its own task, so that a caller that disconnects does not interrupt it.
    async fn spawn_detached<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.sagas.spawn(work).await.unwrap_or_else(|_| {
            Err(Error::Internal(
                "the operation ended unexpectedly".to_owned(),
            ))
        })
    }

    fn event(&self, by: Actor<'_>, event: Event) -> AuditEvent {
        let event = match by {
            Actor::Caller(caller) => AuditEvent::by(caller.principal(), event, self.now()),
            Actor::Broker => AuditEvent::by_broker(event, self.now()),
        };
        event.instance(&self.instance)
    }

    fn caller_event(&self, caller: &Caller, event: Event) -> AuditEvent {
        self.event(Actor::Caller(caller), event)
    }
}

/// Longest time that a disk may take in work that must not block.
const DISK_LIMIT: Duration = Duration::from_secs(10);

/// Limits `work` to `DISK_LIMIT`: a disk that does not answer must not block the broker.
async fn in_time<T>(
    what: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = || StoreError::Unavailable(format!("{what} does not answer"));
    timeout(DISK_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Maps the store's `Conflict` to the caller's error.
fn on_conflict<T>(
    result: Result<T, StoreError>,
    meaning: impl FnOnce() -> Error,
) -> Result<T, Error> {
    result.map_err(|error| match error {
        StoreError::Conflict => meaning(),
        other => other.into(),
    })
}
