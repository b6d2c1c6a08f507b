//! Requests that may be repeated: the caller gives each request an id of its own (AIP-155), by
//! which the broker recognises an idempotent repeat.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;

use crate::domain::random::Random;

/// Id of a request, chosen by the caller: a UUID (RFC 9562) in its 36 characters, accepted in
/// either case, stored in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(String);

/// Reason why a text is not a [`RequestId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request id is a UUID, e.g. 6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10")]
pub struct RequestIdError;

/// Positions of the hyphens in a UUID.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl RequestId {
    /// Creates a random UUID (version 4, RFC 9562, section 5.4).
    #[must_use]
    pub fn random(random: &dyn Random) -> Self {
        let mut bytes = [0u8; 16];
        random.fill(&mut bytes);
        bytes[6] = 0x40 | (bytes[6] & 0x0f);
        bytes[8] = 0x80 | (bytes[8] & 0x3f);
        let mut text = HEXLOWER.encode(&bytes);
        for at in HYPHENS {
            text.insert(at, '-');
        }
        Self(text)
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = RequestIdError;

    fn from_str(text: &str) -> Result<Self, RequestIdError> {
        let good = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| {
                if HYPHENS.contains(&at) {
                    byte == b'-'
                } else {
                    byte.is_ascii_hexdigit()
                }
            });
        if good {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(RequestIdError)
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request with an id, and a digest of its content. An idempotent repeat has the same two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Id that the caller chose.
    pub id: RequestId,
    /// SHA-256 of the requested content.
    pub digest: [u8; 32],
}

impl IdempotencyKey {
    /// Creates a request for `parts`. The digest includes each part's length, so that the parts
    /// cannot run together.
    #[must_use]
    pub fn new(id: RequestId, parts: &[&str]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self { id, digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::name::tests::Counting;

    #[test]
    fn a_request_id_is_a_uuid_in_either_case() {
        let id: RequestId = "6F1D0C6E-2f0b-4c39-9d2e-5a1c7b9e3f10".parse().unwrap();
        assert_eq!(id.as_str(), "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10");
        for wrong in [
            "",
            "1",
            "6f1d0c6e2f0b4c399d2e5a1c7b9e3f10",
            "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f1",
            "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f1g",
            "6f1d0c6e-2f0b-4c39-9d2e5-a1c7b9e3f10",
        ] {
            assert!(wrong.parse::<RequestId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_random_request_id_is_of_version_4_and_reads_back() {
        let id = RequestId::random(&Counting);
        assert_eq!(id.as_str(), "00010203-0405-4607-8809-0a0b0c0d0e0f");
        assert_eq!(id.as_str().parse(), Ok(id));
    }

    #[test]
    fn a_request_is_known_by_all_that_it_asks_for() {
        let id = RequestId::random(&Counting);
        let digest = |parts: &[&str]| IdempotencyKey::new(id.clone(), parts).digest;
        assert_eq!(digest(&["a", "b"]), digest(&["a", "b"]));
        assert_ne!(digest(&["a", "b"]), digest(&["ab", ""]));
        assert_ne!(digest(&["a", "b"]), digest(&["a"]));
    }
}
