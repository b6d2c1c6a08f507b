//! Who is calling, and what shows it.

use std::{fmt, net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use secrecy::SecretString;

use crate::domain::{binding::BindingId, name::Name, operator::Role, token::TokenId};

/// Longest text of a name that a caller claims and the log repeats, bytes after escaping.
const CLAIMED_MAX: usize = 256;
/// End of a name that is longer.
const CUT: &str = "...";

/// Where a call came from and what it called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Address of the peer.
    pub peer: Option<SocketAddr>,
    /// `credbroker.v1.Service/Method`.
    pub method: String,
}

/// Evidence as a caller shows it, kept as long as its call, so that it can be proven again.
#[derive(Clone, Default)]
pub struct Shown {
    /// The header `authorization`.
    pub authorization: Option<SecretString>,
    /// Client certificates of the connection in DER, the caller's own first.
    pub certificates: Arc<[Vec<u8>]>,
}

/// Shows no secret.
impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown")
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

/// A proven identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A registered, unsuspended service.
    Service(Name),
    /// An operator in its role.
    Operator(Name, Role),
    /// Whoever may enrol a host of this service, once.
    Enrollee(Name),
}

/// What a caller shows of itself, as far as it may be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// One of the broker's own tokens.
    Token(TokenId),
    /// A client certificate.
    Certificate {
        /// SHA-256 of it in DER, 64 characters `[0-9a-f]`.
        fingerprint: String,
        /// The SPIFFE ID or DNS name in it; `None` when there is not just one.
        name: Option<String>,
    },
    /// A signed token.
    Jwt {
        /// The issuer that it names.
        issuer: String,
        /// The subject that it names.
        subject: Option<String>,
    },
}

impl Evidence {
    /// The visible part of a token.
    #[must_use]
    pub const fn token_id(&self) -> Option<&TokenId> {
        match self {
            Self::Token(id) => Some(id),
            Self::Certificate { .. } | Self::Jwt { .. } => None,
        }
    }
}

/// Told with every character that could pass for something else escaped.
impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => write!(f, "token {id}"),
            Self::Jwt { issuer, subject } => {
                write!(f, "jwt of {}", claimed(issuer))?;
                subject
                    .iter()
                    .try_for_each(|subject| write!(f, " for {}", claimed(subject)))
            }
            Self::Certificate { fingerprint, name } => {
                write!(f, "certificate sha256:{fingerprint}")?;
                name.iter()
                    .try_for_each(|name| write!(f, " {}", claimed(name)))
            }
        }
    }
}

/// The text with every other character than those of ASCII that print escaped, up to
/// [`CLAIMED_MAX`] bytes: escaping makes a character ten times as long, and nobody has proven it.
fn claimed(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        if character == ' ' || character.is_ascii_graphic() {
            shown.push(character);
        } else {
            shown.extend(character.escape_default());
        }
        if shown.len() > CLAIMED_MAX {
            shown.truncate(CLAIMED_MAX - CUT.len());
            shown.push_str(CUT);
            break;
        }
    }
    shown
}

/// Evidence that was found good, and what made it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What was shown.
    pub evidence: Evidence,
    /// By which binding the service is known; `None` for a token, which says it itself.
    pub binding: Option<BindingId>,
    /// When it ends to be good; `None` for a token that does not.
    pub expires_at: Option<Timestamp>,
}

/// A caller whose identity has been proven. Only `authn` builds it (a test sees to it).
#[derive(Clone, Debug)]
pub struct Principal {
    identity: Identity,
    proof: Proof,
    origin: Origin,
    shown: Arc<Shown>,
}

impl Principal {
    /// For `authn` alone, after it has checked the evidence.
    #[cfg(feature = "server")]
    pub(crate) fn proven(identity: Identity, proof: Proof, origin: Origin) -> Self {
        Self {
            identity,
            proof,
            origin,
            shown: Arc::default(),
        }
    }

    /// The same, with what it has shown.
    #[cfg(feature = "server")]
    pub(crate) fn showing(self, shown: Arc<Shown>) -> Self {
        Self { shown, ..self }
    }

    /// Who it is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The service that it is, or whose host it enrols.
    #[must_use]
    pub const fn service(&self) -> Option<&Name> {
        match &self.identity {
            Identity::Service(name) | Identity::Enrollee(name) => Some(name),
            Identity::Operator(..) => None,
        }
    }

    /// What proved it.
    #[must_use]
    pub const fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Where it called from, and what.
    #[must_use]
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Evidence as it was shown.
    #[must_use]
    pub const fn shown(&self) -> &Arc<Shown> {
        &self.shown
    }
}

#[cfg(test)]
pub(in crate::domain) mod tests {
    use super::*;

    #[cfg(feature = "server")]
    pub(in crate::domain) fn by_token() -> Proof {
        Proof {
            evidence: Evidence::Token(TokenId::parse("abcdefghijklmnop").unwrap()),
            binding: None,
            expires_at: None,
        }
    }

    #[test]
    fn a_claimed_name_is_told_without_anything_that_moves_a_terminal() {
        let evidence = Evidence::Certificate {
            fingerprint: "ab".repeat(32),
            name: Some("spiffe://a/b\n\u{1b}[2Jé".to_owned()),
        };
        let told = evidence.to_string();
        assert!(
            told.ends_with(" spiffe://a/b\\n\\u{1b}[2J\\u{e9}"),
            "{told}"
        );
    }

    #[test]
    fn a_claimed_name_has_256_bytes_at_most_after_escaping() {
        let told = |name: &str| {
            let evidence = Evidence::Jwt {
                issuer: name.to_owned(),
                subject: None,
            };
            evidence.to_string()["jwt of ".len()..].to_owned()
        };
        assert_eq!(told(&"a".repeat(256)), "a".repeat(256));
        assert_eq!(told(&"a".repeat(257)), format!("{}...", "a".repeat(253)));
        for hostile in ["\u{10ffff}", "\u{1b}", "é"] {
            let told = told(&hostile.repeat(8000));
            assert!(told.len() <= 256 && told.ends_with("..."), "{told}");
        }
    }
}
