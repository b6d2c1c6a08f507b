//! The key that signs the log, and the next.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use super::export::{copied, export, key_of, verify};
use crate::harness::{Account, Broker, emulator::emulator};

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
async fn whoever_has_a_key_of_the_log_verifies_what_later_keys_have_signed() {
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
    // A later key knows nothing of what only an earlier one has signed.
    let stranger = verify(&early, &["--key", &third]).await;
    stranger.fails(8, &["wrong key: "]);
    let later = verify(&dir, &["--key", &third, "--since", &since]).await;
    later.fails(8, &["none of the known keys has signed it"]);

    // It outlives the process, and the log goes on.
    let broker = broker
        .start_again(&account.admin, &emulator().endpoint)
        .await;
    broker.service("billing").await;
    export(&broker, &dir).await;
    verify(&dir, &["--key", &first]).await.ok();
    assert_eq!(key_of(&dir), third);
}

#[tokio::test]
async fn a_key_that_no_key_before_has_announced_is_not_believed() {
    let home = TempDir::new().unwrap();
    let (dir, copy) = (home.path().join("log"), home.path().join("copy"));
    let broker = Broker::start(&Account::new().await).await;
    export(&broker, &dir).await;
    let first = key_of(&dir);
    rotated(&broker).await;
    export(&broker, &dir).await;
    verify(&dir, &["--key", &first]).await.ok();
    copied(&dir, &copy);
    fs::remove_file(copy.join("handover/2")).unwrap();
    let unannounced = verify(&copy, &["--key", &first]).await;
    unannounced.fails(8, &["none of the known keys has signed it"]);
    // A checkpoint of its own is no announcement.
    fs::copy(copy.join("checkpoint"), copy.join("handover/2")).unwrap();
    let forged = verify(&copy, &["--key", &first]).await;
    forged.fails(8, &["changed: ", "handover/2"]);
}

#[tokio::test]
async fn only_an_admin_lets_another_key_sign() {
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
