//! Mapping of all errors to gRPC status, with `google.rpc` details (AIP-193).

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    broker::{
        Error,
        ports::{FailureClass, StoreError},
    },
    domain::decide::IssueRefusal,
};

/// Domain of every `ErrorInfo`.
pub const ERROR_DOMAIN: &str = "credbroker";
/// Key of the `ErrorInfo` metadata with the caller's next step.
pub const NEXT: &str = "next";

/// Returns the status of an error for the caller. Internal details are only logged.
#[must_use]
pub fn status(error: &Error) -> Status {
    let message = match error {
        Error::Internal(_)
        | Error::Store(StoreError::Inconsistent { .. } | StoreError::Conflict) => {
            tracing::error!(%error, "an internal error");
            "the broker met an internal error; its log says more".to_owned()
        }
        Error::Store(StoreError::Unavailable(_)) => {
            tracing::error!(%error, "the store is not available");
            format!("the broker cannot record what it does: {error}")
        }
        other => other.to_string(),
    };
    Status::with_error_details(code(error), message, details(error))
}

const fn code(error: &Error) -> Code {
    match error {
        Error::Invalid(_)
        | Error::Denied(
            IssueRefusal::TtlAboveMaximum { .. } | IssueRefusal::TtlBelowMinimum { .. },
        ) => Code::InvalidArgument,
        Error::Unauthenticated => Code::Unauthenticated,
        Error::Suspended(_) | Error::NotPermitted(_) => Code::PermissionDenied,
        Error::Limited { .. } => Code::ResourceExhausted,
        Error::Late => Code::DeadlineExceeded,
        Error::NotFound(_) | Error::Denied(IssueRefusal::NoSuchGrant(_)) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::WrongState { .. }
        | Error::Denied(
            IssueRefusal::GrantChanged { .. }
            | IssueRefusal::LeaseOver { .. }
            | IssueRefusal::RenewalAboveMaximum { .. },
        ) => Code::FailedPrecondition,
        Error::Conflict(_) => Code::Aborted,
        Error::Aws(failure) => match failure.class {
            FailureClass::Refused => Code::FailedPrecondition,
            FailureClass::Deferred => Code::ResourceExhausted,
            FailureClass::Throttled
            | FailureClass::Busy
            | FailureClass::Unavailable
            | FailureClass::Uncertain => Code::Unavailable,
        },
        Error::Store(StoreError::Unavailable(_)) => Code::Unavailable,
        Error::Store(_) | Error::Internal(_) => Code::Internal,
    }
}

fn details(error: &Error) -> ErrorDetails {
    let next = error.next();
    let metadata = if next.is_empty() {
        HashMap::new()
    } else {
        HashMap::from([(NEXT.to_owned(), next)])
    };
    let mut details = ErrorDetails::with_error_info(error.reason(), ERROR_DOMAIN, metadata);
    match error {
        Error::Invalid(violations) => {
            for violation in violations {
                details.add_bad_request_violation(&violation.field, &violation.message);
            }
        }
        Error::Denied(
            denial @ (IssueRefusal::TtlAboveMaximum { .. } | IssueRefusal::TtlBelowMinimum { .. }),
        ) => {
            details.add_bad_request_violation("ttl", denial.to_string());
        }
        _ => {}
    }
    if let Some(pause) = error.retry_after() {
        details.set_retry_info(Some(pause));
    }
    details
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        broker::ports::AwsFailure,
        domain::{audit::Subject, grant::validate::Violation, operator::Role},
    };

    fn aws(class: FailureClass) -> Error {
        Error::Aws(AwsFailure {
            class,
            reason: "R",
            message: "m".to_owned(),
            next: "n".to_owned(),
            retry_after: (class != FailureClass::Refused).then_some(Duration::from_secs(3)),
            aws_said: "AccessDenied: secret words".to_owned(),
            aws_request_id: None,
        })
    }

    fn limited() -> Error {
        Error::Limited {
            reason: "R",
            message: "m".to_owned(),
            next: String::new(),
            retry_after: Some(Duration::from_secs(3)),
        }
    }

    fn subject() -> Subject {
        Subject::Service("payments".parse().unwrap())
    }

    #[test]
    fn each_error_has_its_status() {
        let denied = |denial| Error::Denied(denial);
        let hour = Duration::from_secs(3600);
        let grant = || "payments/uploads".parse().unwrap();
        let table = [
            (
                Error::Invalid(vec![Violation::new("f", "m")]),
                Code::InvalidArgument,
            ),
            (Error::Unauthenticated, Code::Unauthenticated),
            (Error::Late, Code::DeadlineExceeded),
            (
                Error::Suspended("payments".parse().unwrap()),
                Code::PermissionDenied,
            ),
            (
                Error::NotPermitted(crate::domain::access::AccessError::Role {
                    role: Role::Viewer,
                    allowed: &[],
                }),
                Code::PermissionDenied,
            ),
            (denied(IssueRefusal::NoSuchGrant(grant())), Code::NotFound),
            (
                denied(IssueRefusal::TtlAboveMaximum {
                    grant: grant(),
                    asked: hour,
                    maximum: hour,
                }),
                Code::InvalidArgument,
            ),
            (Error::NotFound(subject()), Code::NotFound),
            (Error::AlreadyExists(subject()), Code::AlreadyExists),
            (
                Error::WrongState {
                    subject: subject(),
                    reason: "R",
                    message: String::new(),
                    next: String::new(),
                },
                Code::FailedPrecondition,
            ),
            (Error::Conflict(subject()), Code::Aborted),
            (aws(FailureClass::Refused), Code::FailedPrecondition),
            (aws(FailureClass::Throttled), Code::Unavailable),
            (aws(FailureClass::Deferred), Code::ResourceExhausted),
            (limited(), Code::ResourceExhausted),
            (
                denied(IssueRefusal::LeaseOver {
                    lease_id: "0123456789abcdefghijklmnop".parse().unwrap(),
                    state: "revoked",
                }),
                Code::FailedPrecondition,
            ),
            (aws(FailureClass::Busy), Code::Unavailable),
            (aws(FailureClass::Unavailable), Code::Unavailable),
            (aws(FailureClass::Uncertain), Code::Unavailable),
            (
                Error::Store(StoreError::Unavailable("full".to_owned())),
                Code::Unavailable,
            ),
            (Error::Store(StoreError::Conflict), Code::Internal),
            (Error::Internal("x".to_owned()), Code::Internal),
        ];
        for (error, code) in table {
            assert_eq!(status(&error).code(), code, "{error:?}");
        }
    }

    #[test]
    fn what_can_be_retried_says_when() {
        let retry = |error: &Error| {
            status(error)
                .get_details_retry_info()
                .and_then(|info| info.retry_delay)
        };
        assert!(retry(&aws(FailureClass::Throttled)).is_some());
        assert!(retry(&limited()).is_some());
        assert!(retry(&Error::Store(StoreError::Unavailable(String::new()))).is_some());
        assert!(retry(&aws(FailureClass::Refused)).is_none());
    }

    #[test]
    fn a_bad_field_is_named() {
        let status = status(&Error::Invalid(vec![Violation::new(
            "grant.max_ttl",
            "too long",
        )]));
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, "grant.max_ttl");
    }

    #[test]
    fn internal_words_and_the_words_of_aws_stay_inside() {
        let shown = format!("{:?}", status(&Error::Internal("table leases".to_owned())));
        assert!(!shown.contains("table leases"));
        assert!(!format!("{:?}", status(&aws(FailureClass::Refused))).contains("secret words"));
    }
}
