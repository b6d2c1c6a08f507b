//! Why a lease ends.

use std::{fmt, str::FromStr};

/// Why a lease ends before, or at, its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its time ran out.
    Expired,
    /// The service handed it back.
    Released,
    /// An operator ended it; the words are theirs.
    Revoked(String),
    /// It was never handed out; the words say why.
    NotIssued(String),
}

impl fmt::Display for Cause {
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

impl FromStr for Cause {
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
