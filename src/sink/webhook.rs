//! The audit log by a webhook: a POST of one JSON object per line, which any 2xx status
//! acknowledges.

use std::{fs, path::Path};

use async_trait::async_trait;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use super::{
    Server, SetupError,
    https_client::{refused, unsent},
};
use crate::{
    broker::ports::{Sink, SinkError},
    domain::name::Name,
};

/// A URL that accepts records.
pub struct WebhookSink {
    name: Name,
    server: Server,
    path: String,
    token: Option<SecretString>,
}

impl WebhookSink {
    /// Creates a sink that posts to `path`, which includes the query, of this server. Each request
    /// carries the bearer token of `token_file`, which is read once.
    ///
    /// # Errors
    /// The file cannot be read, or contains no token.
    pub fn new(
        name: Name,
        server: Server,
        path: String,
        token_file: Option<&Path>,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            name,
            server,
            path,
            token: token_file.map(token_in).transpose()?,
        })
    }
}

#[async_trait]
impl Sink for WebhookSink {
    fn name(&self) -> &Name {
        &self.name
    }

    async fn deliver(&self, leaves: &[Vec<u8>]) -> Result<(), SinkError> {
        let mut lines = leaves.join(&b'\n');
        lines.push(b'\n');
        let lines = String::from_utf8(lines).map_err(unsent)?;
        let ndjson = HeaderValue::from_static("application/x-ndjson");
        let mut headers = vec![(CONTENT_TYPE, ndjson)];
        if let Some(token) = &self.token {
            headers.push((AUTHORIZATION, bearer(token).map_err(unsent)?));
        }
        let answer = self.server.post(&self.path, &headers, lines).await?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(refused(status)),
        }
    }
}

fn token_in(path: &Path) -> Result<SecretString, SetupError> {
    let text = fs::read_to_string(path).map_err(|source| SetupError::Token {
        path: path.to_owned(),
        source,
    })?;
    let text = SecretString::from(text);
    let token = SecretString::from(text.expose_secret().trim());
    let visible = token.expose_secret().bytes().all(|b| b.is_ascii_graphic());
    if token.expose_secret().is_empty() || !visible {
        return Err(SetupError::NoToken(path.to_owned()));
    }
    Ok(token)
}

fn bearer(token: &SecretString) -> Result<HeaderValue, hyper::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))?;
    value.set_sensitive(true);
    Ok(value)
}
