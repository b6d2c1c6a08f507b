//! The gate in front of every RPC: authenticate, consult the access table, let in.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use metrics::counter;
use secrecy::{ExposeSecret, SecretString};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tower::Service;

use super::{calls::Calls, status::status};
use crate::{
    authn::{Authenticator, LoginError, Shown},
    broker::{Broker, Error},
    domain::{
        access::{Caller, Surface, admit},
        name::Name,
        principal::{Evidence, Identity, Origin},
    },
};

/// When a service with too many connections may try again.
const PAUSE: Duration = Duration::from_secs(5);

/// The peer, put into every request by the listener.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The client certificates that it has the key of, its own first; nobody has looked at
    /// what they are worth.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Who has called over the connection.
    pub services: Services,
    /// The calls over it that are worked on.
    pub calls: Calls,
}

/// How many connections there are of each service.
#[derive(Debug)]
pub struct ByService {
    counts: Mutex<HashMap<Name, usize>>,
    most: usize,
}

impl ByService {
    /// Up to so many.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            counts: Mutex::default(),
            most,
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Name, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The services that have called over a connection, until it ends.
#[derive(Clone, Debug)]
pub struct Services(Arc<Called>);

#[derive(Debug)]
struct Called {
    names: Mutex<BTreeSet<Name>>,
    all: Arc<ByService>,
}

impl Drop for Called {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        for name in self
            .names
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            if let Some(count) = counts.get_mut(name) {
                *count -= 1;
            }
        }
        counts.retain(|_, count| *count > 0);
    }
}

impl Services {
    /// Of a connection over which nobody has called yet.
    #[must_use]
    pub fn none(all: &Arc<ByService>) -> Self {
        Self(Arc::new(Called {
            names: Mutex::default(),
            all: Arc::clone(all),
        }))
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the connection as the service's, and tells whether it was not before. An error
    /// when the service has as many as it may.
    fn add(&self, service: &Name) -> Result<bool, Error> {
        let mut names = self.names();
        if names.contains(service) {
            return Ok(false);
        }
        let mut counts = self.0.all.counts();
        let count = counts.entry(service.clone()).or_default();
        if *count >= self.0.all.most {
            return Err(too_many_connections(service));
        }
        *count += 1;
        Ok(names.insert(service.clone()))
    }

    /// Whether this one has.
    #[must_use]
    pub fn has(&self, service: &Name) -> bool {
        self.names().contains(service)
    }
}

/// How a refusal is answered.
pub type Refusal = fn(&Error) -> Response;

/// Lets in whoever [`crate::domain::access::TABLE`] lets in.
#[derive(Clone)]
pub struct Door {
    broker: Arc<Broker>,
    authenticator: Arc<Authenticator>,
    surface: Surface,
}

impl Door {
    /// A door to what is served at an address.
    pub const fn new(
        broker: Arc<Broker>,
        authenticator: Arc<Authenticator>,
        surface: Surface,
    ) -> Self {
        Self {
            broker,
            authenticator,
            surface,
        }
    }

    /// Works on a call of `method` for whoever is let in, within the bounds of the peer.
    pub async fn enter<F: Future<Output = Response>>(
        &self,
        peer: Option<Peer>,
        authorization: Option<SecretString>,
        method: &str,
        work: impl FnOnce(Arc<Broker>, Caller) -> F,
        refusal: Refusal,
    ) -> Response {
        let Some(peer) = peer else {
            let message = "a call came past the listener".to_owned();
            return refusal(&Error::Internal(message));
        };
        // By reference: it is large, and would be kept once for each layer around it.
        let call = pin!(async {
            let shown = Shown {
                authorization: authorization.as_ref().map(ExposeSecret::expose_secret),
                certificates: &peer.certificates,
            };
            let origin = Origin {
                peer: Some(peer.address),
                method: method.to_owned(),
            };
            let let_in = let_in(
                &self.broker,
                &self.authenticator,
                self.surface,
                origin,
                shown,
            );
            match known(&self.broker, let_in, &peer.services).await {
                Ok(caller) => work(Arc::clone(&self.broker), caller).await,
                Err(error) => refusal(&error),
            }
        });
        peer.calls.work(method, call, refusal).await
    }
}

/// The door in front of every RPC.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    door: Door,
}

impl<S> Gate<S> {
    /// A gate in front of `inner`.
    pub const fn new(inner: S, door: Door) -> Self {
        Self { inner, door }
    }
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let door = self.door.clone();
        // The service that was polled ready goes with the call, its clone stays.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        if !is_grpc(&request) {
            return Box::pin(async { Ok(StatusCode::NOT_FOUND.into_response()) });
        }
        Box::pin(async move {
            let (peer, authorization) = (peer(&request), authorization(&request));
            let method = method(&request);
            let work = async |_, caller| {
                request.extensions_mut().insert(caller);
                let Ok(answer) = inner.call(request).await;
                answer
            };
            let refusal: Refusal = |error| status(error).into_http();
            Ok(door
                .enter(peer, authorization, &method, work, refusal)
                .await)
        })
    }
}

/// Who is at the other end, as the listener knows.
pub fn peer(request: &Request<Body>) -> Option<Peer> {
    request.extensions().get().cloned()
}

/// The header `authorization`.
pub fn authorization(request: &Request<Body>) -> Option<SecretString> {
    let header = request.headers().get("authorization")?;
    header.to_str().ok().map(SecretString::from)
}

fn method(request: &Request<Body>) -> String {
    let path = request.uri().path().trim_start_matches('/');
    path.chars().take(100).collect()
}

/// Who calls, counted as one who has called over this connection.
async fn known(
    broker: &Broker,
    let_in: impl Future<Output = Result<Caller, Error>>,
    services: &Services,
) -> Result<Caller, Error> {
    let caller = let_in.await?;
    let principal = caller.principal();
    if let Identity::Service(name) = principal.identity()
        && services.add(name)?
    {
        // Shut out in between, it would not be known as one to be told of that.
        let still = broker.lets_in(name).await;
        if let Err(Error::Suspended(_)) = still
            && !broker.is_shut_out(name)
        {
            suspended(
                broker,
                principal.origin(),
                &principal.proof().evidence,
                name,
            )
            .await?;
        }
        still?;
    }
    Ok(caller)
}

fn is_grpc(request: &Request<Body>) -> bool {
    let kind = request
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// Proves who calls and consults the table; a refusal is recorded.
pub(super) async fn let_in(
    broker: &Broker,
    authenticator: &Authenticator,
    surface: Surface,
    origin: Origin,
    shown: Shown<'_>,
) -> Result<Caller, Error> {
    let (store, now) = (broker.store(), broker.now());
    let login = authenticator.login(store, now, origin.clone(), shown);
    let principal = match login.await {
        Ok(principal) => principal,
        Err(LoginError::Refused { reason, evidence }) => {
            let evidence = evidence.as_ref();
            broker.login_failed(&origin, reason, evidence, None).await?;
            return Err(Error::Unauthenticated);
        }
        Err(LoginError::Suspended { service, evidence }) => {
            suspended(broker, &origin, &evidence, &service).await?;
            return Err(Error::Suspended(service));
        }
        Err(LoginError::Store(error)) => return Err(error.into()),
    };
    if let Identity::Service(service) = principal.identity()
        && broker.is_shut_out(service)
    {
        return Err(Error::Suspended(service.clone()));
    }
    match admit(principal.clone(), surface) {
        Ok(caller) => Ok(caller),
        Err(error) => {
            broker.call_denied(&principal, &error).await?;
            Err(error.into())
        }
    }
}

/// Records that a service was refused for being shut out.
async fn suspended(
    broker: &Broker,
    origin: &Origin,
    evidence: &Evidence,
    service: &Name,
) -> Result<(), Error> {
    broker
        .login_failed(origin, "SERVICE_SUSPENDED", Some(evidence), Some(service))
        .await
}

fn too_many_connections(service: &Name) -> Error {
    counter!("credbroker_connections_refused_total", "reason" => "per_service").increment(1);
    Error::Limited {
        reason: "TOO_MANY_CONNECTIONS",
        message: format!("service {service} has as many connections as it may"),
        next: "keep one connection per process, or have whoever runs the broker raise \
               bounds.connections_per_service"
            .to_owned(),
        retry_after: Some(PAUSE),
    }
}
