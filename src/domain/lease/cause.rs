//! Causes of the end of a lease.

use std::{fmt, str::FromStr};

/// Cause of the end of a lease, at its expiry or earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The lease expired.
    Expired,
    /// The service released the lease.
    Released,
    /// An operator revoked the lease; the text is the operator's.
    Revoked(String),
    /// The credentials were never handed out; the text gives the reason.
    NotIssued(String),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("expired"),
            Self::Released => f.write_str("released"),
            Self::Revoked(words) if words.is_empty() => f.write_str("revoked"),
            Self::Revoked(words) => write!(f, "revoked: {words}"),
            Self::NotIssued(words) => write!(f, "not issued: {words}"),
        }
    }
}

impl FromStr for EndReason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(": ").unwrap_or((text, "")) {
            ("expired", _) => Ok(Self::Expired),
            ("released", _) => Ok(Self::Released),
            ("revoked", words) => Ok(Self::Revoked(words.to_owned())),
            ("not issued", words) => Ok(Self::NotIssued(words.to_owned())),
            _ => Err(()),
        }
    }
}
