//! Errors of a store that cannot be written.

use std::{fs::OpenOptions, os::unix::fs::FileExt, path::Path};

use tokio::process::Command;

use super::{World, assert_told};
use crate::harness::{
    Account, Broker, Key,
    broker::{BINARY, aws_env},
    eventually,
    proxy::{Fault, Proxy},
    stored::skipped_over_postgres,
};

/// Broker that gets an error at its file size limit, and does not die of it.
fn confined(state: &Path, admin: &Key, endpoint: &str) -> Command {
    let script = "trap '' XFSZ; exec \"$0\" dev --state-dir \"$1\" --aws-endpoint \"$2\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, BINARY])
        .arg(state)
        .arg(endpoint);
    command.env_clear().envs(aws_env(admin));
    command.kill_on_drop(true);
    command
}

/// Limits the file size of the broker, in bytes: with 0 its disk accepts nothing.
async fn let_write(broker: &Broker, most: &str) {
    let mut limit = Command::new("prlimit");
    limit.args([&format!("--fsize={most}:"), "--pid", &broker.pid()]);
    assert!(limit.status().await.unwrap().success());
}

#[tokio::test]
async fn a_full_store_issues_nothing_and_leaves_no_user() {
    if skipped_over_postgres() {
        return;
    }
    let (account, proxy) = (Account::new().await, Proxy::start().await);
    let (admin, endpoint) = (account.admin.clone(), proxy.endpoint.clone());
    let broker = Broker::start_by(|state| confined(state, &admin, &endpoint)).await;
    let world = World::with(account, proxy, broker).await;
    world.assert_issues("role").await;

    // The disk is full between the intent and the result of an issue.
    world.proxy.inject("CreateAccessKey", Fault::Hold);
    let meanwhile = async {
        let held = async || world.proxy.calls("CreateAccessKey").pop();
        eventually("the key is asked for", held).await;
        let_write(&world.broker, "0").await;
        world.proxy.heal();
    };
    let (run, ()) = tokio::join!(world.issue(&["user"]), meanwhile);
    let words = [
        "the broker cannot record what it does",
        "its disk",
        "disk space, file permissions",
    ];
    assert_told(run, 7, "STORE_UNAVAILABLE", &words);
    assert!(world.account.issued_users().await.is_empty());

    // The disk stays full.
    let made = world.proxy.calls("CreateUser").len();
    for args in [["issue", "user"], ["issue", "role"]] {
        let run = world.broker.run_as(Some(&world.token), &args).await;
        assert_told(run, 7, "STORE_UNAVAILABLE", &words);
    }
    assert_eq!(world.proxy.calls("CreateUser").len(), made);

    // The disk has room again.
    let_write(&world.broker, "unlimited").await;
    for grant in ["user", "role"] {
        world.assert_issues(grant).await;
    }
    world.broker.revoked(&["payments-api"]).await;
}

/// SQLite takes a file whose write version it does not know for read-only:
/// <https://sqlite.org/fileformat.html#file_format_version_numbers>.
fn set_write_version(database: &Path, version: u8) {
    let file = OpenOptions::new().write(true).open(database).unwrap();
    file.write_all_at(&[version], 18).unwrap();
}

#[tokio::test]
async fn a_broker_whose_store_is_read_only_issues_nothing_and_revokes() {
    if skipped_over_postgres() {
        return;
    }
    let mut world = World::new().await;
    let key = Key::issued(&world.issued(&["user"]).await);
    let (admin, endpoint) = (world.account.admin.clone(), world.proxy.endpoint.clone());
    assert!(world.broker.stop().await);
    let database = world.broker.database();
    set_write_version(&database, 3);
    world.broker = world.broker.start_again(&admin, &endpoint).await;
    let words = ["it is read-only", "file permissions"];
    assert_told(world.issue(&["role"]).await, 7, "STORE_UNAVAILABLE", &words);
    let revoked = world.broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], true, "{revoked}");
    assert!(!key.works().await);
    world.broker.kill().await;
    set_write_version(&database, 2);
    world.broker = world.broker.start_again(&admin, &endpoint).await;
    world.issue(&["role"]).await.fails(4, &["is suspended"]);
}
