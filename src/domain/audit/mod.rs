//! What the audit log says. Built from typed fields, never from a request as it came,
//! so that no secret can slip in.

mod event;
mod permissions;

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};

pub use self::{event::Event, permissions::Permissions};
use crate::domain::{
    approval::ApprovalId,
    binding::BindingId,
    denial::{Denial, Holder, Scope},
    grant::{Grant, Kind},
    lease::{Binding, Lease},
    name::{GrantName, LeaseId, Name},
    principal::{Evidence, Identity, Origin, Principal},
    request::RequestId,
    token::TokenId,
};

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Success,
    /// Refused by the broker.
    Denied,
    /// Tried, and it did not work.
    Failure,
}

impl Outcome {
    /// The outcome's name in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Failure => "failure",
        }
    }
}

impl FromStr for Outcome {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Success, Self::Denied, Self::Failure]
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
            .ok_or(())
    }
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// An operator, proven.
    Operator(Name),
    /// A service, proven.
    Service(Name),
    /// The broker by itself.
    Broker,
    /// Nobody proven.
    Unknown,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(name) => write!(f, "operator:{name}"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Broker => f.write_str("broker"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl FromStr for Actor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            Some(("operator", name)) => name.parse().map(Self::Operator).map_err(drop),
            Some(("service", name)) => name.parse().map(Self::Service).map_err(drop),
            None if text == "broker" => Ok(Self::Broker),
            None if text == "unknown" => Ok(Self::Unknown),
            _ => Err(()),
        }
    }
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A service.
    Service(Name),
    /// A token of a service.
    Token(Name, TokenId),
    /// A binding of a service.
    Binding(Name, BindingId),
    /// A grant.
    Grant(GrantName),
    /// A lease.
    Lease(LeaseId),
    /// An operator.
    Operator(Name),
    /// An approval.
    Approval(ApprovalId),
    /// The enrolment of hosts.
    Enrollment,
    /// The broker's own key.
    AdminKey,
    /// The audit log.
    AuditLog,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name}"),
            Self::Token(service, id) => write!(f, "token {id} of service {service}"),
            Self::Binding(service, id) => write!(f, "binding {id} of service {service}"),
            Self::Grant(name) => write!(f, "grant {name}"),
            Self::Lease(id) => write!(f, "lease {id}"),
            Self::Operator(name) => write!(f, "operator {name}"),
            Self::Approval(id) => write!(f, "approval {id}"),
            Self::Enrollment => f.write_str("enrolment"),
            Self::AdminKey => f.write_str("admin key"),
            Self::AuditLog => f.write_str("audit log"),
        }
    }
}

/// One thing that happened, not yet in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// When, by the broker's clock.
    pub time: Timestamp,
    /// What.
    pub event: Event,
    /// How it went.
    pub outcome: Outcome,
    /// Who.
    pub actor: Actor,
    /// Which token proved them.
    pub token_id: Option<TokenId>,
    /// What else they showed of themselves, in words.
    pub evidence: Option<String>,
    /// Where they called from.
    pub peer: Option<SocketAddr>,
    /// What they called.
    pub method: Option<String>,
    /// The service concerned.
    pub service: Option<Name>,
    /// The grant concerned.
    pub grant: Option<GrantName>,
    /// Its version.
    pub grant_version: Option<u64>,
    /// The lease concerned.
    pub lease_id: Option<LeaseId>,
    /// The access key concerned.
    pub access_key_id: Option<String>,
    /// AWS's id of the request.
    pub aws_request_id: Option<String>,
    /// Machine reason of a refusal or failure.
    pub reason: Option<String>,
    /// More, in words, up to [`DETAIL_MAX`] characters.
    pub detail: Option<String>,
    /// Which run of the broker wrote it.
    pub instance: Option<String>,
    /// The id that the caller gave the request that the lease answers.
    pub request_id: Option<RequestId>,
    /// How the lease's credentials are made.
    pub kind: Option<Kind>,
    /// Role session name, federated user name or IAM user name.
    pub aws_name: Option<String>,
    /// When the credentials end.
    pub expires_at: Option<Timestamp>,
    /// What they may do.
    pub permissions: Option<Permissions>,
    /// Written when the store took records again, not at its time.
    pub late: bool,
    /// The role or user whose policies are concerned.
    pub holder: Option<Holder>,
    /// How long after its revocation was asked for AWS refused it; whole milliseconds.
    pub refused_after: Option<Duration>,
    /// Time from the request for its revocation until AWS showed the user gone; whole milliseconds.
    pub gone_after: Option<Duration>,
}

/// A record as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// From 1, without gaps.
    pub seq: u64,
    /// What happened.
    pub event: AuditEvent,
}

/// How the detail of a record `log.pruned` begins.
const PRUNED: &str = "records 1 to ";

/// Longest detail that is kept.
pub const DETAIL_MAX: usize = 512;

impl AuditEvent {
    fn new(event: Event, actor: Actor, time: Timestamp) -> Self {
        Self {
            time,
            event,
            outcome: Outcome::Success,
            actor,
            token_id: None,
            evidence: None,
            peer: None,
            method: None,
            service: None,
            grant: None,
            grant_version: None,
            lease_id: None,
            access_key_id: None,
            aws_request_id: None,
            reason: None,
            detail: None,
            instance: None,
            request_id: None,
            kind: None,
            aws_name: None,
            expires_at: None,
            permissions: None,
            late: false,
            holder: None,
            refused_after: None,
            gone_after: None,
        }
    }

    /// Something the broker did by itself.
    #[must_use]
    pub fn by_broker(event: Event, time: Timestamp) -> Self {
        Self::new(event, Actor::Broker, time)
    }

    /// Something a proven caller did or asked for.
    #[must_use]
    pub fn by(principal: &Principal, event: Event, time: Timestamp) -> Self {
        let actor = match principal.identity() {
            Identity::Service(name) | Identity::Enrollee(name) => Actor::Service(name.clone()),
            Identity::Operator(name, _) => Actor::Operator(name.clone()),
        };
        let evidence = &principal.proof().evidence;
        let event = Self::new(event, actor, time).shown(evidence);
        event.called_from(principal.origin())
    }

    /// A failed login, with what was shown, if anything was.
    #[must_use]
    pub fn failed_login(
        origin: &Origin,
        reason: &str,
        evidence: Option<&Evidence>,
        time: Timestamp,
    ) -> Self {
        let event = Self::new(Event::LoginFailed, Actor::Unknown, time);
        let event = evidence.into_iter().fold(event, Self::shown);
        event.called_from(origin).denied(reason)
    }

    fn shown(self, evidence: &Evidence) -> Self {
        let token_id = evidence.token_id();
        Self {
            token_id: token_id.cloned(),
            evidence: token_id.is_none().then(|| evidence.to_string()),
            ..self
        }
    }

    fn called_from(self, origin: &Origin) -> Self {
        Self {
            peer: origin.peer,
            method: Some(origin.method.clone()),
            ..self
        }
    }

    /// Refused by the broker, with a machine reason.
    #[must_use]
    pub fn denied(self, reason: &str) -> Self {
        Self {
            outcome: Outcome::Denied,
            reason: Some(reason.to_owned()),
            ..self
        }
    }

    /// Tried in vain, with a machine reason.
    #[must_use]
    pub fn failed(self, reason: &str) -> Self {
        Self {
            outcome: Outcome::Failure,
            reason: Some(reason.to_owned()),
            ..self
        }
    }

    /// Concerns this service.
    #[must_use]
    pub fn service(self, service: &Name) -> Self {
        Self {
            service: Some(service.clone()),
            ..self
        }
    }

    /// Concerns a grant of this name, and its service.
    #[must_use]
    pub fn grant_name(self, name: &GrantName) -> Self {
        Self {
            grant: Some(name.clone()),
            ..self.service(&name.service)
        }
    }

    /// Concerns this.
    #[must_use]
    pub fn about(self, subject: &Subject) -> Self {
        match subject {
            Subject::Service(name) | Subject::Token(name, _) | Subject::Binding(name, _) => {
                self.service(name)
            }
            Subject::Grant(name) => self.grant_name(name),
            Subject::Lease(id) => Self {
                lease_id: Some(id.clone()),
                ..self
            },
            Subject::Operator(_)
            | Subject::Approval(_)
            | Subject::Enrollment
            | Subject::AdminKey
            | Subject::AuditLog => self,
        }
    }

    /// Concerns this version of a grant, with what it permits, and its service.
    #[must_use]
    pub fn grant(self, grant: &Grant) -> Self {
        Self {
            grant_version: Some(grant.version),
            kind: Some(grant.spec.kind()),
            ..self.grant_name(&grant.name).permits(grant)
        }
    }

    /// Concerns credentials that may do what this grant permits.
    #[must_use]
    pub fn permits(self, grant: &Grant) -> Self {
        Self {
            permissions: Some(Permissions::of(grant)),
            ..self
        }
    }

    /// Concerns this lease, and its grant and service.
    #[must_use]
    pub fn lease(self, lease: &Lease) -> Self {
        let (binding, issued) = (&lease.binding, lease.issued());
        Self {
            grant_version: Some(binding.grant_version),
            lease_id: Some(binding.lease_id.clone()),
            access_key_id: issued.map(|issued| issued.access_key_id.clone()),
            request_id: lease.request.as_ref().map(|named| named.id.clone()),
            kind: Some(binding.kind),
            aws_name: Some(binding.aws_name.clone()),
            expires_at: issued.map(|issued| issued.expires_at),
            ..self.grant_name(&binding.grant)
        }
    }

    /// Written by this run of the broker.
    #[must_use]
    pub fn instance(self, instance: &str) -> Self {
        Self {
            instance: Some(instance.to_owned()),
            ..self
        }
    }

    /// The last of `count` like it since then, which have this record alone.
    #[must_use]
    pub fn repeated(self, count: u64, since: Timestamp, now: Timestamp) -> Self {
        let detail = self
            .detail
            .as_deref()
            .map(|detail| format!("; the last: {detail}"));
        let detail = detail.unwrap_or_default();
        let counted = format!("{count} more like this since {since}, counted{detail}");
        Self { time: now, ..self }.detail(&counted)
    }

    /// Written only when the store took records again.
    #[must_use]
    pub fn late(self) -> Self {
        Self { late: true, ..self }
    }

    /// Concerns this denial, and its service.
    #[must_use]
    pub fn denial(self, denial: &Denial) -> Self {
        let against = &denial.against;
        let scoped = match &against.scope {
            Scope::Everyone => self,
            Scope::Service => self.service(&against.service),
            Scope::Grant(grant) => self.grant_name(&GrantName {
                service: against.service.clone(),
                grant: grant.clone(),
            }),
            Scope::Lease(lease) => Self {
                lease_id: Some(lease.clone()),
                ..self.service(&against.service)
            },
        };
        scoped.holder(&against.holder)
    }

    /// Concerns policies of this role or user.
    #[must_use]
    pub fn holder(self, holder: &Holder) -> Self {
        Self {
            holder: Some(holder.clone()),
            ..self
        }
    }

    /// AWS refused it so long after its revocation was asked for.
    #[must_use]
    pub fn refused_after(self, after: SignedDuration) -> Self {
        Self {
            refused_after: Some(to_the_millisecond(after)),
            ..self
        }
    }

    /// AWS showed the user gone so long after its revocation was asked for.
    #[must_use]
    pub fn gone_after(self, after: SignedDuration) -> Self {
        Self {
            gone_after: Some(to_the_millisecond(after)),
            ..self
        }
    }

    /// Concerns this access key.
    #[must_use]
    pub fn access_key(self, id: &str) -> Self {
        Self {
            access_key_id: Some(id.to_owned()),
            ..self
        }
    }

    /// Concerns a session or user of this name.
    #[must_use]
    pub fn aws_name(self, binding: &Binding) -> Self {
        Self {
            aws_name: Some(binding.aws_name.clone()),
            kind: Some(binding.kind),
            ..self
        }
    }

    /// AWS's id of the request.
    #[must_use]
    pub fn aws_request(self, id: Option<&str>) -> Self {
        Self {
            aws_request_id: id.map(ToOwned::to_owned),
            ..self
        }
    }

    /// That the log's first records up to this number were given up.
    #[must_use]
    pub fn pruned(self, until: u64) -> Self {
        self.detail(&format!("{PRUNED}{until}"))
    }

    /// What a record `log.pruned` says.
    #[must_use]
    pub fn pruned_until(&self) -> Option<u64> {
        let told = self
            .detail
            .as_deref()
            .filter(|_| self.event == Event::LogPruned);
        told?.strip_prefix(PRUNED)?.parse().ok()
    }

    /// More, in words; cut at [`DETAIL_MAX`] characters, control characters escaped.
    #[must_use]
    pub fn detail(self, words: &str) -> Self {
        let words: String = words
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .take(DETAIL_MAX)
            .collect();
        Self {
            detail: (!words.is_empty()).then_some(words),
            ..self
        }
    }
}

fn to_the_millisecond(after: SignedDuration) -> Duration {
    Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_events_and_outcomes_read_back_as_they_were_written() {
        for text in [
            "operator:ann-1",
            "service:payments-api",
            "broker",
            "unknown",
        ] {
            assert_eq!(text.parse::<Actor>().unwrap().to_string(), text);
        }
        assert!("root".parse::<Actor>().is_err());
        assert_eq!("lease.issued".parse(), Ok(Event::LeaseIssued));
        assert_eq!("denied".parse(), Ok(Outcome::Denied));
    }

    #[test]
    fn details_are_bounded_and_hold_no_control_characters() {
        let event = AuditEvent::by_broker(Event::StatusRead, Timestamp::UNIX_EPOCH)
            .detail(&"a\nb\u{1b}".repeat(400));
        let detail = event.detail.unwrap();
        assert_eq!(detail.chars().count(), DETAIL_MAX);
        assert!(!detail.chars().any(char::is_control));
    }
}
