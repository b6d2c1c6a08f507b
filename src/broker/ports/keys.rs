//! Where the public keys of an issuer of tokens are.

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
