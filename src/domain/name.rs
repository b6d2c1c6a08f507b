//! Names of services, grants and operators, and ids of leases.

use std::{fmt, str::FromStr};

use data_encoding::BASE32HEX_NOPAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::random::Random;

/// Name of a service, a grant or an operator: `[a-z0-9][a-z0-9-]{0,30}[a-z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Reason why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: use 2 to 32 lower-case letters, digits and hyphens, \
     with a letter or digit first and last, e.g. payments-api"
)]
pub struct NameError(String);

impl Name {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let good = (2..=32).contains(&bytes.len())
            && bytes.iter().all(|b| plain(b) || *b == b'-')
            && bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.chars().take(40).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// Full name of a grant: `SERVICE/GRANT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrantName {
    /// Service that the grant belongs to.
    pub service: Name,
    /// Name of the grant within its service.
    pub grant: Name,
}

/// Reason why a text is not a [`GrantName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantNameError {
    /// The text has no slash.
    #[error("{0:?} is not a grant: name it SERVICE/GRANT, e.g. payments-api/uploads")]
    Shape(String),
    /// One of the two parts is not a name.
    #[error(transparent)]
    Part(#[from] NameError),
}

impl GrantName {
    /// Reads `SERVICE/GRANT`, or `GRANT` as a grant of `service`.
    ///
    /// # Errors
    /// A part is not a [`Name`].
    pub fn within(service: &Name, text: &str) -> Result<Self, GrantNameError> {
        if text.contains('/') {
            text.parse()
        } else {
            Ok(Self {
                service: service.clone(),
                grant: text.parse()?,
            })
        }
    }
}

impl FromStr for GrantName {
    type Err = GrantNameError;

    fn from_str(text: &str) -> Result<Self, GrantNameError> {
        let Some((service, grant)) = text.split_once('/') else {
            return Err(GrantNameError::Shape(text.chars().take(80).collect()));
        };
        Ok(Self {
            service: service.parse()?,
            grant: grant.parse()?,
        })
    }
}

impl fmt::Display for GrantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.grant)
    }
}

/// Id of a lease: 26 characters `[0-9a-v]`. They encode 48 bits of time in milliseconds and then 80
/// random bits, so that ids sort by time. The id is an identifier, not a capability.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(String);

/// Reason why a text is not a [`LeaseId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a lease id: `credbroker lease list` shows them, 26 characters each")]
pub struct LeaseIdError(String);

impl LeaseId {
    /// Creates an id for a lease requested at `now`.
    #[must_use]
    pub fn new(now: Timestamp, random: &dyn Random) -> Self {
        let mut bytes = [0u8; 16];
        random.fill(&mut bytes[6..]);
        let millis = u64::try_from(now.as_millisecond())
            .unwrap_or(0)
            .to_be_bytes();
        bytes[..6].copy_from_slice(&millis[2..]);
        Self(BASE32HEX_NOPAD.encode(&bytes).to_ascii_lowercase())
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LeaseId {
    type Err = LeaseIdError;

    fn from_str(text: &str) -> Result<Self, LeaseIdError> {
        if text.len() == 26 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'v')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(LeaseIdError(text.chars().take(40).collect()))
        }
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Source of bytes that count upwards: predictable, for tests only.
    pub(crate) struct Counting;

    impl Random for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::try_from(i % 256).unwrap();
            }
        }
    }

    #[test]
    fn names_follow_the_documented_pattern() {
        for good in ["ab", "payments-api", "0-0", &"a".repeat(32)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "-ab",
            "ab-",
            "Payments",
            "a_b",
            "a.b",
            "ä-b",
            &"a".repeat(33),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_may_leave_its_own_name_out_of_a_grant() {
        let own: Name = "payments".parse().unwrap();
        assert_eq!(
            GrantName::within(&own, "uploads").unwrap().to_string(),
            "payments/uploads"
        );
        assert_eq!(
            GrantName::within(&own, "other/uploads")
                .unwrap()
                .to_string(),
            "other/uploads"
        );
        assert!(GrantName::within(&own, "a/b/c").is_err());
    }

    #[test]
    fn lease_ids_sort_by_time_and_read_back() {
        let early = LeaseId::new(Timestamp::from_second(1_000_000_000).unwrap(), &Counting);
        let late = LeaseId::new(Timestamp::from_second(2_000_000_000).unwrap(), &Counting);
        assert!(early < late);
        assert_eq!(early.as_str().parse::<LeaseId>().unwrap(), early);
        assert!("not-an-id".parse::<LeaseId>().is_err());
    }
}
