//! Signed notes: a text, and below it the signatures. <https://c2sp.org/signed-note>
//!
//! Keys are Ed25519 (RFC 8032): the log's own keys with signature type 0x01, and the keys of
//! witnesses with type 0x04. <https://c2sp.org/tlog-cosignature>

use std::{fmt, slice, str::FromStr};

use aws_lc_rs::{
    error::{KeyRejected, Unspecified},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use data_encoding::{BASE64, HEXLOWER};
use secrecy::{ExposeSecret, SecretSlice};

use super::tree::sha256;

/// Signature type of Ed25519.
const ED25519_TYPE: u8 = 0x01;
/// Signature type of cosignature/v1: Ed25519 over a time and the text.
const COSIGNATURE_TYPE: u8 = 0x04;
/// Length of the time before a cosignature, bytes.
const TIME_LENGTH: usize = 8;
const KEY_LENGTH: usize = 32;
const SIGNATURE_LENGTH: usize = 64;
const ID_LENGTH: usize = 4;
/// Prefix of each signature line.
const DASH: &str = "\u{2014} ";
/// Longest note that is accepted, bytes.
pub const NOTE_MAX: usize = 1 << 20;

/// Reasons to refuse a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The note is not a text with signatures below it.
    #[error("it is no signed note")]
    Shape,
    /// None of the trusted keys has signed the note.
    #[error("no known key has signed it")]
    Unsigned,
    /// A trusted key's signature does not match the text.
    #[error("its signature is not of this text")]
    Forged,
}

/// A public key with its owner's name, written `NAME+ID+KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    /// Signature type.
    kind: u8,
    key: [u8; KEY_LENGTH],
}

/// Error of a text that is no [`Verifier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a key of a log: write NAME+ID+KEY, as `credbroker audit checkpoint -o json` prints it"
)]
pub struct VerifierError;

impl Verifier {
    /// Returns the name of the key's owner.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the key id: the first four bytes of SHA-256 over name, line feed, type and key.
    fn id(&self) -> [u8; ID_LENGTH] {
        let parts = [self.name.as_bytes(), b"\n", &[self.kind], &self.key];
        let hash = sha256(&parts);
        [hash[0], hash[1], hash[2], hash[3]]
    }

    fn has_signed(&self, text: &str, signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.key);
        if self.kind == ED25519_TYPE {
            return key.verify(text.as_bytes(), signature).is_ok();
        }
        let Some((time, signature)) = signature.split_first_chunk::<TIME_LENGTH>() else {
            return false;
        };
        let time = u64::from_be_bytes(*time);
        let message = format!("cosignature/v1\ntime {time}\n{text}");
        i64::try_from(time).is_ok() && key.verify(message.as_bytes(), signature).is_ok()
    }

    /// Parses a key of this signature type.
    fn read(text: &str, kind: u8) -> Option<Self> {
        // The key in base64 may contain a plus sign; name and id may not.
        let mut parts = text.splitn(3, '+');
        let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
        let key = BASE64.decode(key.as_bytes()).ok()?;
        let key = key.strip_prefix(&[kind])?;
        let verifier = Self {
            name: name.to_owned(),
            kind,
            key: key.try_into().ok()?,
        };
        let same = is_name(name) && HEXLOWER.encode(&verifier.id()) == id;
        same.then_some(verifier)
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, mut key) = (HEXLOWER.encode(&self.id()), vec![self.kind]);
        key.extend_from_slice(&self.key);
        write!(f, "{}+{id}+{}", self.name, BASE64.encode(&key))
    }
}

impl FromStr for Verifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        Self::read(text, ED25519_TYPE).ok_or(VerifierError)
    }
}

/// Public key of a witness. A witness signs the text together with the time of signing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessKey(Verifier);

/// Error of a text that is no [`WitnessKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no key of a witness: it has the form NAME+ID+KEY, for cosignatures by Ed25519 (type 0x04)"
)]
pub struct WitnessKeyError;

impl WitnessKey {
    /// Returns the witness's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the note with the witness's answer appended: lines of signatures, one of them by the
    /// witness.
    ///
    /// # Errors
    /// The witness's signature is missing or does not match the text, or the answer is not made of
    /// signature lines.
    pub fn cosigned(&self, note: &str, lines: &str) -> Result<String, NoteError> {
        let cosigned = format!("{note}{lines}");
        let text = open(&cosigned, slice::from_ref(&self.0))?;
        // An empty line in the answer would change where the signed text ends.
        let same = note
            .strip_prefix(text)
            .is_some_and(|rest| rest.starts_with('\n'));
        same.then_some(cosigned).ok_or(NoteError::Shape)
    }
}

impl FromStr for WitnessKey {
    type Err = WitnessKeyError;

    fn from_str(text: &str) -> Result<Self, WitnessKeyError> {
        let key = Verifier::read(text, COSIGNATURE_TYPE).map(Self);
        key.ok_or(WitnessKeyError)
    }
}

/// Returns true if the name is not empty and has neither white space nor plus signs.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '+')
}

/// Private key that signs notes.
#[derive(Debug)]
pub struct Signer {
    pair: Ed25519KeyPair,
    verifier: Verifier,
}

impl Signer {
    /// Returns the signer of this name, with the key derived from `seed`, 32 bytes.
    ///
    /// # Errors
    /// The seed has another length.
    pub fn new(name: &str, seed: &SecretSlice<u8>) -> Result<Self, KeyRejected> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose_secret())?;
        let mut key = [0; KEY_LENGTH];
        key.copy_from_slice(pair.public_key().as_ref());
        let name = name.to_owned();
        Ok(Self {
            pair,
            verifier: Verifier {
                name,
                kind: ED25519_TYPE,
                key,
            },
        })
    }

    /// Returns the public key of this signer.
    #[must_use]
    pub const fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Returns the signed note of this text, which must end with a line feed.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, text: &str) -> Result<String, Unspecified> {
        let mut signature = self.verifier.id().to_vec();
        signature.extend_from_slice(self.pair.try_sign(text.as_bytes())?.as_ref());
        let (name, signature) = (&self.verifier.name, BASE64.encode(&signature));
        Ok(format!("{text}\n{DASH}{name} {signature}\n"))
    }
}

/// Returns the text of a note that at least one trusted key has signed. Signatures of other keys
/// are ignored.
///
/// # Errors
/// The note has no signature of a trusted key, or such a signature does not match the text, or the
/// input is no note.
pub fn open<'a>(note: &'a str, trusted: &[Verifier]) -> Result<&'a str, NoteError> {
    let plain = |c: char| c == '\n' || !c.is_control();
    if note.len() > NOTE_MAX || !note.chars().all(plain) {
        return Err(NoteError::Shape);
    }
    let end = note.rfind("\n\n").ok_or(NoteError::Shape)?;
    let (text, below) = (&note[..=end], &note[end + 2..]);
    let below = below.strip_suffix('\n').ok_or(NoteError::Shape)?;
    let mut signed = false;
    for line in below.split('\n') {
        let (name, bytes) = signature(line).ok_or(NoteError::Shape)?;
        let (id, signature) = bytes.split_at(ID_LENGTH);
        let known = trusted
            .iter()
            .find(|key| key.name == name && key.id() == id);
        let Some(known) = known else {
            continue;
        };
        if !known.has_signed(text, signature) {
            return Err(NoteError::Forged);
        }
        signed = true;
    }
    signed.then_some(text).ok_or(NoteError::Unsigned)
}

/// Parses a signature line into the name and the bytes: the key id and then the signature.
fn signature(line: &str) -> Option<(&str, Vec<u8>)> {
    let (name, encoded) = line.strip_prefix(DASH)?.split_once(' ')?;
    let bytes = BASE64.decode(encoded.as_bytes()).ok()?;
    (is_name(name) && bytes.len() > ID_LENGTH).then_some((name, bytes))
}

/// Length of an Ed25519 signature with the key id before it, bytes.
pub const SIGNED_LENGTH: usize = ID_LENGTH + SIGNATURE_LENGTH;
