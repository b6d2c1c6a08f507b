//! Cost of harmful peers to other callers: `cargo bench --bench edge`, or one of its two parts: `--
//! floods` or `-- starvation`.
//!
//! Floods: one well-behaved caller on one kept connection, each call authenticated; first alone,
//! then beside four peers that flood the broker as fast as they can for twenty seconds. Each peer
//! opens the next connection once its last was ended or refused. Each flood has a broker of its
//! own. Everything runs on one machine, so the figures include the cost of making the floods: the
//! offenders run in a thread of the lowest priority that the system has for them.
//!
//! Starvation: an operator revokes one service after the other, and beside it a service gets a
//! session issued each time; first a thousand of each alone, then beside a stolen token's worst
//! over 32 connections and failed logins from eight addresses. The report has the number of
//! successes, their times as ratios, and the growth of the log due to the attackers. The broker has
//! its default settings, AWS is the emulator of the tests.

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

use credbroker::{
    client::Client,
    proto::{CreateServiceRequest, IssueCredentialsRequest, RevokeServiceRequest, WhoAmIRequest},
};
use figures::{quantile, row};
use harness::{
    Account, Broker,
    attacks::{ATTACKS, Attack, Attackers},
    floods::{FLOODS, Flood, sent},
    h2::{begun, connect, gone},
    site::{Site, stop},
    stepped::policy,
};
use tokio::{runtime, task::JoinSet};
use tokio_rustls::rustls::version::TLS13;
use tokio_util::sync::CancellationToken;
use tonic::Status;

const OFFENDERS: usize = 4;
/// Revocations, and issues, beside an attack and without one.
const ROUNDS: usize = 1000;
/// A token that no broker has issued.
const UNKNOWN: &str = "cbs_AAAAAAAAAAAAAAAA_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const QUIET: Duration = Duration::from_secs(5);
const BESIDE: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let part = std::env::args().nth(1);
    if part.as_deref() != Some("starvation") {
        floods().await;
    }
    if part.as_deref() != Some("floods") {
        starvation().await;
    }
}

async fn floods() {
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

/// Durations of calls, one after the other for this long; sorted.
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
        // The broker accepts a limited number of connections of one address.
        let Ok(stream) = connect(address, ca, &TLS13).await else {
            continue;
        };
        let (mut reader, writer) = tokio::io::split(begun(stream).await);
        tokio::join!(sent(writer, flood), gone(&mut reader, name));
    }
}

/// Durations of the successful calls.
#[derive(Default)]
struct Times {
    revoked: Vec<Duration>,
    issued: Vec<Duration>,
}

impl Times {
    fn rows(&mut self, name: &str) {
        for (what, times) in [("revoke", &mut self.revoked), ("issue", &mut self.issued)] {
            times.sort();
            let succeeded = times.len();
            row(
                &format!("{what} {name}, {succeeded} of {ROUNDS}"),
                40,
                times,
            );
        }
    }
}

async fn starvation() {
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let (noisy, calm) = (site.service("noisy").await, site.service("calm").await);
    let role = account.role("calm", &policy()).await;
    let grant = ["--role-arn", &role];
    site.put("calm/role", &grant, &policy()).await.ok();
    let (admin, calm) = (site.admin_client().await, site.client(&calm).await);
    println!("                                                   p50        p99");
    rounds(&admin, &calm, "warm").await;
    let mut quiet = rounds(&admin, &calm, "quiet").await;
    quiet.rows("(quiet)");

    let by_token = ATTACKS.map(|attack| vec![site.attacker(2, &noisy, attack); 8]);
    let unknown = (3..=10).map(|number| site.attacker(number, UNKNOWN, Attack::WhoAmI));
    let flood = unknown.flat_map(|attacker| vec![attacker; 8]);
    let (began, attackers) = (
        Instant::now(),
        Attackers::begin(by_token.concat().into_iter().chain(flood).collect()),
    );
    let mut beside = rounds(&admin, &calm, "beside").await;
    attackers.end();
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    beside.rows("beside an attack");
    for (what, quiet, beside) in [
        ("revoke", &quiet.revoked, &beside.revoked),
        ("issue", &quiet.issued, &beside.issued),
    ] {
        let ratio = |at| quantile(beside, at).as_secs_f64() / quantile(quiet, at).as_secs_f64();
        println!(
            "{:40}  {:9.1}  {:9.1}",
            format!("{what}, attacked to quiet"),
            ratio(0.5),
            ratio(0.99)
        );
    }
    stop(child).await;
    let of_attackers = "FROM audit WHERE actor IN ('service:noisy', 'unknown')";
    let records = format!("SELECT count(*) {of_attackers}");
    let bytes = format!("SELECT coalesce(sum(length(leaf)), 0) {of_attackers}");
    println!(
        "the log on account of the attackers: {} records, {} bytes, in {minutes:.1} minutes",
        site.stored.count(&records).await,
        site.stored.count(&bytes).await,
    );
}

/// One revocation and one issue at a time.
async fn rounds(admin: &Client, calm: &Client, name: &str) -> Times {
    let mut times = Times::default();
    for round in 0..ROUNDS {
        let service = format!("{name}-{round}");
        let create = CreateServiceRequest {
            name: service.clone(),
        };
        admin.services().create_service(create).await.unwrap();
        let revoke = RevokeServiceRequest {
            service,
            reason: "measured".to_owned(),
        };
        let issue = IssueCredentialsRequest {
            grant: "role".to_owned(),
            ..IssueCredentialsRequest::default()
        };
        let (mut revocation, mut credentials) = (admin.revocation(), calm.credentials());
        let (revoked, issued) = tokio::join!(
            timed(revocation.revoke_service(revoke)),
            timed(credentials.issue_credentials(issue)),
        );
        times.revoked.extend(revoked);
        times.issued.extend(issued);
    }
    times
}

/// Duration of a call that succeeded.
async fn timed<T>(call: impl Future<Output = Result<T, Status>>) -> Option<Duration> {
    let began = Instant::now();
    let answer = call.await;
    if let Err(status) = &answer {
        eprintln!("{status:?}");
    }
    answer.ok().map(|_| began.elapsed())
}
