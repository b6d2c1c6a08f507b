//! The accept loop, with limits on connections. tonic's own server does not set some bounds of
//! HTTP/2, so tonic runs here as a plain service.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use metrics::counter;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch},
    time::{sleep, timeout},
};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::connection::ConnectionContext;
use crate::{
    broker::wait::Wait,
    domain::{connection_limits::ConnectionLimits, name::Name},
    grpc::{
        addresses::ConnectionsByAddress,
        auth_layer::{ConnectionServices, Offence},
        concurrency_limit::CallLimits,
        counts::Counts,
    },
};

/// Pause after an error of `accept` itself, e.g. when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for which the place of a connection stays taken after an offence.
const OFFENCE_PAUSE: Wait = Wait::seconds(10);
/// Delay before a rejected connection is closed: a peer that reconnects at once would cost more
/// than the open connection.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of rejected connections that wait; further ones are closed at once.
const REFUSED: usize = 256;

/// A listener and its settings.
pub struct ListenerConfig {
    /// Listening socket, already bound.
    pub listener: TcpListener,
    /// Current TLS configuration.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// Bounds on peers.
    pub bounds: ConnectionLimits,
}

/// Serves `router` until `stop`, then waits for running calls, up to the drain timeout. Connections
/// of a service that `shut_outs` reports end too, after a short grace in which the service is
/// notified.
pub async fn serve(
    listening: ListenerConfig,
    router: Router,
    shut_outs: broadcast::Sender<Name>,
    stop: CancellationToken,
) {
    let ListenerConfig {
        listener,
        tls,
        bounds,
    } = listening;
    let permits = Arc::new(Semaphore::new(bounds.connections));
    let refused = Arc::new(Semaphore::new(REFUSED));
    let addresses = ConnectionsByAddress::default();
    let serving = Arc::new(ConnectionContext {
        tls,
        handshakes: Semaphore::new(bounds.handshakes),
        router,
        by_service: Counts::new(bounds.connections_per_service),
        calls: CallLimits::new(&bounds),
        bounds: bounds.clone(),
        shut_outs,
        stop: stop.clone(),
    });
    let tracker = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &permits)).await {
        let Some((stream, peer, permit)) = accepted else {
            continue;
        };
        let Some(place) = addresses.connect(peer.ip(), &bounds) else {
            counter!("credbroker_connections_refused_total", "reason" => "per_address")
                .increment(1);
            if let Ok(room) = Arc::clone(&refused).try_acquire_owned() {
                let stop = stop.clone();
                tracker.spawn(async move {
                    stop.run_until_cancelled(sleep(REFUSAL_PAUSE)).await;
                    drop((stream, room));
                });
            }
            continue;
        };
        let serving = Arc::clone(&serving);
        tracker.spawn(async move {
            let services = ConnectionServices::empty(&serving.by_service);
            let address = Arc::clone(&place.address);
            let offence = serving.serve(stream, peer, address, services.clone()).await;
            drop(permit);
            let Some(offence) = offence else {
                return;
            };
            // The peer's next connection would cost as much again.
            counter!("credbroker_connections_offending_total").increment(1);
            let pause = serving
                .stop
                .run_until_cancelled(sleep(OFFENCE_PAUSE.length()));
            match offence {
                Offence::OfAddress => {
                    drop(services);
                    pause.await;
                    drop(place);
                }
                Offence::OfService => {
                    drop(place);
                    pause.await;
                    drop(services);
                }
            }
        });
    }
    tracker.close();
    if timeout(bounds.drain_timeout, tracker.wait()).await.is_err() {
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
            counter!("credbroker_accept_errors_total").increment(1);
            tracing::warn!(%error, "a connection could not be accepted");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}
