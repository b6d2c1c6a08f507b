//! What peers that do harm cost the others: `cargo bench --bench edge`.
//!
//! One well-behaved caller on one kept connection, each call authenticated and audited; first
//! without company, then beside four peers that flood the broker as fast as they can for
//! twenty seconds, each with the next connection once its last was ended or refused. Each
//! flood has a broker of its own. All of them are on one machine, so what the floods cost to
//! make is in the figures, too: the offenders run in a thread of the lowest priority that the
//! system has for them.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a benchmark that cannot go on stops; the harness is shared with the tests"
)]

mod figures;
#[allow(dead_code, unused_imports, reason = "shared with the tests")]
#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use credbroker::{client::Client, proto::WhoAmIRequest};
use figures::{quantile, row};
use harness::{
    Account, Broker,
    floods::{FLOODS, Flood, sent},
    h2::{begun, connect, gone},
};
use tokio::{runtime, task::JoinSet};
use tokio_rustls::rustls::version::TLS13;
use tokio_util::sync::CancellationToken;

const OFFENDERS: usize = 4;
const QUIET: Duration = Duration::from_secs(5);
const BESIDE: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let account = Account::new().await;
    let mut most_memory = 0;
    println!("beside {OFFENDERS} peers of            p50        p99    p99 to quiet");
    for (name, flood) in FLOODS {
        let broker = Broker::start(&account).await;
        let client = broker.client(&broker.service("bench").await).await;
        calls(&client, Duration::from_secs(1)).await;
        let quiet = calls(&client, QUIET).await;
        let offenders = Offenders::begin(&broker, name, flood);
        let beside = calls(&client, BESIDE).await;
        offenders.end();
        most_memory = most_memory.max(broker.peak());
        let ratio = quantile(&beside, 0.99).as_secs_f64() / quantile(&quiet, 0.99).as_secs_f64();
        row("(quiet)", 28, &quiet);
        row(name, 28, &beside);
        println!("{ratio:59.1}");
    }
    println!(
        "most memory that the broker had: {} MiB",
        most_memory / 1024
    );
}

/// How long each call took, one after the other for this long; sorted.
async fn calls(client: &Client, duration: Duration) -> Vec<Duration> {
    let (first, mut took) = (Instant::now(), Vec::new());
    while first.elapsed() < duration {
        let began = Instant::now();
        client.identity().who_am_i(WhoAmIRequest {}).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    took
}

/// Peers that flood, in a thread of their own.
struct Offenders {
    stop: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

impl Offenders {
    fn begin(broker: &Broker, name: &'static str, flood: Flood) -> Self {
        let stop = CancellationToken::new();
        let (address, ca) = (
            broker.address().to_owned(),
            broker.setting("CREDBROKER_CA_FILE").to_owned(),
        );
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            rustix::process::nice(19).unwrap();
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut offenders = JoinSet::new();
                for _ in 0..OFFENDERS {
                    let (address, ca, told) = (address.clone(), ca.clone(), told.clone());
                    offenders.spawn(async move {
                        told.run_until_cancelled(offend(&address, Path::new(&ca), name, flood))
                            .await;
                    });
                }
                offenders.join_all().await;
            });
        });
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.cancel();
        self.thread.join().unwrap();
    }
}

async fn offend(address: &str, ca: &Path, name: &str, flood: Flood) {
    loop {
        // The broker takes so many connections of one address.
        let Ok(stream) = connect(address, ca, &TLS13).await else {
            continue;
        };
        let (mut reader, writer) = tokio::io::split(begun(stream).await);
        tokio::join!(sent(writer, flood), gone(&mut reader, name));
    }
}
