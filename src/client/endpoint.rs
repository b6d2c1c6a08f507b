//! Credentials for AWS SDKs of this machine, over HTTP on a loopback address: the
//! container-credentials contract, for SDKs that do not support https or a private CA.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
//!
//! Knowledge of the path is the permission: the path has a random part, and only the intended
//! processes get it. Browsers and proxies are always refused. Each connection serves one request,
//! and ends after ten seconds.

use std::{
    collections::BTreeMap, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration,
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::BASE64URL_NOPAD;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{Credentials, Missing};
use crate::domain::{
    container::{RefusalKind, document},
    random::{Random, SystemRandom},
};

/// Time to wait for credentials: some SDKs wait for only a second.
const PATIENCE: Duration = Duration::from_millis(800);
/// Time limit for a peer to send its request headers.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Time limit of a connection.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum number of connections; further ones are closed.
const CONNECTIONS: usize = 256;
/// Pause after an error of `accept` itself, e.g. when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Headers that SDKs never send, but browsers and proxies do.
const STRANGERS: [&str; 6] = [
    "forwarded",
    "origin",
    "referer",
    "sec-fetch-site",
    "via",
    "x-real-ip",
];

/// HTTP endpoint that serves the sessions of some grants to this machine.
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
    door: AccessToken,
}

/// Admission: the secret part of the path, and the grants that are served.
struct AccessToken {
    secret: SecretString,
    /// Values of the `Host` header that name this endpoint.
    hosts: [String; 2],
    grants: BTreeMap<String, Credentials>,
}

/// Returns a random secret that can be part of a path.
#[must_use]
pub fn secret() -> SecretString {
    let mut bytes = [0; 32];
    SystemRandom.fill(&mut bytes);
    SecretString::from(BASE64URL_NOPAD.encode(&bytes))
}

impl Endpoint {
    /// Opens the listener. `secret` is part of every path, `grants` are the credentials by name.
    ///
    /// # Errors
    /// The address is no loopback address, or the listener cannot be opened.
    pub async fn bind(
        address: SocketAddr,
        secret: SecretString,
        grants: BTreeMap<String, Credentials>,
    ) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            let why = "credentials are served on a loopback address alone, e.g. 127.0.0.1";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let hosts = [address.to_string(), format!("localhost:{}", address.port())];
        Ok(Self {
            listener,
            address,
            door: AccessToken {
                secret,
                hosts,
                grants,
            },
        })
    }

    /// Returns the URL of a grant's credentials. The URL is as secret as the credentials.
    #[must_use]
    pub fn url(&self, grant: &str) -> SecretString {
        let (address, secret) = (self.address, self.door.secret.expose_secret());
        SecretString::from(format!("http://{address}/{secret}/{grant}"))
    }

    /// Serves forever.
    pub async fn serve(self) {
        let (door, permits) = (Arc::new(self.door), Arc::new(Semaphore::new(CONNECTIONS)));
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) if peer.ip().is_loopback() => {
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                        continue;
                    };
                    let door = Arc::clone(&door);
                    tokio::spawn(async move {
                        serve(&door, stream).await;
                        drop(permit);
                    });
                }
                Ok(_) => {}
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

async fn serve(door: &AccessToken, stream: TcpStream) {
    let service = service_fn(async |request: Request<Incoming>| {
        let (head, _) = request.into_parts();
        Ok::<_, Infallible>(door.answer(&head.method, &head.uri, &head.headers).await)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASK_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that has left or does not read needs no answer.
    let _ = timeout(LIMIT, serving).await;
}

impl AccessToken {
    async fn answer(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Response<Full<Bytes>> {
        let credentials = match self.admit(method, uri, headers) {
            Ok(credentials) => credentials,
            Err((code, why)) => return refused(code, why),
        };
        match credentials.current(PATIENCE).await {
            Ok(issued) => match &issued.session_token {
                Some(token) => {
                    let (id, secret) = (&issued.access_key_id, &issued.secret_access_key);
                    let document = document(id, secret, token, issued.expires_at);
                    answer(StatusCode::OK, &document)
                }
                None => missing(
                    RefusalKind::Denied,
                    "credentials of an IAM user have no session token, so that SDKs do not take them here; \
                     use `credbroker credential-process`",
                ),
            },
            Err(Missing::Refused { why, .. }) => missing(RefusalKind::Denied, &why),
            Err(Missing::Unavailable(why)) => missing(RefusalKind::Unavailable, &why),
        }
    }

    /// Returns the requested credentials, if an SDK of this machine asks.
    fn admit(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<&Credentials, (StatusCode, &'static str)> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        let is_ours = host.is_some_and(|host| self.hosts.iter().any(|ours| ours == host));
        // A proxy gets request targets that have an authority.
        if !is_ours || hosts.next().is_some() || uri.authority().is_some() {
            return Err((StatusCode::FORBIDDEN, "this is no name of the endpoint"));
        }
        if is_strange(headers) {
            return Err((
                StatusCode::FORBIDDEN,
                "browsers and proxies get no credentials",
            ));
        }
        let nothing = (StatusCode::NOT_FOUND, "there is nothing here");
        let path = uri.path().strip_prefix('/').ok_or(nothing)?;
        let (secret, grant) = path.split_once('/').ok_or(nothing)?;
        let ours = self.secret.expose_secret().as_bytes();
        verify_slices_are_equal(secret.as_bytes(), ours).map_err(|_| nothing)?;
        if method != Method::GET {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "SDKs use GET"));
        }
        self.grants.get(grant).ok_or(nothing)
    }
}

/// Returns whether the request comes from a browser or a proxy.
fn is_strange(headers: &HeaderMap) -> bool {
    let forwarded = |name: &HeaderName| name.as_str().starts_with("x-forwarded-");
    let agent = headers
        .get(USER_AGENT)
        .and_then(|agent| agent.to_str().ok());
    STRANGERS.iter().any(|header| headers.contains_key(*header))
        || headers.keys().any(forwarded)
        || agent.is_some_and(|agent| agent.starts_with("Mozilla/"))
}

fn refused(code: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut refused = answer(code, &RefusalKind::Denied.document(why));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = HeaderValue::from_static("GET");
        refused.headers_mut().insert(ALLOW, allowed);
    }
    refused
}

fn missing(refusal: RefusalKind, why: &str) -> Response<Full<Bytes>> {
    let code = StatusCode::from_u16(refusal.status()).unwrap_or_default();
    let mut missing = answer(code, &refusal.document(why));
    if refusal == RefusalKind::Unavailable {
        missing.headers_mut().insert(RETRY_AFTER, 1.into());
    }
    missing
}

fn answer(code: StatusCode, document: &Value) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(document.to_string()));
    *answer.status_mut() = code;
    for (name, value) in [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ] {
        let value = HeaderValue::from_static(value);
        answer.headers_mut().insert(name, value);
    }
    answer
}
