//! One connection: TLS, then HTTP/1 or HTTP/2, with bounds on the resources of an unknown peer.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, SetOnce, broadcast, watch},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{
    byte_budget::{BUDGET_EXCEEDED, BudgetedStream, ByteBudget},
    response_timeout::{StalledResponses, TimedResponse},
};
use crate::{
    domain::{
        connection_limits::ConnectionLimits,
        name::Name,
        random::{Random, SystemRandom},
    },
    grpc::{
        addresses::ClientAddress,
        auth_layer::{ConnectionServices, Offence, PeerConnection, Proven},
        concurrency_limit::CallLimits,
        counts::Counts,
    },
};

/// Bytes that a peer may send in addition to the message of a request.
const FRAMES_OF_NO_CONSEQUENCE: usize = 64 * 1024;
/// Smallest buffer for HTTP/1 headers that hyper accepts.
const HTTP1_BUFFER_LEAST: usize = 8192;
/// Time for which the calls of a suspended service may continue, so that its waiting callers and
/// watchers are notified of the suspension first.
const SHUT_OUT_GRACE: Duration = Duration::from_secs(8);
/// Time before that grace in which an ending connection waits for a first request, which may be on
/// its way.
const SILENT_GRACE: Duration = Duration::from_secs(2);

/// State that all connections share.
pub(super) struct ConnectionContext {
    pub(super) tls: watch::Receiver<Arc<ServerConfig>>,
    pub(super) handshakes: Semaphore,
    pub(super) router: Router,
    pub(super) by_service: Arc<Counts<Name>>,
    pub(super) calls: CallLimits,
    pub(super) bounds: ConnectionLimits,
    /// Channel of services that are suspended, revoked or deleted from now on.
    pub(super) shut_outs: broadcast::Sender<Name>,
    pub(super) stop: CancellationToken,
}

impl ConnectionContext {
    /// Serves a connection until it ends. Returns the peer's offence if the connection ended for
    /// one.
    pub(super) async fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        limits: Arc<ClientAddress>,
        services: ConnectionServices,
    ) -> Option<Offence> {
        // `TCP_NODELAY`: small answers must not wait for more data.
        let _ = stream.set_nodelay(true);
        let handshake = self.handshake(stream, &limits);
        let Ok(Some(stream)) = timeout(self.bounds.handshake_timeout, handshake).await else {
            tracing::debug!(%peer, "a TLS handshake failed");
            return None;
        };
        let shut_outs = self.shut_outs.subscribe();
        let offence = Arc::new(SetOnce::new());
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let shown = PeerConnection {
            address: peer,
            limits: Arc::clone(&limits),
            certificates: chain.iter().map(|der| der.to_vec()).collect(),
            services: services.clone(),
            calls: self.calls.of_another(&self.bounds),
            offence: Arc::clone(&offence),
        };
        let offends = Arc::clone(&offence);
        let allowance = Arc::new(ByteBudget::new(per_request(&self.bounds)));
        let asked = Arc::clone(&allowance);
        let (waiting, body_limit) = (StalledResponses::default(), self.bounds.body_timeout);
        let answered = waiting.clone();
        let service = self
            .router
            .clone()
            .map_request(move |mut request: Request<Incoming>| {
                asked.request();
                request.extensions_mut().insert(shown.clone());
                request.map(|body| Body::new(TimedBody::new(body, body_limit)))
            })
            .map_response(move |response: Response<Body>| {
                if response.extensions().get::<Proven>().is_none() && limits.count_unproven() {
                    // The offence may be set already.
                    let _ = offends.set(Offence::OfAddress);
                }
                response.map(|body| Body::new(TimedResponse::new(body, answered.clone())))
            });
        let builder = builder(&self.bounds);
        let io = TokioIo::new(BudgetedStream::new(stream, Arc::clone(&allowance)));
        let serving = builder.serve_connection(io, TowerToHyperService::new(service));
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            offence = offence.wait() => {
                tracing::debug!(%peer, ?offence, "a connection is ended");
                return Some(*offence);
            }
            grace = self.ending(&allowance, &services, shut_outs, &waiting) => {
                let grace = grace?;
                // A request that arrives at this moment is still served: its client does not know
                // of the end.
                serving.as_mut().graceful_shutdown();
                match timeout(SILENT_GRACE, serving.as_mut()).await {
                    Ok(ended) => ended,
                    Err(_) if !allowance.has_asked() => return None,
                    Err(_) => timeout(grace, serving).await.ok()?,
                }
            }
        };
        let error = ended.err()?;
        let is_offence = is_protocol_violation(error.as_ref());
        tracing::debug!(%peer, %error, is_offence, "a connection ended with an error");
        is_offence.then_some(Offence::OfAddress)
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        limits: &ClientAddress,
    ) -> Option<TlsStream<TcpStream>> {
        // A peer that sends nothing must not use a handshake slot.
        stream.peek(&mut [0]).await.ok()?;
        let _of_address = limits.handshakes().acquire().await.ok()?;
        let _permit = self.handshakes.acquire().await.ok()?;
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls.borrow()));
        acceptor.accept(stream).await.ok()
    }

    /// Waits until the connection is to accept no more calls. Returns the grace for running calls;
    /// `None` if the connection ends at once.
    async fn ending(
        &self,
        allowance: &ByteBudget,
        services: &ConnectionServices,
        mut shut_outs: broadcast::Receiver<Name>,
        waiting: &StalledResponses,
    ) -> Option<Duration> {
        let silent = async {
            sleep(self.bounds.first_request_timeout).await;
            if allowance.has_asked() {
                std::future::pending::<()>().await;
            }
        };
        let shut_out = async {
            loop {
                match shut_outs.recv().await {
                    Ok(service) if !services.has(&service) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                    // One of the missed services may use this connection.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => Some(self.bounds.drain_timeout),
            () = silent => Some(self.bounds.age_grace),
            () = sleep(self.age()) => Some(self.bounds.age_grace),
            () = shut_out => Some(SHUT_OUT_GRACE),
            () = waiting.too_long(self.bounds.answer_timeout) => None,
        }
    }

    fn age(&self) -> Duration {
        let mut chance = [0];
        SystemRandom.fill(&mut chance);
        // Connections live nine to eleven tenths of the configured age, at random.
        let age = self.bounds.connection_age;
        age * 9 / 10 + age / 5 * u32::from(chance[0]) / 255
    }
}

/// Returns the bytes that may come with a request: its message, or what a stream's window lets the
/// peer send unread if that is more, and some for headers and frames without effect.
fn per_request(bounds: &ConnectionLimits) -> usize {
    let window = usize::try_from(bounds.stream_window_bytes).unwrap_or(usize::MAX);
    let message = window.max(bounds.message_bytes);
    message.saturating_add(FRAMES_OF_NO_CONSEQUENCE)
}

/// Returns whether a connection ended because its peer broke the protocol or exceeded its bounds,
/// and not because the peer left.
fn is_protocol_violation(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let broken = cause.downcast_ref().map(io::Error::kind);
        let broke = cause.downcast_ref().is_some_and(h2::Error::is_library);
        broke || broken == Some(BUDGET_EXCEEDED)
    })
}

fn builder(bounds: &ConnectionLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let header_bytes = usize::try_from(bounds.header_bytes).unwrap_or(usize::MAX);
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(header_bytes.max(HTTP1_BUFFER_LEAST))
        .header_read_timeout(bounds.first_request_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.streams)
        .max_local_error_reset_streams(bounds.resets)
        .max_pending_accept_reset_streams(bounds.pending_resets)
        .max_header_list_size(bounds.header_bytes)
        .max_frame_size(bounds.frame_bytes)
        .initial_stream_window_size(bounds.stream_window_bytes)
        .initial_connection_window_size(bounds.connection_window_bytes)
        .keep_alive_interval(bounds.keepalive_interval)
        .keep_alive_timeout(bounds.keepalive_timeout);
    builder
}

/// A request body with a time limit for its end. Every call has one message only.
struct TimedBody {
    body: Incoming,
    limit: Pin<Box<Sleep>>,
}

/// Error: the body of a request did not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the request did not arrive in time")]
struct BodyTimeout;

impl TimedBody {
    fn new(body: Incoming, limit: Duration) -> Self {
        let limit = Box::pin(sleep(limit));
        Self { body, limit }
    }
}

impl hyper::body::Body for TimedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => self
                .limit
                .as_mut()
                .poll(context)
                .map(|()| Some(Err(BodyTimeout.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
