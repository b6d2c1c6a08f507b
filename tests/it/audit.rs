//! Audit log: every action leaves a record, in order and without gaps, and no record can be
//! changed.

mod agreement;
mod checkpoints;
mod export;
mod keys;
mod lines;
mod proofs;
mod query;
mod retention;
mod rewriting;
mod script;
mod secrets;
mod sinks;
mod tampering;
mod trail;
mod witness;

use std::{collections::BTreeSet, process::Stdio, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use credbroker::domain::{
    access::TABLE,
    audit::{AuditEvent, Event},
};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    task::JoinSet,
};

use crate::harness::{
    Account, Broker,
    broker::credbroker,
    stored::{Stored, skipped_over_postgres},
};

fn policy() -> Value {
    json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"}})
}

/// Adds `count` records to the log of a stopped broker.
async fn fill(broker: &Broker, count: usize) {
    fill_store(&broker.store, count).await;
}

pub(crate) async fn fill_store(stored: &Stored, count: usize) {
    let store = stored.open().await;
    let mut writers = JoinSet::new();
    for _ in 0..count {
        let read = AuditEvent::by_broker(Event::StatusRead, Timestamp::UNIX_EPOCH);
        let store = Arc::clone(&store);
        writers.spawn(async move { store.record(read).await.unwrap() });
    }
    writers.join_all().await;
    store.close().await;
}

#[tokio::test]
async fn every_rpc_leaves_a_record_when_it_succeeds() {
    let account = Account::new().await;
    let broker = Broker::start(&account).await;
    let called = script::called(&account, &broker).await;
    let methods: BTreeSet<&str> = called.iter().map(String::as_str).collect();
    // Reflection shows no state of the broker, and leaves no record.
    let ours = TABLE
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| name.starts_with("credbroker."));
    assert_eq!(methods, ours.collect(), "the script");

    let records = broker.audit().await;
    let mut recorded: Vec<&str> = records
        .iter()
        .filter_map(|r| r["method"].as_str())
        .collect();
    recorded.dedup();
    assert_eq!(recorded, called);
    assert!(records.iter().all(|r| r["outcome"] == "success"));
    assert_without_gaps(&records);
}

#[track_caller]
fn assert_without_gaps(records: &[Value]) {
    for (seq, record) in (1..).zip(records) {
        assert_eq!(record["seq"], json!(seq), "{record}");
    }
}

const ADMIN: &str = "operator:admin";
const VERA: &str = "operator:vera";
const SERVICE: &str = "service:pay";

/// Calls by caller, and the record of their refusal.
const REFUSALS: &[(&str, &str, &str)] = &[
    ("unknown", "status", "login.failed denied TOKEN_MALFORMED"),
    (
        VERA,
        "service create new",
        "request.denied denied NOT_PERMITTED",
    ),
    (VERA, "audit query", "request.denied denied NOT_PERMITTED"),
    (SERVICE, "status", "request.denied denied NOT_PERMITTED"),
    (ADMIN, "issue work", "request.denied denied NOT_PERMITTED"),
    (
        ADMIN,
        "service create pay",
        "request.denied denied ALREADY_EXISTS",
    ),
    (
        ADMIN,
        "service create No!",
        "request.denied denied INVALID_REQUEST",
    ),
    (
        ADMIN,
        "service show nobody",
        "request.denied denied NOT_FOUND",
    ),
    (
        ADMIN,
        "service reinstate pay",
        "request.denied denied NOT_SUSPENDED",
    ),
    (
        ADMIN,
        "service delete pay",
        "request.denied denied LIVE_LEASES",
    ),
    (
        ADMIN,
        "operator delete admin",
        "request.denied denied LAST_ADMIN",
    ),
    (SERVICE, "issue other", "lease.denied denied NO_SUCH_GRANT"),
    (
        SERVICE,
        "issue work --ttl 2h",
        "lease.denied denied TTL_ABOVE_MAXIMUM",
    ),
    (
        SERVICE,
        "issue none",
        "lease.denied failure ROLE_DOES_NOT_TRUST_BROKER",
    ),
    (
        SERVICE,
        "release 00000000000000000000000000",
        "request.denied denied NOT_FOUND",
    ),
];

/// Starts a broker that refuses all of them. Returns the tokens of service and viewer.
async fn refusing() -> (Broker, String, String) {
    let account = Account::new().await;
    let broker = Broker::start(&account).await;
    let service = broker.service("pay").await;
    let create = ["operator", "create", "vera", "--role", "viewer"];
    let viewer = broker.json(&create).await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let nowhere = format!("arn:aws:iam::{}:role/credbroker/none", account.id);
    broker
        .grant("pay/work", &["--kind", "iam_user"], &policy())
        .await;
    broker
        .grant("pay/none", &["--role-arn", &nowhere], &policy())
        .await;
    broker.issue(&service, "work").await;
    (broker, service, viewer)
}

#[tokio::test]
async fn every_refusal_leaves_a_record_with_its_machine_reason() {
    let (broker, service, viewer) = refusing().await;
    let tokens = [
        (ADMIN, None),
        (VERA, Some(&*viewer)),
        (SERVICE, Some(&*service)),
        ("unknown", Some("nonsense")),
    ];
    for (actor, args, _) in REFUSALS {
        let token = tokens.iter().find(|(name, _)| name == actor).unwrap().1;
        let args: Vec<&str> = args.split(' ').collect();
        let run = broker.run_as(token, &args).await;
        assert_ne!(run.code, 0, "{args:?} {run:?}");
    }
    broker.run(&["service", "suspend", "pay"]).await.ok();
    broker
        .run_as(Some(&service), &["issue", "work"])
        .await
        .fails(4, &["is suspended"]);

    let records = broker.audit().await;
    assert_without_gaps(&records);
    let text = |record: &Value, field: &str| record[field].as_str().unwrap().to_owned();
    let told: Vec<String> = records
        .iter()
        .filter(|record| record["outcome"] != "success")
        .map(|record| {
            ["actor", "event", "outcome", "reason"]
                .map(|f| text(record, f))
                .join(" ")
        })
        .collect();
    let expected = REFUSALS
        .iter()
        .map(|(actor, _, told)| format!("{actor} {told}"));
    let suspended = "unknown login.failed denied SERVICE_SUSPENDED".to_owned();
    assert_eq!(told, expected.chain([suspended]).collect::<Vec<_>>());
    assert_eq!(
        records
            .iter()
            .rfind(|r| r["event"] == "login.failed")
            .unwrap()["service"],
        "pay"
    );
}

#[tokio::test]
async fn a_lease_is_followed_from_request_to_end() {
    let broker = Broker::start(&Account::new().await).await;
    let service = broker.service("pay").await;
    broker
        .grant("pay/work", &["--kind", "iam_user"], &policy())
        .await;
    let request = "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10";
    let issue = ["issue", "work", "--request-id", request, "-o", "json"];
    let issued = broker.run_as(Some(&service), &issue).await.ok().json();
    let lease = issued["lease_id"].as_str().unwrap();
    broker
        .run_as(Some(&service), &["release", lease])
        .await
        .ok();
    let grant = broker.json(&["grant", "show", "pay/work"]).await;
    let sent = grant["effective_policy"].to_string();
    let sent = HEXLOWER.encode(digest(&SHA256, sent.as_bytes()).as_ref());
    let records = broker.json(&["audit", "query", "--lease", lease]).await;
    let records = records.as_array().unwrap();
    let events: Vec<_> = records
        .iter()
        .map(|r| r["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        events,
        [
            "lease.requested",
            "lease.issued",
            "lease.released",
            "lease.revoked"
        ]
    );
    for record in records {
        assert_eq!(record["grant"], "pay/work");
        assert_eq!(record["grant_version"], 1);
        assert_eq!(record["token_id"], json!(service[4..20]));
        assert!(record["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert_eq!(record["request_id"], request);
        assert_eq!(record["kind"], "iam_user");
        assert_eq!(record["aws_name"], json!(format!("pay.{lease}")));
        assert_eq!(record["instance"].as_str().unwrap().len(), 8);
        assert_eq!(record["late"], false);
    }
    for record in &records[..2] {
        let permissions = json!({
            "policy": "inline", "policy_sha256": sent, "managed_policy_arns": [], "role_arn": null
        });
        assert_eq!(record["permissions"], permissions);
    }
    assert_eq!(records[1]["expires_at"], issued["expiration"]);
    assert_eq!(records[0]["access_key_id"], Value::Null);
    assert_eq!(records[1]["access_key_id"], issued["access_key_id"]);
    assert!(records[1]["aws_request_id"].is_string());
}

async fn execute(broker: &Broker, sql: &'static str) -> Result<u64, String> {
    let mut store = broker.store.connect().await;
    let done = sqlx::query(sql).execute(&mut store).await;
    done.map(|done| done.rows_affected())
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn the_store_itself_refuses_to_change_or_delete_a_record() {
    if skipped_over_postgres() {
        return;
    }
    let mut broker = Broker::start(&Account::new().await).await;
    broker.service("pay").await;
    assert!(broker.stop().await);
    for tampering in [
        "UPDATE audit SET actor = 'operator:ann' WHERE seq = 1",
        "UPDATE OR REPLACE audit SET seq = 1 WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 1",
        "DELETE FROM audit",
    ] {
        let refused = execute(&broker, tampering).await.unwrap_err();
        assert!(
            refused.contains("the audit log is append-only"),
            "{refused}"
        );
    }
    // The connection may write elsewhere.
    assert_eq!(
        execute(&broker, "UPDATE services SET created_at = 1").await,
        Ok(1)
    );
}

#[tokio::test]
async fn the_store_itself_refuses_to_write_a_record_over_another() {
    if skipped_over_postgres() {
        return;
    }
    let mut broker = Broker::start(&Account::new().await).await;
    assert!(broker.stop().await);
    let forge = "REPLACE INTO audit (seq, leaf, time, event, outcome, actor)
                 VALUES (1, x'', 1, 'status.read', 'success', 'operator:ann')";
    let refused = execute(&broker, forge)
        .await
        .expect_err("record 1 was replaced");
    assert!(
        refused.contains("the audit log is append-only"),
        "{refused}"
    );
    let append = "INSERT INTO audit (leaf, time, event, outcome, actor)
                  VALUES (x'', 1, 'status.read', 'success', 'operator:ann')";
    assert_eq!(execute(&broker, append).await, Ok(1));
}

#[tokio::test]
async fn a_follower_sees_each_record_as_it_is_written() {
    let broker = Broker::start(&Account::new().await).await;
    let mut command = credbroker(&["audit", "tail", "-n", "0", "-f", "-o", "json"]);
    command
        .envs(broker.env.iter().cloned())
        .stdout(Stdio::piped());
    let mut tail = command.spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    // Records of the broker's own work may come in between.
    let mut next = async || -> Value {
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            let told: Value = serde_json::from_str(&line).unwrap();
            if told["actor"] != "broker" {
                return told;
            }
        }
    };
    let own = next().await;
    assert_eq!(own["method"], "credbroker.v1.AuditService/TailAuditRecords");
    let mut seqs = Vec::new();
    for name in ["one", "two"] {
        broker.run(&["service", "create", name]).await.ok();
        let told = next().await;
        assert_eq!(
            (&told["event"], &told["service"]),
            (&json!("service.created"), &json!(name))
        );
        seqs.push(told["seq"].as_u64().unwrap());
    }
    tail.kill().await.unwrap();
    let newest = broker.run(&["audit", "tail", "-n", "2"]).await.ok().stdout;
    assert_eq!(newest.lines().count(), 2, "{newest}");
    // Records of the broker's own work come in between.
    let newest = broker.run(&["audit", "tail", "-n", "20"]).await.ok().stdout;
    let created = newest
        .lines()
        .filter(|line| line.contains("service.created"));
    let names: Vec<&str> = created
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    assert_eq!(names, ["one", "two"], "{newest}");
    let tail = ["audit", "tail", "-n", "20", "-o", "json"];
    let newest = broker.run(&tail).await.ok().stdout;
    let told = newest.lines().map(|line| {
        let told: Value = serde_json::from_str(line).unwrap();
        told["seq"].as_u64().unwrap()
    });
    let told: Vec<u64> = told.collect();
    assert!(told.windows(2).all(|two| two[1] == two[0] + 1), "{newest}");
    assert!(seqs.iter().all(|seq| told.contains(seq)), "{newest}");
    broker
        .run(&["audit", "tail", "-n", "1001"])
        .await
        .fails(2, &["1001"]);
}
