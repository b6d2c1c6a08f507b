//! Identity of a caller, and the evidence for it.

use std::{fmt, net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use secrecy::SecretString;

use crate::domain::{binding::BindingId, name::Name, operator::Role, token::TokenId};

/// Longest text of a claimed name in the log, bytes after escaping.
const CLAIMED_MAX: usize = 256;
/// End of a name that was shortened.
const CUT: &str = "...";

/// Peer and method of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Address of the peer.
    pub peer: Option<SocketAddr>,
    /// Called method, `credbroker.v1.Service/Method`.
    pub method: String,
}

/// Evidence as the caller sent it. It is kept during the call, so that it can be checked again.
#[derive(Clone, Default)]
pub struct PresentedCredentials {
    /// Header `authorization`.
    pub authorization: Option<SecretString>,
    /// Client certificates of the connection in DER, the caller's own first.
    pub certificates: Arc<[Vec<u8>]>,
}

/// Shows no secret.
impl fmt::Debug for PresentedCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown")
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

/// A proven identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A registered service that is not suspended.
    Service(Name),
    /// An operator with its role.
    Operator(Name, Role),
    /// Holder of an enrolment token, which may enrol one host of this service, once.
    Enrollee(Name),
}

/// Evidence of a caller without its secrets, so that it can be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// One of the broker's own tokens.
    Token(TokenId),
    /// A client certificate.
    Certificate {
        /// SHA-256 of the certificate in DER, 64 characters `[0-9a-f]`.
        fingerprint: String,
        /// SPIFFE ID or DNS name in the certificate; `None` if there is not exactly one.
        name: Option<String>,
    },
    /// A signed token of an issuer.
    Jwt {
        /// Issuer that the token names.
        issuer: String,
        /// Subject that the token names.
        subject: Option<String>,
    },
}

impl Evidence {
    /// Returns the id of one of the broker's own tokens; `None` for other evidence.
    #[must_use]
    pub const fn token_id(&self) -> Option<&TokenId> {
        match self {
            Self::Token(id) => Some(id),
            Self::Certificate { .. } | Self::Jwt { .. } => None,
        }
    }
}

/// Writes the evidence with every character escaped that could pass for another.
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

/// Returns the text with all characters escaped except printable ASCII, up to [`CLAIMED_MAX`]
/// bytes. The bound is necessary: escaping makes a character up to ten times as long, and the text
/// is not proven.
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

/// Verified evidence, and the binding that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Evidence that was verified.
    pub evidence: Evidence,
    /// Binding that identifies the service; `None` for an operator, and for one of the broker's own
    /// tokens, which identifies its owner itself.
    pub binding: Option<BindingId>,
    /// End of validity; `None` for a token that does not expire.
    pub expires_at: Option<Timestamp>,
}

/// A caller with a proven identity. Only `authn` builds it; a test checks that.
#[derive(Clone, Debug)]
pub struct Principal {
    identity: Identity,
    proof: Proof,
    origin: Origin,
    shown: Arc<PresentedCredentials>,
}

impl Principal {
    /// Creates a principal. For `authn` only, after it has verified the evidence.
    #[cfg(feature = "server")]
    pub(crate) fn proven(identity: Identity, proof: Proof, origin: Origin) -> Self {
        Self {
            identity,
            proof,
            origin,
            shown: Arc::default(),
        }
    }

    /// Adds the evidence as the caller sent it.
    #[cfg(feature = "server")]
    pub(crate) fn showing(self, shown: Arc<PresentedCredentials>) -> Self {
        Self { shown, ..self }
    }

    /// Returns the proven identity.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the calling service, or the service that a host enrols for; `None` for an operator.
    #[must_use]
    pub const fn service(&self) -> Option<&Name> {
        match &self.identity {
            Identity::Service(name) | Identity::Enrollee(name) => Some(name),
            Identity::Operator(..) => None,
        }
    }

    /// Returns the proof of the identity.
    #[must_use]
    pub const fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Returns the peer and the called method.
    #[must_use]
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns the evidence as the caller sent it.
    #[must_use]
    pub const fn shown(&self) -> &Arc<PresentedCredentials> {
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
