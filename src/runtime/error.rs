//! Why a broker does not start, and what to do about it.

use std::{io, net::SocketAddr, path::PathBuf};

use super::TrustError;
use crate::{
    aws::SetupError,
    broker::{
        self,
        ports::{AwsFailure, FailureClass, StoreError},
    },
    config::ConfigError,
    domain::{name::Name, seal::SealError},
    http::tls::TlsError,
    sink,
    store::{copy::CopyError, postgres, sqlite},
};

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its store does not open.
    #[error(transparent)]
    Store(#[from] sqlite::OpenError),
    /// Its database does not open.
    #[error(transparent)]
    Database(#[from] postgres::OpenError),
    /// A broker that runs has the store.
    #[error("the broker is running: it has {0} open")]
    Running(String),
    /// There is no store where one must be.
    #[error("there is no store {0}; name the file of the broker, such as credbroker.db")]
    NoStore(PathBuf),
    /// It cannot be moved.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Revocations are not recorded yet.
    #[error("revocations wait in {0}: start the broker once, it records them")]
    Unrecorded(PathBuf),
    /// The audit log does not hold together.
    #[error("the audit log is not whole: {0}; nothing is given up, the file is as it was")]
    NotWhole(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An authority for client certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The process's memory cannot be kept from others.
    #[error("the system does not let the broker keep its memory to itself: {0}")]
    Memory(io::Error),
    /// The address is not to be had.
    #[error("cannot listen on {address}: {source}; is another program using it?")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The AWS account is not ready.
    #[error(transparent)]
    Account(#[from] SetupError),
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the state directory is damaged.
    #[error("{path} is damaged: {detail}; start with another --state-dir")]
    State {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The sealing key is none.
    #[error("{path} cannot be used: {source}")]
    Sealing {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: SealError,
    },
    /// A sink of the audit log cannot be set up.
    #[error("the audit sink {name} cannot be set up: {source}")]
    Sink {
        /// Which.
        name: Name,
        /// Why.
        source: sink::SetupError,
    },
    /// An issuer of tokens, or who reviews them, cannot be asked.
    #[error("{issuer} cannot be asked: {source}")]
    Issuer {
        /// Which.
        issuer: String,
        /// Why.
        source: sink::SetupError,
    },
    /// The witness of the audit log cannot be set up.
    #[error("the witness of the audit log cannot be set up: {0}")]
    Witness(sink::SetupError),
    /// KMS does not open the sealing key.
    #[error("the sealing key cannot be opened: {0}")]
    Kms(AwsFailure),
    /// The store does not take what must be in it first.
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

/// What a person at the command line must know of a failed start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartProblem {
    /// What the broker was told cannot be.
    Told,
    /// Something else stands against it.
    State,
    /// What it needs is not to be had at the moment.
    Unavailable,
    /// Anything else.
    Unexpected,
}

impl StartError {
    /// What kind of problem it is.
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

    /// What to do about it, where the text does not say.
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
