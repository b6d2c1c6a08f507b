//! Where a lease stands, and how it may go on.

use jiff::{SignedDuration, Timestamp};

use super::{Binding, Cause, Lease};
use crate::domain::{name::LeaseId, request::NamedRequest};

/// How long an issue may take before the lease counts as abandoned.
pub const PENDING_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// How long whoever begins to take a lease away has it to itself before the clean-up
/// tries as well.
pub const CLAIM: SignedDuration = SignedDuration::from_secs(60);

/// How long after a user may have been made AWS's "there is no such user" proves
/// nothing: IAM is eventually consistent, and a call may arrive late.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html>
pub const CONSISTENCY_WINDOW: SignedDuration = SignedDuration::from_mins(5);

/// After so many failures AWS counts as refusing the clean-up.
const QUARANTINE_ATTEMPTS: u32 = 10;
/// After so long a time of failures as well.
const QUARANTINE_AFTER: SignedDuration = SignedDuration::from_mins(30);

/// The credentials' public side, once AWS has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// `AKIA…` or `ASIA…`.
    pub access_key_id: String,
    /// When AWS answered.
    pub at: Timestamp,
    /// AWS's own expiration for STS kinds.
    pub expires_at: Timestamp,
}

/// How it is with what was handed out under an active lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in AWS as it was handed out.
    Whole,
    /// Its key or session is being replaced.
    Replacing {
        /// After this the attempt counts as abandoned, and what it left is put in order.
        until: Timestamp,
    },
    /// A user's key was taken away for a replacement that came to nothing. A repetition
    /// makes another.
    KeyLost,
}

/// The taking away of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// What had been handed out, if anything.
    pub issued: Option<Issued>,
    /// Why.
    pub cause: Cause,
    /// When that was asked for.
    pub asked_at: Timestamp,
    /// After this nothing of it was made any more.
    pub made_by: Timestamp,
    /// Until `made_by` its issuer may be at work and takes away what it makes.
    pub left_to_issuer: bool,
    /// How often AWS has been asked in vain.
    pub attempts: u32,
    /// Since when.
    pub failing_since: Option<Timestamp>,
    /// When to ask (again).
    pub next_attempt_at: Timestamp,
}

/// Where a lease stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Recorded; AWS may not have been asked yet.
    Pending {
        /// After this the issue counts as abandoned.
        deadline: Timestamp,
    },
    /// Handed out.
    Active {
        /// What.
        issued: Issued,
        /// Whether that stands.
        standing: Standing,
    },
    /// Being taken away.
    Revoking(Removal),
    /// To be taken away, but AWS keeps refusing; tried for ever.
    Quarantined(Removal),
    /// Gone before its time, or never handed out.
    Revoked {
        /// What had been handed out, if anything.
        issued: Option<Issued>,
        /// Why.
        cause: Cause,
        /// When it was gone.
        at: Timestamp,
    },
    /// Gone because its time ran out.
    Expired {
        /// What had been handed out.
        issued: Issued,
        /// When it was seen to be gone.
        at: Timestamp,
    },
}

impl LeaseState {
    /// The state's name, as in product terms.
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

/// A transition that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {lease_id} is {state}; it cannot {attempted}")]
pub struct InvalidTransition {
    /// Which lease.
    pub lease_id: LeaseId,
    /// Where it stands.
    pub state: &'static str,
    /// What was tried.
    pub attempted: &'static str,
}

impl Lease {
    /// A lease asked for at `now`.
    #[must_use]
    pub fn request(binding: Binding, request: Option<NamedRequest>, now: Timestamp) -> Self {
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

    /// What had been handed out, if anything.
    #[must_use]
    pub const fn issued(&self) -> Option<&Issued> {
        match &self.state {
            LeaseState::Pending { .. } => None,
            LeaseState::Active { issued, .. } | LeaseState::Expired { issued, .. } => Some(issued),
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => {
                removal.issued.as_ref()
            }
            LeaseState::Revoked { issued, .. } => issued.as_ref(),
        }
    }

    /// Whether a replacement has taken its key away and brought no other.
    #[must_use]
    pub const fn has_lost_its_key(&self) -> bool {
        matches!(
            self.state,
            LeaseState::Active {
                standing: Standing::KeyLost,
                ..
            }
        )
    }

    /// Why it ends or ended.
    #[must_use]
    pub const fn cause(&self) -> Option<&Cause> {
        match &self.state {
            LeaseState::Pending { .. } | LeaseState::Active { .. } => None,
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => {
                Some(&removal.cause)
            }
            LeaseState::Revoked { cause, .. } => Some(cause),
            LeaseState::Expired { .. } => Some(&Cause::Expired),
        }
    }

    /// Its taking away, while that goes on.
    #[must_use]
    pub const fn removal(&self) -> Option<&Removal> {
        match &self.state {
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => Some(removal),
            _ => None,
        }
    }

    /// When it ended.
    #[must_use]
    pub const fn ended_at(&self) -> Option<Timestamp> {
        match &self.state {
            LeaseState::Revoked { at, .. } | LeaseState::Expired { at, .. } => Some(*at),
            _ => None,
        }
    }

    /// When something is to be done about it; `None` once it has ended.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        match &self.state {
            LeaseState::Pending { deadline } => Some(*deadline),
            LeaseState::Active { issued, standing } => match standing {
                Standing::Replacing { until } => Some(issued.expires_at.min(*until)),
                Standing::Whole | Standing::KeyLost => Some(issued.expires_at),
            },
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => {
                Some(removal.next_attempt_at)
            }
            LeaseState::Revoked { .. } | LeaseState::Expired { .. } => None,
        }
    }

    /// Whether an earlier attempt at its issue came to no end: AWS may hold something of
    /// it already.
    #[must_use]
    pub const fn is_taken_over(&self) -> bool {
        matches!(self.state, LeaseState::Pending { .. }) && self.revision > 0
    }

    /// Whether somebody may be issuing it at `now`, or replacing what it stands for.
    #[must_use]
    pub fn is_being_made(&self, now: Timestamp) -> bool {
        match &self.state {
            LeaseState::Pending { deadline } => *deadline > now,
            LeaseState::Active {
                standing: Standing::Replacing { until },
                ..
            } => *until > now,
            _ => false,
        }
    }

    /// Whether its issue may still be going on at `now`, so that only the issuer may
    /// take away what it makes.
    #[must_use]
    pub fn is_in_flight(&self, now: Timestamp) -> bool {
        match &self.state {
            LeaseState::Pending { deadline } => *deadline > now,
            LeaseState::Revoking(removal) => removal.left_to_issuer && removal.made_by > now,
            _ => false,
        }
    }

    /// Whether a user of it that AWS does not show at `now` may yet appear, and until
    /// when.
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

    /// Somebody takes over an issue that its first issuer did not bring to its end.
    ///
    /// # Errors
    /// Unless it is pending.
    pub fn resume(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        match self.state {
            LeaseState::Pending { .. } => Ok(self.to(LeaseState::Pending {
                deadline: now + PENDING_LIMIT,
            })),
            _ => Err(self.refuse("be issued")),
        }
    }

    /// Its issue came to nothing, and nothing was made.
    ///
    /// # Errors
    /// Unless it is pending.
    pub fn abandon(self, words: String, now: Timestamp) -> Result<Self, InvalidTransition> {
        match self.state {
            LeaseState::Pending { .. } => {
                let nothing = LeaseState::Revoked {
                    issued: None,
                    cause: Cause::NotIssued(words),
                    at: now,
                };
                Ok(Self {
                    request: None,
                    ..self
                }
                .to(nothing))
            }
            _ => Err(self.refuse("come to nothing")),
        }
    }

    /// AWS has answered: pending becomes active, or a replacement is complete.
    ///
    /// # Errors
    /// Unless it is pending or being replaced.
    pub fn activate(self, issued: Issued) -> Result<Self, InvalidTransition> {
        match self.state {
            LeaseState::Pending { .. }
            | LeaseState::Active {
                standing: Standing::Replacing { .. },
                ..
            } => Ok(self.to(LeaseState::Active {
                issued,
                standing: Standing::Whole,
            })),
            _ => Err(self.refuse("become active")),
        }
    }

    /// Its key or session is about to be replaced under the same lease.
    ///
    /// # Errors
    /// Unless it is active and its time is not up at `now`.
    pub fn begin_replacement(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active { issued, .. } if issued.expires_at > now => {
                let issued = issued.clone();
                let until = now + PENDING_LIMIT;
                Ok(self.to(LeaseState::Active {
                    issued,
                    standing: Standing::Replacing { until },
                }))
            }
            _ => Err(self.refuse("be replaced")),
        }
    }

    /// A replacement came to nothing, and what it left is in order: `key_lost` tells
    /// whether the key that was handed out is gone.
    ///
    /// # Errors
    /// Unless it is being replaced.
    pub fn keep(self, key_lost: bool) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active {
                issued,
                standing: Standing::Replacing { .. },
            } => {
                let issued = issued.clone();
                let standing = if key_lost {
                    Standing::KeyLost
                } else {
                    Standing::Whole
                };
                Ok(self.to(LeaseState::Active { issued, standing }))
            }
            _ => Err(self.refuse("stay as it was")),
        }
    }

    /// Its user lives until `expires_at`.
    ///
    /// # Errors
    /// Unless it is the active lease of an IAM user whose time is not up at `now` and
    /// whose key is not being replaced.
    pub fn extend(self, expires_at: Timestamp, now: Timestamp) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active {
                issued,
                standing: standing @ (Standing::Whole | Standing::KeyLost),
            } if !self.binding.kind.is_session() && issued.expires_at > now => {
                let (issued, standing) = (issued.clone(), *standing);
                Ok(self.to(LeaseState::Active {
                    issued: Issued {
                        expires_at,
                        ..issued
                    },
                    standing,
                }))
            }
            _ => Err(self.refuse("be renewed")),
        }
    }

    /// The caller is to remove the credentials, and has [`CLAIM`] to do so. A
    /// session is AWS's to end, when it expires; one that has expired can still be revoked
    /// while access made from it may live, and is then the caller's until that is over. A lease
    /// that is already being removed keeps its cause, but one that is revoked now no longer
    /// merely ends. One that is still pending belongs to its issuer: others wait for its
    /// deadline.
    ///
    /// # Errors
    /// When it has ended, and nothing of it can be left.
    pub fn begin_revocation(self, cause: Cause, now: Timestamp) -> Result<Self, InvalidTransition> {
        let session = self.binding.kind.is_session();
        let due = |issued: Option<&Issued>, otherwise| {
            let ends = issued.filter(|_| session).map(|issued| issued.expires_at);
            ends.map_or(otherwise, |ends| ends.max(now))
        };
        let begun = |issued: Option<Issued>, cause, made_by| Removal {
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
                let came_to_nothing = matches!(cause, Cause::NotIssued(_));
                let removal = Removal {
                    left_to_issuer: true,
                    next_attempt_at: now.max(*deadline),
                    ..begun(None, cause, *deadline)
                };
                let request = self.request.clone().filter(|_| !came_to_nothing);
                Ok(Self { request, ..self }.to(LeaseState::Revoking(removal)))
            }
            LeaseState::Active { issued, .. } => {
                let removal = begun(Some(issued.clone()), cause, issued.at);
                Ok(self.to(LeaseState::Revoking(removal)))
            }
            LeaseState::Revoking(removal) | LeaseState::Quarantined(removal) => {
                let held = self.is_in_flight(now);
                let next_attempt_at = if held {
                    removal.next_attempt_at
                } else {
                    due(removal.issued.as_ref(), now + CLAIM)
                };
                let (cause, asked_at) = match (&removal.cause, cause) {
                    (Cause::Expired | Cause::Released, revoked @ Cause::Revoked(_)) => {
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
                Ok(self.goes_on(again))
            }
            LeaseState::Expired { issued, .. }
            | LeaseState::Revoked {
                issued: Some(issued),
                cause: Cause::Expired | Cause::Released,
                ..
            } if matches!(cause, Cause::Revoked(_)) => match self.access_may_live_until(now) {
                Some(until) => {
                    let removal = Removal {
                        next_attempt_at: until,
                        ..begun(Some(issued.clone()), cause, issued.at)
                    };
                    Ok(self.to(LeaseState::Revoking(removal)))
                }
                None => Err(self.refuse("be ended again")),
            },
            LeaseState::Revoked { .. } | LeaseState::Expired { .. } => {
                Err(self.refuse("be ended again"))
            }
        }
    }

    /// Until when access that was made from its session may live, if that is later than `now`
    /// and AWS can be told to deny it.
    #[must_use]
    pub fn access_may_live_until(&self, now: Timestamp) -> Option<Timestamp> {
        let outlived_by = self.binding.holder.as_ref()?.kind().outlived_by()?;
        let until = self.issued()?.expires_at.checked_add(outlived_by);
        Some(until.unwrap_or(Timestamp::MAX)).filter(|until| *until > now)
    }

    /// AWS has ended a session by itself.
    ///
    /// # Errors
    /// Unless it is an active session whose time is up at `now`.
    pub fn expire(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active { issued, .. }
                if self.binding.kind.is_session() && issued.expires_at <= now =>
            {
                let issued = issued.clone();
                Ok(self.to(LeaseState::Expired { issued, at: now }))
            }
            _ => Err(self.refuse("expire")),
        }
    }

    /// Nothing can be done about it before `until`.
    ///
    /// # Errors
    /// Unless it is being taken away.
    pub fn wait(self, until: Timestamp) -> Result<Self, InvalidTransition> {
        match self.removal().cloned() {
            Some(removal) => Ok(self.goes_on(Removal {
                left_to_issuer: false,
                next_attempt_at: until,
                ..removal
            })),
            None => Err(self.refuse("wait")),
        }
    }

    /// AWS could not be brought to take it away; try again after `delay`. After ten
    /// failures, or thirty minutes of them, it is quarantined.
    ///
    /// # Errors
    /// Unless it is being taken away.
    pub fn postpone(
        self,
        now: Timestamp,
        delay: SignedDuration,
    ) -> Result<Self, InvalidTransition> {
        let Some(removal) = self.removal().cloned() else {
            return Err(self.refuse("be postponed"));
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
            Ok(self.to(LeaseState::Quarantined(failed)))
        } else {
            Ok(self.goes_on(failed))
        }
    }

    /// Nothing of it is left in AWS.
    ///
    /// # Errors
    /// Unless it is being taken away.
    pub fn finish(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        let Some(removal) = self.removal().cloned() else {
            return Err(self.refuse("finish"));
        };
        let next = match removal {
            Removal {
                issued: Some(issued),
                cause: Cause::Expired,
                ..
            } => LeaseState::Expired { issued, at: now },
            Removal { issued, cause, .. } => LeaseState::Revoked {
                issued,
                cause,
                at: now,
            },
        };
        Ok(self.to(next))
    }

    /// The same taking away, in the state that it is in.
    fn goes_on(self, removal: Removal) -> Self {
        let state = match self.state {
            LeaseState::Quarantined(_) => LeaseState::Quarantined(removal),
            _ => LeaseState::Revoking(removal),
        };
        self.to(state)
    }

    fn to(self, state: LeaseState) -> Self {
        Self {
            state,
            revision: self.revision + 1,
            ..self
        }
    }

    fn refuse(&self, attempted: &'static str) -> InvalidTransition {
        InvalidTransition {
            lease_id: self.binding.lease_id.clone(),
            state: self.state.as_str(),
            attempted,
        }
    }
}
