//! A signed token as text: a JWS in compact serialization (RFC 7515) whose payload is a set of
//! claims (RFC 7519). Nothing here is verified yet.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::{Map, Value};

/// Longest token that is read, bytes: all headers together are 8 KiB at most.
const TOKEN_MAX: usize = 7 * 1024;
/// Longest id of a key, bytes.
const KEY_ID_MAX: usize = 256;

/// Supported signature algorithms (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// `RS256`, `RS384`, `RS512`.
    Rs(Sha),
    /// `PS256`, `PS384`, `PS512`.
    Ps(Sha),
    /// `ES256`, with P-256.
    Es256,
    /// `ES384`, with P-384.
    Es384,
    /// `ES512`, with P-521.
    Es512,
    /// `EdDSA`, with Ed25519.
    EdDsa,
}

/// SHA-2, by its length in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sha {
    /// SHA-256.
    S256,
    /// SHA-384.
    S384,
    /// SHA-512.
    S512,
}

impl Algorithm {
    /// Returns the algorithm of exactly this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs(Sha::S256),
            "RS384" => Self::Rs(Sha::S384),
            "RS512" => Self::Rs(Sha::S512),
            "PS256" => Self::Ps(Sha::S256),
            "PS384" => Self::Ps(Sha::S384),
            "PS512" => Self::Ps(Sha::S512),
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// A JSON object in which no member occurs twice.
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a member stands there twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

/// Registered names (RFC 7519 section 4.1, RFC 7515 section 4.1). A name that differs from one of
/// them only in case is refused.
const REGISTERED: [&str; 12] = [
    "alg", "aud", "crit", "cty", "exp", "iat", "iss", "jti", "kid", "nbf", "sub", "typ",
];

/// A parsed token, not verified.
pub(super) struct Token<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    pub(super) claims: Map<String, Value>,
    /// The signed text: header and payload.
    pub(super) signed: &'a str,
    pub(super) signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// Parses a text, or returns the reason why it is not a token.
    pub(super) fn parse(text: &'a str) -> Result<Self, &'static str> {
        if text.len() > TOKEN_MAX {
            return Err("JWT_TOO_LONG");
        }
        let (signed, signature) = text.rsplit_once('.').ok_or("JWT_MALFORMED")?;
        let (header, payload) = signed.split_once('.').ok_or("JWT_MALFORMED")?;
        // Five parts would be an encrypted token.
        if payload.contains('.') {
            return Err("JWT_MALFORMED");
        }
        let header = object(header)?;
        let (algorithm, key_id) = read_header(&header)?;
        Ok(Self {
            algorithm,
            key_id,
            claims: object(payload)?,
            signed,
            signature: decoded(signature)?,
        })
    }
}

fn decoded(part: &str) -> Result<Vec<u8>, &'static str> {
    let decoded = BASE64URL_NOPAD.decode(part.as_bytes());
    decoded.map_err(|_| "JWT_MALFORMED")
}

fn object(part: &str) -> Result<Map<String, Value>, &'static str> {
    let members: Result<Members, _> = serde_json::from_slice(&decoded(part)?);
    let Members(members) = members.map_err(|_| "JWT_MALFORMED")?;
    let looks_like = |name: &String| {
        let lower = name.to_ascii_lowercase();
        lower != *name && REGISTERED.contains(&lower.as_str())
    };
    if members.keys().any(looks_like) {
        return Err("JWT_MALFORMED");
    }
    Ok(members)
}

/// Reads the algorithm and the key id. Keys and addresses of keys in a header are ignored, since no
/// issuer vouches for them.
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), &'static str> {
    if header.contains_key("crit") {
        return Err("JWT_CRITICAL_EXTENSION");
    }
    let types = ["JWT", "jwt", "at+jwt", "JOSE"];
    let is_ours = |kind: &Value| kind.as_str().is_some_and(|kind| types.contains(&kind));
    if !header.get("typ").is_none_or(is_ours) {
        return Err("JWT_TYPE_WRONG");
    }
    let algorithm = header
        .get("alg")
        .and_then(Value::as_str)
        .and_then(Algorithm::of);
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if id.len() <= KEY_ID_MAX => Some(id.clone()),
        Some(_) => return Err("JWT_KEY_ID_INVALID"),
    };
    Ok((algorithm.ok_or("JWT_ALGORITHM_REFUSED")?, key_id))
}
