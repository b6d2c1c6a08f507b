//! Failure of the store's disk: nothing is issued, and revocation works.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command as Compiler,
    sync::OnceLock,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::{World, assert_told};
use crate::harness::{
    Account, Broker, Key,
    broker::dev,
    eventually, eventually_within,
    proxy::{Fault, Proxy},
    stored::skipped_over_postgres,
};

/// "No space left on device" and "Input/output error".
const ERRNOS: [&str; 2] = ["28", "5"];

/// Inserts a record at the broker's next position.
const SLIP: &str = "INSERT INTO audit (seq, leaf, time, event, outcome, actor)
                    SELECT seq + 1, leaf, time, event, outcome, actor FROM audit ORDER BY seq DESC LIMIT 1";

/// The library that lets the store's disk fail.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("failing_disk.so");
        let source = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/errors/failing_disk.c"
        );
        let mut compiler = Compiler::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
        let built = compiler.arg(&path).args([source, "-ldl"]).status();
        assert!(built.unwrap().success());
        (directory, path)
    });
    path
}

fn switch(state: &Path) -> PathBuf {
    state.join("failing")
}

/// Broker whose disk fails on demand.
fn frail(state: &Path, admin: &Key, endpoint: &str) -> Command {
    let mut command = dev(state, admin, endpoint);
    command.env("LD_PRELOAD", library());
    command.env("FAILING_DISK", switch(state));
    command
}

struct Frail {
    world: World,
    /// Key issued under grant `user` before the disk fails.
    key: Key,
    lease: String,
}

impl Frail {
    async fn new() -> Self {
        let (account, proxy) = (Account::new().await, Proxy::start().await);
        let (admin, endpoint) = (account.admin.clone(), proxy.endpoint.clone());
        let broker = Broker::start_by(|state| frail(state, &admin, &endpoint)).await;
        let world = World::with(account, proxy, broker).await;
        let issued = world.issued(&["user"]).await;
        Self {
            key: Key::issued(&issued),
            lease: issued["lease_id"].as_str().unwrap().to_owned(),
            world,
        }
    }

    fn fail(&self, errno: &str) {
        fs::write(switch(&self.world.broker.state), errno).unwrap();
    }

    fn heal(&self) {
        fs::remove_file(switch(&self.world.broker.state)).unwrap();
    }

    async fn assert_issues_nothing(&self) {
        for args in [["issue", "user"], ["issue", "role"]] {
            let run = self
                .world
                .broker
                .run_as(Some(&self.world.token), &args)
                .await;
            let words = ["the broker cannot record what it does", "its disk"];
            assert_told(run, 7, "STORE_UNAVAILABLE", &words);
        }
    }

    /// Returns the record of this event, once it exists.
    async fn late(&self, event: &str) -> Value {
        let broker = &self.world.broker;
        let found = async || {
            let query = ["audit", "query", "--event", event, "-o", "json"];
            let run = broker.run(&query).await;
            let records = (run.code == 0).then(|| run.json());
            records?.as_array()?.last().cloned()
        };
        eventually("the late record", found).await
    }

    /// Asserts that the end is recorded once AWS must know that the user is gone.
    async fn assert_is_ending(&self) {
        let shown = self
            .world
            .broker
            .json(&["lease", "show", &self.lease])
            .await;
        assert_eq!(shown["state"], "revoking");
    }
}

#[tokio::test]
async fn a_service_is_revoked_while_the_disk_fails_and_recorded_later() {
    if skipped_over_postgres() {
        return;
    }
    for errno in ERRNOS {
        let frail = Frail::new().await;
        let broker = &frail.world.broker;
        let other = broker.service("billing").await;
        broker
            .grant("billing/work", &["--kind", "iam_user"], &super::policy())
            .await;
        let others = Key::issued(&broker.issue(&other, "work").await);
        frail.fail(errno);
        frail.assert_issues_nothing().await;

        let revoke = ["payments-api", "--reason", "leaked"];
        let revoked = broker.revoked(&revoke).await;
        assert_eq!(revoked["confirmed"], true, "{revoked}");
        assert_eq!(revoked["receipt"], Value::Null);
        let notice = revoked["notice"].as_str().unwrap();
        assert!(notice.contains("emergency file"), "{notice}");
        assert_eq!(revoked["leases"][0]["state"], "revoked");
        assert!(!frail.key.works().await);
        assert!(others.works().await);
        let refused = broker.run_as(Some(&other), &["issue", "work"]).await;
        assert_told(refused, 7, "STORE_UNAVAILABLE", &["its disk"]);

        frail.heal();
        // The refusal begins at once, before the record exists.
        let shut_out = broker
            .run_as(Some(&frail.world.token), &["issue", "role"])
            .await;
        shut_out.fails(4, &["is suspended"]);
        let record = frail.late("service.revoked").await;
        assert_eq!(record["late"], true);
        assert_eq!(record["actor"], "operator:admin");
        assert_eq!(record["detail"], "leaked");
        let shown = broker.json(&["service", "show", "payments-api"]).await;
        assert_eq!(shown["suspend_reason"], "leaked");
        frail.assert_is_ending().await;
        broker.run_as(Some(&other), &["issue", "work"]).await.ok();
    }
}

#[tokio::test]
async fn live_sessions_are_denied_while_the_disk_fails_and_the_proof_follows() {
    if skipped_over_postgres() {
        return;
    }
    for errno in ERRNOS {
        let frail = Frail::new().await;
        let (broker, world) = (&frail.world.broker, &frail.world);
        let other = world.service("billing").await;
        let (mut ours, mut theirs, mut leases) = (Vec::new(), Vec::new(), Vec::new());
        for grant in ["role", "federation"] {
            let issued = world.issued(&[grant]).await;
            leases.push(issued["lease_id"].as_str().unwrap().to_owned());
            ours.push(Key::issued(&issued));
            theirs.push(Key::issued(&broker.issue(&other, grant).await));
        }
        for key in ours.iter().chain(&theirs) {
            assert!(key.is_served().await);
        }
        frail.fail(errno);

        let revoke = ["payments-api", "--reason", "leaked"];
        let revoked = broker.revoked(&revoke).await;
        assert_eq!(revoked["confirmed"], false, "{revoked:#}");
        for sessions in revoked["sessions"].as_array().unwrap() {
            let notice = sessions["notice"].as_str().unwrap();
            assert!(notice.contains("once the store works again"), "{notice}");
        }
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(!ours.is_served().await);
            assert!(theirs.is_served().await);
        }

        frail.heal();
        assert_eq!(frail.late("service.revoked").await["late"], true);
        for lease in &leases {
            let ended = async || {
                let shown = broker.json(&["lease", "show", lease]).await;
                (shown["state"] == "revoked").then_some(())
            };
            eventually_within(30, "the proof", ended).await;
        }
        assert_eq!(
            frail.late("denial.confirmed").await["service"],
            "payments-api"
        );
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(!ours.is_served().await);
            assert!(theirs.is_served().await);
        }
    }
}

#[tokio::test]
async fn a_denial_refused_by_aws_during_a_disk_failure_is_retried() {
    let frail = Frail::new().await;
    let (broker, proxy) = (&frail.world.broker, &frail.world.proxy);
    let key = Key::issued(&frail.world.issued(&["role"]).await);
    frail.fail("28");
    proxy.inject(
        "PutRolePolicy",
        Fault::Answer(403, "AccessDenied", "not now"),
    );
    let revoked = broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], false, "{revoked:#}");
    let notice = revoked["sessions"][0]["notice"].as_str().unwrap();
    assert!(notice.contains("goes on trying"), "{notice}");
    assert!(key.is_served().await);
    proxy.heal();
    let dead = async || (!key.is_served().await).then_some(());
    eventually("the denial is written", dead).await;
    frail.heal();
    assert_eq!(
        frail.late("denial.confirmed").await["service"],
        "payments-api"
    );
}

#[tokio::test]
async fn an_unrecorded_denial_is_kept_by_the_next_start() {
    let mut frail = Frail::new().await;
    let key = Key::issued(&frail.world.issued(&["role"]).await);
    // The store accepts no more records, now and after the next start.
    frail.world.broker.write_store(SLIP).await;
    frail.world.broker.revoked(&["payments-api"]).await;
    assert!(!key.is_served().await);
    frail.world.broker.kill().await;
    let (iam, role) = (frail.world.account.root.iam(), frail.world.role.clone());
    let role = role.rsplit('/').next().unwrap();
    let names = iam.list_role_policies().role_name(role).send().await;
    let names = names.unwrap().policy_names;
    let denials = names
        .iter()
        .find(|name| name.starts_with("credbroker-denials-"));
    let delete = iam.delete_role_policy().role_name(role);
    delete.policy_name(denials.unwrap()).send().await.unwrap();
    assert!(key.is_served().await);
    let (admin, endpoint) = (
        frail.world.account.admin.clone(),
        frail.world.proxy.endpoint.clone(),
    );
    frail.world.broker = frail.world.broker.start_again(&admin, &endpoint).await;
    let dead = async || (!key.is_served().await).then_some(());
    eventually("the denial is written anew", dead).await;
}

#[tokio::test]
async fn one_lease_is_revoked_while_the_disk_fails() {
    if skipped_over_postgres() {
        return;
    }
    let frail = Frail::new().await;
    frail.fail("5");
    let revoke = ["lease", "revoke", &frail.lease, "--reason", "leaked"];
    let revoked = frail.world.broker.json(&revoke).await;
    let notice = revoked["notice"].as_str().unwrap();
    assert!(notice.contains("emergency file"), "{notice}");
    assert!(!frail.key.works().await);
    frail.heal();
    let record = frail.late("lease.revoking").await;
    assert_eq!(record["late"], true);
    assert_eq!(record["lease_id"], frail.lease);
    frail.assert_is_ending().await;
    frail.world.assert_issues("role").await;
}

#[tokio::test]
async fn a_revocation_outlives_a_broker_that_dies_before_it_can_record_it() {
    if skipped_over_postgres() {
        return;
    }
    let mut frail = Frail::new().await;
    frail.fail("28");
    frail
        .world
        .broker
        .run(&["revoke", "payments-api"])
        .await
        .ok();
    frail.world.broker.kill().await;
    frail.heal();
    let (admin, endpoint) = (
        frail.world.account.admin.clone(),
        frail.world.proxy.endpoint.clone(),
    );
    frail.world.broker = frail.world.broker.start_again(&admin, &endpoint).await;
    let record = frail.late("service.revoked").await;
    assert_eq!(record["late"], true);
    let token = frail.world.token.clone();
    let refused = frail
        .world
        .broker
        .run_as(Some(&token), &["issue", "role"])
        .await;
    refused.fails(4, &["is suspended"]);
    frail.assert_is_ending().await;
    // One reinstatement suffices.
    frail
        .world
        .broker
        .run(&["service", "reinstate", "payments-api"])
        .await
        .ok();
    assert!(frail.world.broker.stop().await);
    frail.world.broker = frail.world.broker.start_again(&admin, &endpoint).await;
    frail.world.assert_issues("role").await;
}

#[tokio::test]
async fn an_entry_under_another_key_stays_in_the_emergency_file_when_the_others_are_recorded() {
    if skipped_over_postgres() {
        return;
    }
    let mut frail = Frail::new().await;
    assert!(frail.world.broker.stop().await);
    let file = frail.world.broker.state.join("credbroker.db.emergency");
    let (mut bytes, sealed) = (fs::read(&file).unwrap(), b"sealed by another\n");
    bytes[..sealed.len()].copy_from_slice(sealed);
    fs::write(&file, &bytes).unwrap();
    let (admin, endpoint) = (
        frail.world.account.admin.clone(),
        frail.world.proxy.endpoint.clone(),
    );
    let command = |state: &Path| self::frail(state, &admin, &endpoint);
    frail.world.broker = frail.world.broker.start_again_by(command).await;
    frail.fail("28");
    let revoke = ["revoke", "payments-api"];
    frail.world.broker.run(&revoke).await.ok();
    assert_ne!(fs::read(&file).unwrap(), bytes);
    frail.heal();
    frail.late("service.revoked").await;
    let emptied = async || (fs::read(&file).unwrap() == bytes).then_some(());
    eventually("its own entry alone is deleted", emptied).await;
}

#[tokio::test]
async fn a_foreign_record_in_the_log_does_not_prevent_a_revocation() {
    let frail = Frail::new().await;
    let broker = &frail.world.broker;
    broker.write_store(SLIP).await;
    let issue = broker
        .run_as(Some(&frail.world.token), &["issue", "role"])
        .await;
    assert_ne!(issue.code, 0, "{issue:?}");
    let revoked = broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], true, "{revoked}");
    assert!(!frail.key.works().await);
}

#[tokio::test]
async fn a_forged_emergency_file_adds_no_record() {
    let mut frail = Frail::new().await;
    let broker = &mut frail.world.broker;
    let shown = broker
        .json(&["audit", "query", "--event", "log.key_made"])
        .await;
    let made = shown[0].as_object().unwrap().clone();
    assert!(broker.stop().await);
    let file = broker.state.join("credbroker.db.emergency");
    let mut bytes = fs::read(&file).unwrap();
    let time = "2026-01-01T00:00:00.000000Z";
    let forged = [
        json!({"seq": 0, "time": time, "event": "log.key_made", "outcome": "success", "actor": "broker", "detail": made["detail"]}),
        json!({"seq": 0, "time": time, "event": "service.revoked", "outcome": "success", "actor": "operator:ann", "service": "payments-api"}),
    ];
    let lines = forged.map(|line| line.to_string()).join("\n") + "\n";
    bytes[..lines.len()].copy_from_slice(lines.as_bytes());
    fs::write(&file, bytes).unwrap();
    let (admin, endpoint) = (
        frail.world.account.admin.clone(),
        frail.world.proxy.endpoint.clone(),
    );
    frail.world.broker = frail.world.broker.start_again(&admin, &endpoint).await;
    frail.world.assert_issues("role").await;
    let records = frail.world.broker.audit().await;
    assert!(records.iter().all(|record| record["late"] == false));
    assert_eq!(
        records
            .iter()
            .filter(|r| r["event"] == "log.key_made")
            .count(),
        1
    );
}

#[tokio::test]
async fn a_foreign_record_before_the_start_does_not_prevent_a_revocation() {
    let mut frail = Frail::new().await;
    assert!(frail.world.broker.stop().await);
    frail.world.broker.write_store(SLIP).await;
    let (admin, endpoint) = (
        frail.world.account.admin.clone(),
        frail.world.proxy.endpoint.clone(),
    );
    frail.world.broker = frail.world.broker.start_again(&admin, &endpoint).await;
    let issue = ["issue", "role"];
    let refused = frail
        .world
        .broker
        .run_as(Some(&frail.world.token), &issue)
        .await;
    assert_ne!(refused.code, 0, "{refused:?}");
    let revoked = frail.world.broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], true, "{revoked}");
    assert!(!frail.key.works().await);
}
