//! The audit log by a webhook: a POST of one JSON object per line, which any 2xx
//! acknowledges. A connection for each, so that none is found dead.

use std::{fs, path::Path};

use async_trait::async_trait;
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinSet;

use super::{Server, SetupError};
use crate::{
    broker::ports::{Sink, SinkError},
    domain::name::Name,
};

/// A URL that takes records.
pub struct WebhookSink {
    name: Name,
    server: Server,
    path: String,
    token: Option<SecretString>,
}

impl WebhookSink {
    /// Posts to `path` of this server, query included. The token of `token_file` goes with
    /// each as bearer.
    ///
    /// # Errors
    /// The file cannot be read or holds no token.
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

    fn request(&self, leaves: &[Vec<u8>]) -> Result<Request<String>, SinkError> {
        let mut lines = leaves.join(&b'\n');
        lines.push(b'\n');
        let lines = String::from_utf8(lines).map_err(unsent)?;
        let mut request = Request::post(self.path.as_str())
            .header(HOST, self.server.authority())
            .header(CONNECTION, "close")
            .header(CONTENT_TYPE, "application/x-ndjson");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, bearer(token).map_err(unsent)?);
        }
        request.body(lines).map_err(unsent)
    }
}

#[async_trait]
impl Sink for WebhookSink {
    fn name(&self) -> &Name {
        &self.name
    }

    async fn deliver(&self, leaves: &[Vec<u8>]) -> Result<(), SinkError> {
        let request = self.request(leaves)?;
        let stream = TokioIo::new(self.server.connect().await?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(unsent)?;
        // Cut off when it is dropped, like this call.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = sender.send_request(request).await.map_err(unsent)?;
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

fn unsent(error: impl std::fmt::Display) -> SinkError {
    SinkError(format!("the records could not be posted: {error}"))
}

fn refused(status: StatusCode) -> SinkError {
    SinkError(format!("it answered {status}"))
}
