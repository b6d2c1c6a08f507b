//! Documents that AWS SDKs read from a container's credentials endpoint.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

/// Kind of refusal, when credentials cannot be returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// SDKs do not retry by themselves.
    Denied,
    /// SDKs retry by themselves.
    Unavailable,
}

impl RefusalKind {
    /// Returns the HTTP status by which SDKs distinguish the two.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Denied => 403,
            Self::Unavailable => 503,
        }
    }

    /// Returns the error document that SDKs show. Some SDKs read the capitalised keys, others the
    /// lower-case ones.
    #[must_use]
    pub fn document(self, message: &str) -> Value {
        let code = match self {
            Self::Denied => "AccessDenied",
            Self::Unavailable => "ServiceUnavailable",
        };
        json!({"Code": code, "Message": message, "code": code, "message": message})
    }
}

/// Returns a session's credentials with the keys that SDKs expect.
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
