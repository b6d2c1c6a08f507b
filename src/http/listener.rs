//! The accept loop: who may connect, and how many at a time. tonic's own server leaves some
//! of HTTP/2's bounds off, so it serves here as a plain service.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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
use crate::{domain::name::Name, grpc::gate::ByService};

/// How many handshakes go on at a time.
const HANDSHAKES_MAX: usize = 256;
/// After an error of accept itself, e.g. no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long running calls may take to end once asked to.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// How many may be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// In all.
    pub most: usize,
    /// From one address.
    pub per_address: usize,
    /// Of one service.
    pub per_service: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            most: 4096,
            per_address: 64,
            per_service: 32,
        }
    }
}

/// Where to listen, and how.
pub struct Listening {
    /// Already bound.
    pub listener: TcpListener,
    /// What it shows, as it stands now.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// How many may come.
    pub connections: Connections,
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
        connections,
    } = listening;
    let permits = Arc::new(Semaphore::new(connections.most));
    let addresses = Arc::new(Addresses::default());
    let serving = Arc::new(Serving {
        tls,
        handshakes: Semaphore::new(HANDSHAKES_MAX),
        router,
        by_service: ByService::new(connections.per_service),
        shut_outs,
        stop: stop.clone(),
    });
    let tracker = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &permits)).await {
        let Some((stream, peer, permit)) = accepted else {
            continue;
        };
        let Some(place) = addresses.enter(peer.ip(), connections.per_address) else {
            counter!("credbroker_connections_refused_total", "reason" => "per_address")
                .increment(1);
            continue;
        };
        let serving = Arc::clone(&serving);
        tracker.spawn(async move {
            serving.serve(stream, peer).await;
            drop((place, permit));
        });
    }
    tracker.close();
    if timeout(DRAIN_LIMIT, tracker.wait()).await.is_err() {
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

/// How many are connected from where.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

/// One of them, until it is dropped.
struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place; `None` when `most` are taken.
    fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Place> {
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        (*count < most).then(|| {
            *count += 1;
            Place {
                addresses: Arc::clone(self),
                address,
            }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
        }
        counts.retain(|_, count| *count > 0);
    }
}
