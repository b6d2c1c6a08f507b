//! Gate in front of every RPC: authenticates, consults the access table, admits or refuses.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use metrics::counter;
use secrecy::SecretString;
use tokio::sync::SetOnce;
use tower::Service;

use super::{
    addresses::ClientAddress,
    concurrency_limit::CallLimits,
    counts::{Counted, Counts},
    status::status,
};
use crate::{
    broker::{Broker, Error},
    domain::{
        access::{Caller, Surface},
        name::Name,
        principal::{Identity, Origin, PresentedCredentials, Principal},
    },
};

/// Time after which a service with too many connections may try again.
const PAUSE: Duration = Duration::from_secs(5);
/// The only method that accepts more than one message.
const STREAMED: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Peer of a connection; the listener adds it to every request.
#[derive(Clone, Debug)]
pub struct PeerConnection {
    /// Socket address of the peer.
    pub address: SocketAddr,
    /// Limits shared by all peers of the same address.
    pub limits: Arc<ClientAddress>,
    /// Client certificates, DER, the peer's own first. The peer has proven that it has the key; the
    /// certificates are not verified yet.
    pub certificates: Arc<[Vec<u8>]>,
    /// Services that have called over the connection.
    pub services: ConnectionServices,
    /// Calls in progress over the connection.
    pub calls: CallLimits,
    /// Reason to end the connection, once there is one.
    pub offence: Arc<SetOnce<Offence>>,
}

/// Abuse by a peer, which ends its connection. The connection's place stays taken for a while, so
/// that a new connection costs the peer more than the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
    /// Violation of HTTP/2, excess of bytes, or excess of requests without a proven caller. The
    /// place among those of the address stays taken.
    OfAddress,
    /// Excess of refused calls of a service. The place among those of the service stays taken.
    OfService,
}

/// Mark of an answer to a caller that has proven its identity.
#[derive(Clone, Copy, Debug)]
pub struct Proven;

/// Services that have called over a connection, each counted until the connection ends.
#[derive(Clone, Debug)]
pub struct ConnectionServices {
    called: Arc<Mutex<BTreeMap<Name, Counted<Name>>>>,
    all: Arc<Counts<Name>>,
}

impl ConnectionServices {
    /// Creates an empty set for a new connection.
    #[must_use]
    pub fn empty(all: &Arc<Counts<Name>>) -> Self {
        Self {
            called: Arc::default(),
            all: Arc::clone(all),
        }
    }

    fn called(&self) -> MutexGuard<'_, BTreeMap<Name, Counted<Name>>> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the connection as the service's. Returns whether it is the service's first call over
    /// the connection. Fails if the service has too many connections.
    fn add(&self, service: &Name) -> Result<bool, Error> {
        let mut called = self.called();
        if called.contains_key(service) {
            return Ok(false);
        }
        let counted = self.all.add(service);
        let counted = counted.ok_or_else(|| too_many_connections(service))?;
        called.insert(service.clone(), counted);
        Ok(true)
    }

    /// Returns one of the services that have called.
    fn first(&self) -> Option<Name> {
        self.called().keys().next().cloned()
    }

    /// Returns whether this service has called.
    #[must_use]
    pub fn has(&self, service: &Name) -> bool {
        self.called().contains_key(service)
    }
}

/// Function that turns an error into the answer of a refused call.
pub type Refusal = fn(&Error) -> Response;

/// Admission of callers by [`crate::domain::access::TABLE`].
#[derive(Clone)]
pub struct Authorizer {
    broker: Arc<Broker>,
    surface: Surface,
}

impl Authorizer {
    /// Creates the authorizer of an address that serves this surface.
    pub const fn new(broker: Arc<Broker>, surface: Surface) -> Self {
        Self { broker, surface }
    }

    /// Runs a call within the limits of its peer: takes a slot of the connection, waits for the
    /// message, authenticates the caller, takes one of the caller's slots, and does `work`.
    pub async fn authorize<M, F: Future<Output = Response>>(
        &self,
        call: &IncomingCall,
        message: impl Future<Output = Result<M, Error>>,
        work: impl FnOnce(Arc<Broker>, Caller, M) -> F,
    ) -> Response {
        let is_proven = AtomicBool::new(false);
        // Pinned here and polled by reference: each layer around this large future would otherwise
        // contain a copy of it.
        let answered = pin!(self.answered(call, message, work, &is_proven));
        let answer = answered.await;
        let mut answer = answer.unwrap_or_else(|error| (call.refusal)(&error));
        if is_proven.load(Ordering::Relaxed) {
            answer.extensions_mut().insert(Proven);
        }
        answer
    }

    async fn answered<M, F: Future<Output = Response>>(
        &self,
        call: &IncomingCall,
        message: impl Future<Output = Result<M, Error>>,
        work: impl FnOnce(Arc<Broker>, Caller, M) -> F,
        is_proven: &AtomicBool,
    ) -> Result<Response, Error> {
        let calls = &call.peer.calls;
        let _own = match (calls.begin(), call.peer.services.first()) {
            (Err(error), Some(service)) => {
                is_proven.store(true, Ordering::Relaxed);
                self.count_refusal(call, &service);
                return Err(error);
            }
            (own, _) => own?,
        };
        let message = message.await?;
        let in_time = calls.in_time(&call.method, async {
            let login = self.login(call).await;
            if matches!(login, Ok(_) | Err(Error::Suspended(_))) {
                is_proven.store(true, Ordering::Relaxed);
            }
            if let Err(Error::Suspended(service)) = &login {
                self.count_refusal(call, service);
            }
            let principal = login?;
            let caller = self.admitted(call, &principal).await?;
            let _slot = calls.slot(&caller)?;
            Ok(work(Arc::clone(&self.broker), caller, message).await)
        });
        in_time.await
    }

    async fn login(&self, call: &IncomingCall) -> Result<Principal, Error> {
        let peer = &call.peer;
        let closed = || Error::Internal("the logins of an address are closed".to_owned());
        let _turn = peer.limits.logins().acquire().await.map_err(|_| closed())?;
        let shown = PresentedCredentials {
            authorization: call.authorization.clone(),
            certificates: Arc::clone(&peer.certificates),
        };
        let origin = Origin {
            peer: Some(peer.address),
            method: call.method.clone(),
        };
        self.broker.login(origin, &Arc::new(shown)).await
    }

    async fn admitted(&self, call: &IncomingCall, principal: &Principal) -> Result<Caller, Error> {
        if let Err(error) = self.broker.admit_call(principal).await {
            if let Some(service) = principal.service() {
                self.count_refusal(call, service);
            }
            return Err(error);
        }
        let caller = self.broker.admit(principal.clone(), self.surface).await?;
        count_connection(&self.broker, &caller, &call.peer.services).await?;
        Ok(caller)
    }

    /// Counts a refusal against a service. Too many refusals end the connection.
    fn count_refusal(&self, call: &IncomingCall, service: &Name) {
        if self.broker.is_refused_too_often(service) {
            // The offence may be set already.
            let _ = call.peer.offence.set(Offence::OfService);
        }
    }
}

/// A request that is to be admitted or refused.
pub struct IncomingCall {
    /// Peer of the request.
    pub peer: PeerConnection,
    /// Value of the header `authorization`.
    pub authorization: Option<SecretString>,
    /// `credbroker.v1.Service/Method`.
    pub method: String,
    /// Function that answers a refusal.
    pub refusal: Refusal,
}

impl IncomingCall {
    /// Creates the call of a method from the headers of its request.
    ///
    /// # Errors
    /// The answer to a request that did not come through the listener.
    pub fn new(
        request: &Request<Body>,
        method: String,
        refusal: Refusal,
    ) -> Result<Self, Box<Response>> {
        let peer = request
            .extensions()
            .get::<PeerConnection>()
            .cloned()
            .ok_or_else(|| {
                let message = "a call came past the listener".to_owned();
                Box::new(refusal(&Error::Internal(message)))
            })?;
        let header = request.headers().get("authorization");
        let authorization = header.and_then(|header| header.to_str().ok());
        Ok(Self {
            peer,
            authorization: authorization.map(SecretString::from),
            method,
            refusal,
        })
    }
}

/// Gate in front of every RPC, as a tower service.
#[derive(Clone)]
pub struct AuthLayer<S> {
    inner: S,
    door: Authorizer,
}

impl<S> AuthLayer<S> {
    /// Creates a gate in front of `inner`.
    pub const fn new(inner: S, door: Authorizer) -> Self {
        Self { inner, door }
    }
}

impl<S> Service<Request<Body>> for AuthLayer<S>
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let door = self.door.clone();
        // The call uses the service that was polled ready; a clone replaces it here.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        if !is_grpc(&request) {
            return Box::pin(async { Ok(StatusCode::NOT_FOUND.into_response()) });
        }
        let method = method(&request);
        let call = match IncomingCall::new(&request, method, |error| status(error).into_http()) {
            Ok(call) => call,
            Err(answer) => return Box::pin(async { Ok(*answer) }),
        };
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let message = async {
                if call.method == STREAMED {
                    return Ok((Request::from_parts(parts, body), None));
                }
                let message = call.peer.calls.message(body).await?;
                let body = Body::from(message.bytes.clone());
                Ok((Request::from_parts(parts, body), Some(message)))
            };
            let work = async |_, caller, (mut request, _room): (Request<Body>, _)| {
                request.extensions_mut().insert(caller);
                let Ok(answer) = inner.call(request).await;
                answer
            };
            Ok(door.authorize(&call, message, work).await)
        })
    }
}

fn method(request: &Request<Body>) -> String {
    let path = request.uri().path().trim_start_matches('/');
    path.chars().take(100).collect()
}

/// Counts the connection as its caller's. Refuses a service that was suspended in the meantime.
async fn count_connection(
    broker: &Broker,
    caller: &Caller,
    services: &ConnectionServices,
) -> Result<(), Error> {
    let principal = caller.principal();
    if let Identity::Service(name) = principal.identity()
        && services.add(name)?
    {
        // The connection is counted before this check, so that a later suspension ends it.
        let still = broker.check_admitted(name).await;
        if let Err(Error::Suspended(_)) = still
            && !broker.is_suspended_in_journal(name)
        {
            let (origin, proof) = (principal.origin(), principal.proof());
            broker
                .suspended_login(origin, &proof.evidence, name)
                .await?;
        }
        still?;
    }
    Ok(())
}

fn is_grpc(request: &Request<Body>) -> bool {
    let kind = request
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

fn too_many_connections(service: &Name) -> Error {
    counter!("credbroker_connections_refused_total", "reason" => "per_service").increment(1);
    Error::Limited {
        reason: "TOO_MANY_CONNECTIONS",
        message: format!("service {service} has as many connections as it may"),
        next: "keep one connection per process, or ask the broker's operator to raise \
               bounds.connections_per_service"
            .to_owned(),
        retry_after: Some(PAUSE),
    }
}
