//! Kill switch while the broker is down.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::Neighbours;
use crate::harness::{
    Account, Key, Run,
    aws::REGION,
    broker::{aws_env, credbroker},
    emulator::emulator,
    site::Site,
    stored::skipped_over_postgres,
};

impl Neighbours {
    /// Runs `credbroker revoke ARGS` on the store, with an operator's token and the admin key.
    async fn offline(&self, token: Option<&str>, args: &[&str]) -> Run {
        let store = self.world.broker.database();
        self.offline_on(&store, token, args).await
    }

    /// Runs it on a copy of the store.
    pub(super) async fn offline_on(&self, store: &Path, token: Option<&str>, args: &[&str]) -> Run {
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

    /// Output of `revoke TARGET --print-aws-commands`.
    async fn script(&self, target: &str) -> String {
        let store = self.world.broker.database();
        let flags = ["--print-aws-commands", "--state", store.to_str().unwrap()];
        let command = credbroker(&[&["revoke", target], &flags[..]].concat());
        Run::of(command, "").await.ok().stdout
    }

    fn setting(&self, name: &str) -> &str {
        let env = &self.world.broker.env;
        &env.iter().find(|(key, _)| key == name).unwrap().1
    }

    pub(super) async fn start_again(mut self) -> Self {
        let admin = &self.world.account.admin;
        let again = self.world.broker.start_again(admin, &emulator().endpoint);
        self.world.broker = again.await;
        self
    }

    /// Asserts that an export of the log verifies.
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
async fn a_service_revoked_while_the_broker_is_down_stays_revoked() {
    if skipped_over_postgres() {
        return;
    }
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
    if skipped_over_postgres() {
        return;
    }
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
async fn offline_revocation_is_refused_without_the_role_responder() {
    if skipped_over_postgres() {
        return;
    }
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
async fn offline_revocation_reads_all_settings_from_the_configuration() {
    let (account, site) = (Account::new().await, Site::sealed(|_| String::new()));
    let mut serving = site.serving(&account.admin).await;
    let token = site.payments_api().await;
    let lease = site.assert_issues(&token).await;
    serving.kill().await.unwrap();
    let config = site.text("config.toml");
    let flags = ["--offline", "--config", &config, "-o", "json"];
    let mut command = credbroker(&[&["revoke", "payments-api"], &flags[..]].concat());
    let (_, token_file) = site.env().pop().unwrap();
    command
        .envs(aws_env(&account.admin))
        .env("CREDBROKER_TOKEN_FILE", token_file);
    let revoked = Run::of(command, "").await.ok().json();
    assert_eq!(revoked["leases"][0]["lease_id"], lease, "{revoked:#}");
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    assert_eq!(account.issued_users().await, Vec::<String>::new());
    let _serving = site.serving(&account.admin).await;
    let refused = site.run_as(&token, &["issue", "user"]).await;
    refused.fails(4, &["is suspended"]);
}

#[tokio::test]
async fn offline_revocation_does_not_create_a_missing_store() {
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
async fn offline_revocation_without_the_sealing_key_keeps_sealed_data() {
    if skipped_over_postgres() {
        return;
    }
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

/// Runs a script with the AWS CLI.
async fn run(script: &str, key: &Key) -> Run {
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("sh");
    shell
        .env_clear()
        .envs(aws_env(key))
        .env("PATH", format!("{}:{path}", emulator().bin.display()))
        .env("AWS_ENDPOINT_URL", &emulator().endpoint);
    Run::of(shell, script).await
}

/// Commands in the script's last comment, as a script.
fn commands_at_its_end(script: &str) -> String {
    let commands = script.lines().filter_map(|line| line.strip_prefix("#   "));
    let commands: Vec<&str> = commands.filter(|line| line.starts_with("aws ")).collect();
    assert_eq!(commands.len(), 2, "{script}");
    // Version 1 of the CLI does not read AWS_REGION by itself.
    format!(
        "set -eu\nexport AWS_DEFAULT_REGION={REGION}\n{}\n",
        commands.join("\n")
    )
}

/// Slow for its starts of the AWS CLI.
#[tokio::test]
async fn the_printed_script_denies_a_service_and_the_broker_continues() {
    if skipped_over_postgres() {
        return;
    }
    let mut two = Neighbours::new().await;
    let (ours, theirs) = (two.hold("payments-api").await, two.hold("billing").await);
    let beside = two.script("payments-api").await;
    two.world.broker.kill().await;
    let script = two.script("payments-api").await;
    let body = |script: &str| script.lines().skip(3).collect::<Vec<_>>().join("\n");
    assert_eq!(body(&beside), body(&script));

    let root = &two.world.account.root;
    let (first, second) = (run(&script, root).await, run(&script, root).await);
    for done in [&first, &second] {
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    }
    for (_, key) in &ours {
        two.dead(key).await;
    }
    for (_, key) in &theirs {
        assert!(two.works(key).await);
    }
    assert!(two.world.account.admin.works().await);
    let users = two.world.account.issued_users().await;
    assert_eq!(users.len(), 1, "{users:?}");

    let two = two.start_again().await;
    two.revoke("payments-api").await;
    // AWS may not know yet what was made a moment ago.
    two.world.broker.let_time_pass().await;
    let revoked = two.revoke("payments-api").await;
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    run(&commands_at_its_end(&script), &two.world.account.root)
        .await
        .ok();
    assert_eq!(
        two.inline("credbroker-emergency-").await,
        Vec::<String>::new()
    );
    for (_, key) in &ours {
        two.dead(key).await;
    }
    two.reinstate("payments-api").await;
    for (_, key) in two.hold("payments-api").await.iter().chain(&theirs) {
        assert!(two.works(key).await);
    }
}

#[tokio::test]
async fn the_script_of_a_grant_ends_what_was_issued_under_it_alone() {
    if skipped_over_postgres() {
        return;
    }
    let two = Neighbours::new().await;
    let (ended, other) = two.sessions_of_two_grants().await;
    let script = two.script("payments-api/work").await;
    run(&script, &two.world.account.root).await.ok();
    two.dead(&ended).await;
    assert!(two.works(&other).await);
    assert_eq!(
        two.inline("credbroker-emergency-").await,
        ["credbroker-emergency-payments-api.work"]
    );
}

#[tokio::test]
async fn the_printed_script_skips_roles_of_other_accounts() {
    if skipped_over_postgres() {
        return;
    }
    let two = Neighbours::new().await;
    let (_, key) = two.issue("payments-api", "work").await;
    let script = two.script("payments-api").await;
    let elsewhere = Account::empty();
    let left = run(&script, &elsewhere.root).await;
    let said = format!("left out: what is in account {}", two.world.account.id);
    left.fails(1, &[&said, "not all of it is done"]);
    assert!(two.works(&key).await);
}

#[tokio::test]
async fn a_script_for_an_unknown_service_is_refused() {
    if skipped_over_postgres() {
        return;
    }
    let two = Neighbours::new().await;
    let store = two.world.broker.database();
    let store = store.to_str().unwrap();
    let print = async |args: &[&str]| {
        let args = [&["revoke"], args, &["--print-aws-commands"]].concat();
        Run::of(credbroker(&args), "").await
    };
    for unknown in ["unheard-of", "payments-api/unheard-of"] {
        let refused = print(&[unknown, "--state", store]).await;
        refused.fails(5, &["there is no", unknown]);
    }
    print(&["It's", "--state", store])
        .await
        .fails(2, &["is no name"]);
    print(&["payments-api"])
        .await
        .fails(2, &["--state FILE", "--config FILE"]);
    let printed = print(&["payments-api", "--state", store, "-o", "json"]).await;
    let script = printed.ok().json()["script"].as_str().unwrap().to_owned();
    assert!(script.contains("It holds nothing"), "{script}");
    let nothing = run(&script, &two.world.account.root).await.ok();
    assert_eq!(nothing.stdout, "done\n");
}
