//! Issued credentials, on their way to their owner and nowhere else.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;

/// An access key of an IAM user. Debug hides its secret.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// `AKIA…`.
    pub id: String,
    /// Its secret.
    pub secret: SecretString,
}

/// What AWS returned for one lease. Debug hides the secrets; nothing stores them.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// `AKIA…` or `ASIA…`.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: SecretString,
    /// Present for STS kinds.
    pub session_token: Option<SecretString>,
    /// When AWS ends them, by its own word; `None` for an IAM user, which the broker ends.
    pub expires_at: Option<Timestamp>,
    /// How long AWS took to accept a new key; `None` for sessions, which work at once.
    pub usable_after: Option<Duration>,
    /// AWS's id of the request that made them, for CloudTrail.
    pub aws_request_id: Option<String>,
}
