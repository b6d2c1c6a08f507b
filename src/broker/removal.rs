//! End of leases: released, revoked one by one or by service, or expired.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use crate::{
    broker::{
        Actor, Broker, Error, in_time, on_conflict,
        ports::{AwsFailure, DeleteOutcome, FailureClass, Priority, Receipt, StoreError},
    },
    domain::{
        access::Caller,
        audit::{AuditEvent, Event, Subject},
        decide::own_service,
        denial::Scope,
        grant::Kind,
        lease::{EndReason, InvalidTransition, Lease, LeaseState},
        name::LeaseId,
        random::back_off,
    },
};

/// Longest time that AWS may take to remove one user; shorter than the time for which its
/// lease is reserved.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(50);
/// Longest pause between two attempts to end a lease; full jitter shortens it.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Longest pause for a lease that AWS keeps refusing to remove.
const QUARANTINE_PAUSE: Duration = Duration::from_mins(15);
/// Pause before the account is checked again.
const UNVERIFIED_PAUSE: Duration = Duration::from_secs(30);
/// Interval between two looks for a user that AWS does not show, but may show later.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// A lease after the attempt to end it.
#[derive(Debug)]
pub struct RemovalOutcome {
    /// Current state of the lease.
    pub lease: Lease,
    /// Text on what is still open; `None` when AWS has shown that the credential is gone.
    pub notice: Option<String>,
}

/// Time of the record of a change: with the change, or later.
#[derive(Clone, Copy)]
pub(super) enum RecordWith {
    Now,
    Later,
}

impl Broker {
    /// Ends one of the caller's own leases.
    ///
    /// # Errors
    /// The lease is unknown or not the caller's (one text for both), it has ended already, or the
    /// release cannot be recorded.
    pub async fn release(
        self: &Arc<Self>,
        caller: Caller,
        id: LeaseId,
    ) -> Result<(RemovalOutcome, Receipt), Error> {
        let broker = Arc::clone(self);
        self.spawn_detached(async move {
            let lease = broker.require_lease(&id).await?;
            if own_service(&caller) != Some(&lease.binding.grant.service) {
                return Err(no_lease(&id));
            }
            broker.check_rate(&caller, &lease.binding.grant).await?;
            if lease.removal().is_some() {
                return broker.released_already(&caller, lease).await;
            }
            if broker.is_shared(&lease).await? {
                let notice = "others share it, so that it goes on until its end";
                return broker
                    .released_in_words(&caller, lease, notice.to_owned())
                    .await;
            }
            broker
                .end(
                    Actor::Caller(&caller),
                    lease,
                    EndReason::Released,
                    Event::LeaseReleased,
                )
                .await
        })
        .await
    }

    /// Returns whether callers share the session of a lease.
    async fn is_shared(&self, lease: &Lease) -> Result<bool, Error> {
        let binding = &lease.binding;
        let grant = self
            .store()
            .grant_version(&binding.grant, binding.grant_version);
        Ok(grant.await?.is_some_and(|grant| grant.spec.reuse.is_some()))
    }

    /// Answers the release of a lease that is being ended already. A service cannot make that
    /// faster.
    async fn released_already(
        &self,
        caller: &Caller,
        lease: Lease,
    ) -> Result<(RemovalOutcome, Receipt), Error> {
        let notice = match usable_until_notice(&lease, self.now()) {
            Some(notice) => notice,
            None => "its removal is in progress already".to_owned(),
        };
        self.released_in_words(caller, lease, notice).await
    }

    /// Records the release of a lease that does not end by it.
    async fn released_in_words(
        &self,
        caller: &Caller,
        lease: Lease,
        notice: String,
    ) -> Result<(RemovalOutcome, Receipt), Error> {
        let audit = self.caller_event(caller, Event::LeaseReleased);
        let audit = audit.lease(&lease).detail(&notice);
        let receipt = self.store().record(audit).await?;
        let taken = RemovalOutcome {
            lease,
            notice: Some(notice),
        };
        Ok((taken, receipt))
    }

    /// Records that `lease` is to end, then ends it in AWS, unless it is being issued.
    pub(super) async fn end(
        &self,
        by: Actor<'_>,
        lease: Lease,
        cause: EndReason,
        event: Event,
    ) -> Result<(RemovalOutcome, Receipt), Error> {
        let audit = self
            .event(by, event)
            .lease(&lease)
            .detail(&cause.to_string());
        let revoked = matches!(cause, EndReason::Revoked(_));
        let (revoking, receipt) = self.begin_revocation(lease, cause, audit).await?;
        if revoked {
            let binding = &revoking.binding;
            let scope = Scope::Lease(binding.lease_id.clone());
            self.notify_ended(&binding.grant.service, scope);
        }
        let taken = self.remove_unless_in_flight(by, revoking).await?;
        Ok((taken, receipt))
    }

    /// Records that nothing is handed out, then removes from AWS what may have been made. Called by
    /// the issuer of the lease.
    pub(super) async fn abandon(
        &self,
        by: Actor<'_>,
        lease: Lease,
        cause: EndReason,
        audit: AuditEvent,
    ) -> Result<RemovalOutcome, Error> {
        let (revoking, _) = self.begin_revocation(lease, cause, audit).await?;
        self.remove_credentials(by, revoking).await
    }

    async fn begin_revocation(
        &self,
        lease: Lease,
        cause: EndReason,
        audit: AuditEvent,
    ) -> Result<(Lease, Receipt), Error> {
        let (id, from) = (lease.binding.lease_id.clone(), lease.revision);
        let revoking = self.start_removal(lease, cause)?;
        let written = in_time(
            "the store",
            self.store().update_lease(from, &revoking, audit),
        )
        .await;
        let receipt = on_conflict(written, || Error::Conflict(Subject::Lease(id)))?;
        Ok((revoking, receipt))
    }

    /// Returns the lease in its state once its removal has begun.
    pub(super) fn start_removal(&self, lease: Lease, cause: EndReason) -> Result<Lease, Error> {
        let id = lease.binding.lease_id.clone();
        let revoking = lease.begin_revocation(cause, self.now());
        revoking.map_err(|refused| Error::WrongState {
            subject: Subject::Lease(id),
            reason: "LEASE_ENDED",
            message: refused.to_string(),
            next: "nothing is left to remove".to_owned(),
        })
    }

    /// Ends a lease in AWS, unless it is still being issued. Its issuer then removes the
    /// credentials before they are handed out.
    async fn remove_unless_in_flight(
        &self,
        by: Actor<'_>,
        lease: Lease,
    ) -> Result<RemovalOutcome, Error> {
        if lease.is_in_flight(self.now()) {
            let notice = "its issue was in progress; it is removed before it is handed out";
            return Ok(RemovalOutcome {
                lease,
                notice: Some(notice.to_owned()),
            });
        }
        self.remove_credentials(by, lease).await
    }

    /// Deletes the credentials of a revoking lease in AWS, as far as AWS can do it now. A
    /// session that has not expired stays as it is.
    pub(super) async fn remove_credentials(
        &self,
        by: Actor<'_>,
        lease: Lease,
    ) -> Result<RemovalOutcome, Error> {
        let now = self.now();
        if let Some(notice) = usable_until_notice(&lease, now) {
            return Ok(RemovalOutcome {
                lease,
                notice: Some(notice),
            });
        }
        match (
            self.delete_in_aws(&lease).await,
            lease.may_appear_until(now),
        ) {
            (Ok(DeleteOutcome::NotFound), Some(until)) => {
                self.recheck_lease(by, lease, until).await
            }
            (Ok(_), _) => self.finish(by, lease).await,
            (Err(failure), _) => self.reschedule_removal(by, lease, failure).await,
        }
    }

    /// Deletes the IAM user of a lease in AWS. A session leaves nothing that could be deleted.
    pub(super) async fn delete_in_aws(&self, lease: &Lease) -> Result<DeleteOutcome, AwsFailure> {
        let urgency = match lease.cause() {
            Some(EndReason::Revoked(_)) => Priority::Revocation,
            _ => Priority::Ordinary,
        };
        match lease.binding.kind {
            Kind::IamUser => {
                self.delete_user_in_aws(&lease.binding.aws_name, urgency)
                    .await
            }
            Kind::AssumeRole | Kind::FederationToken => Ok(DeleteOutcome::Removed),
        }
    }

    pub(super) async fn delete_user_in_aws(
        &self,
        user: &str,
        urgency: Priority,
    ) -> Result<DeleteOutcome, AwsFailure> {
        self.account_is_ours().await.map_err(unverified)?;
        let withdrawn = timeout(WITHDRAW_LIMIT, self.parts.issuer.withdraw(user, urgency));
        withdrawn
            .await
            .unwrap_or_else(|_| Err(AwsFailure::too_slow(WITHDRAW_LIMIT)))
    }

    /// Records that AWS has nothing of the lease left, even if another task or replica has changed
    /// the lease meanwhile.
    async fn finish(&self, by: Actor<'_>, mut lease: Lease) -> Result<RemovalOutcome, Error> {
        loop {
            let (from, now) = (lease.revision, self.now());
            let asked = lease.removal().map(|removal| removal.asked_at);
            let ended = lease.finish(now).map_err(|refused| internal(&refused))?;
            let cause = ended.cause().map(ToString::to_string).unwrap_or_default();
            let audit = self
                .event(by, end_event(&ended))
                .lease(&ended)
                .detail(&cause);
            let audit = match (ended.cause(), asked) {
                (Some(EndReason::Revoked(_)), Some(asked)) => {
                    audit.gone_after(now.duration_since(asked))
                }
                _ => audit,
            };
            lease = self.replace(from, ended, audit).await?;
            if lease.ended_at().is_some() {
                return Ok(RemovalOutcome {
                    lease,
                    notice: None,
                });
            }
        }
    }

    async fn reschedule_removal(
        &self,
        by: Actor<'_>,
        lease: Lease,
        failure: AwsFailure,
    ) -> Result<RemovalOutcome, Error> {
        let (id, said) = (&lease.binding.lease_id, &failure.aws_said);
        tracing::warn!(lease = %id, reason = failure.reason, aws = %said, "AWS did not delete the credentials");
        if failure.class == FailureClass::Deferred {
            // AWS has not failed: AWS was not asked, or the call got its turn too late.
            let turn = failure.retry_after.unwrap_or_default();
            let turn = self.now().saturating_add(turn).unwrap_or(self.now());
            return self.wait(by, lease, turn, failure.message).await;
        }
        let pause = self.pause(&lease);
        let (from, was) = (lease.revision, lease.state.as_str());
        let later = lease
            .postpone(self.now(), pause)
            .map_err(|refused| internal(&refused))?;
        let event = if later.state.as_str() == was {
            Event::LeasePostponed
        } else {
            Event::LeaseQuarantined
        };
        let audit = self
            .event(by, event)
            .lease(&later)
            .failed(failure.reason)
            .aws_request(failure.aws_request_id.as_deref())
            .detail(&failure.aws_said);
        let notice = format!("{failure}; the credential may still work; the broker goes on trying");
        self.goes_on(from, later, audit, notice).await
    }

    /// Schedules another look for a user that AWS does not show. The user may still appear: a call
    /// may arrive late, or a change may not have reached all servers. The user is gone only after
    /// the consistency window.
    async fn recheck_lease(
        &self,
        by: Actor<'_>,
        lease: Lease,
        until: Timestamp,
    ) -> Result<RemovalOutcome, Error> {
        let notice = format!("AWS shows no such user; the broker looks again until {until:.0}");
        let next = until.min(self.now() + LOOK_AGAIN);
        self.wait(by, lease, next, notice).await
    }

    async fn wait(
        &self,
        by: Actor<'_>,
        lease: Lease,
        until: Timestamp,
        notice: String,
    ) -> Result<RemovalOutcome, Error> {
        let audit = self
            .event(by, Event::LeasePostponed)
            .lease(&lease)
            .detail(&notice);
        let from = lease.revision;
        let later = lease.wait(until).map_err(|refused| internal(&refused))?;
        self.goes_on(from, later, audit, notice).await
    }

    async fn goes_on(
        &self,
        from: u64,
        later: Lease,
        audit: AuditEvent,
        notice: String,
    ) -> Result<RemovalOutcome, Error> {
        let lease = self.replace(from, later, audit).await?;
        let notice = lease.ended_at().is_none().then_some(notice);
        Ok(RemovalOutcome { lease, notice })
    }

    fn pause(&self, lease: &Lease) -> SignedDuration {
        let attempts = lease.removal().map_or(0, |removal| removal.attempts);
        let longest = match lease.state {
            LeaseState::Quarantined(_) => QUARANTINE_PAUSE,
            _ => LONGEST_PAUSE,
        };
        let pause = back_off(attempts, longest, self.parts.random.as_ref());
        SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX)
    }

    /// Stores `lease`, or returns the lease as another task or replica that ends it has stored it.
    async fn replace(&self, from: u64, lease: Lease, audit: AuditEvent) -> Result<Lease, Error> {
        match self.store().update_lease(from, &lease, audit).await {
            Ok(_) => Ok(lease),
            Err(StoreError::Conflict) => self.require_lease(&lease.binding.lease_id).await,
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn require_lease(&self, id: &LeaseId) -> Result<Lease, Error> {
        self.store().lease(id).await?.ok_or_else(|| no_lease(id))
    }
}

/// Returns the notice for a session that AWS cannot end before it expires; `None` once it has
/// expired.
pub(super) fn usable_until_notice(lease: &Lease, now: Timestamp) -> Option<String> {
    let kind = lease.binding.kind;
    let ends = lease.issued().map(|issued| issued.expires_at);
    let ends = ends.filter(|ends| kind.is_session() && *ends > now)?;
    Some(format!(
        "AWS keeps honouring this {kind} session until it expires at {ends:.0}"
    ))
}

/// Returns the event that records the end of a lease.
pub(super) const fn end_event(ended: &Lease) -> Event {
    match ended.state {
        LeaseState::Expired { .. } => Event::LeaseExpired,
        _ => Event::LeaseRevoked,
    }
}

pub(super) fn no_lease(id: &LeaseId) -> Error {
    Error::NotFound(Subject::Lease(id.clone()))
}

/// Converts a failed check of the AWS account. The removal waits: in another account, or an unknown
/// one, the absence of a user means nothing.
fn unverified(error: Error) -> AwsFailure {
    match error {
        Error::Aws(failure) => failure,
        error => AwsFailure {
            next: error.next(),
            ..AwsFailure::deferred(error.reason(), error.to_string(), UNVERIFIED_PAUSE)
        },
    }
}

fn internal(refused: &InvalidTransition) -> Error {
    Error::Internal(refused.to_string())
}
