//! Events and records of the audit log. Their fields are typed, and none is a copy of a request as
//! it came, so that no secret can slip in.

mod event;
mod permissions;

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};

pub use self::{event::Event, permissions::Permissions};
use crate::domain::{
    approval::ApprovalId,
    binding::BindingId,
    denial::{Denial, PolicyOwner, Scope},
    grant::{Grant, Kind},
    lease::{Issuance, Lease},
    name::{GrantName, LeaseId, Name},
    principal::{Evidence, Identity, Origin, Principal},
    request::RequestId,
    token::TokenId,
};

/// Outcome of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request was carried out.
    Success,
    /// The broker refused the request.
    Denied,
    /// An attempt was made and did not succeed.
    Failure,
}

impl Outcome {
    /// Returns the outcome's name in the log.
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

/// Originator of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// An operator with a proven identity.
    Operator(Name),
    /// A service with a proven identity.
    Service(Name),
    /// The broker, on its own.
    Broker,
    /// A caller without a proven identity.
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

/// Object that a request is about.
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

/// Event that is not yet in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Time by the broker's clock.
    pub time: Timestamp,
    /// Kind of the event.
    pub event: Event,
    /// Success, refusal or failure.
    pub outcome: Outcome,
    /// Operator, service or broker that caused the event.
    pub actor: Actor,
    /// Id of the token that the actor showed. In a failed login the token proves nothing.
    pub token_id: Option<TokenId>,
    /// Other evidence that the actor showed, in words. In a failed login it proves nothing.
    pub evidence: Option<String>,
    /// Address and port of the caller.
    pub peer: Option<SocketAddr>,
    /// Method that was called: `credbroker.v1.Service/Method`.
    pub method: Option<String>,
    /// The service concerned.
    pub service: Option<Name>,
    /// The grant concerned.
    pub grant: Option<GrantName>,
    /// Version of the grant.
    pub grant_version: Option<u64>,
    /// The lease concerned.
    pub lease_id: Option<LeaseId>,
    /// The access key concerned.
    pub access_key_id: Option<String>,
    /// Request id that AWS returned.
    pub aws_request_id: Option<String>,
    /// Machine-readable reason of a refusal or failure.
    pub reason: Option<String>,
    /// Details in words, up to [`DETAIL_MAX`] characters.
    pub detail: Option<String>,
    /// Id of the run of the broker that wrote the record: 8 characters `[0-9a-f]`.
    pub instance: Option<String>,
    /// Request id that the caller gave for this lease.
    pub request_id: Option<RequestId>,
    /// Kind of the lease's credentials.
    pub kind: Option<Kind>,
    /// Role session name, federated user name or IAM user name.
    pub aws_name: Option<String>,
    /// End of the credentials.
    pub expires_at: Option<Timestamp>,
    /// Permissions of the credentials.
    pub permissions: Option<Permissions>,
    /// True if the store could not record the event at its time and the record was written later.
    pub late: bool,
    /// The role or user whose policies are concerned.
    pub holder: Option<PolicyOwner>,
    /// Time from the revocation request until AWS was seen to enforce it, in whole milliseconds.
    pub refused_after: Option<Duration>,
    /// Time from the revocation request until AWS showed the user gone, in whole milliseconds.
    pub gone_after: Option<Duration>,
}

/// Event with its number in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Number of the record: from 1, without gaps.
    pub seq: u64,
    /// The recorded event.
    pub event: AuditEvent,
}

/// Beginning of the detail of a `log.pruned` record.
const PRUNED: &str = "records 1 to ";

/// Longest detail, in characters.
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

    /// Returns a successful event that the broker caused on its own.
    #[must_use]
    pub fn by_broker(event: Event, time: Timestamp) -> Self {
        Self::new(event, Actor::Broker, time)
    }

    /// Returns a successful event that a caller with a proven identity caused.
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

    /// Returns a failed login, with the evidence that the caller showed, if any.
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

    /// Marks the event as refused by the broker, with a machine-readable reason.
    #[must_use]
    pub fn denied(self, reason: &str) -> Self {
        Self {
            outcome: Outcome::Denied,
            reason: Some(reason.to_owned()),
            ..self
        }
    }

    /// Marks the event as a failed attempt, with a machine-readable reason.
    #[must_use]
    pub fn failed(self, reason: &str) -> Self {
        Self {
            outcome: Outcome::Failure,
            reason: Some(reason.to_owned()),
            ..self
        }
    }

    /// Sets the service concerned.
    #[must_use]
    pub fn service(self, service: &Name) -> Self {
        Self {
            service: Some(service.clone()),
            ..self
        }
    }

    /// Sets the grant concerned, and its service.
    #[must_use]
    pub fn grant_name(self, name: &GrantName) -> Self {
        Self {
            grant: Some(name.clone()),
            ..self.service(&name.service)
        }
    }

    /// Sets the service, grant or lease that the subject names. Other subjects set no field.
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

    /// Sets this version of a grant, with its kind, its permissions and its service.
    #[must_use]
    pub fn grant(self, grant: &Grant) -> Self {
        Self {
            grant_version: Some(grant.version),
            kind: Some(grant.spec.kind()),
            ..self.grant_name(&grant.name).permits(grant)
        }
    }

    /// Sets the permissions to those that this grant allows.
    #[must_use]
    pub fn permits(self, grant: &Grant) -> Self {
        Self {
            permissions: Some(Permissions::of(grant)),
            ..self
        }
    }

    /// Sets this lease, with its credentials, its grant and its service.
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

    /// Sets the id of the run of the broker that writes the record.
    #[must_use]
    pub fn instance(self, instance: &str) -> Self {
        Self {
            instance: Some(instance.to_owned()),
            ..self
        }
    }

    /// Turns the last of `count` equal events since `since` into the one record for all of them:
    /// the others have no record.
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

    /// Marks the event as recorded later than its time.
    #[must_use]
    pub fn late(self) -> Self {
        Self { late: true, ..self }
    }

    /// Sets the service, grant or lease that this denial is about, and its role or user. A denial
    /// with [`Scope::Everyone`] sets only the role or user.
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

    /// Sets the role or user whose policies are concerned.
    #[must_use]
    pub fn holder(self, holder: &PolicyOwner) -> Self {
        Self {
            holder: Some(holder.clone()),
            ..self
        }
    }

    /// Sets the time from the revocation request until AWS was seen to enforce it.
    #[must_use]
    pub fn refused_after(self, after: SignedDuration) -> Self {
        Self {
            refused_after: Some(to_the_millisecond(after)),
            ..self
        }
    }

    /// Sets the time from the revocation request until AWS showed the user gone.
    #[must_use]
    pub fn gone_after(self, after: SignedDuration) -> Self {
        Self {
            gone_after: Some(to_the_millisecond(after)),
            ..self
        }
    }

    /// Sets the access key concerned.
    #[must_use]
    pub fn access_key(self, id: &str) -> Self {
        Self {
            access_key_id: Some(id.to_owned()),
            ..self
        }
    }

    /// Sets the name of the session or user, and its kind.
    #[must_use]
    pub fn aws_name(self, binding: &Issuance) -> Self {
        Self {
            aws_name: Some(binding.aws_name.clone()),
            kind: Some(binding.kind),
            ..self
        }
    }

    /// Sets the request id that AWS returned.
    #[must_use]
    pub fn aws_request(self, id: Option<&str>) -> Self {
        Self {
            aws_request_id: id.map(ToOwned::to_owned),
            ..self
        }
    }

    /// Sets the detail of a `log.pruned` record: the log was pruned up to record `until`.
    #[must_use]
    pub fn pruned(self, until: u64) -> Self {
        self.detail(&format!("{PRUNED}{until}"))
    }

    /// Returns the number of the last pruned record; `None` if this is no `log.pruned` event.
    #[must_use]
    pub fn pruned_until(&self) -> Option<u64> {
        let told = self
            .detail
            .as_deref()
            .filter(|_| self.event == Event::LogPruned);
        told?.strip_prefix(PRUNED)?.parse().ok()
    }

    /// Sets the detail, cut at [`DETAIL_MAX`] characters. Each control character becomes U+FFFD.
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
