//! Cost of an issue for its caller: `cargo bench --bench issue`.
//!
//! One caller on one kept connection to a broker in a process of its own, full durability, against
//! the local AWS emulator. In the same run, call by call in turn, the bare AWS SDK runs against the
//! same emulator. The difference is the broker's own cost: TLS, authentication, decision, two
//! durable commits.

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

use std::time::Instant;

use credbroker::{
    client::{Client, Evidence, Settings},
    proto::IssueCredentialsRequest,
};
use figures::{quantile, row};
use harness::{Account, Broker};
use serde_json::json;

const WARM_UP: usize = 50;
const CALLS: usize = 1000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let account = Account::new().await;
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*"},
    ]});
    let role = account.role("credbroker-bench", &policy).await;
    let broker = Broker::start(&account).await;
    let token = broker.service("bench").await;
    broker
        .grant("bench/read", &["--role-arn", &role], &policy)
        .await;
    let setting = |name: &str| {
        broker
            .env
            .iter()
            .find(|(key, _)| key == name)
            .unwrap()
            .1
            .clone()
    };
    let settings = Settings {
        address: setting("CREDBROKER_ADDR"),
        ca_file: setting("CREDBROKER_CA_FILE").into(),
        evidence: Evidence::Token(token.into()),
    };
    let mut credentials = Client::connect(&settings).await.unwrap().credentials();
    let sts = account.admin.sts();

    let (mut issued, mut bare) = (Vec::new(), Vec::new());
    for call in 0..WARM_UP + CALLS {
        let began = Instant::now();
        let request = IssueCredentialsRequest {
            grant: "read".to_owned(),
            ttl: None,
            request_id: String::new(),
        };
        credentials.issue_credentials(request).await.unwrap();
        let through_broker = began.elapsed();

        let began = Instant::now();
        let session = sts
            .assume_role()
            .role_arn(&role)
            .role_session_name("bare")
            .policy(policy.to_string());
        let tag = aws_sdk_sts::types::Tag::builder()
            .key("credbroker:service")
            .value("bench")
            .build()
            .unwrap();
        session.tags(tag).send().await.unwrap();
        if call >= WARM_UP {
            issued.push(through_broker);
            bare.push(began.elapsed());
        }
    }
    issued.sort();
    bare.sort();
    println!("assume_role, {CALLS} calls, one caller, kept connection");
    println!("             p50        p99");
    row("issue", 10, &issued);
    row("bare SDK", 10, &bare);
    let own =
        |at: f64| 1.0 - quantile(&bare, at).as_secs_f64() / quantile(&issued, at).as_secs_f64();
    println!(
        "broker's own  {:5.0} %    {:5.0} %",
        own(0.5) * 100.0,
        own(0.99) * 100.0
    );
}
