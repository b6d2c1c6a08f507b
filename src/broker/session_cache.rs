//! Cache of sessions that several callers share, if their grant allows it. A session is handed out
//! until it is near its end, each time with its own record. Sessions are held in memory only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use metrics::counter;
use tokio::time::Instant;

use crate::{
    broker::{Broker, Error, IssuedLease},
    domain::{
        access::Caller,
        audit::Event,
        credential::Credentials,
        decide::{Authorized, Issue, IssueRequest},
        lease::Lease,
        name::{GrantName, Name},
        principal::{Evidence, Proof},
        refresh,
    },
};

/// Cache key. Callers share a session only if service, grant, grant version, lifetime and proof are
/// equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    grant: GrantName,
    version: u64,
    ttl: Duration,
    proof: String,
}

/// A shared session.
struct CachedSession {
    lease: Lease,
    credentials: Credentials,
    issued_at: Timestamp,
    expires_at: Timestamp,
    /// Time at which the session is refreshed ahead of its end.
    renew_at: Timestamp,
}

/// Cache entry: the session of one key.
#[derive(Default)]
struct CacheEntry {
    session: Mutex<Option<Arc<CachedSession>>>,
    /// Refresh lock: its owner issues the next session while other callers wait. Holds the time and
    /// error of the last failure, so that callers that waited do not retry at once.
    asking: tokio::sync::Mutex<Option<(Instant, Error)>>,
}

impl CacheEntry {
    fn session(&self) -> MutexGuard<'_, Option<Arc<CachedSession>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the session if it satisfies a request.
    fn session_for(&self, request: &IssueRequest, now: Timestamp) -> Option<Arc<CachedSession>> {
        let session = self.session().clone()?;
        let left = session.expires_at.duration_since(now);
        let least = SignedDuration::try_from(request.least_left).unwrap_or(SignedDuration::MAX);
        let is_other = request.other_than.as_ref() != Some(&session.lease.binding.lease_id);
        let will_do = is_other && left >= least && refresh::is_alive(session.expires_at, now);
        will_do.then_some(session)
    }

    /// Returns the session if it satisfies a request and is fresh: the next one is not needed yet.
    fn fresh_for(&self, request: &IssueRequest, now: Timestamp) -> Option<Arc<CachedSession>> {
        let session = self.session_for(request, now)?;
        refresh::is_fresh(session.issued_at, session.expires_at, now).then_some(session)
    }

    /// Removes a session whose lease is no longer active, unless another session has replaced it.
    fn drop_session(&self, gone: &Arc<CachedSession>) {
        let mut session = self.session();
        session.take_if(|session| Arc::ptr_eq(session, gone));
    }

    fn is_old(&self, now: Timestamp) -> bool {
        let session = self.session();
        session
            .as_ref()
            .is_none_or(|session| !refresh::is_alive(session.expires_at, now))
    }
}

/// All shared sessions.
#[derive(Default)]
pub(super) struct SessionCache(Mutex<HashMap<CacheKey, Arc<CacheEntry>>>);

impl SessionCache {
    fn slots(&self) -> MutexGuard<'_, HashMap<CacheKey, Arc<CacheEntry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, sharers: &CacheKey) -> Arc<CacheEntry> {
        Arc::clone(self.slots().entry(sharers.clone()).or_default())
    }

    /// Removes all sessions of a service.
    pub(super) fn forget(&self, service: &Name) {
        let of_service = |sharers: &CacheKey| sharers.grant.service == *service;
        self.slots().retain(|sharers, _| !of_service(sharers));
    }

    /// Removes expired sessions whose entries are not in use.
    pub(super) fn evict_expired(&self, now: Timestamp) {
        self.slots().retain(|_, slot| {
            let in_use = Arc::strong_count(slot) > 1;
            in_use || !slot.is_old(now)
        });
    }
}

impl Broker {
    /// Returns a shared session, or issues a new one that is shared from then on. An existing
    /// session is returned in the caller's own task: a caller that disconnects leaves nothing half
    /// done.
    pub(super) async fn issue_cached(
        self: &Arc<Self>,
        caller: Caller,
        issue: Authorized<Issue>,
        request: IssueRequest,
    ) -> Result<IssuedLease, Error> {
        let Issue { grant, ttl } = issue.get();
        let slot = self.shared.slot(&CacheKey {
            grant: grant.name.clone(),
            version: grant.version,
            ttl: *ttl,
            proof: shown(caller.principal().proof()),
        });
        let fresh = |now| slot.fresh_for(&request, now);
        if let Some(issued) = self.share(&caller, &issue, &slot, fresh).await? {
            return Ok(issued);
        }
        let broker = Arc::clone(self);
        self.spawn_detached(async move {
            broker
                .wait_for_refresh(&caller, &issue, &request, &slot)
                .await
        })
        .await
    }

    /// Issues the next session, or waits for a concurrent caller that does.
    async fn wait_for_refresh(
        self: &Arc<Self>,
        caller: &Caller,
        issue: &Authorized<Issue>,
        request: &IssueRequest,
        slot: &Arc<CacheEntry>,
    ) -> Result<IssuedLease, Error> {
        let fresh = |now| slot.fresh_for(request, now);
        let since = Instant::now();
        let mut in_vain = loop {
            let in_vain = slot.asking.lock().await;
            if fresh(self.now()).is_none() {
                break in_vain;
            }
            drop(in_vain);
            // Another caller has issued it meanwhile. All callers that waited are served in
            // parallel.
            if let Some(issued) = self.share(caller, issue, slot, fresh).await? {
                return Ok(issued);
            }
        };
        let failed = in_vain.as_ref().filter(|(at, _)| *at >= since);
        let error = match failed {
            Some((_, error)) => error.clone(),
            None => match Box::pin(self.refresh_session(caller, issue, slot)).await {
                Ok(issued) => return Ok(issued),
                Err(error) => {
                    // Callers that have waited since before this failure do not retry. A caller
                    // that only receives the error does not make it more recent.
                    *in_vain = Some((Instant::now(), error.clone()));
                    error
                }
            },
        };
        drop(in_vain);
        // The current session is still valid for a while.
        let left = self.share(caller, issue, slot, |now| slot.session_for(request, now));
        left.await?.ok_or(error)
    }

    async fn refresh_session(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
        slot: &CacheEntry,
    ) -> Result<IssuedLease, Error> {
        let mut made = self.issue_decided(caller, issue, None, None).await?;
        if let Some(issued) = made.lease.issued() {
            let (issued_at, expires_at) = (issued.at, issued.expires_at);
            let renew_at = refresh::renewal(issued_at, expires_at, self.parts.random.as_ref());
            made.renew_at = Some(renew_at);
            *slot.session() = Some(Arc::new(CachedSession {
                lease: made.lease.clone(),
                credentials: made.credentials.clone(),
                issued_at,
                expires_at,
                renew_at,
            }));
        }
        Ok(made)
    }

    /// Returns the session that `find` finds, with a record of it, if its lease is still active.
    async fn share(
        self: &Arc<Self>,
        caller: &Caller,
        issue: &Authorized<Issue>,
        slot: &Arc<CacheEntry>,
        find: impl Fn(Timestamp) -> Option<Arc<CachedSession>>,
    ) -> Result<Option<IssuedLease>, Error> {
        let now = self.now();
        let Some(session) = find(now) else {
            return Ok(None);
        };
        self.check_log_integrity()?;
        let id = &session.lease.binding.lease_id;
        if !self.store().is_active(id).await? {
            slot.drop_session(&session);
            return Ok(None);
        }
        if session.renew_at <= now {
            self.refresh_ahead(caller, issue, slot);
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
            renew_at: Some(session.renew_at),
            receipt,
        }))
    }

    /// Refreshes the session in the background while the current one is handed out. One refresh at
    /// a time.
    fn refresh_ahead(
        self: &Arc<Self>,
        caller: &Caller,
        issue: &Authorized<Issue>,
        slot: &Arc<CacheEntry>,
    ) {
        let (broker, slot) = (Arc::clone(self), Arc::clone(slot));
        let (caller, issue) = (caller.clone(), issue.clone());
        self.sagas.spawn(async move {
            let Ok(mut in_vain) = slot.asking.try_lock() else {
                return;
            };
            let is_due = |session: &Arc<CachedSession>| session.renew_at <= broker.now();
            if !slot.session().as_ref().is_some_and(is_due) {
                return;
            }
            if let Err(error) = broker.refresh_session(&caller, &issue, &slot).await {
                let grant = &issue.get().grant.name;
                tracing::warn!(%grant, %error, "the next session to be shared is asked for again");
                *in_vain = Some((Instant::now(), error));
            }
        });
    }
}

/// Returns the caller's identity for the cache key: the token's id, or the binding with the
/// certificate's name or the JWT's issuer and subject. A renewed certificate or JWT has the same
/// identity, but a certificate without a name has its fingerprint instead.
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
