//! The keys of an issuer of tokens, from a file or by HTTPS.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;

use super::{Server, https_client::refused};
use crate::broker::ports::JwksSource;

/// A file of keys, which the operator keeps up to date.
pub struct KeyFile(PathBuf);

impl KeyFile {
    /// Creates the source that reads the file at this path.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }
}

#[async_trait]
impl JwksSource for KeyFile {
    async fn read(&self) -> Result<Vec<u8>, String> {
        let read = tokio::fs::read(&self.0).await;
        read.map_err(|error| format!("cannot read {}: {error}", self.0.display()))
    }

    fn every(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn again_after(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// A URL of keys. Redirects are not followed.
pub struct HttpsKeys {
    server: Server,
    path: String,
}

impl HttpsKeys {
    /// Creates the source that reads this path on this server.
    #[must_use]
    pub const fn new(server: Server, path: String) -> Self {
        Self { server, path }
    }
}

#[async_trait]
impl JwksSource for HttpsKeys {
    async fn read(&self) -> Result<Vec<u8>, String> {
        let answer = self.server.get(&self.path).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(refused(answer.status()).to_string());
        }
        let text = answer.text().await;
        text.map(String::into_bytes)
            .map_err(|error| error.to_string())
    }

    fn every(&self) -> Duration {
        Duration::from_mins(10)
    }

    fn again_after(&self) -> Duration {
        Duration::from_secs(30)
    }
}
