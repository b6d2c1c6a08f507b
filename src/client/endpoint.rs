//! Credentials for AWS SDKs of this machine, over HTTP on a loopback address: the
//! container-credentials contract, for those that take no https or no private CA.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
//!
//! Whoever knows the path may ask: it has a random part, and is told to nobody but those who
//! are to use it. Browsers and proxies are sent away, whatever they ask; each connection is
//! for one question, and ends after ten seconds.

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
    container::{Refusal, document},
    random::{Random, SystemRandom},
};

/// Some SDKs wait for a second.
const PATIENCE: Duration = Duration::from_millis(800);
/// How long a peer may take to ask.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection may last.
const LIMIT: Duration = Duration::from_secs(10);
/// How many may be connected; more are hung up on.
const CONNECTIONS: usize = 256;
/// After an error of accept itself, e.g. no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What SDKs never send: browsers do, and proxies.
const STRANGERS: [&str; 6] = [
    "forwarded",
    "origin",
    "referer",
    "sec-fetch-site",
    "via",
    "x-real-ip",
];

/// Sessions under some grants, served to this machine.
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
    door: Door,
}

/// Who may have what.
struct Door {
    secret: SecretString,
    /// Names of this address.
    hosts: [String; 2],
    grants: BTreeMap<String, Credentials>,
}

/// Something that nobody guesses, fit for a path.
#[must_use]
pub fn secret() -> SecretString {
    let mut bytes = [0; 32];
    SystemRandom.fill(&mut bytes);
    SecretString::from(BASE64URL_NOPAD.encode(&bytes))
}

impl Endpoint {
    /// Listens. `secret` is part of every path, `grants` are the credentials by name.
    ///
    /// # Errors
    /// The address is no loopback address, or cannot be listened on.
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
            door: Door {
                secret,
                hosts,
                grants,
            },
        })
    }

    /// Where a grant's credentials are: as good as they themselves.
    #[must_use]
    pub fn url(&self, grant: &str) -> SecretString {
        let (address, secret) = (self.address, self.door.secret.expose_secret());
        SecretString::from(format!("http://{address}/{secret}/{grant}"))
    }

    /// Serves for ever.
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

async fn serve(door: &Door, stream: TcpStream) {
    let service = service_fn(async |request: Request<Incoming>| {
        let (head, _) = request.into_parts();
        Ok::<_, Infallible>(door.answer(&head.method, &head.uri, &head.headers).await)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASK_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that leaves, or reads nothing, needs no answer.
    let _ = timeout(LIMIT, serving).await;
}

impl Door {
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
                    Refusal::Denied,
                    "credentials of an IAM user have no session token, so that SDKs do not take them here; \
                     use `credbroker credential-process`",
                ),
            },
            Err(Missing::Refused { why, .. }) => missing(Refusal::Denied, &why),
            Err(Missing::Unavailable(why)) => missing(Refusal::Unavailable, &why),
        }
    }

    /// The credentials that are asked for, if that is by one of this machine's SDKs.
    fn admit(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<&Credentials, (StatusCode, &'static str)> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        let is_ours = host.is_some_and(|host| self.hosts.iter().any(|ours| ours == host));
        // A target with an authority of its own is what a proxy gets.
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

/// Whether a browser or a proxy asks.
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
    let mut refused = answer(code, &Refusal::Denied.document(why));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = HeaderValue::from_static("GET");
        refused.headers_mut().insert(ALLOW, allowed);
    }
    refused
}

fn missing(refusal: Refusal, why: &str) -> Response<Full<Bytes>> {
    let code = StatusCode::from_u16(refusal.status()).unwrap_or_default();
    let mut missing = answer(code, &refusal.document(why));
    if refusal == Refusal::Unavailable {
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
