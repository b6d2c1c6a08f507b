//! Bearer tokens of services, operators and hosts that enrol.
//!
//! A token consists of `cbs_` (service), `cbo_` (operator) or `cbe_` (enrolment), an id of 16
//! characters, `_`, a secret of 52 characters (256 random bits) and a checksum of 7, all
//! `[a-z2-7]`. The prefix and the checksum let scanners recognise a leaked token without asking the
//! broker. The broker stores the SHA-256 of the whole text, never the token.

use std::fmt;

use aws_lc_rs::{constant_time, digest};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use crate::domain::random::Random;

const PREFIX_LENGTH: usize = 4;
const ID_LENGTH: usize = 16;
const SECRET_LENGTH: usize = 52;
const CHECKSUM_LENGTH: usize = 7;

/// Kind of a token, by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// `cbs_…`
    Service,
    /// `cbo_…`
    Operator,
    /// `cbe_…`, for one enrolment of a service's host.
    Enrollment,
}

impl TokenKind {
    const ALL: [Self; 3] = [Self::Service, Self::Operator, Self::Enrollment];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Service => "cbs_",
            Self::Operator => "cbo_",
            Self::Enrollment => "cbe_",
        }
    }
}

/// Id of a token, the part that may be shown: 16 characters `[a-z2-7]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(String);

impl TokenId {
    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads an id; `None` if the text is not an id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == ID_LENGTH && text.bytes().all(is_base32)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the ids of the tokens in a text, in their order. The text may contain a whole token or
/// only its visible part.
pub fn visible_parts(text: &str) -> impl Iterator<Item = TokenId> {
    let at = text
        .match_indices("cb")
        .map(|(at, _)| &text.as_bytes()[at..]);
    at.filter_map(|from| {
        let is_token = TokenKind::ALL
            .iter()
            .any(|kind| from.starts_with(kind.prefix().as_bytes()));
        let rest = is_token.then(|| &from[PREFIX_LENGTH..])?;
        let id = str::from_utf8(rest.get(..ID_LENGTH)?).ok()?;
        // A longer word is not a token.
        let ends = rest.get(ID_LENGTH).is_none_or(|next| !is_base32(*next));
        ends.then(|| TokenId::parse(id)).flatten()
    })
}

/// SHA-256 of a token's text, the only form in which the broker stores the secret.
#[derive(Clone)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Returns the 32 bytes, for the store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads the store's bytes; `None` if there are not 32.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns whether both are equal, in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDigest({}…)", HEXLOWER.encode(&self.0[..4]))
    }
}

/// A whole token with its secret. `Debug` hides the secret.
#[derive(Debug)]
pub struct Token {
    id: TokenId,
    text: SecretString,
}

impl Token {
    /// Creates a random token.
    #[must_use]
    pub fn new(kind: TokenKind, random: &dyn Random) -> Self {
        let mut bytes = [0u8; 10 + 32];
        random.fill(&mut bytes);
        let id = base32(&bytes[..10]);
        let body = format!("{}{id}_{}", kind.prefix(), base32(&bytes[10..]));
        let text = SecretString::from(format!("{body}{}", checksum(&body)));
        Self {
            id: TokenId(id),
            text,
        }
    }

    /// Recognises a token by its form and checksum; `None` for any other text. Only the store knows
    /// whether the token is valid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let length = PREFIX_LENGTH + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH;
        if text.len() != length || !text.is_ascii() {
            return None;
        }
        let (prefix, rest) = text.split_at(PREFIX_LENGTH);
        if !TokenKind::ALL.iter().any(|kind| kind.prefix() == prefix) {
            return None;
        }
        let id = TokenId::parse(&rest[..ID_LENGTH])?;
        let (body, sum) = text.split_at(length - CHECKSUM_LENGTH);
        (checksum(body) == sum).then(|| Self {
            id,
            text: SecretString::from(text),
        })
    }

    /// Returns the id, which may be shown.
    #[must_use]
    pub const fn id(&self) -> &TokenId {
        &self.id
    }

    /// Returns the digest, for the store.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        let sum = digest::digest(&digest::SHA256, self.text.expose_secret().as_bytes());
        let mut bytes = [0u8; 32];
        bytes.copy_from_slice(sum.as_ref());
        TokenDigest(bytes)
    }

    /// Returns the text, for its single transfer to the owner.
    #[must_use]
    pub const fn text(&self) -> &SecretString {
        &self.text
    }
}

/// The broker's record of a token.
#[derive(Clone, Debug)]
pub struct StoredToken {
    /// Id of the token.
    pub id: TokenId,
    /// SHA-256 of the token's text.
    pub digest: TokenDigest,
    /// Time of creation.
    pub created_at: Timestamp,
    /// Time of expiry; `None` for a token that does not expire.
    pub expires_at: Option<Timestamp>,
}

fn is_base32(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'2'..=b'7')
}

fn base32(bytes: &[u8]) -> String {
    BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn checksum(body: &str) -> String {
    let sum = digest::digest(&digest::SHA256, body.as_bytes());
    base32(&sum.as_ref()[..4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{name::tests::Counting, random::SystemRandom};

    #[test]
    fn tokens_are_found_in_a_text_by_their_visible_part() {
        let found = |text: &str| {
            let ids = visible_parts(text).map(|id| id.to_string());
            ids.collect::<Vec<_>>()
        };
        let whole = Token::new(TokenKind::Operator, &SystemRandom);
        let (id, text) = (whole.id().to_string(), whole.text().expose_secret());
        assert_eq!(found(&format!("{{\"secret\":\"{text}\"}}")), [id]);
        let id = "abcdefghijklmnop";
        for text in [
            "cbs_abcdefghijklmnop",
            "x=cbe_abcdefghijklmnop, é",
            "cbcbs_abcdefghijklmnop_",
        ] {
            assert_eq!(found(text), [id], "{text}");
        }
        for text in [
            "",
            "cbs_",
            "cbs_abcdefghijklmno",
            "cbs_abcdefghijklmnopq",
            "cbx_abcdefghijklmnop",
            "cbs_ABCDEFGHIJKLMNOP",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_token_reads_back_and_has_the_documented_shape() {
        let token = Token::new(TokenKind::Service, &Counting);
        let text = token.text().expose_secret();
        assert_eq!(text.len(), 80);
        assert!(text.starts_with("cbs_"));
        let read = Token::parse(text).unwrap();
        assert_eq!(read.id(), token.id());
        assert!(read.digest().matches(&token.digest()));
    }

    #[test]
    fn a_mistyped_character_fails_the_checksum() {
        let token = Token::new(TokenKind::Operator, &Counting);
        let text = token.text().expose_secret();
        for at in 0..text.len() {
            let mut wrong = text.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'a' { b'b' } else { b'a' };
            assert!(
                Token::parse(std::str::from_utf8(&wrong).unwrap()).is_none(),
                "at {at}"
            );
        }
    }

    #[test]
    fn two_tokens_are_never_the_same() {
        let one = Token::new(TokenKind::Service, &SystemRandom);
        let two = Token::new(TokenKind::Service, &SystemRandom);
        assert!(!one.digest().matches(&two.digest()));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let token = Token::new(TokenKind::Service, &Counting);
        let secret = token.text().expose_secret()[21..].to_owned();
        assert!(!format!("{token:?}").contains(&secret));
    }
}
