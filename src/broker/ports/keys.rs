//! Ports to an issuer of tokens: its public keys, and its review of a token.

use std::time::Duration;

use async_trait::async_trait;

/// A JWK set (RFC 7517) that another party maintains.
#[async_trait]
pub trait JwksSource: Send + Sync {
    /// Returns the current set, in JSON. May be cancelled at any moment.
    ///
    /// # Errors
    /// The set cannot be read; the reason, in words.
    async fn read(&self) -> Result<Vec<u8>, String>;
    /// Returns the interval between reads.
    fn every(&self) -> Duration;
    /// Returns the shortest time after a read until a missing key may cause another.
    fn again_after(&self) -> Duration;
}

/// A party that knows whether an issuer's signed token is still valid.
#[async_trait]
pub trait TokenReviewer: Send + Sync {
    /// Returns whether the issuer still accepts this token, for one of these audiences. May be
    /// cancelled at any moment.
    ///
    /// # Errors
    /// The review has no result; the reason, in words.
    async fn stands_by(&self, token: &str, audiences: &[String]) -> Result<bool, String>;
}
