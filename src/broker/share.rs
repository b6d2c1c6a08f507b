//! Sessions that several callers share, where their grant says so: each is handed out until
//! it is near its end, and every time with a record of its own. They are in memory alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use metrics::counter;

use crate::{
    broker::{Broker, Error, IssuedLease},
    domain::{
        access::Caller,
        audit::Event,
        credential::Credentials,
        decide::{Authorized, Issue},
        lease::{Lease, LeaseState},
        name::{GrantName, Name},
        principal::{Evidence, Proof},
        refresh,
    },
};

/// Who shares a session: nobody of another service, grant, version of it, lifetime or proof.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sharers {
    grant: GrantName,
    version: u64,
    ttl: Duration,
    proof: String,
}

/// A session that is shared.
struct Session {
    lease: Lease,
    credentials: Credentials,
    issued_at: Timestamp,
    expires_at: Timestamp,
    /// When somebody sees to the next.
    renew_at: Timestamp,
}

/// The session of some sharers.
#[derive(Default)]
struct Slot {
    session: Mutex<Option<Arc<Session>>>,
    /// Held by whoever asks for the next; the others wait for it, or go on with what there is.
    asking: tokio::sync::Mutex<()>,
}

impl Slot {
    fn session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session with so much life left, whose next nobody has to wait for.
    fn fresh(&self, now: Timestamp, least_left: Duration) -> Option<Arc<Session>> {
        let session = self.session().clone()?;
        let left = session.expires_at.duration_since(now);
        let least_left = SignedDuration::try_from(least_left).unwrap_or(SignedDuration::MAX);
        let is_fresh = refresh::is_fresh(session.issued_at, session.expires_at, now);
        (is_fresh && left >= least_left).then_some(session)
    }
}

/// All sessions that are shared.
#[derive(Default)]
pub(super) struct Shared(Mutex<HashMap<Sharers, Arc<Slot>>>);

impl Shared {
    fn slots(&self) -> MutexGuard<'_, HashMap<Sharers, Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, sharers: &Sharers) -> Arc<Slot> {
        Arc::clone(self.slots().entry(sharers.clone()).or_default())
    }

    /// Nothing of this service's is shared any more.
    pub(super) fn forget(&self, service: &Name) {
        let of_service = |sharers: &Sharers| sharers.grant.service == *service;
        self.slots().retain(|sharers, _| !of_service(sharers));
    }

    /// What is near its end, is not kept.
    pub(super) fn forget_old(&self, now: Timestamp) {
        self.slots().retain(|_, slot| {
            let in_use = Arc::strong_count(slot) > 1;
            in_use || slot.fresh(now, Duration::ZERO).is_some()
        });
    }
}

impl Broker {
    /// A session that is shared, or a new one that is shared from now on.
    pub(super) async fn issue_shared(
        self: &Arc<Self>,
        caller: &Caller,
        issue: &Authorized<Issue>,
        least_left: Duration,
    ) -> Result<IssuedLease, Error> {
        let Issue { grant, ttl } = issue.get();
        let slot = self.shared.slot(&Sharers {
            grant: grant.name.clone(),
            version: grant.version,
            ttl: *ttl,
            proof: shown(caller.principal().proof()),
        });
        if let Some(issued) = self.share(caller, issue, &slot, least_left).await? {
            return Ok(issued);
        }
        let _alone = slot.asking.lock().await;
        // Somebody else may have asked meanwhile.
        if let Some(issued) = self.share(caller, issue, &slot, least_left).await? {
            return Ok(issued);
        }
        self.ask_for_next(caller, issue, &slot).await
    }

    async fn ask_for_next(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
        slot: &Slot,
    ) -> Result<IssuedLease, Error> {
        let issued = self.issue_decided(caller, issue, None, None).await?;
        if let Some((issued_at, expires_at)) =
            issued.lease.issued().map(|at| (at.at, at.expires_at))
        {
            *slot.session() = Some(Arc::new(Session {
                lease: issued.lease.clone(),
                credentials: issued.credentials.clone(),
                issued_at,
                expires_at,
                renew_at: refresh::renewal(issued_at, expires_at, self.parts.random.as_ref()),
            }));
        }
        Ok(issued)
    }

    /// Hands out what is shared, if it is fresh and nobody has taken it away.
    async fn share(
        self: &Arc<Self>,
        caller: &Caller,
        issue: &Authorized<Issue>,
        slot: &Arc<Slot>,
        least_left: Duration,
    ) -> Result<Option<IssuedLease>, Error> {
        let now = self.now();
        let Some(session) = slot.fresh(now, least_left) else {
            return Ok(None);
        };
        self.log_is_whole()?;
        let id = &session.lease.binding.lease_id;
        let lease = self.store().lease(id).await?;
        let lives = |lease: &Lease| matches!(lease.state, LeaseState::Active { .. });
        if !lease.as_ref().is_some_and(lives) {
            slot.session().take();
            return Ok(None);
        }
        if session.renew_at <= now {
            self.renew_ahead(caller, issue, slot);
        }
        let audit = self
            .caller_event(caller, Event::LeaseShared)
            .lease(&session.lease)
            .permits(&issue.get().grant);
        let receipt = self.store().record(audit).await?;
        counter!("credbroker_leases_shared_total").increment(1);
        Ok(Some(IssuedLease {
            lease: session.lease.clone(),
            credentials: session.credentials.clone(),
            redelivered: false,
            receipt,
        }))
    }

    /// Sees to the next while this one is handed out; one does at a time.
    fn renew_ahead(self: &Arc<Self>, caller: &Caller, issue: &Authorized<Issue>, slot: &Arc<Slot>) {
        let (broker, slot) = (Arc::clone(self), Arc::clone(slot));
        let (caller, issue) = (caller.clone(), issue.clone());
        self.sagas.spawn(async move {
            let Ok(_alone) = slot.asking.try_lock() else {
                return;
            };
            let is_due = |session: &Arc<Session>| session.renew_at <= broker.now();
            if !slot.session().as_ref().is_some_and(is_due) {
                return;
            }
            if let Err(error) = broker.ask_for_next(&caller, &issue, &slot).await {
                let grant = &issue.get().grant.name;
                tracing::warn!(%grant, %error, "the next session to be shared is asked for again");
            }
        });
    }
}

/// By what a caller is known, whichever certificate or token of it is shown.
fn shown(proof: &Proof) -> String {
    let binding = proof.binding.as_ref().map(ToString::to_string);
    let binding = binding.unwrap_or_default();
    match &proof.evidence {
        Evidence::Token(id) => format!("token {id}"),
        Evidence::Certificate { fingerprint, name } => {
            let name = name.as_ref().unwrap_or(fingerprint);
            format!("certificate {binding} {name}")
        }
        Evidence::Jwt { issuer, subject } => format!("jwt {binding} {issuer} {subject:?}"),
    }
}
