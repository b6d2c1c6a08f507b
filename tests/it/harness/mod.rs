//! Test harness: one emulator per test process, an AWS account per test, a broker process per test.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpStream},
    ops::Range,
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
pub mod node;
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

/// Ports that no system gives to a connection by itself, in blocks: each test process of the
/// machine has one block exclusively.
const PORTS: Range<u16> = 10_000..30_000;
const BLOCK: u16 = 4000;

/// Ports of this process, and the lock by which other test processes leave them alone.
struct Ports {
    next: u16,
    block: Range<u16>,
    _lock: File,
}

impl Ports {
    fn claim() -> Mutex<Self> {
        let directory = std::env::temp_dir().join("credbroker-test-ports");
        std::fs::create_dir_all(&directory).unwrap();
        let claimed = PORTS.step_by(usize::from(BLOCK)).find_map(|start| {
            let lock = File::create(directory.join(start.to_string())).unwrap();
            lock.try_lock().is_ok().then_some(Self {
                next: start,
                block: start..start + BLOCK,
                _lock: lock,
            })
        });
        Mutex::new(claimed.expect("fewer than six test processes run on this machine"))
    }
}

/// Returns an address for a server that starts later, or stops and starts again: no connection
/// takes its port meanwhile, and no other test gets it.
pub fn free_address() -> SocketAddr {
    static PORTS: LazyLock<Mutex<Ports>> = LazyLock::new(Ports::claim);
    let mut ports = PORTS.lock().unwrap();
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], ports.next));
        ports.next += 1;
        if ports.next == ports.block.end {
            ports.next = ports.block.start;
        }
        // A bind does not suffice: a process that another test forks meanwhile still holds it.
        if TcpStream::connect(address).is_err() {
            return address;
        }
    }
}

/// Listens at an address that may have had a listener before: a process that another test has
/// forked holds a closed socket until it executes its program.
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

/// Waits until `look` returns a value, for ten seconds at most: for events in another process,
/// which a test cannot await.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    eventually_within(10, what, look).await
}

/// Waits like [`eventually`] for this number of seconds, for a slower process.
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
