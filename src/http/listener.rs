//! The accept loop: who may connect, and how many at a time. tonic's own server leaves some
//! of HTTP/2's bounds off, so it serves here as a plain service.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
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
use crate::{
    broker::wait::Wait,
    domain::{edge::Bounds, name::Name},
    grpc::{calls::Calls, gate::ByService},
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
    let addresses = Arc::new(Addresses::default());
    let serving = Arc::new(Serving {
        tls,
        handshakes: Semaphore::new(bounds.handshakes),
        router,
        by_service: ByService::new(bounds.connections_per_service),
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
        let Some(place) = addresses.enter(peer.ip(), bounds.connections_per_address) else {
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
            let is_offender = serving.serve(stream, peer).await;
            drop(permit);
            if is_offender {
                // Its next connection would cost as much again: its address has one less.
                counter!("credbroker_connections_offending_total").increment(1);
                serving
                    .stop
                    .run_until_cancelled(sleep(OFFENCE_PAUSE.length()))
                    .await;
            }
            drop(place);
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

/// Where an address is: a machine with IPv6 has a whole /64 (RFC 4291 section 2.5.4).
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
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
        let address = site(address);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_64_has_the_places_of_one_address() {
        let site = |text: &str| site(text.parse().unwrap());
        assert_eq!(site("2001:db8:1:2::3"), site("2001:db8:1:2:ffff::9"));
        assert_ne!(site("2001:db8:1:2::3"), site("2001:db8:1:3::3"));
        assert_eq!(site("::ffff:192.0.2.1"), site("192.0.2.1"));
        assert_ne!(site("192.0.2.1"), site("192.0.2.2"));
    }
}
