//! The use cases, a file each: the order of steps between decision, store and AWS.

pub mod error;
pub mod ports;
pub mod wait;

mod account;
mod admin_key;
mod aggregation;
mod approvals;
mod audit;
mod bindings;
mod checkpoints;
mod claims;
mod denied;
mod deny;
mod denying;
mod emergency;
mod end;
mod enrollment;
mod follow;
mod grants;
mod issue;
mod log_key;
mod login;
mod lookup;
mod operators;
mod paces;
mod peers;
mod reap;
mod reconcile;
mod reinstatement;
mod renew;
mod repeat;
mod retention;
mod revoke;
mod services;
mod settle;
mod share;
mod sinks;
mod status;
mod stolen;
mod time;
mod trial;
mod under_way;
mod uphold;
mod watch;
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
    admin_key::{AdminKeyStatus, Custody},
    checkpoints::SignedCheckpoint,
    denied::Denied,
    end::TakenAway,
    error::Error,
    follow::{Followed, Following},
    issue::IssuedLease,
    login::Staying,
    lookup::KeyOwner,
    operators::NewOperator,
    reconcile::Reconciliation,
    renew::RenewedLease,
    revoke::{Preview, Progress, Revocation, RevokedLease, SeenEnd},
    services::NewToken,
    status::Status,
    stolen::{StolenKeyReplaced, StolenProgress},
    trial::PROOF_LIMIT,
    watch::{Ended, Watch},
};
use crate::{
    broker::{
        aggregation::Aggregation,
        claims::Claims,
        denying::Denying,
        emergency::Unrecorded,
        log_key::Signing,
        paces::Paces,
        ports::{
            Anchor, Authentication, CertificateAuthority, Denier, Inventory, Issuer, Keyring,
            Spool, Store, StoreError, Witness,
        },
        reap::Busy,
        share::Shared,
        under_way::UnderWay,
        watch::{ShutOuts, Watchers},
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

/// What the broker needs to work.
pub struct Parts {
    /// Proof of callers.
    pub authentication: Arc<dyn Authentication>,
    /// Where it remembers.
    pub store: Arc<dyn Store>,
    /// How it makes and takes away credentials.
    pub issuer: Arc<dyn Issuer>,
    /// How it sees what AWS holds of its own.
    pub inventory: Arc<dyn Inventory>,
    /// How it denies sessions in AWS.
    pub denier: Arc<dyn Denier>,
    /// Where it does.
    pub placements: Placements,
    /// Its own key in AWS.
    pub keyring: Arc<dyn Keyring>,
    /// Its time.
    pub clock: Arc<dyn Clock>,
    /// Its chance.
    pub random: Arc<dyn Random>,
    /// The AWS partition it works in.
    pub partition: Partition,
    /// Its AWS region, for `status`.
    pub region: String,
    /// Limits of each service at the start.
    pub limits: Limits,
    /// How its own key is kept.
    pub custody: Custody,
    /// Where the newest checkpoint of the log is kept beside the store.
    pub anchor: Option<Arc<dyn Anchor>>,
    /// How long the log's records stay at least.
    pub keep: Duration,
    /// How long AWS may take to enforce a denial before that is left to the background.
    pub proof_limit: Duration,
    /// The broker's own authority for client certificates.
    pub authority: Option<Arc<dyn CertificateAuthority>>,
    /// Who else signs the log.
    pub witness: Option<Arc<dyn Witness>>,
    /// Where revocations are kept while the store takes no records.
    pub spool: Arc<dyn Spool>,
    /// Whether some changes take a second operator.
    pub two_person: bool,
    /// Cancelled when the broker is to end: what would go on for ever, ends.
    pub stop: CancellationToken,
}

/// The credential broker: every use case is a method.
pub struct Broker {
    parts: Parts,
    /// Limits of each service now.
    limits: RwLock<Limits>,
    started_at: jiff::Timestamp,
    /// It is to end soon.
    is_leaving: AtomicBool,
    /// Tells this run from others in the log: 8 characters `[0-9a-f]`.
    instance: String,
    sagas: TaskTracker,
    under_way: UnderWay,
    paces: Paces,
    user_paces: Paces,
    call_paces: Paces,
    refused_paces: Paces,
    aggregation: Aggregation,
    busy: Arc<Busy>,
    reconciled: Mutex<Option<Reconciliation>>,
    /// Whose keys the last reconciliation looked at last.
    last_checked: Mutex<String>,
    /// Set once the key at work has been seen to be of the store's account.
    account: tokio::sync::OnceCell<()>,
    signing: tokio::sync::Mutex<Signing>,
    /// Why nothing is issued: what a checkpoint or the witness says against the log.
    log_doubt: OnceLock<Error>,
    /// Revocations that the store could not take yet.
    unrecorded: Unrecorded,
    denying: Denying,
    /// What it has to itself among several brokers.
    claims: Arc<Claims>,
    watchers: Watchers,
    shut_outs: ShutOuts,
    shared: Shared,
    /// Sinks that are fed.
    fed: Mutex<Vec<Name>>,
    /// Held while a step of the admin key's replacement is taken.
    rotating: tokio::sync::Mutex<()>,
}

/// On whose account something is done.
#[derive(Clone, Copy)]
pub(crate) enum By<'a> {
    Caller(&'a Caller),
    Broker,
}

impl Broker {
    /// A broker of these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
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
            under_way: UnderWay::default(),
            paces: Paces::default(),
            user_paces: Paces::default(),
            call_paces: Paces::default(),
            refused_paces: Paces::default(),
            aggregation: Aggregation::default(),
            busy: Arc::default(),
            reconciled: Mutex::default(),
            last_checked: Mutex::default(),
            account: tokio::sync::OnceCell::new(),
            signing: tokio::sync::Mutex::default(),
            log_doubt: OnceLock::new(),
            unrecorded: Unrecorded::default(),
            denying: Denying::default(),
            claims: Arc::default(),
            watchers: Watchers::default(),
            shut_outs: ShutOuts::default(),
            shared: Shared::default(),
            fed: Mutex::default(),
            rotating: tokio::sync::Mutex::default(),
        })
    }

    /// The store, for authentication.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        self.parts.store.as_ref()
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> jiff::Timestamp {
        self.parts.clock.now()
    }

    /// Gives each service these limits from now on.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The AWS partition the broker works in.
    #[must_use]
    pub const fn partition(&self) -> Partition {
        self.parts.partition
    }

    /// Waits until everything that was begun has come to its end.
    pub async fn finish_sagas(&self) {
        self.sagas.close();
        self.sagas.wait().await;
    }

    /// Runs `work` in a task of its own, so that a caller who hangs up does not cut it
    /// in half.
    async fn detached<T, F>(&self, work: F) -> Result<T, Error>
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

    fn event(&self, by: By<'_>, event: Event) -> AuditEvent {
        let event = match by {
            By::Caller(caller) => AuditEvent::by(caller.principal(), event, self.now()),
            By::Broker => AuditEvent::by_broker(event, self.now()),
        };
        event.instance(&self.instance)
    }

    fn caller_event(&self, caller: &Caller, event: Event) -> AuditEvent {
        self.event(By::Caller(caller), event)
    }
}

/// Longest time that a disk may take where somebody waits who must not.
const DISK_LIMIT: Duration = Duration::from_secs(10);

/// A disk that does not answer holds nobody up.
async fn in_time<T>(
    what: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = || StoreError::Unavailable(format!("{what} does not answer"));
    timeout(DISK_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Turns the store's Conflict into what it means here.
fn on_conflict<T>(
    result: Result<T, StoreError>,
    meaning: impl FnOnce() -> Error,
) -> Result<T, Error> {
    result.map_err(|error| match error {
        StoreError::Conflict => meaning(),
        other => other.into(),
    })
}
