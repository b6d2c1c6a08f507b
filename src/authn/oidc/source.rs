//! Current keys of an issuer: read at the start, then from time to time. A token that names an
//! unknown key causes another read, with a minimum pause between reads.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{keys::KeySet, token::Token};
use crate::broker::ports::JwksSource;

/// Longest time of a read.
const LIMIT: Duration = Duration::from_secs(10);
/// Age up to which keys stay valid while they cannot be read again.
const STALE_AFTER: Duration = Duration::from_hours(24);

pub(super) struct JwksCache {
    issuer: String,
    of: Arc<dyn JwksSource>,
    known: Mutex<CachedKeys>,
    /// Held during a read; waiting callers use the keys that it brings.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct CachedKeys {
    set: Option<Arc<KeySet>>,
    read_at: Option<Instant>,
    tried_at: Option<Instant>,
}

impl fmt::Debug for JwksCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl JwksCache {
    pub(super) fn new(issuer: String, of: Arc<dyn JwksSource>) -> Self {
        Self {
            issuer,
            of,
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the current set, read again first if it lacks the token's key.
    pub(super) async fn for_token(&self, token: &Token<'_>) -> Result<Arc<KeySet>, &'static str> {
        if let Some(set) = self.current()
            && set.find(token).is_some()
        {
            return Ok(set);
        }
        self.read_again().await;
        self.current().ok_or("JWT_KEYS_UNAVAILABLE")
    }

    fn current(&self) -> Option<Arc<KeySet>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = known.read_at.is_some_and(|at| at.elapsed() < STALE_AFTER);
        known.set.clone().filter(|_| is_fresh)
    }

    async fn read_again(&self) {
        let _reading = self.reading.lock().await;
        let last = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tried_at;
        if last.is_none_or(|last| last.elapsed() >= self.of.again_after()) {
            self.read().await;
        }
    }

    /// Reads the keys, however recent the last read is.
    pub(super) async fn load(&self) {
        let _reading = self.reading.lock().await;
        self.read().await;
    }

    pub(super) async fn keep(&self) {
        loop {
            sleep(self.of.every()).await;
            self.load().await;
        }
    }

    async fn read(&self) {
        let read = timeout(LIMIT, self.of.read()).await;
        let read = read.unwrap_or_else(|_| Err("no answer within ten seconds".to_owned()));
        let parsed = read.and_then(|json| KeySet::parse(&json));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.tried_at = Some(Instant::now());
        match parsed {
            Ok(set) => {
                tracing::debug!(
                    issuer = self.issuer,
                    keys = set.len(),
                    "the keys of an issuer are read"
                );
                known.set = Some(Arc::new(set));
                known.read_at = known.tried_at;
            }
            Err(error) => {
                tracing::error!(issuer = self.issuer, %error, "the keys of an issuer stay as they were");
            }
        }
    }
}
