//! The accept loop: TLS, then HTTP/1 or HTTP/2, with bounds on what a stranger can
//! hold. tonic's own server leaves some of HTTP/2's bounds off, so it serves here as
//! a plain service.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::AsyncBufReadExt,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::grpc::gate::Peer;

const CONNECTIONS_MAX: usize = 4096;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(5);
const STREAMS_MAX: u32 = 64;
const RESET_STREAMS_MAX: usize = 128;
const HEADERS_MAX: u32 = 8 * 1024;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);
/// After an error of accept itself, e.g. no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long running calls may take to end once asked to.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// Serves `router` until `stop`, then lets running calls end.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &permits)).await {
        let Some((stream, peer, permit)) = accepted else {
            continue;
        };
        let serve = connection(stream, peer, acceptor.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            serve.await;
            drop(permit);
        });
    }
    connections.close();
    if timeout(DRAIN_LIMIT, connections.wait()).await.is_err() {
        tracing::warn!("some calls did not end in time and were cut off");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) {
    // Small answers must not wait for more to send.
    let _ = stream.set_nodelay(true);
    let Ok(Ok(mut stream)) = timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await else {
        tracing::debug!(%peer, "a TLS handshake failed");
        return;
    };
    // hyper waits for the first bytes without limit, to tell HTTP/1 from HTTP/2.
    if !matches!(
        timeout(FIRST_REQUEST_LIMIT, stream.fill_buf()).await,
        Ok(Ok(_))
    ) {
        tracing::debug!(%peer, "a connection asked for nothing");
        return;
    }
    let shown = stream.get_ref().1.peer_certificates();
    let shown = Peer {
        address: peer,
        certificates: shown.unwrap_or_default().into(),
    };
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(shown.clone());
        request.map(Body::new)
    });
    let builder = builder();
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended with an error");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(FIRST_REQUEST_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_local_error_reset_streams(RESET_STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_LIMIT);
    builder
}
