//! Revocation of a service, of one of its grants, or of one lease, with evidence that AWS refuses
//! the credentials.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, mpsc::UnboundedSender},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    broker::{
        Actor, Broker, Error, RemovalOutcome,
        denial_outcome::DenialOutcome,
        deny::tell,
        in_time, on_conflict,
        ports::{Receipt, RevokeTarget, StoreError},
        removal::{RecordWith, usable_until_notice},
    },
    domain::{
        access::Caller,
        audit::{AuditEvent, Event, Subject},
        denial::{Denial, PolicyOwner, Scope},
        lease::{EndReason, Lease},
        name::LeaseId,
        service::Suspension,
    },
};

/// Number of IAM users of a service that are deleted in parallel.
pub(super) const PARALLEL: usize = 8;
/// Interval at which an incomplete revocation is checked.
const STAY_EVERY: Duration = Duration::from_millis(500);
/// Time for an issue in progress to notice its revocation and clean up.
const IN_FLIGHT_LIMIT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Outcome of one lease that was revoked with others.
#[derive(Clone, Debug)]
pub struct RevokedLease {
    /// Current state of the lease.
    pub lease: Lease,
    /// Evidence of the end; `None` if the end was not seen.
    pub seen: Option<SeenEnd>,
    /// Work that is still open, in words.
    pub notice: Option<String>,
}

/// Evidence that a credential has ended, with the seconds from the request until then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SeenEnd {
    /// AWS refused a call of a canary that the same denial covers.
    Refused(f64),
    /// AWS no longer shows the user and its key, or the session was never handed out. No call with
    /// the credential was refused, since the broker does not keep it.
    Gone(f64),
}

impl SeenEnd {
    /// Returns the seconds until AWS refused a call.
    #[must_use]
    pub const fn refused_after_seconds(self) -> Option<f64> {
        match self {
            Self::Refused(seconds) => Some(seconds),
            Self::Gone(_) => None,
        }
    }

    /// Returns the seconds until the credential was gone.
    #[must_use]
    pub const fn gone_after_seconds(self) -> Option<f64> {
        match self {
            Self::Refused(_) => None,
            Self::Gone(seconds) => Some(seconds),
        }
    }
}

/// Outcome of the revocation of a service or grant.
#[derive(Debug)]
pub struct Revocation {
    /// Time and reason; for a service, of its suspension.
    pub suspension: Suspension,
    /// Each lease that had not ended.
    pub leases: Vec<RevokedLease>,
    /// Denial of the sessions at each role and user concerned.
    pub denials: Vec<DenialOutcome>,
    /// Proof that the revocation is in the log; `None` while the store takes no records.
    pub receipt: Option<Receipt>,
    /// Number of leases that the store cannot read: their credentials are unknown.
    pub unreadable: u64,
    /// Work that is still open, in words.
    pub notice: Option<String>,
}

impl Revocation {
    /// Returns whether AWS was seen to refuse every session, and shows no user any more.
    #[must_use]
    pub fn confirmed(&self) -> bool {
        let ended = |lease: &RevokedLease| lease.seen.is_some();
        self.unreadable == 0
            && self.leases.iter().all(ended)
            && self.denials.iter().all(|denied| denied.denial.is_refused())
    }
}

/// Reach of a revocation that has not been requested.
#[derive(Debug)]
pub struct Preview {
    /// Time of the preview.
    pub at: Timestamp,
    /// Leases that have not ended.
    pub leases: Vec<Lease>,
    /// Denial of the sessions at each role and user concerned.
    pub denials: Vec<Denial>,
}

/// Step of a revocation, reported while it runs.
#[derive(Clone, Debug)]
pub enum Progress {
    /// The revocation has begun. A revoked service gets no more credentials. Under a revoked grant,
    /// issue continues.
    Begun {
        /// Time and reason.
        suspension: Suspension,
        /// Number of leases that had not ended.
        leases: usize,
    },
    /// The denial of sessions at a role or user is written.
    Written(Denial),
    /// AWS was seen to refuse the sessions at a role or user, or the reason why not.
    Denied(DenialOutcome),
    /// Outcome of one lease.
    Lease(RevokedLease),
}

type Watcher<'a> = Option<&'a UnboundedSender<Progress>>;

impl Broker {
    /// Suspends a service and revokes all that it holds, or revokes all that was issued under one
    /// grant. Safe to repeat. Reports each step to `progress`.
    ///
    /// # Errors
    /// The service or grant is unknown, or the revocation cannot be recorded. A credential that AWS
    /// does not end at once is no error: it is reported with its lease and retried.
    pub async fn revoke(
        self: &Arc<Self>,
        caller: Caller,
        target: RevokeTarget,
        words: String,
        progress: Option<UnboundedSender<Progress>>,
    ) -> Result<Revocation, Error> {
        let broker = Arc::clone(self);
        self.spawn_detached(async move {
            let work = broker.revoke_saga(&caller, &target, &words, progress.as_ref());
            Box::pin(work).await
        })
        .await
    }

    pub(super) async fn revoke_saga(
        self: &Arc<Self>,
        caller: &Caller,
        target: &RevokeTarget,
        words: &str,
        progress: Watcher<'_>,
    ) -> Result<Revocation, Error> {
        let suspension = Suspension {
            at: self.now(),
            reason: (!words.is_empty()).then(|| words.to_owned()),
        };
        let audit = match target {
            RevokeTarget::Service(name) => self
                .caller_event(caller, Event::ServiceRevoked)
                .service(name),
            RevokeTarget::Grant(name) => self
                .caller_event(caller, Event::GrantRevoked)
                .grant_name(name),
        };
        let audit = audit.detail(words);
        let revoking = self.store().revoke(target, &suspension, audit.clone());
        let written = in_time("the store", revoking).await;
        if let Err(StoreError::Unavailable(_) | StoreError::Inconsistent { .. }) = written {
            let unrecorded = self.revoke_degraded(target, suspension, audit).await?;
            send_progress(progress, &unrecorded);
            return Ok(unrecorded);
        }
        let (revoked, receipt) = on_conflict(written, || unknown(target))?;
        self.notify_revoked(target);
        tell(progress, || Progress::Begun {
            suspension: revoked.suspension.clone(),
            leases: revoked.leases.len(),
        });
        let (sessions, others): (Vec<_>, Vec<_>) =
            revoked.leases.into_iter().partition(is_denied_session);
        let denying = async {
            let denials = self.deny(revoked.denials, progress).await;
            let leases = self.all_as_denied(sessions, &denials);
            for lease in &leases {
                tell(progress, || Progress::Lease(lease.clone()));
            }
            (leases, denials)
        };
        let ending = self.end_all(others, RecordWith::Now, progress);
        let ((leases, denials), others) = tokio::join!(denying, ending);
        Ok(Revocation {
            suspension: revoked.suspension,
            leases: by_id([leases, others].concat()),
            denials,
            receipt: Some(receipt),
            unreadable: revoked.unreadable,
            notice: (revoked.unreadable > 0).then(|| note_unreadable(revoked.unreadable)),
        })
    }

    /// Waits until AWS was seen to refuse everything in a revocation, for `wait` at most and while
    /// `progress` is read. Returns the current state.
    pub async fn wait_until_refused(
        &self,
        target: &RevokeTarget,
        mut revocation: Revocation,
        wait: Duration,
        progress: &UnboundedSender<Progress>,
    ) -> Revocation {
        let began = Instant::now();
        while !revocation.confirmed() && began.elapsed() < wait && !progress.is_closed() {
            sleep(STAY_EVERY).await;
            // A store that does not answer is read again.
            if let Err(error) = self.look_again_at(target, &mut revocation, progress).await {
                tracing::debug!(%error, "how a revocation stands is looked at again");
            }
        }
        revocation
    }

    async fn look_again_at(
        &self,
        target: &RevokeTarget,
        revocation: &mut Revocation,
        progress: &UnboundedSender<Progress>,
    ) -> Result<(), StoreError> {
        let service = target.service();
        let standing = self.store().denials_of(service).await?;
        let open = revocation.denials.iter_mut();
        for denied in open.filter(|denied| !denied.denial.is_refused()) {
            if let Some(now) = denied.seen_since(&standing) {
                *denied = now;
                tell(Some(progress), || Progress::Denied(denied.clone()));
            }
        }
        let denials = revocation.denials.iter().map(|denied| &denied.denial);
        let refused = denials.filter(|denial| denial.is_refused());
        let refused: BTreeSet<&PolicyOwner> =
            refused.map(|denial| &denial.against.holder).collect();
        let live = self.store().live_leases(service, target.grant()).await?;
        let live: BTreeSet<&LeaseId> = live.iter().map(|lease| &lease.binding.lease_id).collect();
        let open = revocation.leases.iter_mut();
        for revoked in open.filter(|revoked| revoked.seen.is_none()) {
            let (id, removal) = (&revoked.lease.binding.lease_id, revoked.lease.removal());
            // An expired session is no evidence that AWS refused it.
            let binding = &revoked.lease.binding;
            let is_session = binding.kind.is_session() && revoked.lease.issued().is_some();
            let is_refused = binding
                .holder
                .as_ref()
                .is_some_and(|at| refused.contains(at));
            if live.contains(id) || is_session && !is_refused {
                continue;
            }
            let asked_at = removal.map(|removal| removal.asked_at);
            let Some(lease) = self.store().lease(id).await? else {
                continue;
            };
            let after = lease.ended_at().zip(asked_at);
            let after = after.map(|(at, asked)| at.duration_since(asked).as_secs_f64());
            let seen = if is_session {
                SeenEnd::Refused
            } else {
                SeenEnd::Gone
            };
            *revoked = RevokedLease {
                seen: after.map(seen),
                lease,
                notice: None,
            };
            tell(Some(progress), || Progress::Lease(revoked.clone()));
        }
        Ok(())
    }

    /// Lists what a revocation would reach.
    ///
    /// # Errors
    /// The service or grant is unknown, or the preview cannot be recorded.
    pub async fn preview_revocation(
        &self,
        caller: &Caller,
        target: &RevokeTarget,
    ) -> Result<Preview, Error> {
        self.require_service(target.service()).await?;
        if let RevokeTarget::Grant(name) = target
            && self.store().newest_grant_version(name).await? == 0
        {
            return Err(unknown(target));
        }
        let now = self.now();
        let leases = self.store().live_leases(target.service(), target.grant());
        let (leases, denials) = (leases.await?, self.denials_for(target, now).await?);
        let audit = match target {
            RevokeTarget::Service(name) => {
                self.caller_event(caller, Event::LeaseRead).service(name)
            }
            RevokeTarget::Grant(name) => {
                self.caller_event(caller, Event::LeaseRead).grant_name(name)
            }
        };
        let audit = audit.detail("what a revocation would reach");
        self.store().record(audit).await?;
        Ok(Preview {
            at: now,
            leases,
            denials,
        })
    }

    /// Revokes one lease, for an operator.
    ///
    /// # Errors
    /// The lease is unknown or has ended, or the revocation cannot be recorded.
    pub async fn revoke_lease(
        self: &Arc<Self>,
        caller: Caller,
        id: LeaseId,
        words: String,
    ) -> Result<(RevokedLease, Option<Receipt>), Error> {
        let broker = Arc::clone(self);
        self.spawn_detached(async move {
            let lease = broker.require_lease(&id).await?;
            let cause = EndReason::Revoked(words.clone());
            let audit = broker
                .caller_event(&caller, Event::LeaseRevoking)
                .lease(&lease)
                .detail(&cause.to_string());
            let asked = broker.now();
            let ended = if is_denied_session(&lease) {
                Box::pin(broker.revoke_session(lease.clone(), cause, audit.clone())).await
            } else {
                let (by, event) = (Actor::Caller(&caller), Event::LeaseRevoking);
                let ended = Box::pin(broker.end(by, lease.clone(), cause, event)).await;
                ended.map(|(taken, receipt)| (broker.as_revoked_since(taken, asked), receipt))
            };
            match ended {
                Err(Error::Store(_)) => {
                    let revoked = broker.revoke_lease_degraded(lease, &words, audit).await;
                    Ok((revoked, None))
                }
                ended => ended.map(|(revoked, receipt)| (revoked, Some(receipt))),
            }
        })
        .await
    }

    async fn revoke_session(
        self: &Arc<Self>,
        lease: Lease,
        cause: EndReason,
        audit: AuditEvent,
    ) -> Result<(RevokedLease, Receipt), Error> {
        let (id, from) = (lease.binding.lease_id.clone(), lease.revision);
        let service = lease.binding.grant.service.clone();
        let revoking = self.start_removal(lease, cause)?;
        let writing = self.store().revoke_lease(from, &revoking, audit);
        let written = in_time("the store", writing).await;
        let conflict = || Error::Conflict(Subject::Lease(id.clone()));
        let (denials, receipt) = on_conflict(written, conflict)?;
        self.notify_ended(&service, Scope::Lease(id));
        let denials = self.deny(denials, None).await;
        let mut revoked = as_denied(revoking, denials.first(), self.now());
        let broader = denials.into_iter().find_map(|denied| denied.notice);
        revoked.notice = revoked.notice.or(broader);
        Ok((revoked, receipt))
    }

    /// Returns the state of leases after the denial of their sessions.
    pub(super) fn all_as_denied(
        &self,
        sessions: Vec<Lease>,
        denials: &[DenialOutcome],
    ) -> Vec<RevokedLease> {
        let by_holder: BTreeMap<_, &DenialOutcome> = denials
            .iter()
            .map(|denied| (&denied.denial.against.holder, denied))
            .collect();
        let now = self.now();
        let revoked = |lease: Lease| {
            let holder = lease.binding.holder.as_ref();
            let denied = holder.and_then(|holder| by_holder.get(holder).copied());
            as_denied(lease, denied, now)
        };
        sessions.into_iter().map(revoked).collect()
    }

    /// Deletes users, and waits for issues in progress.
    pub(super) async fn end_all(
        self: &Arc<Self>,
        leases: Vec<Lease>,
        recording: RecordWith,
        progress: Watcher<'_>,
    ) -> Vec<RevokedLease> {
        let permits = Arc::new(Semaphore::new(PARALLEL));
        let mut tasks = JoinSet::new();
        for lease in leases {
            let (broker, permits) = (Arc::clone(self), Arc::clone(&permits));
            let progress = progress.cloned();
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await;
                let revoked = broker.end_one(lease, recording).await;
                tell(progress.as_ref(), || Progress::Lease(revoked.clone()));
                revoked
            });
        }
        tasks.join_all().await
    }

    async fn end_one(&self, lease: Lease, recording: RecordWith) -> RevokedLease {
        let before = lease.clone();
        let asked = lease
            .removal()
            .map_or(self.now(), |removal| removal.asked_at);
        let taken = match recording {
            RecordWith::Now if lease.is_in_flight(self.now()) => self.in_flight_ended(lease).await,
            RecordWith::Now => self.remove_credentials(Actor::Broker, lease).await,
            RecordWith::Later => Ok(self.remove_degraded(lease).await),
        };
        match taken {
            Ok(taken) => self.as_revoked_since(taken, asked),
            Err(error) => RevokedLease {
                lease: before,
                seen: None,
                notice: Some(format!("{error}; the broker goes on trying")),
            },
        }
    }

    /// Returns the outcome of a lease whose credentials are deleted or about to be; `asked` is the
    /// time of the request.
    pub(super) fn as_revoked_since(&self, taken: RemovalOutcome, asked: Timestamp) -> RevokedLease {
        let seconds = self.now().duration_since(asked).as_secs_f64();
        RevokedLease {
            seen: taken.notice.is_none().then_some(SeenEnd::Gone(seconds)),
            lease: taken.lease,
            notice: taken.notice,
        }
    }

    /// Waits for an issue in progress: its issuer deletes the credentials before they are handed
    /// out.
    async fn in_flight_ended(&self, lease: Lease) -> Result<RemovalOutcome, Error> {
        let (id, began) = (lease.binding.lease_id.clone(), Instant::now());
        loop {
            let lease = self.require_lease(&id).await?;
            if lease.ended_at().is_some() {
                return Ok(RemovalOutcome {
                    lease,
                    notice: None,
                });
            }
            if began.elapsed() > IN_FLIGHT_LIMIT {
                let notice = "its issue was in progress; it is removed before it is handed out";
                return Ok(RemovalOutcome {
                    lease,
                    notice: Some(notice.to_owned()),
                });
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

fn note_unreadable(count: u64) -> String {
    format!(
        "leases in the store that cannot be read: {count}; nothing is known of their credentials, so see in AWS what \
         the service's name is on, and restore the store from a good copy"
    )
}

/// Reports a revocation that was made while nothing could be recorded.
fn send_progress(progress: Watcher<'_>, revocation: &Revocation) {
    tell(progress, || Progress::Begun {
        suspension: revocation.suspension.clone(),
        leases: revocation.leases.len(),
    });
    for denied in &revocation.denials {
        tell(progress, || Progress::Denied(denied.clone()));
    }
    for lease in &revocation.leases {
        tell(progress, || Progress::Lease(lease.clone()));
    }
}

/// Returns whether the lease is of a session that AWS can deny.
pub(super) fn is_denied_session(lease: &Lease) -> bool {
    lease.binding.holder.is_some() && lease.issued().is_some()
}

/// Returns the state of a session's lease after the denial.
pub(super) fn as_denied(
    lease: Lease,
    denied: Option<&DenialOutcome>,
    now: Timestamp,
) -> RevokedLease {
    let seconds = denied.and_then(|denied| denied.refused_after_seconds);
    if seconds.is_some() {
        return RevokedLease {
            lease: lease.clone().finish(now).unwrap_or(lease),
            seen: seconds.map(SeenEnd::Refused),
            notice: None,
        };
    }
    let notice = denied.and_then(|denied| denied.notice.clone());
    RevokedLease {
        notice: notice.or_else(|| usable_until_notice(&lease, now)),
        seen: None,
        lease,
    }
}

pub(super) fn by_id(mut leases: Vec<RevokedLease>) -> Vec<RevokedLease> {
    leases.sort_by(|a, b| a.lease.binding.lease_id.cmp(&b.lease.binding.lease_id));
    leases
}

fn unknown(target: &RevokeTarget) -> Error {
    Error::NotFound(match target {
        RevokeTarget::Service(name) => Subject::Service(name.clone()),
        RevokeTarget::Grant(name) => Subject::Grant(name.clone()),
    })
}
