//! Sealing of the secrets that the broker stores: AES-256-GCM with a random nonce (NIST SP
//! 800-38D). A key seals only a few values in its life, far below the 2³² that random nonces allow.
//! Each value is bound to the context in which it is stored.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest,
};
use data_encoding::{BASE64, HEXLOWER};
use secrecy::{ExposeSecret, SecretSlice, SecretString, zeroize::Zeroize};

const KEY_BYTES: usize = 32;
/// Version of the format of [`Sealed`].
const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;

/// Key that seals. A person who has this key and the store can read the sealed secrets.
pub struct SealingKey {
    key: RandomizedNonceKey,
    id: [u8; KEY_ID_BYTES],
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({}…)", HEXLOWER.encode(&self.id))
    }
}

/// A sealed secret: version, id of the key, nonce, ciphertext and tag.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

impl Sealed {
    /// Returns the bytes, for the store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Wraps the store's bytes, unchecked.
    #[must_use]
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// Reason why a secret cannot be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The sealing key is invalid.
    #[error(
        "a sealing key has 32 random bytes in base64: make one with `head -c 32 /dev/urandom | base64`"
    )]
    Key,
    /// The secret was sealed with another key.
    #[error("it was sealed with another key")]
    OtherKey,
    /// The sealed secret was changed, or moved from another context.
    #[error("it was changed, or belongs to another place")]
    Damaged,
}

impl SealingKey {
    /// Creates a key of these bytes.
    ///
    /// # Errors
    /// The number of bytes is not 32.
    pub fn from_bytes(bytes: &SecretSlice<u8>) -> Result<Self, SealError> {
        let bytes = bytes.expose_secret();
        if bytes.len() != KEY_BYTES {
            return Err(SealError::Key);
        }
        let mut id = [0; KEY_ID_BYTES];
        let sum = digest::digest(&digest::SHA256, bytes);
        id.copy_from_slice(&sum.as_ref()[..KEY_ID_BYTES]);
        let key = RandomizedNonceKey::new(&AES_256_GCM, bytes).map_err(|_| SealError::Key)?;
        Ok(Self { key, id })
    }

    /// Reads a key: 32 bytes in base64.
    ///
    /// # Errors
    /// The text is anything else.
    pub fn parse(text: &SecretString) -> Result<Self, SealError> {
        let bytes = BASE64.decode(text.expose_secret().trim().as_bytes());
        Self::from_bytes(&SecretSlice::from(bytes.map_err(|_| SealError::Key)?))
    }

    /// Seals `secret` for `context`, the name of the place where it is stored.
    ///
    /// # Errors
    /// The library refuses, which does not happen at this size.
    pub fn seal(&self, context: &str, secret: &SecretString) -> Result<Sealed, SealError> {
        let mut text = secret.expose_secret().as_bytes().to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(context.as_bytes()), &mut text)
            .map_err(|_| SealError::Damaged)?;
        let mut sealed = vec![VERSION];
        sealed.extend(self.id);
        sealed.extend(nonce.as_ref());
        sealed.append(&mut text);
        Ok(Sealed(sealed))
    }

    /// Opens a secret that was sealed for the same `context`.
    ///
    /// # Errors
    /// The secret was sealed with another key or for another context, or has been changed.
    pub fn open(&self, context: &str, sealed: &Sealed) -> Result<SecretString, SealError> {
        let rest = sealed
            .0
            .strip_prefix(&[VERSION])
            .ok_or(SealError::Damaged)?;
        let (id, rest) = rest
            .split_at_checked(KEY_ID_BYTES)
            .ok_or(SealError::Damaged)?;
        if id != self.id {
            return Err(SealError::OtherKey);
        }
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Damaged)?;
        let mut text = text.to_vec();
        let opened = self
            .key
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut text)
            .map_err(|_| SealError::Damaged)?;
        let secret = std::str::from_utf8(opened).map(SecretString::from);
        text.zeroize();
        secret.map_err(|_| SealError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealingKey {
        SealingKey::from_bytes(&SecretSlice::from(vec![byte; KEY_BYTES])).unwrap()
    }

    fn secret() -> SecretString {
        SecretString::from("hush")
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_key_in_the_same_place_alone() {
        let sealed = key(1).seal("admin_keys/AKIA1", &secret()).unwrap();
        let opened = key(1).open("admin_keys/AKIA1", &sealed).unwrap();
        assert_eq!(opened.expose_secret(), "hush");
        let elsewhere = key(1).open("admin_keys/AKIA2", &sealed);
        assert_eq!(elsewhere.unwrap_err(), SealError::Damaged);
        let other = key(2).open("admin_keys/AKIA1", &sealed);
        assert_eq!(other.unwrap_err(), SealError::OtherKey);
    }

    #[test]
    fn every_change_of_a_byte_and_every_cut_is_noticed() {
        let sealed = key(1).seal("here", &secret()).unwrap();
        for at in 0..sealed.0.len() {
            let mut changed = sealed.clone();
            changed.0[at] ^= 1;
            assert!(key(1).open("here", &changed).is_err(), "at {at}");
            let cut = Sealed(sealed.0[..at].to_vec());
            assert!(key(1).open("here", &cut).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_same_secret_is_never_sealed_the_same() {
        let (one, two) = (key(1).seal("a", &secret()), key(1).seal("a", &secret()));
        assert_ne!(one.unwrap(), two.unwrap());
    }

    #[test]
    fn a_key_is_32_bytes_in_base64() {
        let text = BASE64.encode(&[7; 32]);
        for good in [text.clone(), format!("{text}\n")] {
            assert!(SealingKey::parse(&good.into()).is_ok());
        }
        for bad in ["", "hush", &BASE64.encode(&[7; 31]), &"a".repeat(64)] {
            assert_eq!(
                SealingKey::parse(&(*bad).into()).unwrap_err(),
                SealError::Key
            );
        }
    }

    #[test]
    fn debug_output_shows_neither_key_nor_secret() {
        let sealed = key(1).seal("a", &secret()).unwrap();
        assert_eq!(format!("{sealed:?}"), "Sealed(37 bytes)");
        assert!(!format!("{:?}", key(1)).contains("0101"));
    }
}
