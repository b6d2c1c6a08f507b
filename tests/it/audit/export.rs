//! Export of the log as plain files, and their verification without a broker.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::fill;
use crate::harness::{Account, Broker, Run, broker::credbroker, emulator::emulator};

/// Starts a broker whose log has at least this many records.
pub(super) async fn with_records(account: &Account, count: usize) -> Broker {
    let mut broker = Broker::start(account).await;
    assert!(broker.stop().await);
    fill(&broker, count).await;
    broker
        .start_again(&account.admin, &emulator().endpoint)
        .await
}

pub(super) async fn export(broker: &Broker, dir: &Path) -> String {
    let args = ["audit", "export", dir.to_str().unwrap()];
    broker.run(&args).await.ok().stdout
}

/// Verifies an export with a client that has no broker.
pub(super) async fn verify(dir: &Path, more: &[&str]) -> Run {
    let args = [&["audit", "verify", dir.to_str().unwrap()], more].concat();
    Run::of(credbroker(&args), "").await
}

/// Newest key that an export names.
pub(super) fn key_of(dir: &Path) -> String {
    let keys = fs::read_to_string(dir.join("keys")).unwrap();
    keys.lines().last().unwrap().to_owned()
}

pub(super) fn copied(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copied(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn an_export_is_verified_offline_and_continued() {
    let home = TempDir::new().unwrap();
    let (dir, early) = (home.path().join("log"), home.path().join("early"));
    let broker = with_records(&Account::new().await, 300).await;
    let told = export(&broker, &dir).await;
    assert!(told.contains(" records, "), "{told}");
    let verified = verify(&dir, &[]).await.ok().stdout;
    assert!(
        verified.contains("records, as signed by credbroker/"),
        "{verified}"
    );
    for file in ["tile/entries/000", "tile/0/000", "checkpoint", "keys"] {
        assert!(dir.join(file).exists(), "{file}");
    }
    copied(&dir, &early);
    for name in ["one", "two", "three"] {
        broker.run(&["service", "create", name]).await.ok();
    }
    let again = export(&broker, &dir).await;
    let new = again.split(" records, ").nth(1).unwrap();
    let new: u64 = new.split(' ').next().unwrap().parse().unwrap();
    assert!(new < 256, "{again}");
    let key = key_of(&dir);
    let since = early.join("checkpoint").display().to_string();
    verify(&dir, &["--key", &key, "--since", &since]).await.ok();
    // The earlier export does not continue from the later checkpoint.
    let later = dir.join("checkpoint").display().to_string();
    let back = verify(&early, &["--since", &later]).await;
    back.fails(
        8,
        &["truncated: the copy ends before the earlier checkpoint"],
    );
}

#[tokio::test]
async fn a_damaged_export_is_reported_with_its_fault() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("log");
    let broker = with_records(&Account::new().await, 600).await;
    export(&broker, &dir).await;
    let key = key_of(&dir);
    let damage = async |deed: &dyn Fn(&Path), words: &str| {
        let copy = home.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        copied(&dir, &copy);
        deed(&copy);
        verify(&copy, &["--key", &key]).await.fails(8, &[words]);
    };
    let bundle = |copy: &Path| copy.join("tile/entries/001");
    let rewrite = |path: &Path, change: &dyn Fn(String) -> String| {
        let bytes: String = fs::read(path)
            .unwrap()
            .into_iter()
            .map(char::from)
            .collect();
        let changed: Vec<u8> = change(bytes)
            .chars()
            .map(|c| u8::try_from(c).unwrap())
            .collect();
        fs::write(path, changed).unwrap();
    };
    let other = |text: String| text.replacen("status.read", "lease.read_", 1);
    damage(
        &|copy| rewrite(&bundle(copy), &other),
        "changed: record 257",
    )
    .await;
    let actor = |text: String| text.replacen("broker", "uroker", 1);
    damage(
        &|copy| rewrite(&bundle(copy), &actor),
        "changed: record 257",
    )
    .await;
    let time = |text: String| text.replacen("1970", "1971", 1);
    damage(&|copy| rewrite(&bundle(copy), &time), "changed: record 257").await;
    let exchanged = |text: String| {
        let text = text.replacen("\"seq\":300", "\"seq\":xxx", 1);
        let text = text.replacen("\"seq\":301", "\"seq\":300", 1);
        text.replacen("\"seq\":xxx", "\"seq\":301", 1)
    };
    damage(
        &|copy| rewrite(&bundle(copy), &exchanged),
        "reordered: record 301 in the place of 300",
    )
    .await;
    let first_left_out = |text: String| {
        let length = usize::from(text.as_bytes()[1]);
        text.chars().skip(2 + length).collect()
    };
    damage(
        &|copy| rewrite(&bundle(copy), &first_left_out),
        "missing: record 257",
    )
    .await;
    damage(
        &|copy| fs::remove_file(bundle(copy)).unwrap(),
        "missing: record 257",
    )
    .await;
    let last = |copy: &Path| files(&copy.join("tile/entries/002.p")).remove(0);
    damage(
        &|copy| fs::remove_file(last(copy)).unwrap(),
        "truncated: the copy ends before record 513",
    )
    .await;
    damage(
        &|copy| fs::remove_file(copy.join("tile/1/000.p/2")).unwrap(),
        "missing: tile/1/000.p/2",
    )
    .await;
    let size = |text: String| text.replacen('6', "5", 1);
    damage(
        &|copy| rewrite(&copy.join("checkpoint"), &size),
        "its signature is not of this text",
    )
    .await;

    // Another log, consistent in itself.
    let stranger = Broker::start(&Account::new().await).await;
    let theirs = home.path().join("theirs");
    export(&stranger, &theirs).await;
    verify(&theirs, &[]).await.ok();
    let foreign = verify(&theirs, &["--key", &key]).await;
    foreign.fails(8, &["wrong key: "]);
}
