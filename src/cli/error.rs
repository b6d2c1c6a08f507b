//! Failures of commands, in words for people, and the exit status that scripts rely on.

use std::{error::Error, io, process::ExitCode};

use tonic::{Code, Status, transport};
use tonic_types::StatusExt;

use crate::{client::ConnectError, domain::request::RequestId};

/// Exit statuses of the contract; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Unexpected = 1,
    Usage = 2,
    NotAuthenticated = 3,
    Denied = 4,
    NotFound = 5,
    Conflict = 6,
    Unavailable = 7,
    Verification = 8,
    /// The output is a closed pipe. Status that a shell reports for such a process; no error is
    /// printed.
    NobodyReads = 141,
}

/// Failure of a command: what happened and why, and what to do next.
#[derive(Debug)]
pub(super) struct CliError {
    exit: Exit,
    what: String,
    details: Vec<String>,
    reason: Option<String>,
    next: Option<String>,
}

impl CliError {
    pub(super) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            details: Vec::new(),
            reason: None,
            next: None,
        }
    }

    pub(super) fn next(self, next: impl Into<String>) -> Self {
        Self {
            next: Some(next.into()),
            ..self
        }
    }

    /// Adds a hint that the request can be repeated under its id, if the result is unavailable.
    pub(super) fn of_request(mut self, id: &RequestId) -> Self {
        if self.exit == Exit::Unavailable {
            let hint = format!("repeated with --request-id {id} it gets the same lease");
            self.details.push(hint);
        }
        self
    }

    pub(super) fn unexpected(what: impl Into<String>) -> Self {
        Self::new(Exit::Unexpected, what)
    }

    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// Returns the failure of a copy of the audit log that does not verify.
    pub(super) fn verification(what: impl Into<String>) -> Self {
        Self::new(Exit::Verification, what)
    }

    pub(super) fn not_found(what: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, what)
    }

    pub(super) fn unavailable(what: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, what)
    }

    /// Returns a refusal by the broker, in its own words.
    pub(super) fn refused(code: Code, what: impl Into<String>) -> Self {
        Self::new(exit(code), what)
    }

    pub(super) fn conflict(what: impl Into<String>) -> Self {
        Self::new(Exit::Conflict, what)
    }

    /// Returns whether the failure is temporary: the result is unavailable at the moment.
    pub(super) fn is_unavailable(&self) -> bool {
        self.exit == Exit::Unavailable
    }

    pub(super) const fn exit(&self) -> Exit {
        self.exit
    }

    pub(super) const fn has_next(&self) -> bool {
        self.next.is_some()
    }

    /// Returns the machine-readable reason that the broker gave.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Returns what happened and why, on one line, and what to do next.
    pub(super) fn message(self) -> (String, Option<String>) {
        let mut what = self.what;
        for detail in &self.details {
            what = format!("{what}; {detail}");
        }
        if let Some(reason) = &self.reason {
            what = format!("{what} ({reason})");
        }
        (what, self.next)
    }

    /// Returns the failure of a connection setting that is missing.
    pub(super) fn unset(variable: &str, flag: &str) -> Self {
        Self::usage(format!("{variable} is not set")).next(format!(
            "set it, or give {flag}; `credbroker dev` writes a file `env` that sets all three"
        ))
    }

    /// Prints the failure to standard error, and returns the exit status.
    pub(super) fn report(&self) -> ExitCode {
        if self.exit == Exit::NobodyReads {
            return ExitCode::from(self.exit as u8);
        }
        eprintln!("error: {}", self.what);
        for detail in &self.details {
            eprintln!("  {detail}");
        }
        if let Some(reason) = &self.reason {
            eprintln!("  reason: {reason}");
        }
        if let Some(next) = &self.next {
            eprintln!("  next: {next}");
        }
        ExitCode::from(self.exit as u8)
    }
}

const fn exit(code: Code) -> Exit {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::Unauthenticated => Exit::NotAuthenticated,
        Code::PermissionDenied => Exit::Denied,
        Code::NotFound => Exit::NotFound,
        Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => Exit::Conflict,
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => Exit::Unavailable,
        _ => Exit::Unexpected,
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        if let Some(source) = status.source()
            && source.is::<transport::Error>()
        {
            let what = "the connection to the broker was lost before it answered";
            return Self::new(Exit::Unavailable, what).next(
                "see that the broker is running, then look whether it was done, and try again",
            );
        }
        let mut failure = Self::new(exit(status.code()), status.message());
        if let Some(bad) = status.get_details_bad_request() {
            "the broker does not accept this".clone_into(&mut failure.what);
            let violations = bad.field_violations;
            failure.details = violations
                .into_iter()
                .map(|v| format!("{}: {}", v.field, v.description))
                .collect();
        }
        if let Some(info) = status.get_details_error_info() {
            failure.next = info.metadata.get("next").cloned();
            failure.reason = Some(info.reason);
        } else if status.code() == Code::Unavailable {
            failure.next = Some("see that the broker is running, then try again".to_owned());
        }
        if let Some(pause) = status
            .get_details_retry_info()
            .and_then(|retry| retry.retry_delay)
        {
            failure
                .details
                .push(format!("try again after {} s", pause.as_secs()));
        }
        failure
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } => Self::new(Exit::Unavailable, error.to_string())
                .next("see that the broker is running, and that CREDBROKER_ADDR and CREDBROKER_CA_FILE are its own"),
            other => Self::usage(other.to_string()),
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::BrokenPipe => Exit::NobodyReads,
            _ => Exit::Unexpected,
        };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_of_the_contract() {
        for (code, status) in [
            (Code::Internal, 1),
            (Code::InvalidArgument, 2),
            (Code::Unauthenticated, 3),
            (Code::PermissionDenied, 4),
            (Code::NotFound, 5),
            (Code::Aborted, 6),
            (Code::AlreadyExists, 6),
            (Code::FailedPrecondition, 6),
            (Code::Unavailable, 7),
            (Code::ResourceExhausted, 7),
        ] {
            assert_eq!(exit(code) as u8, status, "{code:?}");
        }
    }
}
