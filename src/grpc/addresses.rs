//! Limits per address of what peers can do before they have proven who they are.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::domain::{
    bucket::TokenBucket,
    edge::{Bounds, site},
};

/// Handshakes that go on at a time for one address, as a part of those for all.
const HANDSHAKES_PART: usize = 8;
/// Logins that go on at a time for one address; others of it wait.
const LOGINS: usize = 8;
/// Streams of `grpc.health.v1` for one address, which take no login.
const HEALTH_STREAMS: usize = 64;
/// Requests per second of one address without a proven caller: failed logins, health checks,
/// unknown paths.
const UNPROVEN_PER_SECOND: f64 = 100.0;
/// Number of them that may come at once.
const UNPROVEN_AT_ONCE: f64 = 200.0;
/// Number of addresses from which those that have left are forgotten.
const SWEPT_FROM: usize = 1024;

/// Peers of one address; of IPv6, of one /64.
#[derive(Debug)]
pub struct Address {
    connections: Arc<Semaphore>,
    handshakes: Semaphore,
    logins: Semaphore,
    health_streams: Arc<Semaphore>,
    unproven: Mutex<TokenBucket>,
}

impl Address {
    fn new(bounds: &Bounds) -> Self {
        let now = Instant::now().into_std();
        Self {
            connections: Arc::new(Semaphore::new(bounds.connections_per_address)),
            handshakes: Semaphore::new((bounds.handshakes / HANDSHAKES_PART).max(1)),
            logins: Semaphore::new(LOGINS),
            health_streams: Arc::new(Semaphore::new(HEALTH_STREAMS)),
            unproven: Mutex::new(TokenBucket::full(UNPROVEN_AT_ONCE, now)),
        }
    }

    /// Handshakes of its peers.
    pub const fn handshakes(&self) -> &Semaphore {
        &self.handshakes
    }

    /// Logins of its peers.
    pub(super) const fn logins(&self) -> &Semaphore {
        &self.logins
    }

    /// Takes the room of a stream of `grpc.health.v1`; `None` when all is taken.
    #[must_use]
    pub fn health_stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.health_streams).try_acquire_owned().ok()
    }

    /// Counts a request without a proven caller. Returns whether it was one too many.
    pub fn is_one_too_many(&self) -> bool {
        let mut bucket = self.unproven();
        if bucket.wait(UNPROVEN_PER_SECOND).is_zero() {
            bucket.take();
            return false;
        }
        true
    }

    /// The bucket, with what has flowed in up to now.
    fn unproven(&self) -> std::sync::MutexGuard<'_, TokenBucket> {
        let mut bucket = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.fill(Instant::now().into_std(), UNPROVEN_PER_SECOND);
        bucket
    }

    /// Returns whether nothing is lost when it is forgotten.
    fn may_be_forgotten(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.unproven().is_full()
    }
}

/// A connection's place among those of its address, until it is dropped.
#[derive(Debug)]
pub struct Place {
    /// Its address.
    pub address: Arc<Address>,
    _connection: OwnedSemaphorePermit,
}

/// Addresses that peers connect from.
#[derive(Debug, Default)]
pub struct Addresses(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    addresses: HashMap<IpAddr, Arc<Address>>,
    /// Number of them at which they are looked through.
    swept_at: usize,
}

impl Addresses {
    /// Takes a place; `None` when as many are taken as one address may have.
    pub fn connect(&self, peer: IpAddr, bounds: &Bounds) -> Option<Place> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.addresses.len() >= known.swept_at.max(SWEPT_FROM) {
            known
                .addresses
                .retain(|_, address| !address.may_be_forgotten());
            known.swept_at = 2 * known.addresses.len();
        }
        let address = known.addresses.entry(site(peer));
        let address = address.or_insert_with(|| Arc::new(Address::new(bounds)));
        let connections = Arc::clone(&address.connections);
        Some(Place {
            address: Arc::clone(address),
            _connection: connections.try_acquire_owned().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_is_forgotten_once_its_peers_have_left_and_its_requests_are_paid() {
        let (addresses, bounds) = (Addresses::default(), Bounds::default());
        let connect = |number: u16| {
            let address = [10, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]];
            addresses.connect(address.into(), &bounds).unwrap()
        };
        let known = || addresses.0.lock().unwrap().addresses.len();
        let stays = connect(0);
        for _ in 0..200 {
            assert!(!connect(1).address.is_one_too_many());
        }
        assert!(connect(1).address.is_one_too_many());
        for number in 2..1025 {
            connect(number);
        }
        // The one that is connected, the one that owes, and the newest.
        assert_eq!(known(), 3);
        advance(Duration::from_secs(2)).await;
        for number in 2..1025 {
            connect(number);
        }
        assert!(known() < 1024, "{}", known());
        drop(stays);
    }
}
