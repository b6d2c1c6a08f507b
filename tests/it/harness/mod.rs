//! What every test stands on: one emulator per test process, an AWS account per test, a
//! broker process per test.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

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

/// An address for a server that is yet to be started: of the ports that no system gives to
/// whoever asks for any, so that nobody takes it meanwhile.
pub fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(10_000..30_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
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
