//! Limits per address on peers that have not proven their identity yet.

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
    connection_limits::{ConnectionLimits, site},
    token_bucket::TokenBucket,
};

/// Divisor: one address gets an eighth of all concurrent handshakes.
const HANDSHAKES_PART: usize = 8;
/// Concurrent logins of one address; further ones wait.
const LOGINS: usize = 8;
/// Concurrent streams of `grpc.health.v1` of one address; they need no login.
const HEALTH_STREAMS: usize = 64;
/// Requests per second of one address without a proven caller: failed logins, health checks,
/// unknown paths.
const UNPROVEN_PER_SECOND: f64 = 100.0;
/// Burst of such requests.
const UNPROVEN_AT_ONCE: f64 = 200.0;
/// Number of known addresses at which idle ones are first removed.
const SWEPT_FROM: usize = 1024;

/// Peers of one address; for IPv6, of one /64.
#[derive(Debug)]
pub struct ClientAddress {
    connections: Arc<Semaphore>,
    handshakes: Semaphore,
    logins: Semaphore,
    health_streams: Arc<Semaphore>,
    unproven: Mutex<TokenBucket>,
}

impl ClientAddress {
    fn new(bounds: &ConnectionLimits) -> Self {
        let now = Instant::now().into_std();
        Self {
            connections: Arc::new(Semaphore::new(bounds.connections_per_address)),
            handshakes: Semaphore::new((bounds.handshakes / HANDSHAKES_PART).max(1)),
            logins: Semaphore::new(LOGINS),
            health_streams: Arc::new(Semaphore::new(HEALTH_STREAMS)),
            unproven: Mutex::new(TokenBucket::full(UNPROVEN_AT_ONCE, now)),
        }
    }

    /// Returns the handshake slots of the address.
    pub const fn handshakes(&self) -> &Semaphore {
        &self.handshakes
    }

    /// Returns the login slots of the address.
    pub(super) const fn logins(&self) -> &Semaphore {
        &self.logins
    }

    /// Takes the slot of a stream of `grpc.health.v1`; `None` if all are taken.
    #[must_use]
    pub fn health_stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.health_streams).try_acquire_owned().ok()
    }

    /// Counts a request without a proven caller. Returns true if the address exceeds its rate.
    pub fn count_unproven(&self) -> bool {
        let mut bucket = self.unproven();
        if bucket.wait(UNPROVEN_PER_SECOND).is_zero() {
            bucket.take();
            return false;
        }
        true
    }

    /// Locks the token bucket and fills it up to now.
    fn unproven(&self) -> std::sync::MutexGuard<'_, TokenBucket> {
        let mut bucket = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.refill(Instant::now().into_std(), UNPROVEN_PER_SECOND);
        bucket
    }

    /// Returns whether the address can be removed without loss of state.
    fn may_be_forgotten(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.unproven().is_full()
    }
}

/// A connection's place among those of its address, until dropped.
#[derive(Debug)]
pub struct AddressSlot {
    /// Address of the connection.
    pub address: Arc<ClientAddress>,
    _connection: OwnedSemaphorePermit,
}

/// Addresses that peers connect from.
#[derive(Debug, Default)]
pub struct ConnectionsByAddress(Mutex<KnownAddresses>);

#[derive(Debug, Default)]
struct KnownAddresses {
    addresses: HashMap<IpAddr, Arc<ClientAddress>>,
    /// Number of addresses at which idle ones are removed next.
    swept_at: usize,
}

impl ConnectionsByAddress {
    /// Takes a place for a connection; `None` if the address has all its places taken.
    pub fn connect(&self, peer: IpAddr, bounds: &ConnectionLimits) -> Option<AddressSlot> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.addresses.len() >= known.swept_at.max(SWEPT_FROM) {
            known
                .addresses
                .retain(|_, address| !address.may_be_forgotten());
            known.swept_at = 2 * known.addresses.len();
        }
        let address = known.addresses.entry(site(peer));
        let address = address.or_insert_with(|| Arc::new(ClientAddress::new(bounds)));
        let connections = Arc::clone(&address.connections);
        Some(AddressSlot {
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
        let (addresses, bounds) = (ConnectionsByAddress::default(), ConnectionLimits::default());
        let connect = |number: u16| {
            let address = [10, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]];
            addresses.connect(address.into(), &bounds).unwrap()
        };
        let known = || addresses.0.lock().unwrap().addresses.len();
        let stays = connect(0);
        for _ in 0..200 {
            assert!(!connect(1).address.count_unproven());
        }
        assert!(connect(1).address.count_unproven());
        for number in 2..1025 {
            connect(number);
        }
        // Left are the connected address, the one above its rate, and the newest.
        assert_eq!(known(), 3);
        advance(Duration::from_secs(2)).await;
        for number in 2..1025 {
            connect(number);
        }
        assert!(known() < 1024, "{}", known());
        drop(stays);
    }
}
