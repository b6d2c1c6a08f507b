//! Errors at the start of a broker, and what to do about them.

use std::{io, net::SocketAddr, path::PathBuf};

use super::TrustError;
use crate::{
    aws::SetupError,
    broker::{
        self,
        ports::{AwsFailure, FailureClass, StoreError},
    },
    config::ConfigError,
    domain::{name::Name, sealing::SealError},
    http::tls::TlsError,
    sink,
    store::{migrate_to_postgres::CopyError, postgres, sqlite},
};

/// Reason why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store file cannot be opened.
    #[error(transparent)]
    Store(#[from] sqlite::OpenError),
    /// The database cannot be opened.
    #[error(transparent)]
    Database(#[from] postgres::OpenError),
    /// A running broker is using the store.
    #[error("the broker is running: it has {0} open")]
    Running(String),
    /// The store file does not exist.
    #[error("there is no store {0}; name the file of the broker, such as credbroker.db")]
    NoStore(PathBuf),
    /// The store cannot be moved to a database.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The journal holds revocations that the store has not recorded yet.
    #[error("revocations wait in {0}: start the broker once, it records them")]
    Unrecorded(PathBuf),
    /// The audit log is inconsistent.
    #[error("the audit log is not whole: {0}; nothing is given up, the file is as it was")]
    NotWhole(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An authority for client certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The process's memory cannot be protected from other processes.
    #[error("the system does not let the broker protect its memory from other processes: {0}")]
    Memory(io::Error),
    /// The address cannot be used.
    #[error("cannot listen on {address}: {source}; is another program using it?")]
    Listen {
        /// Address to listen on.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// The AWS account is not ready.
    #[error(transparent)]
    Account(#[from] SetupError),
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// A file of the state directory is damaged.
    #[error("{path} is damaged: {detail}; start with another --state-dir")]
    State {
        /// Path of the file.
        path: PathBuf,
        /// Description of the damage.
        detail: String,
    },
    /// The sealing key is invalid.
    #[error("{path} cannot be used: {source}")]
    Sealing {
        /// Path of the file.
        path: PathBuf,
        /// Defect of the key.
        source: SealError,
    },
    /// A sink of the audit log cannot be set up.
    #[error("the audit sink {name} cannot be set up: {source}")]
    Sink {
        /// Name of the sink.
        name: Name,
        /// Defect of its settings.
        source: sink::SetupError,
    },
    /// The client for an issuer's keys or token review cannot be set up.
    #[error("{issuer} cannot be asked: {source}")]
    Issuer {
        /// Name of the issuer, as in the claim `iss`.
        issuer: String,
        /// Defect of its settings.
        source: sink::SetupError,
    },
    /// The witness of the audit log cannot be set up.
    #[error("the witness of the audit log cannot be set up: {0}")]
    Witness(sink::SetupError),
    /// KMS does not decrypt the sealing key.
    #[error("the sealing key cannot be opened: {0}")]
    Kms(AwsFailure),
    /// The broker fails before it serves, for example because the store accepts no record.
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

/// Kind of a failed start, for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartProblem {
    /// The options or the configuration are wrong.
    Told,
    /// The state of the store, of AWS or of another broker prevents the start.
    State,
    /// The store or AWS is unavailable at the moment.
    Unavailable,
    /// Any other failure.
    Unexpected,
}

impl StartError {
    /// Returns the kind of the failure.
    #[must_use]
    pub const fn problem(&self) -> StartProblem {
        match self {
            Self::Database(error) | Self::Copy(CopyError::Open(error)) => of_database(error),
            Self::Config(_)
            | Self::NoStore(_)
            | Self::Tls(_)
            | Self::Sealing { .. }
            | Self::Sink { .. }
            | Self::Witness(_) => StartProblem::Told,
            Self::Store(sqlite::OpenError::InUse(_))
            | Self::Running(_)
            | Self::Copy(CopyError::NotEmpty(_))
            | Self::Unrecorded(_)
            | Self::Account(_)
            | Self::Kms(AwsFailure {
                class: FailureClass::Refused,
                ..
            })
            | Self::Broker(broker::Error::WrongState { .. }) => StartProblem::State,
            Self::Kms(_) | Self::Broker(broker::Error::Store(StoreError::Unavailable(_))) => {
                StartProblem::Unavailable
            }
            _ => StartProblem::Unexpected,
        }
    }

    /// Returns what to do next, where the text of the error does not say it.
    #[must_use]
    pub fn next(&self) -> Option<String> {
        match self {
            Self::Account(SetupError::Aws(failure)) | Self::Kms(failure) => {
                Some(failure.next.clone())
            }
            Self::Broker(error) => Some(error.next()),
            Self::Running(_) => Some("leave out --offline: it does this itself".to_owned()),
            _ => None,
        }
    }
}

const fn of_database(error: &postgres::OpenError) -> StartProblem {
    use postgres::OpenError::{Database, InUse, Newer, NotMigrated, Url};

    match error {
        Url(_) => StartProblem::Told,
        InUse(_) | NotMigrated(_) | Newer { .. } => StartProblem::State,
        Database { .. } => StartProblem::Unavailable,
        _ => StartProblem::Unexpected,
    }
}
