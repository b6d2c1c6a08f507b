//! Public keys of an issuer: a JWK set (RFC 7517).

use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::token::{Algorithm, Sha, Token};

/// Longest set that is read, bytes.
const KEYS_BYTES_MAX: usize = 100 * 1024;
/// Most keys in a set.
const KEYS_MAX: usize = 100;

/// The keys of an issuer that can verify signatures.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
pub(super) struct Key {
    id: Option<String>,
    /// The only algorithm of the key, if the key names one.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point, and the algorithm of its curve.
    Ec {
        point: Vec<u8>,
        algorithm: Algorithm,
    },
    Ed25519(Vec<u8>),
}

impl KeySet {
    /// Reads a set. Skips keys for other uses and keys of an unknown kind.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() > KEYS_BYTES_MAX {
            return Err(format!("the set is larger than {KEYS_BYTES_MAX} bytes"));
        }
        let set: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let keys = set["keys"].as_array().ok_or("it has no list of keys")?;
        if keys.len() > KEYS_MAX {
            return Err(format!("it has more than {KEYS_MAX} keys"));
        }
        let keys = keys.iter().filter_map(Value::as_object).filter_map(key);
        Ok(Self(keys.collect()))
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the key for a token; `None`: the key is unknown, or the token names none and several
    /// fit.
    pub(super) fn find(&self, token: &Token<'_>) -> Option<&Key> {
        let mut fitting = self.0.iter().filter(|key| key.is_for(token.algorithm));
        if let Some(id) = &token.key_id {
            return fitting.find(|key| key.id.as_ref() == Some(id));
        }
        let only = fitting.next();
        only.filter(|_| fitting.next().is_none())
    }
}

impl Key {
    fn is_for(&self, algorithm: Algorithm) -> bool {
        let fits = match &self.material {
            Material::Rsa { .. } => matches!(algorithm, Algorithm::Rs(_) | Algorithm::Ps(_)),
            Material::Ec { algorithm: its, .. } => *its == algorithm,
            Material::Ed25519(_) => algorithm == Algorithm::EdDsa,
        };
        fits && self.algorithm.is_none_or(|only| only == algorithm)
    }

    /// Returns whether this key has signed the token.
    pub(super) fn verifies(&self, token: &Token<'_>) -> bool {
        let (message, signature) = (token.signed.as_bytes(), token.signature.as_slice());
        let verified = match &self.material {
            Material::Rsa { n, e } => {
                let Some(algorithm) = rsa(token.algorithm) else {
                    return false;
                };
                RsaPublicKeyComponents { n, e }.verify(algorithm, message, signature)
            }
            Material::Ec { point, algorithm } => {
                let algorithm = match algorithm {
                    Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED,
                    Algorithm::Es384 => &ECDSA_P384_SHA384_FIXED,
                    _ => &ECDSA_P521_SHA512_FIXED,
                };
                UnparsedPublicKey::new(algorithm, point).verify(message, signature)
            }
            Material::Ed25519(point) => {
                UnparsedPublicKey::new(&ED25519, point).verify(message, signature)
            }
        };
        verified.is_ok()
    }
}

/// Returns the parameters of an RSA algorithm, which refuse keys of fewer than 2,048 bits.
fn rsa(algorithm: Algorithm) -> Option<&'static signature::RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs(Sha::S256) => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs(Sha::S384) => &RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs(Sha::S512) => &RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps(Sha::S256) => &RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps(Sha::S384) => &RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps(Sha::S512) => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn key(jwk: &Map<String, Value>) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let is_for_signatures = match jwk.get("use") {
        None => true,
        // SPIFFE's bundles use it: https://github.com/spiffe/spiffe/blob/main/standards/JWT-SVID.md
        Some(use_) => use_ == "sig" || use_ == "jwt-svid",
    };
    let verifies = match jwk.get("key_ops") {
        None => true,
        Some(operations) => operations
            .as_array()?
            .iter()
            .any(|operation| operation == "verify"),
    };
    if !is_for_signatures || !verifies {
        return None;
    }
    let bytes = |name: &str| BASE64URL_NOPAD.decode(text(name)?.as_bytes()).ok();
    let material = match (text("kty")?, text("crv")) {
        ("RSA", _) => Material::Rsa {
            n: bytes("n")?,
            e: bytes("e")?,
        },
        ("EC", Some(curve)) => {
            let (algorithm, length) = match curve {
                "P-256" => (Algorithm::Es256, 32),
                "P-384" => (Algorithm::Es384, 48),
                "P-521" => (Algorithm::Es512, 66),
                _ => return None,
            };
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != length || y.len() != length {
                return None;
            }
            // SEC 1 section 2.3.3: 4 marks a point that is not compressed.
            let point = [&[4], &x[..], &y[..]].concat();
            Material::Ec { point, algorithm }
        }
        ("OKP", Some("Ed25519")) => Material::Ed25519(bytes("x")?),
        _ => return None,
    };
    let algorithm = match text("alg") {
        None => None,
        Some(name) => Some(Algorithm::of(name)?),
    };
    Some(Key {
        id: text("kid").map(ToOwned::to_owned),
        algorithm,
        material,
    })
}
