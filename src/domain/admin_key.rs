//! The broker's own access key, kept sealed, and its replacement by another.
//!
//! ```text
//! steady ─▶ creating ─▶ proving ─▶ grace ─▶ retiring ─▶ steady
//! ```
//!
//! Each step is recorded before the next is taken, so that a crash in any of them is
//! gone on from. The old key is at work until the new one has proved that AWS accepts
//! it, and is there, switched off, until some time after.

use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};

use crate::domain::{credential::is_key_id, seal::Sealed};

/// How long the old key goes on working beside the new: whoever has begun with it ends
/// with it.
pub const GRACE: SignedDuration = SignedDuration::from_mins(5);
/// How long the old key stays, switched off, before it is deleted.
pub const RETIREMENT: SignedDuration = SignedDuration::from_mins(5);

/// Id of an IAM user's access key, as AWS forms it: `AKIA` and 12 to 124 characters
/// `[A-Z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKeyId(String);

/// Why a text is not an [`AccessKeyId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessKeyIdError {
    /// Of a session.
    #[error(
        "this is the key of a session (ASIA…), which runs out by itself: import the key of an IAM user"
    )]
    Session,
    /// Nothing of the kind.
    #[error("an access key id has the form AKIA… with letters A-Z and digits")]
    Shape,
}

impl AccessKeyId {
    /// The id as text.
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

/// A key that the broker keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptKey {
    /// Its id.
    pub id: AccessKeyId,
    /// Its secret.
    pub secret: Sealed,
    /// When it was imported or made.
    pub since: Timestamp,
}

/// What a key's secret is sealed for.
#[must_use]
pub fn place(id: &AccessKeyId) -> String {
    format!("admin_key/{}/secret/1", id.as_str())
}

/// Where a replacement stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// None is going on.
    Steady,
    /// AWS is being asked for a second key, and may have made one.
    Creating,
    /// The second key is kept; whether AWS accepts it is being found out.
    Proving {
        /// It.
        new: KeptKey,
    },
    /// The new key is at work; what it replaces still could be.
    Grace {
        /// One key; two when an import came in the middle of a rotation.
        old: Vec<AccessKeyId>,
    },
    /// What it replaces is switched off.
    Retiring {
        /// As in the phase before.
        old: Vec<AccessKeyId>,
    },
}

impl Phase {
    /// The phase's name.
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

    /// The keys that are not at work: not yet, or no longer.
    #[must_use]
    pub fn others(&self) -> &[AccessKeyId] {
        match self {
            Self::Steady | Self::Creating => &[],
            Self::Proving { new } => std::slice::from_ref(&new.id),
            Self::Grace { old } | Self::Retiring { old } => old,
        }
    }
}

/// The admin key and its replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminKey {
    /// ARN of the IAM user whose key it is.
    pub user: String,
    /// The key at work.
    pub current: KeptKey,
    /// Where its replacement stands.
    pub phase: Phase,
    /// When the phase began.
    pub phase_since: Timestamp,
    /// When the next step is to be taken; while steady, when a replacement that is due
    /// may be tried again.
    pub due_at: Option<Timestamp>,
    /// How often this step has failed, or a replacement could not begin.
    pub attempts: u32,
    /// Machine reason of the last failure: of this step, or to begin a replacement.
    pub failure: Option<String>,
    /// Counts its changes: its fencing token.
    pub revision: u64,
}

/// A step that the phase does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the admin key is {phase}; it cannot {attempted}")]
pub struct InvalidStep {
    /// Where it stands.
    pub phase: &'static str,
    /// What was tried.
    pub attempted: &'static str,
}

impl AdminKey {
    /// A key imported for the first time.
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

    /// Another key of the same user takes its place at once, whatever was going on; the
    /// one before, and the one that was to follow, are taken away as in a rotation.
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

    /// A replacement begins.
    ///
    /// # Errors
    /// While one is going on.
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

    /// A replacement cannot begin, or AWS has certainly made no second key: as before,
    /// and one that is due may be tried again after `delay`.
    ///
    /// # Errors
    /// Once there may be another key.
    pub fn not_begun(
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

    /// The second key has gone from AWS before it was at work: another is asked for.
    ///
    /// # Errors
    /// Unless there was one.
    pub fn lost(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase {
            Phase::Proving { .. } => Ok(self.to(Phase::Creating, now, now)),
            _ => Err(self.refuse("lose its second key")),
        }
    }

    /// AWS has made a second key.
    ///
    /// # Errors
    /// Unless one was asked for.
    pub fn created(self, new: KeptKey) -> Result<Self, InvalidStep> {
        let now = new.since;
        match self.phase {
            Phase::Creating => Ok(self.to(Phase::Proving { new }, now, now)),
            _ => Err(self.refuse("have a second key")),
        }
    }

    /// AWS accepts the second key: it goes to work.
    ///
    /// # Errors
    /// Unless there is one.
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

    /// The pause before the next step is over at once: the old key is stolen.
    ///
    /// # Errors
    /// Unless there is an old key that is to go.
    pub fn hurry(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase {
            Phase::Grace { .. } | Phase::Retiring { .. } => Ok(Self {
                due_at: Some(now),
                revision: self.revision + 1,
                ..self
            }),
            _ => Err(self.refuse("be without its old key")),
        }
    }

    /// The old key is switched off.
    ///
    /// # Errors
    /// Unless its grace is over.
    pub fn retire(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase.clone() {
            Phase::Grace { old } if self.is_due(now) => {
                Ok(self.to(Phase::Retiring { old }, now, now + RETIREMENT))
            }
            _ => Err(self.refuse("retire its old key")),
        }
    }

    /// The old key is deleted.
    ///
    /// # Errors
    /// Unless its time is up.
    pub fn finish(self, now: Timestamp) -> Result<Self, InvalidStep> {
        match self.phase {
            Phase::Retiring { .. } if self.is_due(now) => Ok(Self {
                due_at: None,
                ..self.to(Phase::Steady, now, now)
            }),
            _ => Err(self.refuse("be without its old key")),
        }
    }

    /// The step did not succeed; try again after `delay`.
    ///
    /// # Errors
    /// While steady: there is no step to take.
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

    /// Whether the next step of a replacement may be taken at `now`.
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
            .not_begun("ADMIN_NOT_ALLOWED", at(11), delay)
            .unwrap();
        assert_eq!((&failed.phase, failed.attempts), (&Phase::Steady, 1));
        assert!(!failed.is_due(at(1_000)));
        // The next one knows of it until a key is made.
        let again = failed.begin_rotation(at(15)).unwrap();
        assert_eq!(again.failure.as_deref(), Some("ADMIN_NOT_ALLOWED"));
        let made = again.created(key(TWO, 16)).unwrap();
        assert_eq!((made.attempts, made.failure.as_deref()), (0, None));
        assert!(made.clone().not_begun("X", at(17), delay).is_err());
        // One that goes from AWS before it was at work is asked for anew.
        let lost = made.lost(at(400)).unwrap();
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
        // The key that was to follow anyway is not taken away.
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
