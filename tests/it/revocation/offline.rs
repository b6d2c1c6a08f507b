//! The kill switch while the broker is down.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Neighbours;
use crate::harness::{
    Run,
    broker::{aws_env, credbroker},
    emulator::emulator,
};

impl Neighbours {
    /// `credbroker revoke ARGS` on the store, by an operator's token and the admin key.
    async fn offline(&self, token: Option<&str>, args: &[&str]) -> Run {
        let store = self.world.broker.database();
        let flags = ["--offline", "--state", store.to_str().unwrap()];
        let endpoint = ["--aws-endpoint", &emulator().endpoint];
        let args = [&["revoke"], args, &flags, &endpoint].concat();
        let mut command = credbroker(&args);
        let admins = || self.setting("CREDBROKER_TOKEN");
        command
            .envs(aws_env(&self.world.account.admin))
            .env("CREDBROKER_TOKEN", token.unwrap_or_else(admins));
        Run::of(command, "").await
    }

    fn setting(&self, name: &str) -> &str {
        let env = &self.world.broker.env;
        &env.iter().find(|(key, _)| key == name).unwrap().1
    }

    async fn start_again(mut self) -> Self {
        let admin = &self.world.account.admin;
        let again = self.world.broker.start_again(admin, &emulator().endpoint);
        self.world.broker = again.await;
        self
    }

    /// Its log is whole, to whoever checks an export of it.
    async fn assert_log_verifies(&self) {
        let broker = &self.world.broker;
        let home = TempDir::new().unwrap();
        let copy = home.path().join("log");
        let copy = copy.to_str().unwrap();
        broker.run(&["audit", "export", copy]).await.ok();
        broker.run(&["audit", "verify", copy]).await.ok();
    }
}

fn events(log: &[Value]) -> Vec<&str> {
    let events = log.iter().map(|record| record["event"].as_str().unwrap());
    events.collect()
}

#[tokio::test]
async fn a_service_is_shut_out_while_its_broker_is_dead_and_stays_so() {
    let mut two = Neighbours::new().await;
    let (ours, theirs) = (two.hold("payments-api").await, two.hold("billing").await);
    two.world.broker.kill().await;

    let reason = ["payments-api", "--reason", "leaked", "-o", "json"];
    let revoked = two.offline(None, &reason).await.ok().json();
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    assert_eq!(revoked["leases"].as_array().unwrap().len(), 3);
    assert_eq!(revoked["sessions"].as_array().unwrap().len(), 2);
    for (_, key) in &ours {
        two.dead(key).await;
    }
    for (_, key) in &theirs {
        assert!(two.works(key).await);
    }

    let two = two.start_again().await;
    let broker = &two.world.broker;
    let service = broker.json(&["service", "show", "payments-api"]).await;
    assert_eq!(service["suspended_at"], revoked["suspended_at"]);
    let log = broker.audit().await;
    let revocation = log
        .iter()
        .find(|r| r["event"] == "service.revoked")
        .unwrap();
    assert_eq!(revocation["actor"], "operator:admin", "{revocation}");
    assert_eq!(revocation["detail"], "leaked", "{revocation}");
    let confirmed = |event: &&&str| **event == "denial.confirmed";
    assert_eq!(events(&log).iter().filter(confirmed).count(), 2);
    let receipt = revoked["receipt"].as_str().unwrap();
    assert!(!receipt.is_empty());
    two.assert_log_verifies().await;
    assert_eq!(two.policies().await.len(), 2);

    two.reinstate("payments-api").await;
    for (_, key) in &two.hold("payments-api").await {
        assert!(two.works(key).await);
    }
    for (_, key) in &ours {
        two.dead(key).await;
    }
    two.assert_log_verifies().await;
}

#[tokio::test]
async fn a_grant_is_revoked_while_its_broker_is_dead() {
    let mut two = Neighbours::new().await;
    let (_, ended) = two.issue("payments-api", "work").await;
    let (_, other) = two.issue("payments-api", "user").await;
    two.world.broker.kill().await;
    let told = two.offline(None, &["payments-api/work"]).await.ok();
    for said in [
        "revoking payments-api/work; live leases: 1",
        "AWS refuses them after",
        "receipt",
    ] {
        assert!(told.stdout.contains(said), "{said} in {told:#?}");
    }
    two.dead(&ended).await;
    assert!(two.works(&other).await);
    let two = two.start_again().await;
    let (_, next) = two.issue("payments-api", "work").await;
    assert!(two.works(&next).await);
}

#[tokio::test]
async fn without_a_broker_as_with_one_only_responders_revoke() {
    let mut two = Neighbours::new().await;
    let create = ["operator", "create", "vera", "--role", "viewer"];
    let viewer = two.world.broker.json(&create).await;
    let viewer = viewer["token"].as_str().unwrap();
    let (_, key) = two.issue("payments-api", "work").await;
    let running = two.offline(None, &["payments-api"]).await;
    running.fails(6, &["the broker is running", "leave out --offline"]);
    two.world.broker.kill().await;

    let wrong = two.offline(Some("cbo_nobodys"), &["payments-api"]).await;
    wrong.fails(3, &["CREDBROKER_TOKEN"]);
    let denied = two.offline(Some(viewer), &["payments-api"]).await;
    denied.fails(4, &["role viewer may not do this"]);
    let unknown = two.offline(None, &["unheard-of"]).await;
    unknown.fails(5, &["unheard-of"]);
    assert!(two.works(&key).await);
    two.offline(None, &["payments-api"]).await.ok();
    two.dead(&key).await;

    let two = two.start_again().await;
    let log = two.world.broker.audit().await;
    for refused in ["login.failed", "request.denied"] {
        assert!(events(&log).contains(&refused), "{refused}");
    }
    assert!(
        log.iter()
            .any(|record| record["actor"] == json!("operator:vera"))
    );
}

#[tokio::test]
async fn a_store_that_is_not_there_is_not_made() {
    let home = TempDir::new().unwrap();
    let store = home.path().join("credbroker.db");
    let flags = ["--offline", "--state", store.to_str().unwrap()];
    let mut command = credbroker(&[&["revoke", "payments-api"], &flags[..]].concat());
    command.env("CREDBROKER_TOKEN", "cbo_any");
    let refused = Run::of(command, "").await;
    refused.fails(2, &["there is no store", "credbroker.db"]);
    assert!(!store.exists());
}

#[tokio::test]
async fn without_the_sealing_key_a_service_is_shut_out_and_what_is_sealed_stays() {
    let mut two = Neighbours::new().await;
    let (_, key) = two.issue("payments-api", "work").await;
    two.world.broker.kill().await;
    let state = two.world.broker.state.clone();
    let (sealing, away) = (state.join("seal.key"), state.join("away"));
    fs::rename(&sealing, &away).unwrap();
    let emergency = state.join("credbroker.db.emergency");
    let (mut bytes, sealed) = (fs::read(&emergency).unwrap(), b"sealed by another\n");
    bytes[..sealed.len()].copy_from_slice(sealed);
    fs::write(&emergency, bytes).unwrap();

    let revoked = two.offline(None, &["payments-api", "-o", "json"]).await;
    assert_eq!(revoked.ok().json()["confirmed"], true);
    two.dead(&key).await;
    assert!(fs::read(&emergency).unwrap().starts_with(sealed));

    fs::rename(&away, &sealing).unwrap();
    let two = two.start_again().await;
    two.assert_log_verifies().await;
    let refused = two
        .world
        .broker
        .run_as(Some(&two.tokens["payments-api"]), &["issue", "work"]);
    refused.await.fails(4, &["is suspended"]);
}
