//! Denials in AWS of sessions that were issued before an operator revoked them.
//!
//! AWS cannot end a session early. But at each call AWS evaluates the policies of the session's
//! role, or of the user that federated the session. A denial in such a policy names the sessions by
//! the names and tags that the broker gave them:
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_use_revoke-sessions.html>.
//! While the service is suspended, its denial has no date, so that it also denies access made later
//! from such a session. If newer sessions are to work, the denial has a cutoff: it denies the
//! sessions that were issued before the cutoff.
//!
//! ```text
//! open ─▶ refused ─▶ (deleted, once all access made from its sessions has ended)
//!  ▲ └─▶ open           retried until then
//!  └──── refused        revoked again
//! ```

mod affected;
mod document;
mod location;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp};

pub use self::{
    affected::{AffectedSessions, DenialSession},
    document::{UnknownStatements, denies_all, document, may_meet, widen},
    location::{Placement, Placements, PolicyLocation},
};
use crate::domain::{
    arn::{AccountId, ArnError, RoleArn, UserArn},
    grant::Kind,
    lease::{Lease, aws_name, aws_name_prefix},
    name::{GrantName, LeaseId, Name},
};

/// Tolerance between AWS's clock and the broker's, until a canary shows AWS's time.
pub const SKEW: SignedDuration = SignedDuration::from_secs(5);
/// Time for which sessions may still be made with a stolen admin key after its deactivation.
const SKEW_OF_EVERYONE: SignedDuration = SignedDuration::from_secs(8);
/// Distance of a cutoff from a session's time of issue, which AWS reports in whole seconds.
const PRECISION: SignedDuration = SignedDuration::from_secs(2);
/// Time by which a denial outlasts the last access that may have been made from its sessions.
const AFTERWARDS: SignedDuration = SignedDuration::from_secs(60);
/// Marker, later than all real times: the denial is to be rewritten in AWS, and has not been yet.
pub const NOT_WRITTEN: Timestamp = Timestamp::constant(253_000_000_000, 0);
/// Time for which AWS may still deny sessions that a policy no longer denies: changes reach all its
/// servers within seconds.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html>
const PROPAGATION: SignedDuration = SignedDuration::from_secs(5);
/// Time for which a replica that begins to apply a denial has it exclusively.
pub const CLAIM: SignedDuration = SignedDuration::from_secs(90);

/// Role or user whose policies AWS evaluates when a session makes a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyOwner {
    /// Role that was assumed.
    Role(RoleArn),
    /// User that federated the session.
    User(UserArn),
}

impl PolicyOwner {
    /// Returns the ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Role(role) => role.as_str(),
            Self::User(user) => user.as_str(),
        }
    }

    /// Returns the account of the role or user.
    #[must_use]
    pub const fn account(&self) -> &AccountId {
        match self {
            Self::Role(role) => role.account(),
            Self::User(user) => user.account(),
        }
    }

    /// Returns the kind of the sessions.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Role(_) => Kind::AssumeRole,
            Self::User(_) => Kind::FederationToken,
        }
    }
}

impl fmt::Display for PolicyOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PolicyOwner {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        match text.parse() {
            Ok(role) => Ok(Self::Role(role)),
            Err(error) => text.parse().map(Self::User).map_err(|_| error),
        }
    }
}

/// Scope of a denial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All sessions of the role or user, of any service or none: for a stolen admin key.
    Everyone,
    /// All sessions of the service.
    Service,
    /// Sessions of one grant.
    Grant(Name),
    /// Session of one lease.
    Lease(LeaseId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everyone => f.write_str("everyone"),
            Self::Service => f.write_str("service"),
            Self::Grant(grant) => write!(f, "grant {grant}"),
            Self::Lease(lease) => write!(f, "lease {lease}"),
        }
    }
}

impl FromStr for Scope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(' ') {
            None if text == "everyone" => Ok(Self::Everyone),
            None if text == "service" => Ok(Self::Service),
            Some(("grant", grant)) => grant.parse().map(Self::Grant).map_err(drop),
            Some(("lease", lease)) => lease.parse().map(Self::Lease).map_err(drop),
            _ => Err(()),
        }
    }
}

/// Subject of a denial. Each subject has one denial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DenialSubject {
    /// Role or user of the sessions.
    pub holder: PolicyOwner,
    /// Service of the sessions. For [`Scope::Everyone`]: service of the canary's grant.
    pub service: Name,
    /// Scope of the denial.
    pub scope: Scope,
}

impl fmt::Display for DenialSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::Everyone => f.write_str("everyone"),
            Scope::Service => write!(f, "service {}", self.service),
            Scope::Grant(grant) => write!(f, "grant {}/{grant}", self.service),
            Scope::Lease(lease) => write!(f, "lease {lease}"),
        }
    }
}

/// Failed attempts at a denial that AWS has not been seen to enforce yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailedAttempts {
    /// Number of failed attempts.
    pub count: u32,
    /// Reason of the last failure.
    pub failure: Option<String>,
}

/// Sessions that were issued after those that a denial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSessions {
    /// Newer sessions may exist, and must not be denied.
    Spared,
    /// Newer sessions do not exist, and none is being issued.
    None,
}

/// Progress of a denial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenialState {
    /// The denial is not written yet, or not seen to be enforced yet.
    Open(FailedAttempts),
    /// AWS refuses the sessions.
    Refused {
        /// Time since which the refusal is known.
        at: Timestamp,
    },
}

/// A denial of sessions that have been issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Subject of the denial.
    pub against: DenialSubject,
    /// Grant of some of the denied sessions. The canary is made under this grant.
    pub grant: GrantName,
    /// Version of the grant.
    pub grant_version: u64,
    /// True if sessions also have the service's name as source identity.
    pub source_identity: bool,
    /// Time at which an operator asked for the denial.
    pub asked_at: Timestamp,
    /// Cutoff that is wanted: sessions that were issued earlier are to be denied.
    pub issued_before: Timestamp,
    /// Cutoff that the policy in AWS is to have now; `None`: the denial is not in the policy. While
    /// the canary is created, the old value stays, so that no other write denies the canary early.
    pub denied_before: Option<Timestamp>,
    /// True if sessions that are issued later are to work. The denial then has a cutoff in AWS.
    pub spares_newer: bool,
    /// Time until which AWS may still deny newer sessions, after a denial of all sessions.
    /// [`NOT_WRITTEN`] until AWS has the cutoff.
    pub newer_hit_until: Option<Timestamp>,
    /// End of the denial, after the last access that may have been made from its sessions.
    pub lasts_until: Timestamp,
    /// Progress of the denial.
    pub state: DenialState,
    /// Time of the next step. For a refused denial that has not been moved since, the step is its
    /// deletion.
    pub due_at: Timestamp,
    /// Number of changes so far, used as fencing token.
    pub revision: u64,
}

impl Denial {
    /// Creates the denial of the sessions that exist at `now`, in the place of a standing denial.
    #[must_use]
    pub fn request(concerned: AffectedSessions, standing: Option<&Self>, now: Timestamp) -> Self {
        let is_everyone = concerned.against.scope == Scope::Everyone;
        let spares_newer = is_everyone || matches!(concerned.against.scope, Scope::Grant(_));
        let skew = if is_everyone { SKEW_OF_EVERYONE } else { SKEW };
        let lasts_until = concerned.access_ends.checked_add(AFTERWARDS);
        let lasts_until = lasts_until.unwrap_or(Timestamp::MAX);
        Self {
            against: concerned.against,
            grant: concerned.grant,
            grant_version: concerned.grant_version,
            source_identity: concerned.source_identity
                || standing.is_some_and(|standing| standing.source_identity),
            asked_at: now,
            issued_before: whole_second(now + skew),
            denied_before: standing.and_then(|standing| standing.denied_before),
            spares_newer,
            newer_hit_until: (!spares_newer).then_some(NOT_WRITTEN),
            lasts_until: standing.map_or(lasts_until, |standing| {
                standing.lasts_until.max(lasts_until)
            }),
            state: DenialState::Open(FailedAttempts::default()),
            due_at: now + CLAIM,
            revision: standing.map_or(0, |standing| standing.revision + 1),
        }
    }

    /// Returns whether AWS has been seen to refuse its sessions.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self.state, DenialState::Refused { .. })
    }

    /// Returns whether the denial in AWS stays as it is until its end: it was seen to be enforced,
    /// and has not been moved since.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_refused() && self.due_at == self.lasts_until
    }

    /// Returns whether the denial was asked for at `time`, with the precision of the store
    /// (microseconds).
    #[must_use]
    pub fn was_asked_at(&self, time: Timestamp) -> bool {
        self.asked_at.as_microsecond() == time.as_microsecond()
    }

    /// Returns the number of failed attempts.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        match &self.state {
            DenialState::Open(attempts) => attempts.count,
            DenialState::Refused { .. } => 0,
        }
    }

    /// Returns whether the denial has ended at `now`: no session that it concerns, and no
    /// access made from one, still works.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.lasts_until <= now
    }

    /// Returns whether the denial includes the session of a lease: it concerns the lease, whose
    /// revocation was asked for no later than the denial.
    #[must_use]
    pub fn covers(&self, lease: &Lease) -> bool {
        let asked = lease.removal().map(|removal| removal.asked_at);
        asked.is_some_and(|asked| asked <= self.asked_at) && self.concerns(lease)
    }

    /// Returns whether the denial concerns sessions like this lease's, regardless of their time of
    /// issue.
    #[must_use]
    pub fn concerns(&self, lease: &Lease) -> bool {
        let (against, binding) = (&self.against, &lease.binding);
        let concerned = match &against.scope {
            // Each lease ends by the denial of its own grant, not by everyone's.
            Scope::Everyone => false,
            Scope::Service => true,
            Scope::Grant(grant) => *grant == binding.grant.grant,
            Scope::Lease(id) => *id == binding.lease_id,
        };
        concerned
            && against.service == binding.grant.service
            && binding.holder.as_ref() == Some(&against.holder)
    }

    /// Returns the denial with a cutoff that includes a session issued at `issued`, a time of AWS's
    /// clock. At the first attempt for a grant the cutoff is no later than that session needs, so
    /// that hardly any later session is denied. `None` if the cutoff would deny newer sessions.
    #[must_use]
    pub fn reach(&self, issued: Timestamp, newer: NewSessions) -> Option<Self> {
        let issued_before = whole_second(issued) + PRECISION;
        if self.against.scope == Scope::Everyone {
            // The cutoff stays: a later one would deny new sessions of every service.
            return (issued_before <= self.issued_before).then(|| self.next());
        }
        let is_first = !self.is_refused() && self.failures() == 0;
        let moved = if is_first && matches!(self.against.scope, Scope::Grant(_)) {
            issued_before
        } else {
            issued_before.max(self.issued_before)
        };
        if newer == NewSessions::Spared && self.spares_newer && self.issued_before < moved {
            return None;
        }
        Some(Self {
            issued_before: moved,
            ..self.next()
        })
    }

    /// Returns the denial ready to be written: the canary is created, or cannot be.
    #[must_use]
    pub fn ready(&self) -> Self {
        Self {
            denied_before: Some(self.issued_before),
            ..self.next()
        }
    }

    /// Returns the denial due at `now`: the replica that had it exclusively does not apply it.
    #[must_use]
    pub fn make_due(&self, now: Timestamp) -> Self {
        Self {
            due_at: now,
            ..self.next()
        }
    }

    /// Returns the denial after the reinstatement of its service at `now`. Sessions issued until
    /// then, and access made from them, stay denied; newer sessions are not denied. The policy is
    /// to be rewritten.
    #[must_use]
    pub fn spare_newer_sessions(&self, now: Timestamp) -> Self {
        let issued_before = self.issued_before.max(whole_second(now));
        Self {
            spares_newer: true,
            issued_before,
            denied_before: self.denied_before.map(|_| issued_before),
            ..self.moved(now)
        }
    }

    /// Returns the denial due to be rewritten from `now` on, unless it is being applied.
    fn moved(&self, now: Timestamp) -> Self {
        let due_at = if self.is_refused() { now } else { self.due_at };
        Self {
            due_at,
            ..self.next()
        }
    }

    /// Returns the denial after AWS has accepted its policy at `now`.
    #[must_use]
    pub fn written(&self, now: Timestamp) -> Self {
        let is_let = self.spares_newer && self.newer_hit_until == Some(NOT_WRITTEN);
        let let_from = is_let.then(|| now + PROPAGATION);
        Self {
            newer_hit_until: let_from.or(self.newer_hit_until),
            ..self.clone()
        }
    }

    /// Returns the denial after its policy was rewritten at `now`.
    #[must_use]
    pub fn settle(&self, now: Timestamp) -> Self {
        Self {
            due_at: self.lasts_until,
            ..self.written(now).next()
        }
    }

    /// Returns the denial after AWS was seen to refuse its sessions at `now`.
    #[must_use]
    pub fn confirm(&self, now: Timestamp) -> Self {
        Self {
            state: DenialState::Refused { at: now },
            ..self.settle(now)
        }
    }

    /// Returns the denial after a failure: it was not written, or not seen to be enforced. The next
    /// attempt is due at `at`.
    #[must_use]
    pub fn postpone(&self, at: Timestamp, failure: String) -> Self {
        Self {
            state: DenialState::Open(FailedAttempts {
                count: self.failures().saturating_add(1),
                failure: Some(failure),
            }),
            due_at: at.min(self.lasts_until),
            ..self.next()
        }
    }

    /// Returns whether this denial denies a canary that is made now for another denial of the
    /// service.
    #[must_use]
    pub fn conflicts_with_canary(&self, other: &Self) -> bool {
        match &self.against.scope {
            Scope::Everyone | Scope::Service => true,
            Scope::Grant(grant) => *grant == other.grant.grant,
            lease @ Scope::Lease(_) => *lease == other.against.scope,
        }
    }

    /// Returns the denial taken by one replica at `now`, exclusively for the time of [`CLAIM`].
    #[must_use]
    pub fn reserve(&self, now: Timestamp) -> Self {
        Self {
            due_at: now + CLAIM,
            ..self.next()
        }
    }

    fn next(&self) -> Self {
        Self {
            revision: self.revision + 1,
            ..self.clone()
        }
    }

    /// Returns the pattern of `aws:userid` that its sessions match: the id of the role or the
    /// number of the account, a colon, the name.
    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html#principaltable>
    fn sessions(&self) -> String {
        let (kind, service) = (self.against.holder.kind(), &self.against.service);
        match &self.against.scope {
            Scope::Lease(lease) => format!("*:{}", aws_name(kind, service, lease)),
            Scope::Everyone | Scope::Service | Scope::Grant(_) => self.sessions_of_service(),
        }
    }

    /// Returns the pattern that all sessions of its service match.
    fn sessions_of_service(&self) -> String {
        let (kind, service) = (self.against.holder.kind(), &self.against.service);
        format!("*:{}*", aws_name_prefix(kind, service))
    }
}

/// Returns the earliest time of issue at which no denial of the service denies a new session of a
/// grant; `None` if none of them concerns the grant.
#[must_use]
pub fn uncontested_from(denials: &[Denial], grant: &Name) -> Option<Timestamp> {
    let hits = |denial: &&Denial| match &denial.against.scope {
        Scope::Everyone | Scope::Service => true,
        Scope::Grant(denied) => denied == grant,
        Scope::Lease(_) => false,
    };
    denials.iter().filter(hits).map(|d| d.issued_before).max()
}

/// Returns the time until which AWS may deny new sessions of a reinstated service at a role or
/// user; [`NOT_WRITTEN`] until the denial there has been rewritten.
#[must_use]
pub fn newer_hit_until(denials: &[Denial], holder: &PolicyOwner) -> Option<Timestamp> {
    let of_service = denials
        .iter()
        .filter(|denial| denial.against.scope == Scope::Service && denial.spares_newer)
        .filter(|denial| denial.against.holder == *holder);
    of_service.filter_map(|denial| denial.newer_hit_until).max()
}

/// Rounds up to a whole second: AWS reports times of issue in whole seconds.
fn whole_second(time: Timestamp) -> Timestamp {
    let second = time.as_second() + i64::from(time.subsec_nanosecond() > 0);
    Timestamp::from_second(second).unwrap_or(time)
}
