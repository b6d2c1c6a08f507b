//! Clean-up: expired leases, lost answers, removals that AWS refused at first, and issues whose
//! client has left.

use std::process::Stdio;

use credbroker::domain::lease::Lease;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{
    Key, Run, World,
    broker::credbroker,
    eventually,
    proxy::Fault,
    stepped::{self, Stepped},
};

impl World {
    /// Client that issues, not yet started.
    fn client(&self, grant: &str) -> Command {
        let mut client = credbroker(&["issue", grant, "-o", "json"]);
        client.envs(self.broker.env.iter().cloned());
        client.env("CREDBROKER_TOKEN", &self.token);
        client
    }

    /// Waits until the proxy has seen a call of this action.
    async fn seen(&self, action: &str) {
        let look = async || self.proxy.calls(action).pop();
        eventually(action, look).await;
    }

    async fn lease(&self, id: &str) -> Value {
        self.broker.json(&["lease", "show", id]).await
    }

    /// Returns the lease, once it is in this state.
    async fn lease_in(&self, id: &str, state: &str) -> Value {
        let look = async || Some(self.lease(id).await).filter(|lease| lease["state"] == state);
        eventually(state, look).await
    }
}

#[tokio::test]
async fn an_expired_user_disappears_from_aws_and_no_other() {
    let world = World::new().await;
    let kept = world.broker.issue(&world.token, "user").await;
    let args = ["issue", "user", "--ttl", "1s"];
    let issued = world.broker.json_as(Some(&world.token), &args).await;
    let (key, kept) = (Key::issued(&issued), Key::issued(&kept));
    let id = issued["lease_id"].as_str().unwrap();
    let lease = world.lease_in(id, "expired").await;
    assert_eq!(lease["reason"], "expired");
    assert!(lease["ended_at"].as_str() >= lease["expires_at"].as_str());
    assert!(!key.works().await);
    assert!(kept.works().await);
    assert_eq!(world.account.issued_users().await.len(), 1);
    let records = world.broker.audit().await;
    let record = records
        .iter()
        .find(|record| record["event"] == "lease.expired");
    let record = record.unwrap();
    assert_eq!(
        (&record["lease_id"], &record["actor"]),
        (&lease["lease_id"], &json!("broker"))
    );
    assert_eq!(record["access_key_id"], issued["access_key_id"]);
}

/// Runs `meanwhile` while AWS works on `action`. Returns the results of the issue and of
/// `meanwhile`.
async fn issue_during(world: &World, grant: &str, action: &str, meanwhile: &[&str]) -> (Run, Run) {
    world.proxy.inject(action, Fault::Hold);
    let issue = ["issue", grant];
    let issue = world.broker.run_as(Some(&world.token), &issue);
    let meanwhile = async {
        world.seen(action).await;
        let run = world.broker.run(meanwhile).await;
        world.proxy.heal();
        run
    };
    tokio::join!(issue, meanwhile)
}

#[tokio::test]
async fn a_service_suspended_while_it_is_issued_to_gets_nothing() {
    for (grant, action) in [
        ("user", "CreateUser"),
        ("user", "CreateAccessKey"),
        ("role", "AssumeRole"),
    ] {
        let world = World::new().await;
        let suspend = ["service", "suspend", "payments-api"];
        let (run, suspended) = issue_during(&world, grant, action, &suspend).await;
        suspended.ok();
        assert_eq!(run.stdout, "", "{run:#?}");
        run.fails(4, &["service payments-api is suspended", "next: "]);
        world.assert_nothing_left().await;

        let reinstate = ["service", "reinstate", "payments-api"];
        world.broker.run(&reinstate).await.ok();
        let issued = world.broker.issue(&world.token, grant).await;
        assert!(Key::issued(&issued).works().await);
    }
}

#[tokio::test]
async fn a_service_revoked_while_it_is_issued_to_gets_nothing() {
    let world = World::new().await;
    let revoke = ["revoke", "payments-api", "-o", "json"];
    let (run, revoked) = issue_during(&world, "user", "CreateAccessKey", &revoke).await;
    assert_eq!(run.stdout, "", "{run:#?}");
    run.fails(4, &["service payments-api is suspended", "next: "]);
    let revoked = revoked.revoked();
    assert_eq!(revoked["confirmed"], false, "{revoked}");
    let lease = &revoked["leases"][0];
    assert_eq!(lease["state"], "revoking", "{revoked}");
    assert_eq!(lease["gone_after_seconds"], Value::Null);
    world.assert_nothing_left().await;
    let again = world.broker.revoked(&["payments-api"]).await;
    assert_eq!(again["confirmed"], true, "{again}");
}

#[tokio::test]
async fn a_client_killed_during_an_issue_leaves_no_unknown_key() {
    let world = World::new().await;
    world.proxy.inject("CreateAccessKey", Fault::Hold);
    let mut client = world.client("user").stderr(Stdio::null()).spawn().unwrap();
    world.seen("CreateAccessKey").await;
    client.kill().await.unwrap();
    world.proxy.heal();

    let id = world.leases().await[0]["lease_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let lease = world.lease_in(&id, "active").await;
    let user = lease["aws_name"].as_str().unwrap();
    assert_eq!(world.account.issued_users().await, [user]);
    let keys = world.account.root.iam().list_access_keys().user_name(user);
    let keys = keys.send().await.unwrap().access_key_metadata;
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].access_key_id(), lease["access_key_id"].as_str());
    world.broker.run(&["lease", "revoke", &id]).await.ok();
    world.assert_nothing_left().await;
}

#[tokio::test]
async fn a_lease_revoked_while_it_is_issued_is_not_handed_out() {
    let world = World::new().await;
    world.proxy.inject("CreateAccessKey", Fault::Hold);
    let revoke = async {
        world.seen("CreateAccessKey").await;
        let lease = &world.leases().await[0];
        let id = lease["lease_id"].as_str().unwrap();
        let revoked = world.broker.json(&["lease", "revoke", id]).await;
        world.proxy.heal();
        revoked
    };
    let issue = world.broker.run_as(Some(&world.token), &["issue", "user"]);
    let (run, revoked) = tokio::join!(issue, revoke);
    assert_eq!(run.stdout, "", "{run:#?}");
    run.fails(6, &["revoked while it was being issued", "next: "]);
    assert_eq!(revoked["state"], "revoking", "{revoked}");
    world.assert_nothing_left().await;
    let issued = world.broker.issue(&world.token, "user").await;
    assert!(Key::issued(&issued).works().await);
}

#[tokio::test]
async fn a_broker_killed_while_it_issues_cleans_up_once_it_runs_again() {
    for action in ["CreateUser", "PutUserPolicy", "CreateAccessKey"] {
        let mut world = World::new().await;
        let kept = world.broker.issue(&world.token, "user").await;
        let before = world.proxy.calls(action).len();
        world.proxy.inject(action, Fault::Hold);
        let mut client = world.client("user").stderr(Stdio::null()).spawn().unwrap();
        let look = async || world.proxy.calls(action).get(before).cloned();
        eventually(action, look).await;
        world.broker.kill().await;
        assert!(!client.wait().await.unwrap().success());
        // The broker cannot know any more if the call was made.
        world.proxy.heal();

        world.broker.let_time_pass().await;
        let endpoint = world.proxy.endpoint.clone();
        let admin = world.account.admin.clone();
        world.broker = world.broker.start_again(&admin, &endpoint).await;
        let id = world.leases().await[0]["lease_id"]
            .as_str()
            .unwrap()
            .to_owned();
        let lease = world.lease_in(&id, "revoked").await;
        assert_eq!(lease["reason"], "not issued: abandoned", "{lease}");
        assert_eq!(world.account.issued_users().await.len(), 1);
        assert!(Key::issued(&kept).works().await);
    }
}

#[tokio::test]
async fn a_broker_that_dies_during_a_call_is_reported_as_unavailable() {
    let mut world = World::new().await;
    world.proxy.inject("AssumeRole", Fault::Hold);
    let client = tokio::spawn(Run::of(world.client("role"), ""));
    world.seen("AssumeRole").await;
    world.broker.kill().await;
    let run = client.await.unwrap();
    assert_eq!(run.stdout, "");
    run.fails(7, &["error: ", "next: ", "see that the broker is running"]);
}

#[tokio::test]
async fn a_stopping_broker_completes_a_running_issue() {
    let mut world = World::new().await;
    world.proxy.inject("CreateAccessKey", Fault::Hold);
    let client = tokio::spawn(Run::of(world.client("user"), ""));
    world.seen("CreateAccessKey").await;
    world.broker.terminate().await;
    world.proxy.heal();
    assert!(world.broker.ended().await);
    let issued = client.await.unwrap().ok().json();
    assert!(Key::issued(&issued).works().await);

    let endpoint = world.proxy.endpoint.clone();
    let admin = world.account.admin.clone();
    world.broker = world.broker.start_again(&admin, &endpoint).await;
    let lease = world.lease(issued["lease_id"].as_str().unwrap()).await;
    assert_eq!(lease["state"], "active");
}

/// Number of removal attempts that AWS has refused.
fn attempts(lease: &Lease) -> u32 {
    lease.removal().expect("it is being taken away").attempts
}

#[tokio::test]
async fn a_user_of_a_lost_answer_is_deleted_after_the_deadline() {
    let world = Stepped::new().await;
    for action in ["CreateUser", "CreateAccessKey"] {
        world.proxy.inject(action, Fault::LoseAnswer);
        world.issue("user").await.unwrap_err();
        world.proxy.heal();
        let lease = world.newest().await;
        assert_eq!(world.account.issued_users().await, [lease.binding.aws_name]);

        world.step(59).await;
        assert_eq!(world.newest().await.state.as_str(), "pending");
        assert_eq!(world.account.issued_users().await.len(), 1);
        world.step(1).await;
        let lease = world.newest().await;
        assert_eq!(lease.state.as_str(), "revoked");
        assert_eq!(lease.cause().unwrap().to_string(), "not issued: abandoned");
        assert!(world.account.issued_users().await.is_empty());
    }
}

#[tokio::test]
async fn a_removal_that_aws_refuses_is_retried_until_it_succeeds() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    let conflict = "Cannot delete entity, must remove referenced objects first.";
    let refusal = Fault::Answer(409, "DeleteConflict", conflict);
    world.proxy.inject("DeleteUser", refusal);
    let taken = world.revoke(&issued.lease).await.unwrap();
    assert!(taken.notice.unwrap().contains("iam:DeleteUser"));
    assert_eq!(attempts(&world.newest().await), 1);
    // The access itself has ended already.
    assert!(!stepped::key(&issued).works().await);

    // Seconds until the next attempt: 1, 2, 4, ….
    for attempt in 1..4 {
        world.step((1 << (attempt - 1)) - 1).await;
        assert_eq!(attempts(&world.newest().await), attempt);
        world.step(1).await;
        assert_eq!(attempts(&world.newest().await), attempt + 1);
    }
    assert_eq!(world.account.issued_users().await.len(), 1);
    world.proxy.heal();
    world.step(8).await;
    let lease = world.newest().await;
    assert_eq!(lease.state.as_str(), "revoked");
    assert_eq!(lease.cause().unwrap().to_string(), "revoked: leaked");
    assert!(world.account.issued_users().await.is_empty());
}

#[tokio::test]
async fn a_removal_that_aws_refuses_does_not_block_other_removals() {
    let world = Stepped::new().await;
    let stuck = world.issue("user").await.unwrap().lease;
    let session = world.issue("role").await.unwrap().lease;
    let refusal = Fault::Answer(409, "DeleteConflict", "");
    world.proxy.inject("DeleteUser", refusal);
    world.step(3660).await;
    assert_eq!(world.lease(&session).await.state.as_str(), "expired");
    assert_eq!(attempts(&world.lease(&stuck).await), 1);
    world.proxy.heal();
    world.step(1).await;
    assert_eq!(world.lease(&stuck).await.state.as_str(), "expired");
    assert!(world.account.issued_users().await.is_empty());
}

#[tokio::test]
async fn a_released_session_stays_revoking_until_aws_ends_it() {
    let world = Stepped::new().await;
    let revoked = world.issue("role").await.unwrap().lease;
    let kept = world.issue("role").await.unwrap().lease;
    let taken = world.release(&revoked).await.unwrap();
    let notice = taken.notice.unwrap();
    assert!(notice.contains("AWS keeps honouring this"), "{notice}");
    // The removal has no failed attempt.
    assert_eq!(attempts(&world.lease(&revoked).await), 0);
    // AWS's clock moves on while the broker's stands still.
    world.step(3590).await;
    assert_eq!(world.lease(&revoked).await.state.as_str(), "revoking");
    assert_eq!(world.lease(&kept).await.state.as_str(), "active");
    world.step(70).await;
    let ended = world.lease(&revoked).await;
    assert_eq!(ended.state.as_str(), "revoked");
    assert_eq!(ended.cause().unwrap().to_string(), "released");
    assert_eq!(world.lease(&kept).await.state.as_str(), "expired");
}
