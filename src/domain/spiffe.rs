//! Names of workloads in the SPIFFE standard:
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>.
//!
//! IDs are compared byte by byte, and never normalised.

use std::{fmt, str::FromStr};

/// Longest SPIFFE ID, bytes.
pub const SPIFFE_ID_MAX: usize = 2048;
/// Longest trust domain, bytes.
const TRUST_DOMAIN_MAX: usize = 255;
const SCHEME: &str = "spiffe://";

/// Reason why a text is not a SPIFFE ID or trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// The text is not a SPIFFE ID.
    #[error(
        "write it like spiffe://TRUST-DOMAIN/PATH: segments of letters, digits, `.`, `-` and `_`, up to 2048 characters"
    )]
    Id,
    /// The text is not a trust domain.
    #[error(
        "a trust domain is of lower-case letters, digits, `.`, `-` and `_`, up to 255 characters"
    )]
    TrustDomain,
}

/// Trust domain, whose authority vouches for SPIFFE IDs: 1 to 255 characters `[a-z0-9.-_]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Returns the trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        let is_one = !text.is_empty() && text.len() <= TRUST_DOMAIN_MAX && text.bytes().all(fits);
        is_one
            .then(|| Self(text.to_owned()))
            .ok_or(SpiffeError::TrustDomain)
    }
}

/// Name of a workload: `spiffe://TRUST-DOMAIN/PATH` with a path of at least one segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: String,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// Returns the ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the trust domain of the ID.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let rest = text
            .strip_prefix(SCHEME)
            .filter(|_| text.len() <= SPIFFE_ID_MAX);
        let (domain, path) = rest
            .and_then(|rest| rest.split_once('/'))
            .ok_or(SpiffeError::Id)?;
        let trust_domain = domain.parse().map_err(|_| SpiffeError::Id)?;
        if !path.split('/').all(is_segment) {
            return Err(SpiffeError::Id);
        }
        Ok(Self {
            text: text.to_owned(),
            trust_domain,
        })
    }
}

fn is_segment(segment: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_a_trust_domain_and_a_path() {
        let id: SpiffeId = "spiffe://prod.example/ns/shop/sa/pay_1".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "prod.example");
        assert_eq!(id.to_string(), "spiffe://prod.example/ns/shop/sa/pay_1");
        let longest = format!("spiffe://a/{}", "b".repeat(SPIFFE_ID_MAX - 11));
        assert!(longest.parse::<SpiffeId>().is_ok());
        assert!(format!("{longest}b").parse::<SpiffeId>().is_err());
    }

    #[test]
    fn whatever_could_be_read_in_two_ways_is_none() {
        for wrong in [
            "",
            "spiffe:",
            "spiffe://",
            "spiffe:///a",
            "spiffe://a",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/b/",
            "spiffe://a/./b",
            "spiffe://a/../b",
            "spiffe://a/..",
            "spiffe://A/b",
            "Spiffe://a/b",
            "SPIFFE://a/b",
            "https://a/b",
            "spiffe://a:8443/b",
            "spiffe://u@a/b",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://a/%62",
            "spiffe://a/b c",
            "spiffe://a/é",
            "spiffe://%61/b",
            " spiffe://a/b",
            "spiffe://a/b\n",
            "spiffe://a/b\0",
            "spiffe://a\\b/c",
        ] {
            assert_eq!(wrong.parse::<SpiffeId>(), Err(SpiffeError::Id), "{wrong:?}");
        }
        assert!("a".repeat(256).parse::<TrustDomain>().is_err());
        assert!("Prod.example".parse::<TrustDomain>().is_err());
    }
}
