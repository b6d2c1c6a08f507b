//! What every test stands on: one emulator per test process, an AWS account per test, a
//! broker process per test.

pub mod aws;
pub mod broker;
pub mod emulator;
pub mod floods;
pub mod form;
pub mod h2;
pub mod postgres;
pub mod proxy;
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
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(seconds);
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "never seen: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
