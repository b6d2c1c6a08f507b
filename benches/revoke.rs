//! Time that a revoked service's credentials continue to work: `cargo bench --bench revoke`.
//!
//! A service with a session on a role, a federation session and an IAM user is revoked, while a
//! prober that knows nothing of the broker tries each credential in a tight loop. The report has
//! the time from the command to the last first refusal, after which AWS admits none of them again,
//! and the time that the broker's answer claims. In the same run, against the same emulator, it has
//! the time that the bare AWS SDK takes to put one policy on the role and have one call refused.
//! AWS itself needs some seconds until a policy is known everywhere.

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

use std::time::{Duration, Instant};

use aws_sdk_sts::types::Tag;
use credbroker::{
    client::Client,
    proto::{RevokeServiceRequest, RevokedLease},
};
use harness::{Account, Broker, Key};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

const ROUNDS: usize = 20;
const GRANTS: [&str; 3] = ["role", "federated", "user"];

fn policy() -> Value {
    json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "sqs:ListQueues", "Resource": "*"},
    ]})
}

async fn is_let(key: &Key) -> bool {
    key.list_queues().await.is_ok()
}

/// Tries a credential until the caller stops it. Returns the time since when AWS refuses it.
fn probe(key: &Key, mut stop: watch::Receiver<bool>) -> JoinHandle<Instant> {
    let key = key.clone();
    tokio::spawn(async move {
        let mut refused = None;
        while !*stop.borrow_and_update() || refused.is_none() {
            match key.list_queues().await {
                Ok(_) => refused = None,
                Err(_) => refused = refused.or_else(|| Some(Instant::now())),
            }
        }
        refused.unwrap()
    })
}

/// A service with a credential under each grant.
async fn service(broker: &Broker, role: &str, name: &str) -> Vec<Key> {
    let token = broker.service(name).await;
    let kinds = [
        ["--role-arn", role],
        ["--kind", "federation_token"],
        ["--kind", "iam_user"],
    ];
    let mut keys = Vec::new();
    for (grant, flags) in GRANTS.iter().zip(kinds) {
        let name = format!("{name}/{grant}");
        broker.grant(&name, &flags, &policy()).await;
        let key = Key::issued(&broker.issue(&token, grant).await);
        assert!(is_let(&key).await);
        keys.push(key);
    }
    keys
}

/// Time to the last refusal, and the time that the answer claims.
async fn revoke(admin: &Client, service: &str, keys: &[Key]) -> [Duration; 2] {
    let (stopping, stop) = watch::channel(false);
    let probers: Vec<_> = keys.iter().map(|key| probe(key, stop.clone())).collect();
    let began = Instant::now();
    let request = RevokeServiceRequest {
        service: service.to_owned(),
        reason: String::new(),
    };
    let answer = admin.revocation().revoke_service(request).await;
    let answer = answer.unwrap().into_inner();
    assert!(answer.confirmed, "{answer:?}");
    // A credential that AWS still admits is tried until AWS refuses it.
    stopping.send_replace(true);
    let mut last = began;
    for prober in probers {
        last = last.max(prober.await.unwrap());
    }
    let claims = answer.leases.iter().map(RevokedLease::gone_after_seconds);
    let claimed = Duration::from_secs_f64(claims.fold(0.0, f64::max));
    [last - began, claimed]
}

/// Puts one policy on the role, and has one call refused.
async fn bare(account: &Account, role: &str) -> Duration {
    let session = account.admin.sts().assume_role().role_arn(role);
    let tag = Tag::builder().key("credbroker:service").value("bare");
    let session = session.role_session_name("bare").tags(tag.build().unwrap());
    let session = session.send().await.unwrap();
    let session = session.credentials.unwrap();
    let key = Key {
        id: session.access_key_id,
        secret: session.secret_access_key,
        token: Some(session.session_token),
    };
    let iam = account.admin.iam();
    let denial = json!({"Version": "2012-10-17", "Statement": {
        "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": {"StringLike": {"aws:userid": "*:bare"}},
    }});
    let put = iam.put_role_policy().policy_name("bare");
    let put = put.role_name(role.rsplit('/').next().unwrap());
    let began = Instant::now();
    put.policy_document(denial.to_string())
        .send()
        .await
        .unwrap();
    assert!(key.list_queues().await.is_err());
    began.elapsed()
}

#[tokio::main]
async fn main() {
    let account = Account::new().await;
    account.let_admin(&policy()).await;
    let role = account.role("credbroker-bench", &policy()).await;
    let apart = account.role("credbroker-bare", &policy()).await;
    let broker = Broker::start(&account).await;
    let admin = broker.client(broker.admin_token()).await;
    let (mut seen, mut claimed, mut once) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let name = format!("bench-{round}");
        let keys = service(&broker, &role, &name).await;
        let [last, told] = revoke(&admin, &name, &keys).await;
        seen.push(last);
        claimed.push(told);
        once.push(bare(&account, &apart).await);
    }
    println!("a session on a role, a federation session and a user; {ROUNDS} revocations");
    println!("                       median       worst");
    let once = row("bare SDK", once, None);
    row("last refusal", seen, Some(once));
    row("as the answer claims", claimed, Some(once));
}

/// Returns the median.
fn row(name: &str, mut times: Vec<Duration>, once: Option<Duration>) -> Duration {
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    print!(
        "{name:20}  {:6.1} ms   {:6.1} ms",
        millis(median),
        millis(worst)
    );
    if let Some(once) = once {
        let times = |time: Duration| time.as_secs_f64() / once.as_secs_f64();
        print!(
            "   {:.1} and {:.1} times the bare one",
            times(median),
            times(worst)
        );
    }
    println!();
    median
}
