//! Credentials as the broker issues them, and the reasons why there are none.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use secrecy::SecretString;
use tonic::Code;

use crate::{
    domain::{clock::wall_time, refresh},
    proto::IssueCredentialsResponse,
};

/// Current state of the credentials.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// The broker has not answered yet.
    Asked,
    /// Credentials are available.
    Held(Arc<Issued>),
    /// Credentials are missing.
    Without(Missing),
}

/// Reasons why there are no credentials.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Missing {
    /// The broker refuses to issue, or the settings are wrong.
    #[error("{why}")]
    Refused {
        /// Code from the broker; `InvalidArgument` for wrong settings.
        code: Code,
        /// Reason, for people, with what to do next.
        why: String,
    },
    /// Credentials may become available later: after an outage, or after a revocation.
    #[error("{0}")]
    Unavailable(String),
}

/// Issued credentials. `Debug` hides the secrets.
#[derive(Clone)]
pub struct Issued {
    /// Id of the lease.
    pub lease_id: String,
    /// Access key id, `AKIA…` or `ASIA…`.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: SecretString,
    /// Session token; `None` for an IAM user.
    pub session_token: Option<SecretString>,
    /// Time at which the credentials end.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("lease_id", &self.lease_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl Issued {
    pub(super) fn of(issued: IssueCredentialsResponse) -> Option<Self> {
        let (lease, expiration) = (issued.lease?, issued.expiration?);
        Some(Self {
            lease_id: lease.lease_id,
            access_key_id: lease.access_key_id?,
            secret_access_key: SecretString::from(issued.secret_access_key),
            session_token: issued.session_token.map(SecretString::from),
            expires_at: Timestamp::new(expiration.seconds, expiration.nanos).ok()?,
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        refresh::is_alive(self.expires_at, wall_time())
    }
}
