//! Why a use case did not do as asked.

use std::time::Duration;

use crate::{
    broker::ports::{AwsFailure, StoreError},
    domain::{
        access::AccessError, audit::Subject, decide::Denial, grant::check::Violation, name::Name,
    },
};

/// When a store that cannot be written may be worth another try.
const STORE_PAUSE: Duration = Duration::from_secs(5);
/// When what took too long may be done.
const LATE_PAUSE: Duration = Duration::from_secs(2);

/// Why a use case did not do as asked. Each says what happened and why; `next` says
/// what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be right.
    #[error("{}", join(.0))]
    Invalid(Vec<Violation>),
    /// No valid proof of identity; one text for every cause.
    #[error("the token was not accepted")]
    Unauthenticated,
    /// The caller's service is shut out.
    #[error("service {0} is suspended")]
    Suspended(Name),
    /// The caller may not do this.
    #[error(transparent)]
    NotPermitted(#[from] AccessError),
    /// The decision was no.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// Unknown, or not the caller's to know.
    #[error("there is no {0}")]
    NotFound(Subject),
    /// The name is taken.
    #[error("{0} exists already")]
    AlreadyExists(Subject),
    /// Something stands against it.
    #[error("{message}")]
    WrongState {
        /// What it stands against.
        subject: Subject,
        /// Machine reason.
        reason: &'static str,
        /// What stands against it.
        message: String,
        /// What to do.
        next: String,
    },
    /// The service has, or asks for, as much as one service may.
    #[error("{message}")]
    Limited {
        /// Machine reason.
        reason: &'static str,
        /// What is used up.
        message: String,
        /// What to do.
        next: String,
        /// When to try again, where that is known.
        retry_after: Option<Duration>,
    },
    /// The broker is still at it when the caller is to have an answer.
    #[error("this takes longer than a call may; it goes on")]
    Late,
    /// Somebody else changed it at the same moment.
    #[error("{0} was changed by somebody else at the same moment")]
    Conflict(Subject),
    /// AWS did not do it.
    #[error(transparent)]
    Aws(#[from] AwsFailure),
    /// The store did not do it.
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
    /// One id for two different requests.
    pub(super) fn request_id_reused() -> Self {
        let message = "this id was given to another request: give each request an id of its own";
        Self::Invalid(vec![Violation::new("request_id", message)])
    }

    /// Somebody is told less than has happened.
    #[must_use]
    pub fn watcher_too_slow() -> Self {
        Self::Limited {
            reason: "WATCHER_TOO_SLOW",
            message: "more was revoked than this watcher has read".to_owned(),
            next: "watch again, with the leases that are held".to_owned(),
            retry_after: None,
        }
    }

    /// The machine reason, in UPPER_SNAKE_CASE (AIP-193).
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

    /// What the caller can do about it; empty where the message says it all.
    #[must_use]
    pub fn next(&self) -> String {
        match self {
            Self::Unauthenticated => "check CREDBROKER_TOKEN or CREDBROKER_TOKEN_FILE, or the client certificate: it may be \
                 mistyped, deleted or expired, or be no service's; an operator makes a new token with \
                 `credbroker service token create NAME`, and the audit log tells them which check failed"
                .to_owned(),
            Self::Suspended(name) => {
                format!("ask whoever shut it out; an operator lifts it with `credbroker service reinstate {name}`")
            }
            Self::NotPermitted(AccessError::ServicesOnly) => {
                "use a token of the service: `credbroker service token create NAME`".to_owned()
            }
            Self::NotPermitted(_) => "ask an admin for an operator with the right role".to_owned(),
            Self::Denied(Denial::NoSuchGrant(name)) => {
                format!("check the name; an operator sees what there is with `credbroker grant list --service {}`", name.service)
            }
            Self::Denied(Denial::TtlAboveMaximum { .. }) => {
                "ask for less, or have an operator raise the grant's --max-ttl".to_owned()
            }
            Self::Denied(Denial::TtlBelowMinimum { .. }) => "ask for more".to_owned(),
            Self::Denied(Denial::RenewalAboveMaximum { .. }) => {
                "issue anew, or ask for less".to_owned()
            }
            Self::Denied(Denial::GrantChanged { .. } | Denial::LeaseOver { .. }) => {
                "issue anew, with a new request id".to_owned()
            }
            Self::WrongState { next, .. } | Self::Limited { next, .. } => next.clone(),
            Self::Late => "ask again, with the same request id where there is one".to_owned(),
            Self::Conflict(_) => "look at it again and repeat".to_owned(),
            Self::Aws(failure) => failure.next.clone(),
            Self::Store(StoreError::Unavailable(_)) => "whoever runs the broker must see that its store can be written (disk space, file \
                 permissions); then try again"
                .to_owned(),
            _ => String::new(),
        }
    }

    /// When to try again, where that can help.
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

    /// What the request was about, where that is known.
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
