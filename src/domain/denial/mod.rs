//! Denials in AWS of sessions that were handed out before an operator revoked them.
//!
//! AWS cannot end a session before its time, but it asks the policies of the session's
//! role, or of the user that federated it, at each call. A denial there names the sessions
//! concerned, by the names and tags that the broker gave them:
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_use_revoke-sessions.html>.
//! While their service is out, it has no date, so that it also meets what is made from such
//! a session later; where newer sessions are to work, it names the moment before which those
//! denied were issued.
//!
//! ```text
//! open ─▶ refused ─▶ (gone, once no access lives that was made from its sessions)
//!  ▲ └─▶ open           tried again until then
//!  └──── refused        revoked once more
//! ```

mod concerned;
mod document;
mod place;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp};

pub use self::{
    concerned::{Concerned, Session},
    document::{Unknown, denies_all, document, may_meet, widen},
    place::{Place, Placement, Placements},
};
use crate::domain::{
    arn::{AccountId, ArnError, RoleArn, UserArn},
    grant::Kind,
    lease::{Lease, aws_name, aws_name_prefix},
    name::{GrantName, LeaseId, Name},
};

/// Until AWS's clock is asked, sessions count as issued within this time of the broker's.
pub const SKEW: SignedDuration = SignedDuration::from_secs(5);
/// Time for which sessions may still be made with a stolen admin key after it
/// was switched off.
const SKEW_OF_EVERYONE: SignedDuration = SignedDuration::from_secs(8);
/// AWS tells a session's time of issue in whole seconds; a denial reaches beyond that.
const PRECISION: SignedDuration = SignedDuration::from_secs(2);
/// Time by which a denial outlasts the last access that may have been made from its sessions.
const AFTERWARDS: SignedDuration = SignedDuration::from_secs(60);
/// A moment after all others: a denial is to be rewritten, and has not been yet.
pub const NOT_WRITTEN: Timestamp = Timestamp::constant(253_000_000_000, 0);
/// Time for which AWS may go on denying what a policy does not deny any more: changes reach all
/// its servers within seconds.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html>
const PROPAGATION: SignedDuration = SignedDuration::from_secs(5);
/// How long whoever begins to carry a denial out has it to itself.
pub const CLAIM: SignedDuration = SignedDuration::from_secs(90);

/// Whose policies AWS asks when a session acts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// The role that was assumed.
    Role(RoleArn),
    /// The user that federated it.
    User(UserArn),
}

impl Holder {
    /// The ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Role(role) => role.as_str(),
            Self::User(user) => user.as_str(),
        }
    }

    /// The account that it is in.
    #[must_use]
    pub const fn account(&self) -> &AccountId {
        match self {
            Self::Role(role) => role.account(),
            Self::User(user) => user.account(),
        }
    }

    /// How its sessions are made.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Role(_) => Kind::AssumeRole,
            Self::User(_) => Kind::FederationToken,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Holder {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        match text.parse() {
            Ok(role) => Ok(Self::Role(role)),
            Err(error) => text.parse().map(Self::User).map_err(|_| error),
        }
    }
}

/// Which of a service's sessions are denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All of the role or user, of any service or none: for a stolen admin key.
    Everyone,
    /// All of them.
    Service,
    /// Those of one grant.
    Grant(Name),
    /// Those of one lease.
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

/// What a denial is about. There is one denial for each.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Against {
    /// Whose sessions.
    pub holder: Holder,
    /// Service of those sessions; where they are everyone's, that of the grant it is tried by.
    pub service: Name,
    /// Which of those.
    pub scope: Scope,
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::Everyone => f.write_str("everyone"),
            Scope::Service => write!(f, "service {}", self.service),
            Scope::Grant(grant) => write!(f, "grant {}/{grant}", self.service),
            Scope::Lease(lease) => write!(f, "lease {lease}"),
        }
    }
}

/// A denial that AWS has not been seen to enforce yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// How many have come to nothing.
    pub count: u32,
    /// Why the last one did.
    pub failure: Option<String>,
}

/// Sessions issued after those that a denial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newer {
    /// There may be some, which must not be hit.
    Spared,
    /// There are none, and none is being issued.
    None,
}

/// How far a denial is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenialState {
    /// To be written, or to be seen to hold.
    Open(Attempts),
    /// AWS refuses its sessions.
    Refused {
        /// Since when that is known.
        at: Timestamp,
    },
}

/// A denial of sessions that have been issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Whose.
    pub against: Against,
    /// A grant that its sessions were issued under, by which another of the same shape is
    /// made.
    pub grant: GrantName,
    /// Which version of it.
    pub grant_version: u64,
    /// Whether sessions bear the service's name as source identity as well.
    pub source_identity: bool,
    /// When an operator asked for it.
    pub asked_at: Timestamp,
    /// Sessions that were issued before this are to be denied.
    pub issued_before: Timestamp,
    /// Before which issue AWS is to deny them now. While the session by which it is tried
    /// is made, that is what has stood so far, so that no other writing meets it too soon;
    /// `None` for nothing.
    pub denied_before: Option<Timestamp>,
    /// True where sessions that are issued later are to work, so that the denial has a date.
    pub spares_newer: bool,
    /// Until when AWS may deny newer sessions nevertheless, once it has been told to deny all:
    /// [`NOT_WRITTEN`] until AWS has taken the date.
    pub newer_hit_until: Option<Timestamp>,
    /// When the last access is over that may have been made from its sessions.
    pub lasts_until: Timestamp,
    /// How far it is.
    pub state: DenialState,
    /// When something is to be done about it: to end it, once it is refused, unless it was
    /// moved since.
    pub due_at: Timestamp,
    /// Counts its changes: its fencing token.
    pub revision: u64,
}

impl Denial {
    /// A denial of what is there at `now`, in the place of one that stands.
    #[must_use]
    pub fn ask(concerned: Concerned, standing: Option<&Self>, now: Timestamp) -> Self {
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
            state: DenialState::Open(Attempts::default()),
            due_at: now + CLAIM,
            revision: standing.map_or(0, |standing| standing.revision + 1),
        }
    }

    /// Whether AWS has been seen to refuse its sessions.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self.state, DenialState::Refused { .. })
    }

    /// Whether what it says stands in AWS until it is over: it was seen to hold, and has not
    /// been moved since.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_refused() && self.due_at == self.lasts_until
    }

    /// Whether it is what was asked for then, as precisely as a store keeps it.
    #[must_use]
    pub fn was_asked_at(&self, time: Timestamp) -> bool {
        self.asked_at.as_microsecond() == time.as_microsecond()
    }

    /// How often it has been tried in vain.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        match &self.state {
            DenialState::Open(attempts) => attempts.count,
            DenialState::Refused { .. } => 0,
        }
    }

    /// Whether it is over at `now`: no session that it concerns lives.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.lasts_until <= now
    }

    /// Whether the session of a lease is among those denied: its revocation was asked for by
    /// then.
    #[must_use]
    pub fn covers(&self, lease: &Lease) -> bool {
        let asked = lease.removal().map(|removal| removal.asked_at);
        asked.is_some_and(|asked| asked <= self.asked_at) && self.concerns(lease)
    }

    /// Whether it is about sessions such as this lease's, whenever they were issued.
    #[must_use]
    pub fn concerns(&self, lease: &Lease) -> bool {
        let (against, binding) = (&self.against, &lease.binding);
        let concerned = match &against.scope {
            // Each lease ends by the denial of its own grant.
            Scope::Everyone => false,
            Scope::Service => true,
            Scope::Grant(grant) => *grant == binding.grant.grant,
            Scope::Lease(id) => *id == binding.lease_id,
        };
        concerned
            && against.service == binding.grant.service
            && binding.holder.as_ref() == Some(&against.holder)
    }

    /// A session that was issued by AWS's clock at this second is among those denied from
    /// now on, and of a grant that is tried for the first time nothing much later is. `None`
    /// when newer sessions would be hit.
    #[must_use]
    pub fn reach(&self, issued: Timestamp, newer: Newer) -> Option<Self> {
        let issued_before = whole_second(issued) + PRECISION;
        if self.against.scope == Scope::Everyone {
            // Its moment stays: a later one would meet new sessions of every service.
            return (issued_before <= self.issued_before).then(|| self.next());
        }
        let is_first = !self.is_refused() && self.failures() == 0;
        let moved = if is_first && matches!(self.against.scope, Scope::Grant(_)) {
            issued_before
        } else {
            issued_before.max(self.issued_before)
        };
        if newer == Newer::Spared && self.spares_newer && self.issued_before < moved {
            return None;
        }
        Some(Self {
            issued_before: moved,
            ..self.next()
        })
    }

    /// It may be written: a session to try it by is made, or cannot be had.
    #[must_use]
    pub fn ready(&self) -> Self {
        Self {
            denied_before: Some(self.issued_before),
            ..self.next()
        }
    }

    /// Whoever had it to themselves does not carry it out: it is due at `now`.
    #[must_use]
    pub fn give_up(&self, now: Timestamp) -> Self {
        Self {
            due_at: now,
            ..self.next()
        }
    }

    /// Reinstates its service at `now`: what was issued, or made from that, until then stays
    /// denied, and what the service is given from then on is not. The policy is to be rewritten.
    #[must_use]
    pub fn spare_newer(&self, now: Timestamp) -> Self {
        let issued_before = self.issued_before.max(whole_second(now));
        Self {
            spares_newer: true,
            issued_before,
            denied_before: self.denied_before.map(|_| issued_before),
            ..self.moved(now)
        }
    }

    /// Makes it due to be rewritten from `now` on, unless it is being carried out.
    fn moved(&self, now: Timestamp) -> Self {
        let due_at = if self.is_refused() { now } else { self.due_at };
        Self {
            due_at,
            ..self.next()
        }
    }

    /// As it stands once AWS has taken it at `now`.
    #[must_use]
    pub fn written(&self, now: Timestamp) -> Self {
        let is_let = self.spares_newer && self.newer_hit_until == Some(NOT_WRITTEN);
        let let_from = is_let.then(|| now + PROPAGATION);
        Self {
            newer_hit_until: let_from.or(self.newer_hit_until),
            ..self.clone()
        }
    }

    /// It was written anew.
    #[must_use]
    pub fn settle(&self, now: Timestamp) -> Self {
        Self {
            due_at: self.lasts_until,
            ..self.written(now).next()
        }
    }

    /// AWS refuses its sessions.
    #[must_use]
    pub fn confirm(&self, now: Timestamp) -> Self {
        Self {
            state: DenialState::Refused { at: now },
            ..self.settle(now)
        }
    }

    /// It was not written, or not seen to hold; to be tried again at `at`.
    #[must_use]
    pub fn postpone(&self, at: Timestamp, failure: String) -> Self {
        Self {
            state: DenialState::Open(Attempts {
                count: self.failures().saturating_add(1),
                failure: Some(failure),
            }),
            due_at: at.min(self.lasts_until),
            ..self.next()
        }
    }

    /// Whether it meets a session that is made now to try another of the same service by.
    #[must_use]
    pub fn meets_trial_of(&self, other: &Self) -> bool {
        match &self.against.scope {
            Scope::Everyone | Scope::Service => true,
            Scope::Grant(grant) => *grant == other.grant.grant,
            lease @ Scope::Lease(_) => *lease == other.against.scope,
        }
    }

    /// Somebody takes it up at `now`, and has it to themselves for a while.
    #[must_use]
    pub fn claim(&self, now: Timestamp) -> Self {
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

    /// The pattern of `aws:userid` that its sessions match: the id of the role or the number
    /// of the account, a colon, the name.
    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html#principaltable>
    fn sessions(&self) -> String {
        let (kind, service) = (self.against.holder.kind(), &self.against.service);
        match &self.against.scope {
            Scope::Lease(lease) => format!("*:{}", aws_name(kind, service, lease)),
            Scope::Everyone | Scope::Service | Scope::Grant(_) => self.sessions_of_service(),
        }
    }

    /// The same pattern of all sessions of its service.
    fn sessions_of_service(&self) -> String {
        let (kind, service) = (self.against.holder.kind(), &self.against.service);
        format!("*:{}*", aws_name_prefix(kind, service))
    }
}

/// From when on a new session of a grant would be missed by every denial of its service, if
/// there are any.
#[must_use]
pub fn free_from(denials: &[Denial], grant: &Name) -> Option<Timestamp> {
    let hits = |denial: &&Denial| match &denial.against.scope {
        Scope::Everyone | Scope::Service => true,
        Scope::Grant(denied) => denied == grant,
        Scope::Lease(_) => false,
    };
    denials.iter().filter(hits).map(|d| d.issued_before).max()
}

/// Until when AWS may deny a session that a reinstated service is given at a role or user:
/// [`NOT_WRITTEN`] until the denial there has been rewritten.
#[must_use]
pub fn newer_hit_until(denials: &[Denial], holder: &Holder) -> Option<Timestamp> {
    let of_service = denials
        .iter()
        .filter(|denial| denial.against.scope == Scope::Service && denial.spares_newer)
        .filter(|denial| denial.against.holder == *holder);
    of_service.filter_map(|denial| denial.newer_hit_until).max()
}

/// The next whole second, in which AWS tells times of issue.
fn whole_second(time: Timestamp) -> Timestamp {
    let second = time.as_second() + i64::from(time.subsec_nanosecond() > 0);
    Timestamp::from_second(second).unwrap_or(time)
}
