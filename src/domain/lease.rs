//! One issuance of credentials, from intent to end.
//!
//! ```text
//! pending ─▶ active ─▶ expired              (an STS session, by AWS's clock)
//!    │          └────▶ revoking ─▶ revoked  (released, revoked, never handed out)
//!    └───────────────────┘     └─▶ expired  (an IAM user whose time ran out)
//! ```
//!
//! A transition consumes the lease and takes the time; what has ended stays ended.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use data_encoding::BASE32_NOPAD;
use jiff::{SignedDuration, Timestamp};

use crate::domain::{
    grant::{Grant, GrantSpec, Kind, OWN_TAG_PREFIX, Tag},
    name::{GrantName, LeaseId, Name},
};

/// How long an issue may take before the lease counts as abandoned.
pub const PENDING_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// How long whoever begins to take a lease away has it to itself before the clean-up
/// tries as well.
pub const CLAIM: SignedDuration = SignedDuration::from_secs(60);

/// What a lease is about; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The lease's id.
    pub lease_id: LeaseId,
    /// The grant it was issued under.
    pub grant: GrantName,
    /// Which version of it.
    pub grant_version: u64,
    /// How the credentials are made.
    pub kind: Kind,
    /// Role session name, federated user name or IAM user name.
    pub aws_name: String,
}

impl Binding {
    /// What a new lease of `grant` is about.
    #[must_use]
    pub fn new(lease_id: LeaseId, grant: &Grant) -> Self {
        let kind = grant.spec.kind();
        Self {
            aws_name: aws_name(kind, &grant.name.service, &lease_id),
            lease_id,
            grant: grant.name.clone(),
            grant_version: grant.version,
            kind,
        }
    }

    /// The tags on the lease's session or user: the broker's three, then the
    /// operator's. CloudTrail leads from them to the lease.
    #[must_use]
    pub fn aws_tags(&self, spec: &GrantSpec) -> Vec<Tag> {
        let own = |key: &str, value: &str| Tag {
            key: format!("{OWN_TAG_PREFIX}{key}"),
            value: value.to_owned(),
            transitive: false,
        };
        let mut tags = vec![
            own("service", self.grant.service.as_str()),
            own("grant", self.grant.grant.as_str()),
            own("lease", self.lease_id.as_str()),
        ];
        tags.extend_from_slice(spec.tags());
        tags
    }
}

/// The name that AWS and CloudTrail show. `SERVICE.LEASE` (up to 59 of 64 characters)
/// for sessions and users. A federated user has 32 characters: the service, or for one
/// longer than 18 its first 9 characters, `+` and 8 of its SHA-256, then `.` and the
/// last 13 characters of the lease id (65 random bits).
#[must_use]
pub fn aws_name(kind: Kind, service: &Name, lease: &LeaseId) -> String {
    match kind {
        Kind::AssumeRole | Kind::IamUser => format!("{service}.{lease}"),
        Kind::FederationToken => format!("{}.{}", short(service), &lease.as_str()[13..]),
    }
}

fn short(service: &Name) -> String {
    let name = service.as_str();
    if name.len() <= 18 {
        return name.to_owned();
    }
    let sum = digest::digest(&digest::SHA256, name.as_bytes());
    let hash = BASE32_NOPAD.encode(&sum.as_ref()[..5]).to_ascii_lowercase();
    format!("{}+{hash}", &name[..9])
}

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

/// Why a lease ends before, or at, its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its time ran out.
    Expired,
    /// The service handed it back.
    Released,
    /// An operator ended it; the words are theirs.
    Revoked(String),
    /// Nothing was handed out; the words say why.
    NotIssued(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("expired"),
            Self::Released => f.write_str("released"),
            Self::Revoked(words) if words.is_empty() => f.write_str("revoked"),
            Self::Revoked(words) => write!(f, "revoked: {words}"),
            Self::NotIssued(words) => write!(f, "not issued: {words}"),
        }
    }
}

impl FromStr for Cause {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(": ").unwrap_or((text, "")) {
            ("expired", _) => Ok(Self::Expired),
            ("released", _) => Ok(Self::Released),
            ("revoked", words) => Ok(Self::Revoked(words.to_owned())),
            ("not issued", words) => Ok(Self::NotIssued(words.to_owned())),
            _ => Err(()),
        }
    }
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
    Active(Issued),
    /// Being taken away.
    Revoking {
        /// What had been handed out, if anything.
        issued: Option<Issued>,
        /// Why.
        cause: Cause,
        /// How often AWS has been asked in vain.
        attempts: u32,
        /// When to ask (again).
        next_attempt_at: Timestamp,
    },
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
            Self::Active(_) => "active",
            Self::Revoking { .. } => "revoking",
            Self::Revoked { .. } => "revoked",
            Self::Expired { .. } => "expired",
        }
    }
}

/// One issuance of credentials. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it is about.
    pub binding: Binding,
    /// When the service asked.
    pub requested_at: Timestamp,
    /// Where it stands.
    pub state: LeaseState,
    /// Counts its changes; a stored lease is replaced only by its successor.
    pub revision: u64,
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
    pub fn request(binding: Binding, now: Timestamp) -> Self {
        let deadline = now + PENDING_LIMIT;
        Self {
            binding,
            requested_at: now,
            state: LeaseState::Pending { deadline },
            revision: 0,
        }
    }

    /// What had been handed out, if anything.
    #[must_use]
    pub const fn issued(&self) -> Option<&Issued> {
        match &self.state {
            LeaseState::Pending { .. } => None,
            LeaseState::Active(issued) | LeaseState::Expired { issued, .. } => Some(issued),
            LeaseState::Revoking { issued, .. } | LeaseState::Revoked { issued, .. } => {
                issued.as_ref()
            }
        }
    }

    /// Why it ends or ended.
    #[must_use]
    pub const fn cause(&self) -> Option<&Cause> {
        match &self.state {
            LeaseState::Pending { .. } | LeaseState::Active(_) => None,
            LeaseState::Revoking { cause, .. } | LeaseState::Revoked { cause, .. } => Some(cause),
            LeaseState::Expired { .. } => Some(&Cause::Expired),
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

    /// AWS has answered: pending becomes active.
    ///
    /// # Errors
    /// From any other state.
    pub fn activate(self, issued: Issued) -> Result<Self, InvalidTransition> {
        match self.state {
            LeaseState::Pending { .. } => Ok(self.to(LeaseState::Active(issued))),
            _ => Err(self.refuse("become active")),
        }
    }

    /// The credentials are to be taken away by whoever calls this, who has [`CLAIM`] to
    /// do so. A lease that is already being revoked keeps its cause. One that is still
    /// pending belongs to whoever is issuing it: others wait for its deadline.
    ///
    /// # Errors
    /// When it has ended.
    pub fn begin_revocation(self, cause: Cause, now: Timestamp) -> Result<Self, InvalidTransition> {
        let (issued, cause, attempts, next_attempt_at) = match &self.state {
            LeaseState::Pending { deadline } => (None, cause, 0, now.max(*deadline)),
            LeaseState::Active(issued) => (Some(issued.clone()), cause, 0, now + CLAIM),
            LeaseState::Revoking {
                issued,
                cause,
                attempts,
                next_attempt_at,
            } => {
                let next = if issued.is_some() {
                    now
                } else {
                    *next_attempt_at
                };
                (issued.clone(), cause.clone(), *attempts, next)
            }
            LeaseState::Revoked { .. } | LeaseState::Expired { .. } => {
                return Err(self.refuse("be ended again"));
            }
        };
        Ok(self.to(LeaseState::Revoking {
            issued,
            cause,
            attempts,
            next_attempt_at,
        }))
    }

    /// Whether its issue may still be going on at `now`, so that only the issuer may
    /// take away what it makes.
    #[must_use]
    pub fn is_in_flight(&self, now: Timestamp) -> bool {
        match &self.state {
            LeaseState::Pending { deadline } => *deadline > now,
            LeaseState::Revoking {
                issued: None,
                attempts: 0,
                next_attempt_at,
                ..
            } => *next_attempt_at > now,
            _ => false,
        }
    }

    /// AWS has ended a session by itself.
    ///
    /// # Errors
    /// Unless it is an active session whose time is up at `now`.
    pub fn expire(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Active(issued)
                if self.binding.kind.is_session() && issued.expires_at <= now =>
            {
                let issued = issued.clone();
                Ok(self.to(LeaseState::Expired { issued, at: now }))
            }
            _ => Err(self.refuse("expire")),
        }
    }

    /// AWS could not be brought to take them away; try again after `delay`.
    ///
    /// # Errors
    /// Unless it is being revoked.
    pub fn postpone(
        self,
        now: Timestamp,
        delay: SignedDuration,
    ) -> Result<Self, InvalidTransition> {
        match &self.state {
            LeaseState::Revoking {
                issued,
                cause,
                attempts,
                ..
            } => {
                let next = LeaseState::Revoking {
                    issued: issued.clone(),
                    cause: cause.clone(),
                    attempts: attempts.saturating_add(1),
                    next_attempt_at: now + delay,
                };
                Ok(self.to(next))
            }
            _ => Err(self.refuse("be postponed")),
        }
    }

    /// Nothing of it is left in AWS.
    ///
    /// # Errors
    /// Unless it is being revoked.
    pub fn finish(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        let next = match &self.state {
            LeaseState::Revoking {
                issued: Some(issued),
                cause: Cause::Expired,
                ..
            } => LeaseState::Expired {
                issued: issued.clone(),
                at: now,
            },
            LeaseState::Revoking { issued, cause, .. } => LeaseState::Revoked {
                issued: issued.clone(),
                cause: cause.clone(),
                at: now,
            },
            _ => return Err(self.refuse("finish")),
        };
        Ok(self.to(next))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::name::tests::Counting;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn lease() -> Lease {
        let lease_id = LeaseId::new(at(1_000), &Counting);
        let grant: GrantName = "payments/uploads".parse().unwrap();
        let aws_name = aws_name(Kind::IamUser, &grant.service, &lease_id);
        Lease::request(
            Binding {
                lease_id,
                grant,
                grant_version: 1,
                kind: Kind::IamUser,
                aws_name,
            },
            at(1_000),
        )
    }

    fn issued() -> Issued {
        Issued {
            access_key_id: "AKIAEXAMPLE".to_owned(),
            at: at(1_001),
            expires_at: at(4_600),
        }
    }

    #[test]
    fn a_lease_lives_from_pending_to_expired() {
        let lease = lease().activate(issued()).unwrap();
        let lease = lease.begin_revocation(Cause::Expired, at(4_600)).unwrap();
        let lease = lease.finish(at(4_601)).unwrap();
        assert_eq!(
            lease.state,
            LeaseState::Expired {
                issued: issued(),
                at: at(4_601)
            }
        );
        assert_eq!(lease.revision, 3);
    }

    #[test]
    fn a_session_expires_by_itself_and_not_before_its_time() {
        let mut session = lease().activate(issued()).unwrap();
        session.binding.kind = Kind::AssumeRole;
        assert!(session.clone().expire(at(4_599)).is_err());
        assert_eq!(session.expire(at(4_600)).unwrap().state.as_str(), "expired");
        let user = lease().activate(issued()).unwrap();
        assert!(user.expire(at(4_600)).is_err());
    }

    #[test]
    fn a_lease_that_was_never_handed_out_ends_revoked() {
        let lease = lease()
            .begin_revocation(Cause::NotIssued("x".to_owned()), at(1_010))
            .unwrap();
        let lease = lease.finish(at(1_011)).unwrap();
        assert_eq!(lease.state.as_str(), "revoked");
        assert_eq!(lease.issued(), None);
    }

    #[test]
    fn an_ended_lease_stays_ended() {
        let ended = lease()
            .begin_revocation(Cause::Released, at(1))
            .and_then(|l| l.finish(at(2)))
            .unwrap();
        assert!(ended.clone().activate(issued()).is_err());
        assert!(
            ended
                .clone()
                .begin_revocation(Cause::Expired, at(3))
                .is_err()
        );
        assert!(ended.clone().postpone(at(3), PENDING_LIMIT).is_err());
        assert!(ended.finish(at(3)).is_err());
    }

    #[test]
    fn a_lease_revoked_while_it_is_issued_is_left_to_its_issuer_until_the_deadline() {
        let lease = lease()
            .begin_revocation(Cause::Revoked(String::new()), at(1_010))
            .unwrap();
        assert!(lease.is_in_flight(at(1_059)));
        assert!(!lease.is_in_flight(at(1_060)));
        let again = lease.begin_revocation(Cause::Expired, at(1_020)).unwrap();
        assert!(again.is_in_flight(at(1_059)));
    }

    #[test]
    fn a_second_revocation_keeps_the_first_cause() {
        let lease = lease().activate(issued()).unwrap();
        let lease = lease
            .begin_revocation(Cause::Revoked("leaked".to_owned()), at(2))
            .unwrap();
        let lease = lease.postpone(at(2), PENDING_LIMIT).unwrap();
        let lease = lease.begin_revocation(Cause::Expired, at(3)).unwrap();
        assert_eq!(lease.cause(), Some(&Cause::Revoked("leaked".to_owned())));
    }

    #[test]
    fn causes_read_back_as_they_were_written() {
        for cause in [
            Cause::Expired,
            Cause::Released,
            Cause::Revoked(String::new()),
            Cause::Revoked("key: found on the internet".to_owned()),
            Cause::NotIssued("AccessDenied".to_owned()),
        ] {
            assert_eq!(cause.to_string().parse(), Ok(cause));
        }
    }

    #[test]
    fn names_in_aws_fit_their_bounds_and_name_the_service() {
        let lease = LeaseId::new(at(1_000), &Counting);
        let (brief, long): (Name, Name) = (
            "api".parse().unwrap(),
            "a-very-long-service-name-of-32-c".parse().unwrap(),
        );
        for service in [&brief, &long] {
            assert!(aws_name(Kind::AssumeRole, service, &lease).len() <= 64);
            assert!(aws_name(Kind::IamUser, service, &lease).len() <= 64);
            assert!(aws_name(Kind::FederationToken, service, &lease).len() <= 32);
        }
        assert!(aws_name(Kind::FederationToken, &brief, &lease).starts_with("api."));
        assert!(aws_name(Kind::FederationToken, &long, &lease).starts_with("a-very-lo+"));
    }
}
