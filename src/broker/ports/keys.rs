//! What an issuer of tokens says: its public keys, and whether it stands by a token.

use std::time::Duration;

use async_trait::async_trait;

/// A JWK set (RFC 7517) that somebody else keeps.
#[async_trait]
pub trait KeysOf: Send + Sync {
    /// The set in JSON, as it is now. May be cut off at any moment.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    async fn read(&self) -> Result<Vec<u8>, String>;
    /// How often it is read.
    fn every(&self) -> Duration;
    /// How soon after one it may be read again because a key is missing.
    fn again_after(&self) -> Duration;
}

/// Who knows whether a token is still good that an issuer has signed.
#[async_trait]
pub trait Reviewer: Send + Sync {
    /// Whether it stands by this token, for one of these audiences. May be cut off at any
    /// moment.
    ///
    /// # Errors
    /// Why it does not tell, in words.
    async fn stands_by(&self, token: &str, audiences: &[String]) -> Result<bool, String>;
}
