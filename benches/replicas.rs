//! Throughput of one, two and three replicas on one database: `cargo bench --bench replicas`.
//!
//! The same callers, spread over the first, the first two or all three replicas, request a session
//! that they share: each answer is a durable audit record, and AWS is not called. Several rounds in
//! turn; the figures are medians, and their ratio counts. Everything runs on one machine,
//! PostgreSQL and the callers included, so more replicas share its cores.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a benchmark that cannot go on stops; the harness is shared with the tests"
)]

#[allow(dead_code, unused_imports, reason = "shared with the tests")]
#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::time::Duration;

use credbroker::{client::Client, proto::IssueCredentialsRequest};
use harness::{
    Account, Broker, broker::dev, emulator::emulator, postgres::migrated, stored::Stored,
};
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

const BROKERS: usize = 3;
const CALLERS: usize = 24;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() {
    let account = Account::new().await;
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*"},
    ]});
    let role = account.role("credbroker-bench", &policy).await;
    let url = migrated().await;
    let command = |state: &std::path::Path| dev(state, &account.admin, &emulator().endpoint);
    let store = |_: &std::path::Path| Stored::Database(url.clone());
    let mut brokers = vec![Broker::start_on(store, command).await];
    for _ in 1..BROKERS {
        brokers.push(brokers[0].beside_by(command).await);
    }
    let token = brokers[0].service("bench").await;
    let shared = ["--role-arn", &role, "--reuse", "per-service"];
    brokers[0].grant("bench/read", &shared, &policy).await;
    let mut clients = Vec::new();
    for broker in &brokers {
        clients.push(broker.client(&token).await);
    }

    let mut rates = vec![Vec::new(); BROKERS];
    for _ in 0..ROUNDS {
        for (more, rates) in rates.iter_mut().enumerate() {
            rates.push(rate(&clients[..=more]).await);
        }
    }
    println!("shared sessions, {CALLERS} callers, {ROUNDS} rounds of {ROUND:?}, medians");
    let medians: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
    for (more, rate) in medians.iter().enumerate() {
        let ratio = rate / medians[0];
        println!("{} brokers {rate:8.0}/s {ratio:6.2}", more + 1);
    }
}

/// Answers per second, with the callers spread over these replicas.
async fn rate(clients: &[Client]) -> f64 {
    let (began, mut asking) = (Instant::now(), JoinSet::new());
    for caller in 0..CALLERS {
        let mut credentials = clients[caller % clients.len()].credentials();
        asking.spawn(async move {
            let mut count = 0u32;
            loop {
                let request = IssueCredentialsRequest {
                    grant: "read".to_owned(),
                    ttl: None,
                    request_id: String::new(),
                };
                let answer = credentials.issue_credentials(request);
                match timeout_at(began + ROUND, answer).await {
                    Ok(answer) => drop(answer.unwrap()),
                    Err(_) => return count,
                }
                count += 1;
            }
        });
    }
    let count: u32 = asking.join_all().await.into_iter().sum();
    f64::from(count) / ROUND.as_secs_f64()
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
