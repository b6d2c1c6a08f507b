//! Proofs, valid for years, of an issue, a release or a revocation.

use std::{fs, path::Path};

use credbroker::audit::note::Signer;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    export::{export, verify},
    policy,
};
use crate::harness::{Account, Broker, Run, broker::credbroker};

/// Starts a broker. Returns a lease of service `pay`, and the receipts of its issue, its release
/// and the revocation of `pay`.
async fn attested() -> (Broker, String, Vec<String>) {
    let broker = Broker::start(&Account::new().await).await;
    let token = broker.service("pay").await;
    broker
        .grant("pay/work", &["--kind", "iam_user"], &policy())
        .await;
    let issued = broker.issue(&token, "work").await;
    let lease = issued["lease_id"].as_str().unwrap().to_owned();
    let renew = ["lease", "renew", &lease, "--ttl", "30m"];
    let renewed = broker.json_as(Some(&token), &renew).await;
    let released = broker.json_as(Some(&token), &["release", &lease]).await;
    let other = broker.issue(&token, "work").await;
    let other = other["lease_id"].as_str().unwrap();
    let ended = broker.json(&["lease", "revoke", other]).await;
    let revoked = broker.revoked(&["pay"]).await;
    let receipt = |answer: &Value| answer["receipt"].as_str().unwrap().to_owned();
    let receipts = [issued, renewed, released, ended, revoked];
    (broker, lease, receipts.iter().map(receipt).collect())
}

/// Key of the broker's log.
async fn key(broker: &Broker) -> String {
    let signed = broker.json(&["audit", "checkpoint"]).await;
    signed["verifier_key"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_receipt_is_checked_against_a_copy_of_the_log() {
    let (broker, _, receipts) = attested().await;
    let home = TempDir::new().unwrap();
    let dir = home.path().join("log");
    export(&broker, &dir).await;
    let records = broker.audit().await;
    let events = [
        "lease.issued",
        "lease.renewed",
        "lease.released",
        "lease.revoking",
        "service.revoked",
    ];
    for (receipt, event) in receipts.iter().zip(events) {
        let seq: usize = receipt.split(':').next().unwrap().parse().unwrap();
        assert_eq!(records[seq - 1]["event"], event, "{receipt}");
    }
    let given: Vec<&str> = receipts.iter().flat_map(|r| ["--receipt", r]).collect();
    verify(&dir, &given).await.ok();

    let [seq, size, root] = receipts[0].split(':').collect::<Vec<_>>()[..] else {
        panic!("{receipts:?}");
    };
    let other_root = receipts[1].split(':').nth(2).unwrap();
    let other = format!("{seq}:{size}:{other_root}");
    let split = format!("split view: the copy is another log than the receipt of record {seq}");
    verify(&dir, &["--receipt", &other])
        .await
        .fails(8, &[&split]);
    let later = format!("{seq}:1000000:{root}");
    let short = format!("truncated: the copy ends before the receipt of record {seq}");
    verify(&dir, &["--receipt", &later])
        .await
        .fails(8, &[&short]);
    for wrong in [
        "1:2",
        &format!("3:2:{root}"),
        &format!("0:2:{root}"),
        "1:2:x",
    ] {
        let refused = verify(&dir, &["--receipt", wrong]).await;
        refused.fails(2, &["a receipt is SEQ:SIZE:ROOT"]);
    }
}

async fn verify_proof(file: &Path, key: &str) -> Run {
    let args = ["audit", "verify", file.to_str().unwrap(), "--key", key];
    Run::of(credbroker(&args), "").await
}

#[tokio::test]
async fn records_of_a_lease_are_proven_with_the_log_key() {
    let (broker, lease, _) = attested().await;
    let home = TempDir::new().unwrap();
    let (dir, key) = (home.path().join("proofs"), key(&broker).await);
    let prove = ["audit", "prove", &lease, dir.to_str().unwrap()];
    let told = broker.run(&prove).await.ok().stdout;
    let files: Vec<&str> = told.lines().collect();
    let mut events = Vec::new();
    for file in &files {
        let shown = verify_proof(Path::new(file), &key).await.ok().stdout;
        let record: Value = serde_json::from_str(shown.lines().next().unwrap()).unwrap();
        assert_eq!(record["lease_id"], lease);
        assert!(shown.contains(", as signed by credbroker/"), "{shown}");
        events.push(record["event"].as_str().unwrap().to_owned());
    }
    let lived = [
        "lease.requested",
        "lease.issued",
        "lease.renewed",
        "lease.released",
        "lease.revoked",
    ];
    assert_eq!(events, lived);

    // Every changed bit that is not opaque is noticed.
    let (proof, forged) = (fs::read_to_string(files[1]).unwrap(), dir.join("forged"));
    let lines: Vec<&str> = proof.lines().collect();
    let altered = |text: String| {
        fs::write(&forged, text).unwrap();
        &forged
    };
    for at in 0..lines.len() {
        let without: Vec<&str> = [&lines[..at], &lines[at + 1..]].concat();
        let file = altered(without.join("\n") + "\n");
        verify_proof(file, &key).await.fails(8, &[]);
    }
    let other = fs::read_to_string(files[2]).unwrap();
    let exchanged = proof.replacen(lines[1], other.lines().nth(1).unwrap(), 1);
    let not_there = "its record is not in the log";
    verify_proof(altered(exchanged), &key)
        .await
        .fails(8, &[not_there]);
    let name = key.split('+').next().unwrap();
    let stranger = Signer::new(name, &vec![7; 32].into()).unwrap();
    let stranger = stranger.verifier().to_string();
    verify_proof(Path::new(files[0]), &stranger)
        .await
        .fails(8, &[]);
    let args = ["audit", "verify", files[0]];
    Run::of(credbroker(&args), "")
        .await
        .fails(2, &["give --key"]);
}

#[tokio::test]
async fn a_lease_that_the_log_does_not_know_is_not_proven() {
    let (broker, ..) = attested().await;
    let none = ["audit", "prove", "00000000000000000000000000"];
    broker.run(&none).await.fails(5, &["no lease"]);
}
