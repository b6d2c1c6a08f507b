//! What AWS SDKs read from a container's credentials endpoint.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

/// Why there is no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// SDKs do not ask again by themselves.
    Denied,
    /// They do.
    Unavailable,
}

impl Refusal {
    /// The status of HTTP that SDKs take it by.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Denied => 403,
            Self::Unavailable => 503,
        }
    }

    /// What SDKs show of it: some read the one spelling, some the other.
    #[must_use]
    pub fn document(self, message: &str) -> Value {
        let code = match self {
            Self::Denied => "AccessDenied",
            Self::Unavailable => "ServiceUnavailable",
        };
        json!({"Code": code, "Message": message, "code": code, "message": message})
    }
}

/// A session, in the spelling of this contract.
#[must_use]
pub fn document(
    access_key_id: &str,
    secret_access_key: &SecretString,
    session_token: &SecretString,
    expires_at: Timestamp,
) -> Value {
    json!({
        "AccessKeyId": access_key_id,
        "SecretAccessKey": secret_access_key.expose_secret(),
        "Token": session_token.expose_secret(),
        "Expiration": expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
}
