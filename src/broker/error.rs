//! Errors of the use cases.

use std::time::Duration;

use crate::{
    broker::ports::{AwsFailure, StoreError},
    domain::{
        access::AccessError, audit::Subject, decide::IssueRefusal, grant::validate::Violation,
        name::Name,
    },
};

/// Retry delay for a store that cannot be written.
const STORE_PAUSE: Duration = Duration::from_secs(5);
/// Retry delay for a call that took too long.
const LATE_PAUSE: Duration = Duration::from_secs(2);

/// Error of a use case. Its text states what happened and why; [`Self::next`] states what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request is invalid.
    #[error("{}", join(.0))]
    Invalid(Vec<Violation>),
    /// The proof of identity is missing or not valid; one text for every cause.
    #[error("the token was not accepted")]
    Unauthenticated,
    /// The caller's service is suspended.
    #[error("service {0} is suspended")]
    Suspended(Name),
    /// The caller may not do this.
    #[error(transparent)]
    NotPermitted(#[from] AccessError),
    /// The broker has decided to refuse the request.
    #[error(transparent)]
    Denied(#[from] IssueRefusal),
    /// The subject is unknown, or the caller may not know of it.
    #[error("there is no {0}")]
    NotFound(Subject),
    /// The name is in use.
    #[error("{0} exists already")]
    AlreadyExists(Subject),
    /// The state of the subject does not allow the request.
    #[error("{message}")]
    WrongState {
        /// Subject whose state does not allow the request.
        subject: Subject,
        /// Machine-readable reason.
        reason: &'static str,
        /// Obstacle, in words.
        message: String,
        /// Advice on what to do next.
        next: String,
    },
    /// A limit is reached, or the request exceeds it.
    #[error("{message}")]
    Limited {
        /// Machine-readable reason.
        reason: &'static str,
        /// Limit that is used up, in words.
        message: String,
        /// Advice on what to do next.
        next: String,
        /// Delay before another attempt, where known.
        retry_after: Option<Duration>,
    },
    /// The operation is still in progress at the deadline of the call.
    #[error("deadline exceeded; the operation continues in the background")]
    Late,
    /// Another caller or task changed the subject at the same moment.
    #[error("{0} was changed by another request at the same time")]
    Conflict(Subject),
    /// AWS did not do what the broker asked.
    #[error(transparent)]
    Aws(#[from] AwsFailure),
    /// The store did not do what the broker asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A defect of the broker.
    #[error("{0}")]
    Internal(String),
}

fn join(violations: &[Violation]) -> String {
    violations
        .iter()
        .map(|v| v.message.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}

impl Error {
    /// Returns the error of one request id for two different requests.
    pub(super) fn request_id_reused() -> Self {
        let message =
            "this request id was used for another request: give each request an id of its own";
        Self::Invalid(vec![Violation::new("request_id", message)])
    }

    /// Returns the error of a watcher that reads too slowly and has missed revocations.
    #[must_use]
    pub fn watcher_too_slow() -> Self {
        Self::Limited {
            reason: "WATCHER_TOO_SLOW",
            message: "the watcher fell behind and missed revocations".to_owned(),
            next: "watch again, with the leases that are held".to_owned(),
            retry_after: None,
        }
    }

    /// Returns the machine-readable reason, in UPPER_SNAKE_CASE (AIP-193).
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_REQUEST",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Suspended(_) => "SERVICE_SUSPENDED",
            Self::NotPermitted(_) => "NOT_PERMITTED",
            Self::Denied(denial) => denial.reason(),
            Self::NotFound(_) => "NOT_FOUND",
            Self::AlreadyExists(_) => "ALREADY_EXISTS",
            Self::WrongState { reason, .. } | Self::Limited { reason, .. } => reason,
            Self::Late => "CALL_TOO_LONG",
            Self::Conflict(_) => "CONCURRENT_CHANGE",
            Self::Aws(failure) => failure.reason,
            Self::Store(StoreError::Unavailable(_)) => "STORE_UNAVAILABLE",
            Self::Store(_) | Self::Internal(_) => "INTERNAL",
        }
    }

    /// Returns what the caller can do next; empty where the message is enough.
    #[must_use]
    pub fn next(&self) -> String {
        match self {
            Self::Unauthenticated => "check CREDBROKER_TOKEN or CREDBROKER_TOKEN_FILE, or the client certificate: it may be \
                 mistyped, deleted or expired, or be no service's; an operator makes a new token with \
                 `credbroker service token create NAME`, and the audit log tells them which check failed"
                .to_owned(),
            Self::Suspended(name) => {
                format!("ask the operator who suspended it; it is lifted with `credbroker service reinstate {name}`")
            }
            Self::NotPermitted(AccessError::ServicesOnly) => {
                "use a token of the service: `credbroker service token create NAME`".to_owned()
            }
            Self::NotPermitted(_) => "ask an admin for an operator with the right role".to_owned(),
            Self::Denied(IssueRefusal::NoSuchGrant(name)) => {
                format!("check the name; an operator sees what there is with `credbroker grant list --service {}`", name.service)
            }
            Self::Denied(IssueRefusal::TtlAboveMaximum { .. }) => {
                "ask for less, or have an operator raise the grant's --max-ttl".to_owned()
            }
            Self::Denied(IssueRefusal::TtlBelowMinimum { .. }) => "ask for more".to_owned(),
            Self::Denied(IssueRefusal::RenewalAboveMaximum { .. }) => {
                "issue again, or ask for less".to_owned()
            }
            Self::Denied(IssueRefusal::GrantChanged { .. } | IssueRefusal::LeaseOver { .. }) => {
                "issue again, with a new request id".to_owned()
            }
            Self::WrongState { next, .. } | Self::Limited { next, .. } => next.clone(),
            Self::Late => "ask again, with the same request id where there is one".to_owned(),
            Self::Conflict(_) => "look at it again and repeat".to_owned(),
            Self::Aws(failure) => failure.next.clone(),
            Self::Store(StoreError::Unavailable(_)) => "the broker's operator must see that its store can be written (disk space, file \
                 permissions); then try again"
                .to_owned(),
            _ => String::new(),
        }
    }

    /// Returns the delay before another attempt, where one can help.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Aws(failure) => failure.retry_after,
            Self::Limited { retry_after, .. } => *retry_after,
            Self::Late => Some(LATE_PAUSE),
            Self::Store(StoreError::Unavailable(_)) => Some(STORE_PAUSE),
            _ => None,
        }
    }

    /// Returns the subject of the request, where known.
    #[must_use]
    pub const fn subject(&self) -> Option<&Subject> {
        match self {
            Self::NotFound(subject)
            | Self::AlreadyExists(subject)
            | Self::Conflict(subject)
            | Self::WrongState { subject, .. } => Some(subject),
            _ => None,
        }
    }
}
