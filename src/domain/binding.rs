//! Bindings: evidence, other than its tokens, by which the broker identifies a service.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use jiff::Timestamp;

use crate::domain::{
    id::Id,
    name::Name,
    oidc_rule::OidcIdentity,
    spiffe::{SpiffeId, TrustDomain},
};

/// Most bindings of one service, without its enrolled hosts.
pub const BINDINGS_MAX: usize = 20;
/// Most enrolled hosts of one service.
pub const ENROLLED_MAX: usize = 10_000;
/// Longest DNS name, bytes (RFC 1035).
const DNS_NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Id of a binding.
pub type BindingId = Id<ServiceBinding>;

/// A DNS name as in a certificate: lower-case labels, at least two, no wildcard, no dot at the end
/// (RFC 1123). Names are compared byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName(String);

impl DnsName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DnsName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let labels: Vec<&str> = text.split('.').collect();
        // A name that ends with a number would be an address.
        let is_address = |last: &&str| last.bytes().all(|b| b.is_ascii_digit());
        let is_one = text.len() <= DNS_NAME_MAX
            && labels.len() > 1
            && labels.iter().all(|label| is_label(label))
            && !labels.last().is_some_and(is_address);
        is_one.then(|| Self(text.to_owned())).ok_or(
            "write it like pay.shop.example: lower-case letters, digits and hyphens, no wildcard",
        )
    }
}

fn is_label(label: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(fits)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// SHA-256 of a public key in DER (SubjectPublicKeyInfo): 64 characters `[0-9a-f]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyDigest(String);

impl KeyDigest {
    /// Returns the digest of this key.
    #[must_use]
    pub fn of(public_key: &[u8]) -> Self {
        Self(HEXLOWER.encode(digest(&SHA256, public_key).as_ref()))
    }

    /// Returns the digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyDigest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let fits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_one = text.len() == 64 && text.bytes().all(fits);
        is_one
            .then(|| Self(text.to_owned()))
            .ok_or("a digest has 64 characters 0-9 and a-f")
    }
}

/// Returns the SPIFFE ID in the certificates of a service's enrolled hosts.
#[must_use]
pub fn enrolled_id(domain: &TrustDomain, service: &Name) -> String {
    format!("spiffe://{domain}/service/{service}")
}

/// Evidence that identifies a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KnownBy {
    /// A client certificate with this SPIFFE ID, from the authority of its trust domain.
    SpiffeId(SpiffeId),
    /// A client certificate with this DNS name, from an authority for DNS names.
    DnsName(DnsName),
    /// A client certificate for this key, issued by the broker to an enrolled host.
    Enrolled(KeyDigest),
    /// A signed token of an issuer, with these claims.
    Oidc(OidcIdentity),
}

impl KnownBy {
    /// Returns the name of the kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::SpiffeId(_) => "spiffe_id",
            Self::DnsName(_) => "dns_name",
            Self::Enrolled(_) => "enrolled",
            Self::Oidc(_) => "oidc",
        }
    }

    /// Returns the name by which evidence of this kind is looked up. For a rule about tokens, that
    /// is the whole rule as JSON.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::SpiffeId(id) => id.to_string(),
            Self::DnsName(name) => name.to_string(),
            Self::Enrolled(key) => key.to_string(),
            // The members of the JSON are always in the same order.
            Self::Oidc(rule) => serde_json::to_string(rule).unwrap_or_default(),
        }
    }

    /// Returns the issuer of the tokens; `None` for other evidence.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        match self {
            Self::Oidc(rule) => Some(&rule.issuer),
            _ => None,
        }
    }

    /// Returns whether one caller may match both.
    #[must_use]
    pub fn may_meet(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Oidc(one), Self::Oidc(other)) => one.overlaps(other),
            _ => self == other,
        }
    }

    /// Reads the results of [`Self::kind`] and [`Self::name`]; `None` if either is invalid.
    #[must_use]
    pub fn parse(kind: &str, name: &str) -> Option<Self> {
        match kind {
            "spiffe_id" => name.parse().ok().map(Self::SpiffeId),
            "dns_name" => name.parse().ok().map(Self::DnsName),
            "enrolled" => name.parse().ok().map(Self::Enrolled),
            "oidc" => serde_json::from_str(name).ok().map(Self::Oidc),
            _ => None,
        }
    }
}

impl fmt::Display for KnownBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpiffeId(id) => write!(f, "SPIFFE ID {id}"),
            Self::DnsName(name) => write!(f, "DNS name {name}"),
            Self::Enrolled(key) => write!(f, "enrolled key sha256:{key}"),
            Self::Oidc(rule) => write!(f, "{rule}"),
        }
    }
}

/// A binding of evidence to a service. Each evidence identifies one service only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceBinding {
    /// Id of the binding.
    pub id: BindingId,
    /// Service that the evidence identifies.
    pub service: Name,
    /// Evidence that identifies the service.
    pub known_by: KnownBy,
    /// Time of creation.
    pub created_at: Timestamp,
    /// End of the newest certificate of an enrolled host; `None` for other evidence.
    pub expires_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dns_name_is_exact() {
        for name in ["pay.shop.example", "a-1.b2", "1.example"] {
            assert_eq!(name.parse::<DnsName>().unwrap().as_str(), name);
        }
        for wrong in [
            "",
            "pay",
            "Pay.example",
            "*.example",
            "pay.*",
            "a..b",
            ".a.b",
            "a.b.",
            "-a.b",
            "a-.b",
            "a_b.c",
            "a b.c",
            "é.b",
            "10.0.0.1",
            "a.1",
            "[::1].a",
            "a.b\n",
        ] {
            assert!(wrong.parse::<DnsName>().is_err(), "{wrong:?}");
        }
        assert!(format!("{}.b", "a".repeat(64)).parse::<DnsName>().is_err());
        assert!(format!("{}b", "a.".repeat(127)).parse::<DnsName>().is_err());
    }

    #[test]
    fn what_a_service_is_known_by_reads_back_from_the_store() {
        for known_by in [
            KnownBy::SpiffeId("spiffe://a/b".parse().unwrap()),
            KnownBy::DnsName("a.b".parse().unwrap()),
            KnownBy::Enrolled(KeyDigest::of(b"key")),
            KnownBy::Oidc(OidcIdentity {
                issuer: "https://i.example".to_owned(),
                subject: "repo:a/*".parse().unwrap(),
                audience: Some("x".to_owned()),
                claims: [("id".to_owned(), "7".parse().unwrap())].into(),
            }),
        ] {
            assert_eq!(
                KnownBy::parse(known_by.kind(), &known_by.name()),
                Some(known_by)
            );
        }
        assert_eq!(KnownBy::parse("dns_name", "spiffe://a/b"), None);
    }
}
