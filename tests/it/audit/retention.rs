//! Retention: old records are deleted once an export has them; the proofs of the others stay.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    export::{copied, export, key_of, verify, with_records},
    fill, policy,
};
use crate::harness::{
    Account, Broker, Run,
    broker::credbroker,
    emulator::emulator,
    eventually,
    site::{Site, stop},
};

/// Prunes records older than a second, until the log starts at `start`.
async fn prune(broker: &Broker, dir: &Path, start: u64) {
    let args = [
        "audit",
        "prune",
        dir.to_str().unwrap(),
        "--older-than",
        "1s",
    ];
    let pruned = async || {
        let pruned = broker.json(&args).await;
        (pruned["start"] == start).then_some(())
    };
    eventually("they are old enough to be pruned", pruned).await;
}

async fn prove(broker: &Broker, lease: &Value, dir: &Path) -> Vec<String> {
    let args = [
        "audit",
        "prove",
        lease.as_str().unwrap(),
        dir.to_str().unwrap(),
    ];
    let told = broker.run(&args).await.ok().stdout;
    told.lines().map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn proofs_of_later_records_outlive_pruned_records() {
    let (home, account) = (TempDir::new().unwrap(), Account::new().await);
    let path = |name: &str| home.path().join(name);
    let broker = with_records(&account, 800).await;
    let token = broker.service("pay").await;
    broker
        .grant("pay/work", &["--kind", "iam_user"], &policy())
        .await;
    let issued = broker.issue(&token, "work").await;
    export(&broker, &path("archive")).await;
    copied(&path("archive"), &path("early"));
    let old = prove(&broker, &issued["lease_id"], &path("proofs")).await;

    let start = 768;
    prune(&broker, &path("archive"), start).await;
    let records = broker.audit().await;
    assert_eq!(records[0]["seq"], 769);
    let told = records.iter().find(|r| r["event"] == "log.pruned").unwrap();
    assert_eq!(told["detail"], "records 1 to 768");
    // Another prune finds nothing more to delete.
    let args = [
        "audit",
        "prune",
        path("archive").to_str().unwrap(),
        "--older-than",
        "1s",
    ]
    .map(ToOwned::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert_eq!(broker.json(&args).await["pruned"], 0);

    // The start checks the remaining records, and the broker continues.
    let broker = broker
        .start_again(&account.admin, &emulator().endpoint)
        .await;
    broker.issue(&token, "work").await;
    assert_eq!(
        broker
            .count("SELECT count(*) FROM audit WHERE seq <= 768")
            .await,
        0
    );
    let key = key_of(&path("early"));
    let new = prove(&broker, &issued["lease_id"], &path("new-proofs")).await;
    for file in old.iter().chain(&new) {
        let verify = ["audit", "verify", file, "--key", &key];
        Run::of(credbroker(&verify), "").await.ok();
    }

    // An existing archive is continued, and one that begins later reports a gap if it matters.
    let since = path("early").join("checkpoint").display().to_string();
    let receipt = issued["receipt"].as_str().unwrap();
    let demands = ["--key", &key, "--since", &since, "--receipt", receipt];
    export(&broker, &path("archive")).await;
    verify(&path("archive"), &demands).await.ok();
    export(&broker, &path("late")).await;
    verify(&path("late"), &demands).await.ok();
    assert!(!path("late").join("tile/entries/000").exists());
    let size: u64 = receipt.split(':').nth(1).unwrap().parse().unwrap();
    assert!(size > start);
    let before =
        receipt
            .replacen(&format!(":{size}:"), ":700:", 1)
            .replacen(&size.to_string(), "700", 1);
    let before = verify(&path("late"), &["--receipt", &before]).await;
    before.fails(8, &["unknown: the copy begins with record 769"]);
}

#[tokio::test]
async fn missing_records_that_were_not_pruned_are_reported() {
    let home = TempDir::new().unwrap();
    let (dir, copy) = (home.path().join("log"), home.path().join("copy"));
    let broker = with_records(&Account::new().await, 800).await;
    export(&broker, &dir).await;
    copied(&dir, &copy);
    fs::remove_file(copy.join("tile/entries/000")).unwrap();
    verify(&copy, &[]).await.fails(8, &["missing: record 1"]);
    prune(&broker, &dir, 768).await;
    export(&broker, &dir).await;
    copied(&dir, &copy);
    for bundle in ["000", "001", "002"] {
        fs::remove_file(copy.join("tile/entries").join(bundle)).unwrap();
    }
    verify(&copy, &[]).await.ok();
    // One record more than was pruned is missing.
    let last = copy.join("tile/entries/003.p");
    fs::remove_dir_all(last).unwrap();
    verify(&copy, &[]).await.fails(8, &["missing: record 1"]);
}

#[tokio::test]
async fn pruning_without_an_export_of_this_log_deletes_nothing() {
    let home = TempDir::new().unwrap();
    let dir = |name: &str| home.path().join(name).display().to_string();
    let broker = with_records(&Account::new().await, 600).await;
    let other = with_records(&Account::new().await, 600).await;
    export(&other, &home.path().join("other")).await;
    let prune = async |dir: &str| {
        broker
            .run(&["audit", "prune", dir, "--older-than", "1s"])
            .await
    };
    prune(&dir("other"))
        .await
        .fails(8, &["of another broker's log"]);
    prune(&dir("none")).await.fails(8, &["missing: keys"]);
    export(&broker, &home.path().join("log")).await;
    fs::remove_file(home.path().join("log/tile/entries/001")).unwrap();
    prune(&dir("log")).await.fails(8, &["missing: record 257"]);
    let token = broker
        .json(&["operator", "create", "ann", "--role", "auditor"])
        .await;
    let token = token["token"].as_str().unwrap();
    export(&broker, &home.path().join("whole")).await;
    let whole = dir("whole");
    let args = ["audit", "prune", &whole, "--older-than", "1s"];
    broker
        .run_as(Some(token), &args)
        .await
        .fails(4, &["it takes admin"]);
    assert_eq!(broker.audit().await[0]["seq"], 1);
}

#[tokio::test]
async fn a_copy_that_begins_after_a_rotation_is_verified_by_every_key() {
    let home = TempDir::new().unwrap();
    let path = |name: &str| home.path().join(name);
    let account = Account::new().await;
    let mut broker = with_records(&account, 300).await;
    export(&broker, &path("early")).await;
    let first = key_of(&path("early"));
    broker.run(&["audit", "rotate-key"]).await.ok();
    assert!(broker.stop().await);
    fill(&broker, 600).await;
    let broker = broker
        .start_again(&account.admin, &emulator().endpoint)
        .await;
    export(&broker, &path("archive")).await;
    prune(&broker, &path("archive"), 768).await;
    export(&broker, &path("late")).await;
    let second = key_of(&path("late"));
    for demands in [vec![], vec!["--key", &first], vec!["--key", &second]] {
        let told = verify(&path("late"), &demands).await.ok().stdout;
        assert!(told.contains("the first 768 were given up"), "{told}");
    }
    let whole = verify(&path("late"), &["--whole"]).await;
    whole.fails(8, &["missing: record 1"]);
    verify(&path("archive"), &["--whole", "--key", &first])
        .await
        .ok();

    // An export that ends within the pruned records is refused, and its files stay.
    let tear = broker
        .run(&["audit", "export", path("early").to_str().unwrap()])
        .await;
    tear.fails(
        2,
        &[
            "that the broker has given up since",
            "export into an empty directory",
        ],
    );
    verify(&path("early"), &["--whole"]).await.ok();
}

#[tokio::test]
async fn a_record_younger_than_the_configured_age_is_not_pruned() {
    let account = Account::new().await;
    // The default is 400 days; the configuration may change it.
    for (settings, kept) in [("", "400d"), ("keep = \"30d\"", "30d")] {
        let site = Site::sealed(|_| settings.to_owned());
        let serving = site.serving(&account.admin).await;
        let dir = site.path("export").display().to_string();
        site.run(&["audit", "export", &dir]).await.ok();
        let early = site
            .run(&["audit", "prune", &dir, "--older-than", "29d"])
            .await;
        early.fails(
            2,
            &[&format!("records stay for {kept} at least"), "audit.keep"],
        );
        let late = ["audit", "prune", &dir, "--older-than", "401d"];
        site.run(&late).await.ok();
        stop(serving).await;
    }
}
