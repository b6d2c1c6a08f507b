//! What every test stands on: one emulator per test process, an AWS account per test, a
//! broker process per test.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{LazyLock, Mutex},
    time::Duration,
};

pub mod attacks;
pub mod aws;
pub mod broker;
pub mod emulator;
pub mod floods;
pub mod form;
pub mod h2;
pub mod postgres;
pub mod proxy;
pub mod report;
pub mod sample;
pub mod services;
pub mod site;
pub mod stepped;
pub mod stored;
pub mod wire;
mod world;

pub use self::{
    aws::{Account, Key},
    broker::{Broker, Run},
    world::World,
};

/// Ports that no system gives to a connection by itself.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// An address for a server that starts later, or stops and starts again: no connection takes its
/// port meanwhile, and no other test of this process is given it.
pub fn free_address() -> SocketAddr {
    static NEXT: LazyLock<Mutex<u16>> = LazyLock::new(|| Mutex::new(fastrand::u16(PORTS)));
    let mut next = NEXT.lock().unwrap();
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], *next));
        *next = if *next + 1 < PORTS.end {
            *next + 1
        } else {
            PORTS.start
        };
        // To bind it would not do: a process that another test forks meanwhile holds it on.
        if TcpStream::connect(address).is_err() {
            return address;
        }
    }
}

/// A listener at an address that may have had one before: a process that another test has forked
/// holds what was closed until it executes its program.
pub async fn listening(address: SocketAddr) -> tokio::net::TcpListener {
    let bound = async || match tokio::net::TcpListener::bind(address).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        bound => Some(bound.unwrap()),
    };
    eventually("the address is free", bound).await
}

/// Interval of a call that a test repeats beside what it tests: often enough to notice, and seldom enough
/// to leave the processors to the other tests.
pub const PACE: Duration = Duration::from_millis(100);

/// Waits until `look` sees what it wants, for ten seconds at most. For what happens in
/// another process, where there is nothing to await.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    eventually_within(10, what, look).await
}

/// The same, for so many seconds at most: where the other process takes its time.
pub async fn eventually_within<T, F: Future<Output = Option<T>>>(
    seconds: u64,
    what: &str,
    look: impl Fn() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "never seen: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
