//! Requests to a sink's server, to the witness or to an issuer. Each request opens a
//! connection, since an idle one may have ended unnoticed.

use http_body_util::{BodyExt, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue},
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::Server;
use crate::broker::ports::SinkError;

/// Longest answer that is read, bytes.
const ANSWER_MAX: usize = 100 * 1024;

/// An answer, as far as it has arrived.
pub(super) struct HttpResponse {
    response: Response<Incoming>,
    /// Closed when the answer is dropped.
    _connection: JoinSet<hyper::Result<()>>,
}

impl Server {
    /// Posts this body. The future may be dropped at any time.
    pub(super) async fn post(
        &self,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: String,
    ) -> Result<HttpResponse, SinkError> {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        self.send(request, body).await
    }

    /// Gets this path. The future may be dropped at any time.
    pub(super) async fn get(&self, path: &str) -> Result<HttpResponse, SinkError> {
        self.send(Request::get(path), String::new()).await
    }

    async fn send(&self, request: Builder, body: String) -> Result<HttpResponse, SinkError> {
        let request = request.header(HOST, self.authority());
        let request = request.header(CONNECTION, "close").body(body);
        let request = request.map_err(unsent)?;
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(unsent)?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(HttpResponse {
            response: sender.send_request(request).await.map_err(unsent)?,
            _connection: driver,
        })
    }
}

impl HttpResponse {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns the whole body, as text.
    pub(super) async fn text(self) -> Result<String, SinkError> {
        let body = Limited::new(self.response.into_body(), ANSWER_MAX);
        let body = body.collect().await.map_err(unread)?;
        String::from_utf8(body.to_bytes().into()).map_err(unread)
    }
}

pub(super) fn unsent(error: impl std::fmt::Display) -> SinkError {
    SinkError(format!("the request could not be sent: {error}"))
}

fn unread(error: impl std::fmt::Display) -> SinkError {
    SinkError(format!("its answer cannot be read: {error}"))
}

pub(super) fn refused(status: StatusCode) -> SinkError {
    SinkError(format!("it answered {status}"))
}
