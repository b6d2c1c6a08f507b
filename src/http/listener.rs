//! The accept loop: who may connect, and how many at a time. tonic's own server leaves some
//! of HTTP/2's bounds off, so it serves here as a plain service.

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

use super::connection::Serving;
use crate::{
    broker::wait::Wait,
    domain::{edge::Bounds, name::Name},
    grpc::{
        addresses::Addresses,
        calls::Calls,
        counts::Counts,
        gate::{Offence, Services},
    },
};

/// After an error of accept itself, e.g. no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the place of a connection that was ended for what its peer sent stays taken.
const OFFENCE_PAUSE: Wait = Wait::seconds(10);
/// How long a connection that is one too many waits for its end: whoever comes again at once
/// would cost more than it.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// How many may wait so; the others end at once.
const REFUSED: usize = 256;

/// Where to listen, and how.
pub struct Listening {
    /// Already bound.
    pub listener: TcpListener,
    /// What it shows, as it stands now.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// What its peers may hold.
    pub bounds: Bounds,
}

/// Serves `router` until `stop`, then lets running calls end. Connections of a service that
/// `shut_outs` tells end at once, but for what it hears of that.
pub async fn serve(
    listening: Listening,
    router: Router,
    shut_outs: broadcast::Sender<Name>,
    stop: CancellationToken,
) {
    let Listening {
        listener,
        tls,
        bounds,
    } = listening;
    let permits = Arc::new(Semaphore::new(bounds.connections));
    let refused = Arc::new(Semaphore::new(REFUSED));
    let addresses = Addresses::default();
    let serving = Arc::new(Serving {
        tls,
        handshakes: Semaphore::new(bounds.handshakes),
        router,
        by_service: Counts::new(bounds.connections_per_service),
        calls: Calls::new(&bounds),
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
            let services = Services::none(&serving.by_service);
            let address = Arc::clone(&place.address);
            let offence = serving.serve(stream, peer, address, services.clone()).await;
            drop(permit);
            let Some(offence) = offence else {
                return;
            };
            // Its next connection would cost as much again.
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
