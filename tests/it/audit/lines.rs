//! Export of the log as lines: unchanged, and as OCSF events.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    export::{export, with_records},
    policy,
};
use crate::harness::{Account, Broker, Run, broker::BINARY};

/// Output of `audit export` to standard output in a format.
async fn poured(broker: &Broker, format: &str) -> Vec<String> {
    let args = ["audit", "export", "-", "--format", format];
    let run = broker.run(&args).await.ok();
    // Standard error has no progress bar, nor any other output, without a terminal.
    assert_eq!(run.stderr, "");
    run.stdout.lines().map(ToOwned::to_owned).collect()
}

/// Every entry in the bundles of an export.
fn entries(dir: &Path) -> Vec<String> {
    let mut bundles = vec![dir.join("tile/entries/000"), dir.join("tile/entries/001.p")];
    let last = fs::read_dir(bundles.pop().unwrap()).unwrap().next();
    bundles.push(last.unwrap().unwrap().path());
    let mut entries = Vec::new();
    for bundle in bundles {
        let bytes = fs::read(bundle).unwrap();
        let mut rest = &bytes[..];
        while let Some((length, more)) = rest.split_first_chunk() {
            let (entry, more) = more.split_at(u16::from_be_bytes(*length).into());
            entries.push(String::from_utf8(entry.to_vec()).unwrap());
            rest = more;
        }
    }
    entries
}

#[tokio::test]
async fn lines_are_the_leaves_of_the_tree_byte_for_byte() {
    let home = TempDir::new().unwrap();
    let broker = with_records(&Account::new().await, 300).await;
    let file = home.path().join("log.jsonl");
    let args = [
        "audit",
        "export",
        file.to_str().unwrap(),
        "--format",
        "jsonl",
    ];
    let run = broker.run(&args).await.ok();
    let lines = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    let told = format!("{} records in {}\n", lines.len(), file.display());
    assert_eq!((run.stdout, run.stderr), (told, String::new()));
    let (later, tiles) = (poured(&broker, "jsonl").await, home.path().join("log"));
    export(&broker, &tiles).await;
    let entries = entries(&tiles);
    assert!(lines.len() > 300 && later.len() > lines.len() && entries.len() > later.len());
    assert_eq!(lines, entries[..lines.len()]);
    assert_eq!(later, entries[..later.len()]);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn every_record_is_an_event_of_ocsf() {
    let broker = Broker::start(&Account::new().await).await;
    let token = broker.service("pay").await;
    broker
        .grant("pay/work", &["--kind", "iam_user"], &policy())
        .await;
    let issued = broker.issue(&token, "work").await;
    let refused = broker.run_as(Some("nonsense"), &["status"]).await;
    refused.fails(3, &[]);
    let events = poured(&broker, "ocsf").await;
    let records = broker.audit().await;
    assert!(events.len() > 5);
    for (event, record) in events.iter().zip(&records) {
        let event: Value = serde_json::from_str(event).unwrap();
        let login = record["event"] == "login.failed";
        assert_eq!(event["class_uid"], if login { 3002 } else { 6003 });
        assert_eq!(event["metadata"]["event_code"], record["event"]);
        assert_eq!(event["metadata"]["sequence"], record["seq"]);
        let log = event["metadata"]["log_name"].as_str().unwrap();
        assert!(log.starts_with("credbroker/"), "{log}");
        let required = if login {
            ["user", "service"]
        } else {
            ["actor", "api"]
        };
        for field in required
            .into_iter()
            .chain(["src_endpoint", "type_uid", "time"])
        {
            assert!(!event[field].is_null(), "{field} in {event}");
        }
        if record["event"] == "lease.issued" {
            let key = json!({"type": "AWS access key", "uid": issued["access_key_id"]});
            assert!(event["resources"].as_array().unwrap().contains(&key));
        }
    }
}

#[tokio::test]
async fn a_changed_log_is_not_exported() {
    let home = TempDir::new().unwrap();
    let broker = Broker::start(&Account::new().await).await;
    broker.service("payments-api").await;
    broker.store.unguard().await;
    let other = broker.store.leaf_with("payments-app", "payments-api");
    broker
        .write_store(&format!("UPDATE audit SET leaf = {other}"))
        .await;
    let file = home.path().join("log");
    for format in ["jsonl", "ocsf", "tiles"] {
        let args = [
            "audit",
            "export",
            file.to_str().unwrap(),
            "--format",
            format,
        ];
        let run = broker.run(&args).await;
        run.fails(8, &["not what the broker's checkpoint stands for"]);
        assert!(!file.exists() || format == "tiles");
    }
    let args = ["audit", "export", "-", "--format", "jsonl"];
    broker.run(&args).await.fails(8, &["export again"]);
}

#[tokio::test]
async fn an_export_format_with_a_wrong_destination_is_refused() {
    let home = TempDir::new().unwrap();
    let broker = Broker::start(&Account::new().await).await;
    let dir = home.path().to_str().unwrap();
    let tiles = broker.run(&["audit", "export", "-"]).await;
    tiles.fails(2, &["--format jsonl"]);
    let lines = ["audit", "export", dir, "--format", "ocsf"];
    broker.run(&lines).await.fails(2, &["is a directory"]);
    let nowhere = home.path().join("none/log");
    let lines = [
        "audit",
        "export",
        nowhere.to_str().unwrap(),
        "--format",
        "jsonl",
    ];
    broker.run(&lines).await.fails(1, &["none/log: "]);
}

/// Pseudo-terminal of Python, which the emulator needs anyway.
const TERMINAL: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

#[tokio::test]
async fn an_export_on_a_terminal_shows_its_progress() {
    let home = TempDir::new().unwrap();
    let broker = with_records(&Account::new().await, 300).await;
    for format in ["tiles", "jsonl"] {
        let to = home.path().join(format).display().to_string();
        let mut python = Command::new("python3");
        let export = [BINARY, "audit", "export", &to, "--format", format];
        python.args(["-c", TERMINAL]).args(export);
        python.envs(broker.env.iter().cloned()).env("TERM", "xterm");
        let run = Run::of(python, "").await.ok();
        assert!(run.stdout.contains("░"), "{run:?}");
        assert!(run.stdout.contains(" records"), "{run:?}");
    }
}
