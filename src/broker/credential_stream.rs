//! Stream of the credentials of a grant: the next credentials before the old ones expire, and a
//! notice as soon as they are revoked.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    broker::{Broker, Error, IssuedLease, login::Staying, notifications::RevocationNotice},
    domain::{
        access::Caller,
        decide::IssueRequest,
        denial::Scope,
        lease::{EndReason, Lease, LeaseState},
        name::{GrantName, LeaseId},
        refresh,
    },
};

/// Interval of the checks that the caller is still admitted and that the next credentials are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause before the next credentials are requested again, if the error has no `retry_after`.
const PAUSE: SignedDuration = SignedDuration::from_secs(30);

/// Update that a caller receives.
#[derive(Clone, Debug)]
pub enum CredentialUpdate {
    /// The next credentials.
    Issued(Box<IssuedLease>),
    /// The caller's current credentials are revoked.
    Revoked,
}

/// Subscription of a caller to the credentials of a grant.
#[derive(Debug)]
pub struct Subscription {
    staying: Staying,
    grant: GrantName,
    ttl: Option<Duration>,
    news: Receiver<RevocationNotice>,
    looks: Interval,
    /// True if the lease that the caller named at the start was revoked, or is not its service's.
    /// The first update says so.
    is_revoked: bool,
    held: Option<CurrentLease>,
}

/// Current lease of the caller.
#[derive(Debug)]
struct CurrentLease {
    lease_id: LeaseId,
    expires_at: Timestamp,
    renew_at: Timestamp,
}

impl Broker {
    /// Subscribes a caller to the credentials of a grant. The next credentials follow at once,
    /// unless `held` names a lease of the same grant that is fresh.
    ///
    /// # Errors
    /// The caller is no service; the store's error.
    pub async fn follow(
        self: &Arc<Self>,
        caller: Caller,
        grant: GrantName,
        ttl: Option<Duration>,
        held: Option<LeaseId>,
    ) -> Result<Subscription, Error> {
        let watch = self.watch(&caller, &[]).await?;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let lease = match &held {
            Some(id) => self.store().lease(id).await?,
            None => None,
        };
        let lease = lease.filter(|lease| lease.binding.grant.service == grant.service);
        let is_revoked = held.is_some() && lease.as_ref().is_none_or(was_taken_away);
        let held = lease.filter(|lease| lease.binding.grant == grant);
        let held = held.and_then(|lease| self.as_held(&lease, None));
        Ok(Subscription {
            staying: Staying::new(caller),
            grant,
            ttl,
            news: watch.news,
            looks,
            is_revoked,
            held,
        })
    }

    fn as_held(&self, lease: &Lease, renew_at: Option<Timestamp>) -> Option<CurrentLease> {
        let LeaseState::Active { issued, .. } = &lease.state else {
            return None;
        };
        let random = self.parts.random.as_ref();
        let own = || refresh::renewal(issued.at, issued.expires_at, random);
        Some(CurrentLease {
            lease_id: lease.binding.lease_id.clone(),
            expires_at: issued.expires_at,
            renew_at: renew_at.unwrap_or_else(own),
        })
    }

    /// Waits for the next update; `None` when the broker stops.
    ///
    /// If new credentials cannot be had now, the broker retries while the caller's current ones are
    /// valid.
    ///
    /// # Errors
    /// The caller may no longer follow, or there are no credentials for it; errors of an issue.
    pub async fn next_update(
        self: &Arc<Self>,
        following: &mut Subscription,
    ) -> Result<Option<CredentialUpdate>, Error> {
        if std::mem::take(&mut following.is_revoked) {
            return Ok(Some(CredentialUpdate::Revoked));
        }
        loop {
            let now = self.now();
            if following
                .held
                .as_ref()
                .is_none_or(|held| held.renew_at <= now)
                && let Some(issued) = self.issue_next(following).await?
            {
                return Ok(Some(CredentialUpdate::Issued(Box::new(issued))));
            }
            tokio::select! {
                () = self.until_stopped() => return Ok(None),
                _ = following.looks.tick() => {
                    self.look(&mut following.staying).await?;
                }
                ended = following.news.recv() => if following.loses(ended)? {
                    following.held = None;
                    return Ok(Some(CredentialUpdate::Revoked));
                },
            }
        }
    }

    /// Issues the next credentials; `None` when the broker is to retry later.
    async fn issue_next(
        self: &Arc<Self>,
        following: &mut Subscription,
    ) -> Result<Option<IssuedLease>, Error> {
        let request = IssueRequest {
            other_than: following.held.as_ref().map(|held| held.lease_id.clone()),
            ..IssueRequest::new(following.grant.clone(), following.ttl, None)
        };
        self.look_to_issue(&mut following.staying).await?;
        let caller = following.staying.caller().clone();
        let issued = self.issue(caller, request).await;
        let now = self.now();
        match (issued, &mut following.held) {
            (Ok(issued), held) => {
                *held = self.as_held(&issued.lease, issued.renew_at);
                Ok(Some(issued))
            }
            (Err(error), Some(held))
                if is_transient(&error) && refresh::is_alive(held.expires_at, now) =>
            {
                let pause = error.retry_after().map(SignedDuration::try_from);
                held.renew_at = now + pause.and_then(Result::ok).unwrap_or(PAUSE);
                Ok(None)
            }
            (Err(error), _) => {
                // If the service was suspended meanwhile, the caller gets that error instead.
                self.look(&mut following.staying).await?;
                Err(error)
            }
        }
    }
}

impl Subscription {
    /// Returns whether the revocation covers the current lease.
    fn loses(&self, ended: Result<RevocationNotice, RecvError>) -> Result<bool, Error> {
        let ended = ended.map_err(|_| Error::watcher_too_slow())?;
        Ok(ended.service == self.grant.service
            && match &ended.scope {
                Scope::Everyone | Scope::Service => true,
                Scope::Grant(grant) => *grant == self.grant.grant,
                Scope::Lease(id) => self.held.as_ref().is_some_and(|held| held.lease_id == *id),
            })
    }
}

/// Returns whether the lease was revoked or never issued. Expiry and release do not count.
const fn was_taken_away(lease: &Lease) -> bool {
    matches!(
        lease.cause(),
        Some(EndReason::Revoked(_) | EndReason::NotIssued(_))
    )
}

/// Returns whether the error is transient, so that the current credentials stay valid.
const fn is_transient(error: &Error) -> bool {
    !matches!(
        error,
        Error::Invalid(_)
            | Error::Unauthenticated
            | Error::Suspended(_)
            | Error::NotPermitted(_)
            | Error::Denied(_)
            | Error::NotFound(_)
    )
}
