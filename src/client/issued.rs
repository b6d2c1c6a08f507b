//! Credentials as the broker issues them, and why there are none.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use secrecy::SecretString;
use tonic::Code;

use crate::{
    domain::{clock::wall_time, refresh},
    proto::IssueCredentialsResponse,
};

/// What is known at the moment.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// Nothing yet.
    Asked,
    /// These.
    Held(Arc<Issued>),
    /// There are none.
    Without(Missing),
}

/// Why there are no credentials.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Missing {
    /// The broker does not give any, or has taken them away; or the settings are wrong.
    #[error("{why}")]
    Refused {
        /// The broker's code, or that of an invalid argument.
        code: Code,
        /// In words, with what to do next.
        why: String,
    },
    /// There may be some in a while.
    #[error("{0}")]
    Unavailable(String),
}

/// Issued credentials. Debug hides the secrets.
#[derive(Clone)]
pub struct Issued {
    /// The lease.
    pub lease_id: String,
    /// `AKIA…` or `ASIA…`.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: SecretString,
    /// Of a session; an IAM user has none.
    pub session_token: Option<SecretString>,
    /// When they end.
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
