//! Proof that AWS refuses: AWS that is slow, a probe that shows nothing, a session that cannot be
//! had, a role on which AWS cannot deny.

use std::time::Duration;

use credbroker::{
    broker::{Revocation, ports::RevokeTarget},
    domain::{audit::Outcome, probe::Probe},
};
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};

use crate::harness::{
    Account, Key, World, eventually_within,
    proxy::Fault,
    stepped::{self, ALL_OVER, Stepped, Ways},
};

/// Answer of AWS to the probe of a session that it serves.
fn served() -> Fault {
    Fault::Say(r#"{"QueueUrls":[]}"#.to_owned())
}

fn denied() -> Fault {
    let explicit = "not authorized with an explicit deny in an identity-based policy";
    Fault::Answer(403, "AccessDeniedException", explicit)
}

fn not_allowed() -> Fault {
    Fault::Answer(403, "AccessDenied", "not authorized")
}

/// Issues a session under `role`. Returns its lease and its key.
async fn session(world: &World) -> (String, Key) {
    let issued = world.issued(&["role"]).await;
    let lease = issued["lease_id"].as_str().unwrap().to_owned();
    let key = Key::issued(&issued);
    assert!(key.is_served().await);
    (lease, key)
}

/// Notice of a revocation that AWS was not seen to enforce.
async fn unconfirmed(world: &World) -> String {
    let revoked = world.broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], false, "{revoked:#}");
    let sessions = &revoked["sessions"][0];
    assert_eq!(sessions["refused_after_seconds"], Value::Null);
    sessions["notice"].as_str().unwrap().to_owned()
}

/// Waits until the broker sees the refusal by itself.
async fn confirmed_later(world: &World, lease: &str) {
    let ended = async || {
        let shown = world.broker.json(&["lease", "show", lease]).await;
        (shown["state"] == "revoked").then_some(())
    };
    eventually_within(20, "the proof", ended).await;
}

#[track_caller]
fn says(notice: &str, words: &[&str]) {
    for word in words {
        assert!(notice.contains(word), "{word:?} in {notice:?}");
    }
}

#[tokio::test]
async fn the_answer_waits_until_aws_enforces_the_denial_and_tells_how_long_that_took() {
    let world = World::new().await;
    let (_, key) = session(&world).await;
    // Once before the denial, and five times after it.
    let late = std::iter::repeat_with(served).take(6);
    world.proxy.inject_in_turn("ListQueues", late);
    let revoked = world.broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    for told in [&revoked["sessions"][0], &revoked["leases"][0]] {
        let seconds = told["refused_after_seconds"].as_f64().unwrap();
        assert!(seconds > 1.5, "{told}");
    }
    assert!(!key.is_served().await);
}

#[tokio::test]
async fn one_refusal_is_no_proof_while_the_next_call_is_served() {
    let world = World::new().await;
    session(&world).await;
    let refused = || {
        let words = "not authorized with an explicit deny in an identity-based policy";
        Fault::Answer(403, "AccessDeniedException", words)
    };
    let answers = [served(), refused(), served(), refused(), served()];
    world.proxy.inject_in_turn("ListQueues", answers);
    let revoked = world.broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    // All those answers, and two refusals in a row.
    assert_eq!(world.proxy.calls("ListQueues").len(), 7);
}

#[tokio::test]
async fn a_denial_enforced_late_is_reported_and_confirmed_later() {
    let world = Stepped::with(Ways {
        proof_limit: Duration::from_millis(400),
        ..Ways::default()
    })
    .await;
    let lease = world.issue("role").await.unwrap().lease;
    world.proxy.inject("ListQueues", served());
    let revoked = world.shut_out().await.unwrap();
    assert!(!revoked.confirmed());
    says(
        &open(&revoked),
        &["not seen to hold yet", "AWS still lets", "goes on trying"],
    );
    assert_eq!(world.lease(&lease).await.state.as_str(), "revoking");
    // The next attempt fails as well; then AWS enforces the denial.
    world.step(61).await;
    assert_eq!(world.lease(&lease).await.state.as_str(), "revoking");
    world.proxy.heal();
    world.step(61).await;
    assert_eq!(world.lease(&lease).await.state.as_str(), "revoked");
    let confirmed = world.records("denial.confirmed").await;
    assert_eq!(confirmed.len(), 1);
    // The broker used the canary that it had made at first.
    assert_eq!(world.records("canary.issued").await.len(), 1);
}

#[tokio::test]
async fn each_region_that_a_grant_names_must_refuse_as_well() {
    let world = Stepped::new().await;
    world
        .probe_further("role", &[], &["eu-west-1", "eu-north-1"])
        .await;
    world.issue("role").await.unwrap();
    let revoked = world.shut_out().await.unwrap();
    assert!(revoked.confirmed(), "{revoked:?}");
    let seen_by = revoked.denials[0].seen_by.as_deref();
    let expected = "sqs:ListQueues in us-east-1, eu-west-1, eu-north-1";
    assert_eq!(seen_by, Some(expected));
    // Each region is probed twice after the denial.
    let mut regions = world.proxy.regions("ListQueues");
    regions.drain(..regions.len() - 4);
    assert_eq!(
        regions,
        ["eu-west-1", "eu-west-1", "eu-north-1", "eu-north-1"]
    );
}

#[tokio::test]
async fn each_service_that_a_grant_names_must_refuse_as_well_in_each_region() {
    let world = Stepped::new().await;
    let probes = [Probe::DynamodbListTables];
    world.probe_further("role", &probes, &["eu-west-1"]).await;
    world.issue("role").await.unwrap();
    let revoked = world.shut_out().await.unwrap();
    assert!(revoked.confirmed(), "{revoked:?}");
    let seen_by = revoked.denials[0].seen_by.as_deref();
    let expected =
        "sqs:ListQueues in us-east-1, eu-west-1; dynamodb:ListTables in us-east-1, eu-west-1";
    assert_eq!(seen_by, Some(expected));
    // Once before the denial and twice after it, in each region.
    let regions = world.proxy.regions("ListTables");
    let expected = ["us-east-1", "eu-west-1"]
        .map(|region| [region; 2])
        .concat();
    assert_eq!(regions[..2], ["us-east-1", "eu-west-1"]);
    assert_eq!(regions[2..], expected);
}

#[tokio::test]
async fn a_region_denied_by_another_policy_is_no_proof_beside_a_standing_denial() {
    let world = Stepped::new().await;
    world.probe_further("role", &[], &["eu-west-1"]).await;
    world.issue("role").await.unwrap();
    assert!(world.shut_out().await.unwrap().confirmed());
    // In each region the canary, then the control session.
    let answers = [denied(), served(), denied(), denied()];
    world.proxy.inject_in_turn("ListQueues", answers);
    let revoked = world.shut_out().await.unwrap();
    assert!(!revoked.confirmed());
    says(&open(&revoked), &["denied to such sessions anyway"]);
}

#[tokio::test]
async fn an_aws_service_that_still_admits_a_session_keeps_the_denial_open() {
    let world = Stepped::with(Ways {
        proof_limit: Duration::from_millis(700),
        ..Ways::default()
    })
    .await;
    let probes = [Probe::DynamodbListTables];
    world.probe_further("role", &probes, &[]).await;
    world.issue("role").await.unwrap();
    let tables = || Fault::Say(r#"{"TableNames":[]}"#.to_owned());
    let answers = std::iter::repeat_with(tables).take(20);
    world.proxy.inject_in_turn("ListTables", answers);
    let revoked = world.shut_out().await.unwrap();
    assert!(!revoked.confirmed());
    let words = ["(dynamodb:ListTables in us-east-1): AWS still lets such a session"];
    says(&open(&revoked), &words);
}

#[tokio::test]
async fn a_region_that_still_admits_a_session_keeps_the_denial_open() {
    let world = Stepped::with(Ways {
        proof_limit: Duration::from_millis(700),
        ..Ways::default()
    })
    .await;
    world.probe_further("role", &[], &["eu-west-1"]).await;
    world.issue("role").await.unwrap();
    let late = std::iter::repeat_with(served).take(20);
    // The session is served in both regions before the denial, and refused in the first after it.
    let answers = [served(), served(), denied(), denied()];
    let answers = answers.into_iter().chain(late);
    world.proxy.inject_in_turn("ListQueues", answers);
    let revoked = world.shut_out().await.unwrap();
    assert!(!revoked.confirmed());
    let words = ["(sqs:ListQueues in eu-west-1): AWS still lets such a session"];
    says(&open(&revoked), &words);
}

#[tokio::test]
async fn a_second_look_is_recorded_and_repeated_until_aws_refuses_again() {
    let world = Stepped::new().await;
    world.issue("role").await.unwrap();
    assert!(world.shut_out().await.unwrap().confirmed());
    world.proxy.inject_in_turn("ListQueues", [served()]);
    for _ in 0..3 {
        world.broker.make_second_checks(Instant::now()).await;
    }
    let records = world.records("denial.settled").await;
    let [open, settled] = &records[..] else {
        panic!("{records:?}");
    };
    assert_eq!(open.outcome, Outcome::Failure);
    assert_eq!(open.reason.as_deref(), Some("NOT_REFUSED"));
    let words = "AWS lets such a session call sqs:ListQueues in us-east-1";
    assert_eq!(open.detail.as_deref(), Some(words));
    assert_eq!(open.refused_after, None);
    assert_eq!(settled.outcome, Outcome::Success);
    let words = "sqs:ListQueues in us-east-1";
    assert_eq!(settled.detail.as_deref(), Some(words));
    assert!(settled.refused_after.is_some());
}

#[tokio::test]
async fn second_looks_end_with_the_session_where_no_service_answers() {
    let world = Stepped::new().await;
    world.issue("role").await.unwrap();
    assert!(world.shut_out().await.unwrap().confirmed());
    world.proxy.inject("ListQueues", Fault::Cut);
    let before = world.proxy.calls("ListQueues").len();
    world.broker.make_second_checks(Instant::now()).await;
    let tried = world.proxy.calls("ListQueues").len();
    assert!(tried > before);
    // The canary lives for a quarter of an hour.
    world.step(3600).await;
    world.broker.make_second_checks(Instant::now()).await;
    assert_eq!(world.proxy.calls("ListQueues").len(), tried);
    assert!(world.records("denial.settled").await.is_empty());
}

#[tokio::test]
async fn an_expired_canary_is_not_taken_for_refused() {
    let world = Stepped::new().await;
    let lease = world.issue("role").await.unwrap().lease;
    world.proxy.inject("AssumeRole", not_allowed());
    let revoked = world.shut_out().await.unwrap();
    world.step(2 * 3600).await;
    assert_eq!(world.lease(&lease).await.state.as_str(), "revoked");
    let target = RevokeTarget::Service("payments-api".parse().unwrap());
    let (progress, _read) = mpsc::unbounded_channel();
    let limit = Duration::from_secs(2);
    let waiting = world
        .broker
        .wait_until_refused(&target, revoked, limit, &progress);
    let stands = waiting.await;
    assert!(!stands.confirmed());
    assert_eq!(stands.leases[0].seen, None);
}

#[tokio::test]
async fn a_refusal_for_another_reason_is_no_proof() {
    for words in [
        "not authorized with an explicit deny in a service control policy",
        "not authorized because no VPC endpoint policy allows the sqs:listqueues action",
    ] {
        let world = Stepped::with(Ways {
            proof_limit: Duration::from_millis(400),
            ..Ways::default()
        })
        .await;
        world.issue("role").await.unwrap();
        let refused = || Fault::Answer(403, "AccessDeniedException", words);
        let after = std::iter::repeat_with(refused).take(20);
        let answers = std::iter::once(served()).chain(after);
        world.proxy.inject_in_turn("ListQueues", answers);
        let revoked = world.shut_out().await.unwrap();
        assert!(!revoked.confirmed());
        says(&open(&revoked), &["not seen to hold yet", words]);
    }
}

/// Notice of a revocation on the sessions at the one role.
fn open(revoked: &Revocation) -> String {
    revoked.denials[0].notice.clone().unwrap()
}

#[tokio::test]
async fn a_probe_denied_by_another_policy_is_no_proof() {
    let world = World::new().await;
    let (first, _) = session(&world).await;
    deny_probe(&world.account).await;
    let revoked = world.broker.json(&["lease", "revoke", &first]).await;
    assert_eq!(revoked["state"], "revoking", "{revoked:#}");
    let notice = revoked["notice"].as_str().unwrap();
    says(
        notice,
        &[
            "sqs:ListQueues is denied to such sessions anyway",
            "--probe",
        ],
    );
    // The denial stands all the same.
    assert!(stands(&world.account, &first).await);

    let flags = ["--role-arn", &world.role, "--probe", "dynamodb:ListTables"];
    let policy = stepped::policy();
    world
        .broker
        .grant("payments-api/role", &flags, &policy)
        .await;
    world.issued(&["role"]).await;
    let revoked = world.broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
}

/// Puts a foreign policy that denies the probe to every session of the role.
async fn deny_probe(account: &Account) {
    let denial = r#"{"Version": "2012-10-17", "Statement": [
        {"Effect": "Deny", "Action": "sqs:ListQueues", "Resource": "*"}]}"#;
    let put = account.root.iam().put_role_policy().policy_name("theirs");
    let put = put.role_name(account.unique("credbroker-any"));
    put.policy_document(denial).send().await.unwrap();
}

/// Returns whether a denial in AWS names a lease's session.
async fn stands(account: &Account, lease: &str) -> bool {
    let denials = account.denials().await;
    denials
        .iter()
        .any(|(_, policy)| policy.to_string().contains(lease))
}

#[tokio::test]
async fn a_denial_without_a_canary_is_written_and_confirmed_later() {
    let world = World::new().await;
    let (lease, key) = session(&world).await;
    world.proxy.inject("AssumeRole", not_allowed());
    let notice = unconfirmed(&world).await;
    says(
        &notice,
        &[
            "the denial is written",
            "cannot be had",
            "does not let the broker assume it",
        ],
    );
    assert!(!key.is_served().await);
    world.proxy.heal();
    confirmed_later(&world, &lease).await;
}

#[tokio::test]
async fn a_role_that_cannot_be_denied_on_is_reported_with_the_missing_permission() {
    let world = World::new().await;
    let (lease, key) = session(&world).await;
    world.proxy.inject("PutRolePolicy", not_allowed());
    let notice = unconfirmed(&world).await;
    says(
        &notice,
        &[
            &world.role,
            "boundary credbroker-boundary",
            "goes on trying",
        ],
    );
    // A session that is not denied is not reported as denied.
    assert!(key.is_served().await);
    world.proxy.heal();
    confirmed_later(&world, &lease).await;
    assert!(!key.is_served().await);
}

#[tokio::test]
async fn a_denial_is_not_proven_while_newer_sessions_live() {
    let world = Stepped::new().await;
    let old = world.issue("role").await.unwrap();
    world.proxy.inject("AssumeRole", not_allowed());
    let revoked = world.revoke_grant("role").await.unwrap();
    assert!(!revoked.confirmed());
    world.proxy.heal();
    let new = world.issue("role").await.unwrap();
    world.step(61).await;
    assert_eq!(world.lease(&old.lease).await.state.as_str(), "revoking");
    assert!(!stepped::key(&old).is_served().await);
    assert!(stepped::key(&new).is_served().await);
    // The denial is seen once no newer session is in use.
    world.release(&new.lease).await.unwrap();
    world.step(61).await;
    assert_eq!(world.lease(&old.lease).await.state.as_str(), "revoked");
}

#[tokio::test]
async fn an_unchangeable_role_does_not_block_lifting_other_denials() {
    let world = Stepped::new().await;
    for grant in ["role", "federation"] {
        world.issue(grant).await.unwrap();
    }
    assert!(world.shut_out().await.unwrap().confirmed());
    world.proxy.inject("DeleteRolePolicy", not_allowed());
    world.step(ALL_OVER).await;
    let left = world.account.denials().await;
    assert_eq!(left.len(), 1, "{left:?}");
    // The next attempt does not follow at once.
    world.step(1).await;
    assert_eq!(world.proxy.calls("DeleteRolePolicy").len(), 1);
    world.proxy.heal();
    world.step(91).await;
    assert_eq!(world.account.denials().await, []);
}
