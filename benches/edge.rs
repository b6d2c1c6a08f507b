//! What peers that do harm cost the others: `cargo bench --bench edge`.
//!
//! One well-behaved caller on one kept connection, each call authenticated and audited; in
//! turn without company and beside four peers that flood the broker as fast as they can,
//! each with the next connection once its last was ended. All of them are on one machine, so
//! what the floods cost to make is in the figures, too: the offenders run in a thread of the
//! lowest priority that the system has for them.

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
    h2::{begun, gone, h2},
};
use tokio::{runtime, task::JoinSet};
use tokio_util::sync::CancellationToken;

const OFFENDERS: usize = 4;
const CALLS: usize = 400;
const ROUNDS: usize = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let broker = Broker::start(&Account::new().await).await;
    let token = broker.service("bench").await;
    let client = broker.client(&token).await;
    calls(&client).await;
    println!("whoami, one caller, {} calls each", CALLS * ROUNDS);
    println!("beside {OFFENDERS} peers of            p50        p99    p99 to quiet");
    for (name, flood) in FLOODS {
        let (mut quiet, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            quiet.extend(calls(&client).await);
            let offenders = Offenders::begin(&broker, name, flood);
            beside.extend(calls(&client).await);
            offenders.end();
        }
        quiet.sort();
        beside.sort();
        let ratio = quantile(&beside, 0.99).as_secs_f64() / quantile(&quiet, 0.99).as_secs_f64();
        row("(quiet)", 28, &quiet);
        row(name, 28, &beside);
        println!("{ratio:59.1}");
    }
    println!(
        "most memory that the broker had: {} MiB",
        broker.peak() / 1024
    );
}

async fn calls(client: &Client) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        client.identity().who_am_i(WhoAmIRequest {}).await.unwrap();
        took.push(began.elapsed());
    }
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
        let (mut reader, writer) = tokio::io::split(begun(h2(address, ca).await).await);
        tokio::join!(sent(writer, flood), gone(&mut reader, name));
    }
}
