//! Signing key of the log, and its successors.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use super::export::{copied, export, key_of, verify};
use crate::harness::{Account, Broker, broker::dev, emulator::emulator};

async fn rotated(broker: &Broker) -> String {
    let key = broker.run(&["audit", "rotate-key"]).await.ok().stdout;
    key.trim_end().to_owned()
}

/// Names of the keys that the log announces, oldest first.
async fn announced(broker: &Broker) -> Vec<String> {
    let records = broker.audit().await;
    let made = records.iter().filter(|r| r["event"] == "log.key_made");
    let key = |record: &Value| record["detail"].as_str().unwrap().to_owned();
    made.map(key).collect()
}

#[tokio::test]
async fn an_early_log_key_verifies_signatures_of_later_keys() {
    let home = TempDir::new().unwrap();
    let (dir, early) = (home.path().join("log"), home.path().join("early"));
    let account = Account::new().await;
    let broker = Broker::start(&account).await;
    export(&broker, &early).await;
    let first = key_of(&early);
    let second = rotated(&broker).await;
    broker.service("pay").await;
    let third = rotated(&broker).await;
    assert_eq!(announced(&broker).await, [&*first, &second, &third]);
    export(&broker, &dir).await;
    assert_eq!(key_of(&dir), third);
    let since = early.join("checkpoint").display().to_string();
    verify(&dir, &["--key", &first, "--since", &since])
        .await
        .ok();
    verify(&dir, &["--key", &second]).await.ok();
    verify(&dir, &[]).await.ok();
    // A later key does not verify a checkpoint that only an earlier key has signed.
    let stranger = verify(&early, &["--key", &third]).await;
    stranger.fails(8, &["wrong key: "]);
    let later = verify(&dir, &["--key", &third, "--since", &since]).await;
    later.fails(8, &["no known key has signed it"]);

    // The key outlives the process, and the log continues.
    let broker = broker
        .start_again(&account.admin, &emulator().endpoint)
        .await;
    broker.service("billing").await;
    export(&broker, &dir).await;
    verify(&dir, &["--key", &first]).await.ok();
    assert_eq!(key_of(&dir), third);
}

#[tokio::test]
async fn a_log_key_without_announcement_is_not_trusted() {
    let home = TempDir::new().unwrap();
    let [dir, copy, early] = ["log", "copy", "early"].map(|name| home.path().join(name));
    let broker = Broker::start(&Account::new().await).await;
    export(&broker, &dir).await;
    let first = key_of(&dir);
    export(&broker, &early).await;
    rotated(&broker).await;
    export(&broker, &dir).await;
    verify(&dir, &["--key", &first]).await.ok();
    copied(&dir, &copy);
    fs::remove_file(copy.join("handover/2")).unwrap();
    let unannounced = verify(&copy, &["--key", &first]).await;
    unannounced.fails(8, &["no known key has signed it"]);
    // A plain checkpoint is no announcement, whichever key has signed it.
    fs::copy(copy.join("checkpoint"), copy.join("handover/2")).unwrap();
    let forged = verify(&copy, &["--key", &first]).await;
    forged.fails(8, &["changed: ", "handover/2"]);
    fs::copy(early.join("checkpoint"), copy.join("handover/2")).unwrap();
    let forged = verify(&copy, &["--key", &first]).await;
    forged.fails(8, &["changed: ", "handover/2"]);
}

#[tokio::test]
async fn a_superseded_log_key_is_not_trusted_again() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("log");
    let broker = Broker::start(&Account::new().await).await;
    export(&broker, &dir).await;
    let first = key_of(&dir);
    let second = rotated(&broker).await;
    export(&broker, &dir).await;
    // The holder of the first key claims that it follows the second, with a note that the second
    // has signed; a record announces both.
    fs::write(dir.join("keys"), format!("{second}\n{first}\n")).unwrap();
    fs::copy(dir.join("checkpoint"), dir.join("handover/2")).unwrap();
    let again = verify(&dir, &["--key", &second]).await;
    again.fails(8, &["changed: ", "handover/2"]);
}

#[tokio::test]
async fn an_interrupted_log_key_rotation_is_completed() {
    let home = TempDir::new().unwrap();
    let (dir, account) = (home.path().join("log"), Account::new().await);
    let mut broker = Broker::start(&account).await;
    export(&broker, &dir).await;
    let first = key_of(&dir);
    assert!(broker.stop().await);
    let endpoint = &emulator().endpoint;
    let mortal = |state: &Path| {
        let mut command = dev(state, &account.admin, endpoint);
        command.env("CREDBROKER_TEST_DEATH", "after:log.key_made");
        command
    };
    let broker = broker.start_again_by(mortal).await;
    let died = broker.run(&["audit", "rotate-key"]).await;
    assert_ne!(died.code, 0, "{died:?}");
    let broker = broker.start_again(&account.admin, endpoint).await;
    export(&broker, &dir).await;
    let second = key_of(&dir);
    assert_ne!(first, second);
    verify(&dir, &["--key", &first]).await.ok();
    rotated(&broker).await;
    export(&broker, &dir).await;
    for key in [&first, &second] {
        verify(&dir, &["--key", key]).await.ok();
    }
}

#[tokio::test]
async fn log_key_rotation_is_refused_to_all_but_admins() {
    let broker = Broker::start(&Account::new().await).await;
    for role in ["auditor", "responder"] {
        let create = ["operator", "create", role, "--role", role];
        let token = broker.json(&create).await["token"]
            .as_str()
            .unwrap()
            .to_owned();
        let refused = broker.run_as(Some(&token), &["audit", "rotate-key"]).await;
        refused.fails(4, &["it takes admin"]);
    }
    rotated(&broker).await;
}

#[tokio::test]
async fn export_and_verify_print_their_result_as_json() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("log");
    let broker = Broker::start(&Account::new().await).await;
    let exported = broker
        .json(&["audit", "export", dir.to_str().unwrap()])
        .await;
    assert_eq!(exported["start"], 0);
    assert_eq!(exported["new"], exported["size"]);
    let verified = verify(&dir, &["-o", "json"]).await.ok().json();
    assert_eq!(verified["size"], exported["size"]);
    assert_eq!(verified["verifier_key"], key_of(&dir));
    let lines = home.path().join("log.jsonl");
    let lines = [
        "audit",
        "export",
        lines.to_str().unwrap(),
        "--format",
        "jsonl",
    ];
    assert_eq!(broker.json(&lines).await["start"], 0);
}
