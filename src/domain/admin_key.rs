//! The broker's own access key, stored sealed, and its replacement by another key.
//!
//! ```text
//! steady ─▶ creating ─▶ proving ─▶ grace ─▶ retiring ─▶ steady
//! ```
//!
//! The broker records each step before it takes the next one, so that it can continue after a crash
//! in any of them. The old key stays in use until AWS has accepted the new one. After that, the old
//! key works for a grace period, is deactivated, and is deleted some time later.

use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};

use crate::domain::{credential::is_key_id, sealing::Sealed};

/// Time for which the old key still works beside the new one, so that calls that began with the old
/// key can end with it.
pub const GRACE: SignedDuration = SignedDuration::from_mins(5);
/// Time between the deactivation and the deletion of the old key.
pub const RETIREMENT: SignedDuration = SignedDuration::from_mins(5);

/// Id of an IAM user's access key, in AWS's form: `AKIA` and 12 to 124 characters `[A-Z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKeyId(String);

/// Reason why a text is not an [`AccessKeyId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessKeyIdError {
    /// The id of a session's key, `ASIA…`.
    #[error("this is the key of a session (ASIA…), which expires: import the key of an IAM user")]
    Session,
    /// Any other text.
    #[error("an access key id has the form AKIA… with letters A-Z and digits")]
    Shape,
}

impl AccessKeyId {
    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccessKeyId {
    type Err = AccessKeyIdError;

    fn from_str(text: &str) -> Result<Self, AccessKeyIdError> {
        if text.starts_with("ASIA") {
            return Err(AccessKeyIdError::Session);
        }
        if is_key_id(text, "AKIA") {
            Ok(Self(text.to_owned()))
        } else {
            Err(AccessKeyIdError::Shape)
        }
    }
}

/// A key that the broker stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptKey {
    /// Id of the key.
    pub id: AccessKeyId,
    /// Secret of the key, sealed for the context that [`place`] returns.
    pub secret: Sealed,
    /// Time at which the key was imported or created.
    pub since: Timestamp,
}

/// Returns the context that a key's secret is sealed for.
#[must_use]
pub fn place(id: &AccessKeyId) -> String {
    format!("admin_key/{}/secret/1", id.as_str())
}

/// Phase of a replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The key is not being replaced.
    Steady,
    /// AWS is being asked for a second key, and may have created it already.
    Creating,
    /// The second key is stored. The broker is finding out whether AWS accepts it.
    Proving {
        /// The second key.
        new: KeptKey,
    },
    /// The new key is in use. The replaced keys still work.
    Grace {
        /// Replaced keys: usually one, more after an import in the middle of a replacement.
        old: Vec<AccessKeyId>,
    },
    /// The replaced keys are deactivated.
    Retiring {
        /// Replaced keys, as in the phase before.
        old: Vec<AccessKeyId>,
    },
}

impl Phase {
    /// Returns the phase's name.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Creating => "creating",
            Self::Proving { .. } => "proving",
            Self::Grace { .. } => "grace",
            Self::Retiring { .. } => "retiring",
        }
    }

    /// Returns the keys that are not in use: a new key before the switch, replaced keys after it.
    #[must_use]
    pub fn others(&self) -> &[AccessKeyId] {
        match self {
            Self::Steady | Self::Creating => &[],
            Self::Proving { new } => std::slice::from_ref(&new.id),
            Self::Grace { old } | Self::Retiring { old } => old,
        }
    }
}

/// The admin key and the progress of its replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminKey {
    /// ARN of the IAM user that the key belongs to.
    pub user: String,
    /// Key in use.
    pub current: KeptKey,
    /// Phase of the replacement.
    pub phase: Phase,
    /// Time at which the phase began.
    pub phase_since: Timestamp,
    /// Time of the next step. While steady: earliest time of another attempt to begin a replacement
    /// that is due.
    pub due_at: Option<Timestamp>,
    /// Number of failures of this step, or of attempts to begin a replacement.
    pub attempts: u32,
    /// Reason code of the last failure, of this step or of beginning a replacement.
    pub failure: Option<String>,
    /// Number of changes so far, used as fencing token.
    pub revision: u64,
}

/// A step that the phase does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the admin key is {phase}; it cannot {attempted}")]
pub struct InvalidStep {
    /// Name of the current phase.
    pub phase: &'static str,
    /// The refused step, in words that follow "it cannot".
    pub attempted: &'static str,
}

impl AdminKey {
    /// Returns the admin key after the first import.
    #[must_use]
    pub const fn imported(user: String, key: KeptKey) -> Self {
        let phase_since = key.since;
        Self {
            user,
            current: key,
            phase: Phase::Steady,
            phase_since,
            due_at: None,
            attempts: 0,
            failure: None,
            revision: 0,
        }
    }

    /// Puts another key of the same user in its place at once, in every phase. The previous key,
    /// and the second key of a replacement in progress, are deactivated and deleted as in a
    /// rotation.
    #[must_use]
    pub fn replaced_by(self, key: KeptKey) -> Self {
        let (now, mut old) = (key.since, vec![self.current.id.clone()]);
        old.extend_from_slice(self.phase.others());
        old.retain(|id| *id != key.id);
        let replaced = Self {
            current: key,
            ..self
        };
        replaced.to(Phase::Grace { old }, now, now + GRACE)
    }

    /// Begins a replacement.
    ///
    /// # Errors
    /// A replacement is in progress.
    pub fn begin_rotation(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase {
            Phase::Steady => {
                let (attempts, failure) = (self.attempts, self.failure.clone());
                Ok(Self {
                    attempts,
                    failure,
                    ..self.to(Phase::Creating, now, now)
                })
            }
            _ => Err(self.refuse("be rotated again")),
        }
    }

    /// Returns to the steady phase: a replacement cannot begin, or AWS has certainly created no
    /// second key. A replacement that is due may be tried again after `delay`.
    ///
    /// # Errors
    /// A second key may exist already.
    pub fn record_failed_start(
        self,
        reason: &str,
        now: Timestamp,
        delay: SignedDuration,
    ) -> Result<Self, InvalidStep> {
        match self.phase {
            Phase::Steady | Phase::Creating => {
                let attempts = self.attempts.saturating_add(1);
                let since = match self.phase {
                    Phase::Steady => self.phase_since,
                    _ => now,
                };
                Ok(Self {
                    attempts,
                    failure: Some(reason.to_owned()),
                    ..self.to(Phase::Steady, since, now + delay)
                })
            }
            _ => Err(self.refuse("stay as it was")),
        }
    }

    /// Returns to [`Phase::Creating`]: the second key disappeared from AWS before it was in use.
    ///
    /// # Errors
    /// The phase is not [`Phase::Proving`].
    pub fn restart(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase {
            Phase::Proving { .. } => Ok(self.to(Phase::Creating, now, now)),
            _ => Err(self.refuse("lose its second key")),
        }
    }

    /// Records the second key that AWS has created.
    ///
    /// # Errors
    /// The phase is not [`Phase::Creating`].
    pub fn created(self, new: KeptKey) -> Result<Self, InvalidStep> {
        let now = new.since;
        match self.phase {
            Phase::Creating => Ok(self.to(Phase::Proving { new }, now, now)),
            _ => Err(self.refuse("have a second key")),
        }
    }

    /// Puts the second key in use: AWS accepts it.
    ///
    /// # Errors
    /// The phase is not [`Phase::Proving`].
    pub fn switch(self, now: Timestamp) -> Result<Self, InvalidStep> {
        let Phase::Proving { new } = self.phase.clone() else {
            return Err(self.refuse("be switched"));
        };
        let old = vec![self.current.id.clone()];
        let switched = Self {
            current: new,
            ..self
        };
        Ok(switched.to(Phase::Grace { old }, now, now + GRACE))
    }

    /// Makes the next step due at once, without the rest of the pause: the old key is stolen.
    ///
    /// # Errors
    /// The phase is neither [`Phase::Grace`] nor [`Phase::Retiring`].
    pub fn make_due(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase {
            Phase::Grace { .. } | Phase::Retiring { .. } => Ok(Self {
                due_at: Some(now),
                revision: self.revision + 1,
                ..self
            }),
            _ => Err(self.refuse("be without its old key")),
        }
    }

    /// Records that the old key is deactivated.
    ///
    /// # Errors
    /// The phase is not [`Phase::Grace`], or the grace period has not ended.
    pub fn retire(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase.clone() {
            Phase::Grace { old } if self.is_due(now) => {
                Ok(self.to(Phase::Retiring { old }, now, now + RETIREMENT))
            }
            _ => Err(self.refuse("retire its old key")),
        }
    }

    /// Records that the old key is deleted.
    ///
    /// # Errors
    /// The phase is not [`Phase::Retiring`], or its pause has not ended.
    pub fn finish(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase {
            Phase::Retiring { .. } if self.is_due(now) => Ok(Self {
                due_at: None,
                ..self.to(Phase::Steady, now, now)
            }),
            _ => Err(self.refuse("be without its old key")),
        }
    }

    /// Records that the step failed. The next attempt is due after `delay`.
    ///
    /// # Errors
    /// The phase is [`Phase::Steady`], which has no step.
    pub fn postpone(
        self,
        reason: &str,
        now: Timestamp,
        delay: SignedDuration,
    ) -> Result<Self, InvalidStep> {
        if self.phase == Phase::Steady {
            return Err(self.refuse("be postponed"));
        }
        Ok(Self {
            due_at: Some(now + delay),
            attempts: self.attempts.saturating_add(1),
            failure: Some(reason.to_owned()),
            revision: self.revision + 1,
            ..self
        })
    }

    /// Returns whether the next step of a replacement is due at `now`.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.phase != Phase::Steady && self.due_at.is_some_and(|due| due <= now)
    }

    fn to(self, phase: Phase, now: Timestamp, due_at: Timestamp) -> Self {
        Self {
            phase,
            phase_since: now,
            due_at: Some(due_at),
            attempts: 0,
            failure: None,
            revision: self.revision + 1,
            ..self
        }
    }

    const fn refuse(&self, attempted: &'static str) -> InvalidStep {
        InvalidStep {
            phase: self.phase.as_str(),
            attempted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn key(id: &str, second: i64) -> KeptKey {
        KeptKey {
            id: id.parse().unwrap(),
            secret: Sealed::from_bytes(vec![1]),
            since: at(second),
        }
    }

    fn others(key: &AdminKey) -> Vec<&str> {
        key.phase.others().iter().map(AccessKeyId::as_str).collect()
    }

    const ONE: &str = "AKIAIOSFODNN7EXAMPL1";
    const TWO: &str = "AKIAIOSFODNN7EXAMPL2";

    fn steady() -> AdminKey {
        AdminKey::imported("arn:aws:iam::1:user/admin".to_owned(), key(ONE, 0))
    }

    #[test]
    fn a_rotation_leads_from_one_key_to_another() {
        let rotating = steady().begin_rotation(at(10)).unwrap();
        assert_eq!(rotating.current.id.as_str(), ONE);
        let proving = rotating.created(key(TWO, 11)).unwrap();
        assert_eq!(proving.current.id.as_str(), ONE);
        assert_eq!(others(&proving), [TWO]);
        let grace = proving.switch(at(12)).unwrap();
        assert_eq!(grace.current.id.as_str(), TWO);
        assert_eq!(others(&grace), [ONE]);
        assert!(grace.clone().retire(at(311)).is_err());
        let retiring = grace.retire(at(312)).unwrap();
        assert!(retiring.clone().finish(at(611)).is_err());
        let done = retiring.finish(at(612)).unwrap();
        assert_eq!((done.phase.clone(), done.due_at), (Phase::Steady, None));
        assert_eq!((done.current.id.as_str(), done.revision), (TWO, 5));
    }

    #[test]
    fn a_replacement_that_makes_no_key_leaves_everything_as_it_was() {
        let delay = SignedDuration::from_secs(4);
        let rotating = steady().begin_rotation(at(10)).unwrap();
        let failed = rotating
            .record_failed_start("ADMIN_NOT_ALLOWED", at(11), delay)
            .unwrap();
        assert_eq!((&failed.phase, failed.attempts), (&Phase::Steady, 1));
        assert!(!failed.is_due(at(1_000)));
        // The next attempt keeps the last failure until a key is created.
        let again = failed.begin_rotation(at(15)).unwrap();
        assert_eq!(again.failure.as_deref(), Some("ADMIN_NOT_ALLOWED"));
        let made = again.created(key(TWO, 16)).unwrap();
        assert_eq!((made.attempts, made.failure.as_deref()), (0, None));
        assert!(
            made.clone()
                .record_failed_start("X", at(17), delay)
                .is_err()
        );
        // A second key that disappears from AWS before its use is requested again.
        let lost = made.restart(at(400)).unwrap();
        assert_eq!(
            (lost.phase, lost.current.id.as_str()),
            (Phase::Creating, ONE)
        );
    }

    #[test]
    fn one_replacement_goes_on_at_a_time() {
        let rotating = steady().begin_rotation(at(10)).unwrap();
        assert!(rotating.clone().begin_rotation(at(11)).is_err());
        assert!(rotating.clone().switch(at(11)).is_err());
        assert!(steady().created(key(TWO, 11)).is_err());
    }

    #[test]
    fn an_import_replaces_the_key_whatever_is_going_on() {
        const THREE: &str = "AKIAIOSFODNN7EXAMPL3";
        let imported = steady().replaced_by(key(TWO, 11));
        assert_eq!(imported.current.id.as_str(), TWO);
        assert_eq!(
            (imported.phase.as_str(), others(&imported)),
            ("grace", vec![ONE])
        );
        let proving = steady().begin_rotation(at(10)).unwrap();
        let proving = proving.created(key(TWO, 11)).unwrap();
        let imported = proving.clone().replaced_by(key(THREE, 12));
        assert_eq!(others(&imported), [ONE, TWO]);
        // The imported key was to follow anyway, so it is not deleted.
        assert_eq!(others(&proving.replaced_by(key(TWO, 12))), [ONE]);
    }

    #[test]
    fn a_step_that_fails_is_taken_again_and_tells_why_until_it_succeeds() {
        let rotating = steady().begin_rotation(at(10)).unwrap();
        let failed = rotating
            .postpone("AWS_THROTTLED", at(11), SignedDuration::from_secs(4))
            .unwrap();
        assert!(!failed.is_due(at(14)) && failed.is_due(at(15)));
        assert_eq!(
            (failed.attempts, failed.failure.as_deref()),
            (1, Some("AWS_THROTTLED"))
        );
        let made = failed.created(key(TWO, 16)).unwrap();
        assert_eq!((made.attempts, made.failure), (0, None));
        assert!(steady().postpone("X", at(1), SignedDuration::ZERO).is_err());
    }

    #[test]
    fn a_key_of_a_user_is_told_from_a_sessions() {
        assert!(ONE.parse::<AccessKeyId>().is_ok());
        let session = "ASIAIOSFODNN7EXAMPLE".parse::<AccessKeyId>();
        assert_eq!(session, Err(AccessKeyIdError::Session));
        for wrong in ["", "AKIA", "akiaiosfodnn7example", "AKIAIOSFODNN7 XAMPLE"] {
            assert_eq!(wrong.parse::<AccessKeyId>(), Err(AccessKeyIdError::Shape));
        }
    }
}
