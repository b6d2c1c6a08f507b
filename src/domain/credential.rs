//! Issued credentials. They leave the broker for their owner only.

use std::{fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;

/// Id of an access key of a user or a session: `AKIA` or `ASIA` and 12 to 124 characters
/// `[A-Z0-9]`.
/// <https://docs.aws.amazon.com/IAM/latest/APIReference/API_AccessKey.html>
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(String);

/// Reason why a text is not a [`KeyId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an access key id has the form AKIA… or ASIA…, 16 to 128 letters A-Z and digits")]
pub struct KeyIdError;

impl KeyId {
    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;

    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        ["AKIA", "ASIA"]
            .into_iter()
            .any(|prefix| is_key_id(text, prefix))
            .then(|| Self(text.to_owned()))
            .ok_or(KeyIdError)
    }
}

/// Returns whether `text` has the form of an access key id that begins with `prefix`.
pub(super) fn is_key_id(text: &str, prefix: &str) -> bool {
    let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit();
    text.starts_with(prefix) && (16..=128).contains(&text.len()) && text.bytes().all(plain)
}

/// An access key of an IAM user. `Debug` hides the secret.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// Id of the key, `AKIA…`.
    pub id: String,
    /// Secret access key.
    pub secret: SecretString,
}

/// Credentials that AWS returned for one lease. `Debug` hides the secrets. The secrets are never
/// stored.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Id of the key, `AKIA…` or `ASIA…`.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: SecretString,
    /// Session token; present for STS kinds.
    pub session_token: Option<SecretString>,
    /// Expiry as AWS reported it; `None` for an IAM user, which the broker ends.
    pub expires_at: Option<Timestamp>,
    /// Time that AWS took to accept a new key; `None` for sessions, which work at once.
    pub usable_after: Option<Duration>,
    /// AWS's id of the request that created the credentials, for CloudTrail.
    pub aws_request_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_of_a_user_or_a_session_and_has_16_to_128_characters() {
        let of = |prefix: &str, more: usize| format!("{prefix}{}", "Z".repeat(more));
        for id in [
            "AKIAIOSFODNN7EXAMPLE".to_owned(),
            of("ASIA", 12),
            of("AKIA", 124),
        ] {
            assert_eq!(id.parse::<KeyId>().unwrap().to_string(), id);
        }
        for text in [
            of("AKIA", 11),
            of("AKIA", 125),
            of("AROA", 16),
            "AKIAIOSFODNN7EXAMPL\u{c9}".to_owned(),
            "akiaiosfodnn7example".to_owned(),
            "AKIAIOSFODNN7 EXAMPLE".to_owned(),
        ] {
            assert_eq!(text.parse::<KeyId>(), Err(KeyIdError), "{text}");
        }
    }
}
