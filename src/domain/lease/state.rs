//! States of a lease, and the transitions between them.

use jiff::{SignedDuration, Timestamp};

use super::{EndReason, Issuance, Lease};
use crate::domain::{name::LeaseId, request::IdempotencyKey};

/// Longest time for an issue; after that the lease counts as abandoned.
pub const PENDING_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// Time for which the caller that begins to remove a lease has the lease exclusively, before the
/// clean-up tries as well.
pub const CLAIM: SignedDuration = SignedDuration::from_secs(60);

/// Time after the possible creation of a user for which AWS's "there is no such user" proves
/// nothing: IAM is eventually consistent, and a call may arrive late.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html>
pub const CONSISTENCY_WINDOW: SignedDuration = SignedDuration::from_mins(5);

/// Number of failures after which AWS counts as refusing the clean-up.
const QUARANTINE_ATTEMPTS: u32 = 10;
/// Duration of failures after which AWS counts as refusing the clean-up.
const QUARANTINE_AFTER: SignedDuration = SignedDuration::from_mins(30);

/// Public part of the credentials, once AWS has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCredentials {
    /// Access key id, `AKIA…` or `ASIA…`.
    pub access_key_id: String,
    /// Time of AWS's answer.
    pub at: Timestamp,
    /// Expiry; for STS kinds, AWS's own.
    pub expires_at: Timestamp,
}

/// State of the credentials that were handed out under an active lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialState {
    /// The credentials are in AWS as they were handed out.
    Whole,
    /// The key or session is being replaced.
    Replacing {
        /// Time after which the attempt counts as abandoned, and its leftovers are repaired.
        until: Timestamp,
    },
    /// The user's key was deleted for a replacement that failed. A repeated request makes another
    /// key.
    KeyLost,
}

/// Removal of the credentials of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Credentials that had been handed out, if any.
    pub issued: Option<IssuedCredentials>,
    /// Cause of the removal.
    pub cause: EndReason,
    /// Time of the request to remove.
    pub asked_at: Timestamp,
    /// Latest time at which anything of the lease may have been made in AWS.
    pub made_by: Timestamp,
    /// True if the issuer may be at work until `made_by`; until then the issuer removes what it
    /// makes.
    pub left_to_issuer: bool,
    /// Number of failed attempts.
    pub attempts: u32,
    /// Time of the first failed attempt.
    pub failing_since: Option<Timestamp>,
    /// Time of the next attempt.
    pub next_attempt_at: Timestamp,
}

/// State of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// The request is recorded; AWS may not have been asked yet.
    Pending {
        /// Time after which the issue counts as abandoned.
        deadline: Timestamp,
    },
    /// The credentials were handed out.
    Active {
        /// Credentials that were handed out.
        issued: IssuedCredentials,
        /// State of those credentials.
        standing: CredentialState,
    },
    /// The credentials are being removed.
    Revoking(Removal),
    /// AWS keeps refusing to remove the credentials; retried indefinitely.
    Quarantined(Removal),
    /// The credentials are gone before their expiry, or were never handed out.
    Revoked {
        /// Credentials that had been handed out, if any.
        issued: Option<IssuedCredentials>,
        /// Cause of the end.
        cause: EndReason,
        /// Time of the end.
        at: Timestamp,
    },
    /// The credentials are gone because they expired.
    Expired {
        /// Credentials that had been handed out.
        issued: IssuedCredentials,
        /// Time when the broker saw that the credentials were gone.
        at: Timestamp,
    },
}

impl LeaseState {
    /// Returns the state's name in the product's terms.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pending { .. } => "pending",
            Self::Active { .. } => "active",
            Self::Revoking(_) => "revoking",
            Self::Quarantined(_) => "quarantined",
            Self::Revoked { .. } => "revoked",
            Self::Expired { .. } => "expired",
        }
    }
}

/// Transition that the state of the lease does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {lease_id} is {state}; it cannot {attempted}")]
pub struct InvalidTransition {
    /// Lease id.
    pub lease_id: LeaseId,
    /// Name of the current state.
    pub state: &'static str,
    /// Attempted transition, a verb phrase.
    pub attempted: &'static str,
}

impl Lease {
    /// Returns a lease that was requested at `now`.
    #[must_use]
    pub fn request(binding: Issuance, request: Option<IdempotencyKey>, now: Timestamp) -> Self {
        Self {
            binding,
            request,
            requested_at: now,
            state: LeaseState::Pending {
                deadline: now + PENDING_LIMIT,
            },
            revision: 0,
        }
    }

    /// Returns the credentials that were handed out, if any.
    #[must_use]
    pub const fn issued(&self) -> Option<&IssuedCredentials> {
        match &self.state {
            LeaseState::Pending { .. } => None,
            LeaseState::Active { issued, .. } | LeaseState::Expired { issued, .. } => Some(issued),
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => {
                removal.issued.as_ref()
            }
            LeaseState::Revoked { issued, .. } => issued.as_ref(),
        }
    }

    /// Returns whether a replacement has deleted the key and made no other.
    #[must_use]
    pub const fn has_lost_its_key(&self) -> bool {
        matches!(
            self.state,
            LeaseState::Active {
                standing: CredentialState::KeyLost,
                ..
            }
        )
    }

    /// Returns the cause of the end, while or after the lease ends.
    #[must_use]
    pub const fn cause(&self) -> Option<&EndReason> {
        match &self.state {
            LeaseState::Pending { .. } | LeaseState::Active { .. } => None,
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => {
                Some(&removal.cause)
            }
            LeaseState::Revoked { cause, .. } => Some(cause),
            LeaseState::Expired { .. } => Some(&EndReason::Expired),
        }
    }

    /// Returns the removal of the credentials, while it is in progress.
    #[must_use]
    pub const fn removal(&self) -> Option<&Removal> {
        match &self.state {
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => Some(removal),
            _ => None,
        }
    }

    /// Returns the time at which the lease ended.
    #[must_use]
    pub const fn ended_at(&self) -> Option<Timestamp> {
        match &self.state {
            LeaseState::Revoked { at, .. } | LeaseState::Expired { at, .. } => Some(*at),
            _ => None,
        }
    }

    /// Returns the time at which the lease needs the next action; `None` once it has ended.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        match &self.state {
            LeaseState::Pending { deadline } => Some(*deadline),
            LeaseState::Active { issued, standing } => match standing {
                CredentialState::Replacing { until } => Some(issued.expires_at.min(*until)),
                CredentialState::Whole | CredentialState::KeyLost => Some(issued.expires_at),
            },
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => {
                Some(removal.next_attempt_at)
            }
            LeaseState::Revoked { .. } | LeaseState::Expired { .. } => None,
        }
    }

    /// Returns whether an earlier attempt at the issue was not completed: AWS may have something of
    /// it already.
    #[must_use]
    pub const fn is_resumed_attempt(&self) -> bool {
        matches!(self.state, LeaseState::Pending { .. }) && self.revision > 0
    }

    /// Returns whether the credentials may be being issued or replaced at `now`.
    #[must_use]
    pub fn is_in_progress(&self, now: Timestamp) -> bool {
        match &self.state {
            LeaseState::Pending { deadline } => *deadline > now,
            LeaseState::Active {
                standing: CredentialState::Replacing { until },
                ..
            } => *until > now,
            _ => false,
        }
    }

    /// Returns whether the issue may be in progress at `now`, so that only the issuer may remove
    /// what it makes.
    #[must_use]
    pub fn is_in_flight(&self, now: Timestamp) -> bool {
        match &self.state {
            LeaseState::Pending { deadline } => *deadline > now,
            LeaseState::Revoking(removal) => removal.left_to_issuer && removal.made_by > now,
            _ => false,
        }
    }

    /// Returns the time until which a user that AWS does not show at `now` may still appear; `None`
    /// if it no longer may.
    #[must_use]
    pub fn may_appear_until(&self, now: Timestamp) -> Option<Timestamp> {
        let made_by = match &self.state {
            LeaseState::Pending { deadline } => *deadline,
            LeaseState::Active { issued, .. } => issued.at,
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => removal.made_by,
            LeaseState::Revoked { .. } | LeaseState::Expired { .. } => return None,
        };
        Some(made_by + CONSISTENCY_WINDOW).filter(|until| *until > now)
    }

    /// Takes over an issue that its first issuer did not complete.
    ///
    /// # Errors
    /// The lease is not pending.
    pub fn resume(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        match self.state {
            LeaseState::Pending { .. } => Ok(self.transition_to(LeaseState::Pending {
                deadline: now + PENDING_LIMIT,
            })),
            _ => Err(self.invalid_transition("be issued")),
        }
    }

    /// Ends an issue that failed and made nothing in AWS.
    ///
    /// # Errors
    /// The lease is not pending.
    pub fn abandon(self, words: String, now: Timestamp) -> Result<Self, InvalidTransition> {
        match self.state {
            LeaseState::Pending { .. } => {
                let nothing = LeaseState::Revoked {
                    issued: None,
                    cause: EndReason::NotIssued(words),
                    at: now,
                };
                Ok(Self {
                    request: None,
                    ..self
                }
                .transition_to(nothing))
            }
            _ => Err(self.invalid_transition("come to nothing")),
        }
    }

    /// Records AWS's answer: a pending lease becomes active, or a replacement is complete.
    ///
    /// # Errors
    /// The lease is neither pending nor being replaced.
    pub fn activate(self, issued: IssuedCredentials) -> Result<Self, InvalidTransition> {
        match self.state {
            LeaseState::Pending { .. }
            | LeaseState::Active {
                standing: CredentialState::Replacing { .. },
                ..
            } => Ok(self.transition_to(LeaseState::Active {
                issued,
                standing: CredentialState::Whole,
            })),
            _ => Err(self.invalid_transition("become active")),
        }
    }

    /// Begins to replace the key or session under the same lease.
    ///
    /// # Errors
    /// The lease is not active, or has expired at `now`.
    pub fn begin_replacement(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active { issued, .. } if issued.expires_at > now => {
                let issued = issued.clone();
                let until = now + PENDING_LIMIT;
                Ok(self.transition_to(LeaseState::Active {
                    issued,
                    standing: CredentialState::Replacing { until },
                }))
            }
            _ => Err(self.invalid_transition("be replaced")),
        }
    }

    /// Ends a replacement that failed and whose leftovers are repaired. `key_lost`: the key that
    /// was handed out is gone.
    ///
    /// # Errors
    /// The lease is not being replaced.
    pub fn cancel_replacement(self, key_lost: bool) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active {
                issued,
                standing: CredentialState::Replacing { .. },
            } => {
                let issued = issued.clone();
                let standing = if key_lost {
                    CredentialState::KeyLost
                } else {
                    CredentialState::Whole
                };
                Ok(self.transition_to(LeaseState::Active { issued, standing }))
            }
            _ => Err(self.invalid_transition("stay as it was")),
        }
    }

    /// Extends the life of the user to `expires_at`.
    ///
    /// # Errors
    /// The lease is not the active lease of an IAM user, has expired at `now`, or its key is being
    /// replaced.
    pub fn extend(self, expires_at: Timestamp, now: Timestamp) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active {
                issued,
                standing: standing @ (CredentialState::Whole | CredentialState::KeyLost),
            } if !self.binding.kind.is_session() && issued.expires_at > now => {
                let (issued, standing) = (issued.clone(), *standing);
                Ok(self.transition_to(LeaseState::Active {
                    issued: IssuedCredentials {
                        expires_at,
                        ..issued
                    },
                    standing,
                }))
            }
            _ => Err(self.invalid_transition("be renewed")),
        }
    }

    /// Begins the removal of the credentials by the caller, which has [`CLAIM`] to do it.
    ///
    /// AWS ends a session itself, so the next attempt for a session is due at its expiry. An
    /// expired or released session can still be revoked while access made from it may live; the
    /// caller has the lease until that access has ended. A lease that is being removed already
    /// keeps its cause, except that a revocation replaces an expiry or a release. A pending lease
    /// belongs to its issuer: others wait for its deadline.
    ///
    /// # Errors
    /// The lease has ended, and nothing of it can be left to revoke.
    pub fn begin_revocation(
        self,
        cause: EndReason,
        now: Timestamp,
    ) -> Result<Self, InvalidTransition> {
        let session = self.binding.kind.is_session();
        let due = |issued: Option<&IssuedCredentials>, otherwise| {
            let ends = issued.filter(|_| session).map(|issued| issued.expires_at);
            ends.map_or(otherwise, |ends| ends.max(now))
        };
        let begun = |issued: Option<IssuedCredentials>, cause, made_by| Removal {
            next_attempt_at: due(issued.as_ref(), now + CLAIM),
            issued,
            cause,
            asked_at: now,
            made_by,
            left_to_issuer: false,
            attempts: 0,
            failing_since: None,
        };
        match &self.state {
            LeaseState::Pending { deadline } => {
                let came_to_nothing = matches!(cause, EndReason::NotIssued(_));
                let removal = Removal {
                    left_to_issuer: true,
                    next_attempt_at: now.max(*deadline),
                    ..begun(None, cause, *deadline)
                };
                let request = self.request.clone().filter(|_| !came_to_nothing);
                Ok(Self { request, ..self }.transition_to(LeaseState::Revoking(removal)))
            }
            LeaseState::Active { issued, .. } => {
                let removal = begun(Some(issued.clone()), cause, issued.at);
                Ok(self.transition_to(LeaseState::Revoking(removal)))
            }
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => {
                let held = self.is_in_flight(now);
                let next_attempt_at = if held {
                    removal.next_attempt_at
                } else {
                    due(removal.issued.as_ref(), now + CLAIM)
                };
                let (cause, asked_at) = match (&removal.cause, cause) {
                    (EndReason::Expired | EndReason::Released, revoked @ EndReason::Revoked(_)) => {
                        (revoked, now)
                    }
                    (first, _) => (first.clone(), removal.asked_at),
                };
                let again = Removal {
                    cause,
                    asked_at,
                    next_attempt_at,
                    ..removal.clone()
                };
                Ok(self.needs_more_work(again))
            }
            LeaseState::Expired { issued, .. }
            | LeaseState::Revoked {
                issued: Some(issued),
                cause: EndReason::Expired | EndReason::Released,
                ..
            } if matches!(cause, EndReason::Revoked(_)) => match self.access_may_live_until(now) {
                Some(until) => {
                    let removal = Removal {
                        next_attempt_at: until,
                        ..begun(Some(issued.clone()), cause, issued.at)
                    };
                    Ok(self.transition_to(LeaseState::Revoking(removal)))
                }
                None => Err(self.invalid_transition("be ended again")),
            },
            LeaseState::Revoked { .. } | LeaseState::Expired { .. } => {
                Err(self.invalid_transition("be ended again"))
            }
        }
    }

    /// Returns the time until which access made from the session may live, if that is later than
    /// `now` and AWS can deny that access.
    #[must_use]
    pub fn access_may_live_until(&self, now: Timestamp) -> Option<Timestamp> {
        let outlived_by = self.binding.holder.as_ref()?.kind().outlived_by()?;
        let until = self.issued()?.expires_at.checked_add(outlived_by);
        Some(until.unwrap_or(Timestamp::MAX)).filter(|until| *until > now)
    }

    /// Records that AWS has ended a session.
    ///
    /// # Errors
    /// The lease is not an active session that has expired at `now`.
    pub fn expire(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active { issued, .. }
                if self.binding.kind.is_session() && issued.expires_at <= now =>
            {
                let issued = issued.clone();
                Ok(self.transition_to(LeaseState::Expired { issued, at: now }))
            }
            _ => Err(self.invalid_transition("expire")),
        }
    }

    /// Postpones the removal, because nothing can be done before `until`.
    ///
    /// # Errors
    /// The lease is not being removed.
    pub fn wait(self, until: Timestamp) -> Result<Self, InvalidTransition> {
        match self.removal().cloned() {
            Some(removal) => Ok(self.needs_more_work(Removal {
                left_to_issuer: false,
                next_attempt_at: until,
                ..removal
            })),
            None => Err(self.invalid_transition("wait")),
        }
    }

    /// Records a failed attempt at the removal; the next one is due after `delay`. After ten
    /// failures, or thirty minutes of failures, the lease is quarantined.
    ///
    /// # Errors
    /// The lease is not being removed.
    pub fn postpone(
        self,
        now: Timestamp,
        delay: SignedDuration,
    ) -> Result<Self, InvalidTransition> {
        let Some(removal) = self.removal().cloned() else {
            return Err(self.invalid_transition("be postponed"));
        };
        let failing_since = removal.failing_since.unwrap_or(now);
        let failed = Removal {
            left_to_issuer: false,
            attempts: removal.attempts.saturating_add(1),
            failing_since: Some(failing_since),
            next_attempt_at: now + delay,
            ..removal
        };
        let hopeless = failed.attempts >= QUARANTINE_ATTEMPTS
            || now.duration_since(failing_since) >= QUARANTINE_AFTER;
        if hopeless {
            Ok(self.transition_to(LeaseState::Quarantined(failed)))
        } else {
            Ok(self.needs_more_work(failed))
        }
    }

    /// Ends the removal: nothing of the lease is left in AWS.
    ///
    /// # Errors
    /// The lease is not being removed.
    pub fn finish(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        let Some(removal) = self.removal().cloned() else {
            return Err(self.invalid_transition("finish"));
        };
        let next = match removal {
            Removal {
                issued: Some(issued),
                cause: EndReason::Expired,
                ..
            } => LeaseState::Expired { issued, at: now },
            Removal { issued, cause, .. } => LeaseState::Revoked {
                issued,
                cause,
                at: now,
            },
        };
        Ok(self.transition_to(next))
    }

    /// Returns the lease with the changed removal, still revoking or still quarantined.
    fn needs_more_work(self, removal: Removal) -> Self {
        let state = match self.state {
            LeaseState::Quarantined(_) => LeaseState::Quarantined(removal),
            _ => LeaseState::Revoking(removal),
        };
        self.transition_to(state)
    }

    fn transition_to(self, state: LeaseState) -> Self {
        Self {
            state,
            revision: self.revision + 1,
            ..self
        }
    }

    fn invalid_transition(&self, attempted: &'static str) -> InvalidTransition {
        InvalidTransition {
            lease_id: self.binding.lease_id.clone(),
            state: self.state.as_str(),
            attempted,
        }
    }
}
