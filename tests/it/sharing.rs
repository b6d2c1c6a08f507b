//! Sharing: callers of one service share a session if its grant says so, and no others do.

use std::{sync::Arc, time::Duration};

use credbroker::{broker::CredentialUpdate, domain::decide::IssueRequest};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::harness::{
    Key, Run, World,
    broker::credbroker,
    proxy::Fault,
    stepped::{Stepped, key, policy},
};

const SHARED: [&str; 2] = ["--reuse", "per-service"];

/// Creates a world whose grant `role` is shared.
async fn shared() -> World {
    let world = World::new().await;
    put(&world, &["--max-ttl", "2h"]).await;
    world
}

async fn put(world: &World, more: &[&str]) {
    let flags = [&["--role-arn", world.role.as_str()], &SHARED[..], more].concat();
    world
        .broker
        .grant("payments-api/role", &flags, &policy())
        .await;
}

fn lease(issued: &Value) -> &str {
    issued["lease_id"].as_str().unwrap()
}

async fn issued_by(world: &World, token: &str) -> Value {
    let args = ["issue", "role", "-o", "json"];
    world.broker.run_as(Some(token), &args).await.ok().json()
}

#[tokio::test]
async fn concurrent_callers_share_a_session_with_a_record_and_receipt_each() {
    let world = shared().await;
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let args = ["issue", "role", "-o", "json"];
        let mut command = credbroker(&args);
        command.envs(world.broker.env.iter().cloned());
        command.env("CREDBROKER_TOKEN", &world.token);
        asking.spawn(Run::of(command, ""));
    }
    let answers: Vec<Value> = asking
        .join_all()
        .await
        .into_iter()
        .map(|run| run.ok().json())
        .collect();
    let one = lease(&answers[0]);
    assert!(answers.iter().all(|answer| lease(answer) == one));
    assert!(Key::issued(&answers[0]).works().await);
    assert_eq!(world.proxy.calls("AssumeRole").len(), 1);
    let mut receipts: Vec<&str> = answers
        .iter()
        .map(|a| a["receipt"].as_str().unwrap())
        .collect();
    receipts.sort_unstable();
    receipts.dedup();
    assert_eq!(receipts.len(), 20);
    let records = world.broker.audit().await;
    let handed_out = records.iter().filter(|record| {
        let event = record["event"].as_str().unwrap();
        ["lease.issued", "lease.shared"].contains(&event) && record["lease_id"] == one
    });
    assert_eq!(handed_out.count(), 20);
    // A grant without `reuse` issues a session to each caller.
    let (a, b) = (
        world.issued(&["federation"]).await,
        world.issued(&["federation"]).await,
    );
    assert_ne!(lease(&a), lease(&b));
}

#[tokio::test]
async fn a_session_is_not_shared_across_token_lifetime_version_or_service() {
    let world = shared().await;
    let first = issued_by(&world, &world.token).await;
    let create = ["service", "token", "create", "payments-api", "-o", "json"];
    let made = world.broker.run(&create).await.ok().json();
    let other_token = issued_by(&world, made["token"].as_str().unwrap()).await;
    let shorter = world.issued(&["role", "--ttl", "30m"]).await;
    put(&world, &["--max-ttl", "3h"]).await;
    let later_version = issued_by(&world, &world.token).await;
    let theirs = world.service("billing").await;
    let grant = ["--role-arn", world.role.as_str(), SHARED[0], SHARED[1]];
    world.broker.grant("billing/role", &grant, &policy()).await;
    let other_service = issued_by(&world, &theirs).await;
    let all = [
        &first,
        &other_token,
        &shorter,
        &later_version,
        &other_service,
    ];
    for (number, issued) in all.iter().enumerate() {
        for other in &all[number + 1..] {
            assert_ne!(lease(issued), lease(other));
        }
    }
    let again = issued_by(&world, &world.token).await;
    assert_eq!(lease(&again), lease(&later_version));
}

#[tokio::test]
async fn a_revoked_session_is_not_shared() {
    let world = shared().await;
    let mut before = issued_by(&world, &world.token).await;
    // A release by one holder does not end the session for others.
    let release = ["release", lease(&before), "-o", "json"];
    let released = world.broker.run_as(Some(&world.token), &release).await;
    let released = released.ok().json();
    assert_eq!(released["state"], "active");
    let notice = released["notice"].as_str().unwrap();
    assert!(notice.contains("others share it"), "{released}");
    let again = issued_by(&world, &world.token).await;
    assert_eq!(lease(&again), lease(&before));
    let id = lease(&before).to_owned();
    let steps: [&[&str]; 3] = [
        &["lease", "revoke", &id],
        &["revoke", "payments-api/role"],
        &["revoke", "payments-api"],
    ];
    for args in steps {
        world.broker.run(args).await.ok();
        let reinstate = ["service", "reinstate", "payments-api"];
        let _ = world.broker.run(&reinstate).await;
        let next = issued_by(&world, &world.token).await;
        assert_ne!(lease(&next), lease(&before), "{args:?}");
        assert!(Key::issued(&next).works().await);
        before = next;
    }
    let user = [
        "grant",
        "put",
        "payments-api/user",
        "--kind",
        "iam_user",
        SHARED[0],
        SHARED[1],
    ];
    world.broker.run(&user).await.fails(2, &["--reuse"]);
}

#[tokio::test]
async fn a_shared_session_is_refreshed_before_its_end() {
    let world = Stepped::new().await;
    world.share("role").await;
    let first = world.issue("role").await.unwrap();
    let again = world.issue("role").await.unwrap();
    assert_eq!(first.lease.binding.lease_id, again.lease.binding.lease_id);

    // Callers wait for the next session from 20 minutes before the end; before, it is made in the
    // background.
    let held = world.proxy.calls("AssumeRole").len();
    world.wait(3600 - 20 * 60 - 1);
    let late = world.issue("role").await.unwrap();
    assert_eq!(late.lease.binding.lease_id, first.lease.binding.lease_id);
    let renewed = async || {
        let next = world.issue("role").await.unwrap();
        (next.lease.binding.lease_id != first.lease.binding.lease_id).then_some(next)
    };
    let next = crate::harness::eventually("the next is shared", renewed).await;
    assert!(key(&next).works().await && key(&first).works().await);
    assert_eq!(world.proxy.calls("AssumeRole").len(), held + 1);

    // A caller that needs a longer life than is left gets a new session.
    world.wait(1800);
    let request = IssueRequest {
        least_left: Duration::from_secs(2700),
        ..IssueRequest::new("payments-api/role".parse().unwrap(), None, None)
    };
    let longer = world.issue_request(request).await.unwrap();
    assert_ne!(longer.lease.binding.lease_id, next.lease.binding.lease_id);
}

#[tokio::test]
async fn followers_share_a_session_and_get_the_next_once_it_exists() {
    let world = Stepped::new().await;
    world.share("role").await;
    let mut two = [
        world.follow("role").await.unwrap(),
        world.follow("role").await.unwrap(),
    ];
    let mut leases = Vec::new();
    for following in &mut two {
        let told = world.broker.next_update(following).await.unwrap();
        let Some(CredentialUpdate::Issued(issued)) = told else {
            panic!("nothing issued")
        };
        leases.push(issued.lease.binding.lease_id.clone());
    }
    assert_eq!(leases[0], leases[1]);
    let late = Fault::Answer(503, "ServiceUnavailable", "later");
    world.proxy.inject("AssumeRole", late);
    world.wait(3600 - 20 * 60 - 1);
    let waiting = world.broker.next_update(&mut two[0]);
    let waiting = tokio::time::timeout(Duration::from_secs(2), waiting);
    assert!(waiting.await.is_err(), "the same is not told twice");
    world.proxy.heal();
    world.wait(60);
    let told = world.broker.next_update(&mut two[1]).await.unwrap();
    let Some(CredentialUpdate::Issued(next)) = told else {
        panic!("nothing issued")
    };
    assert_ne!(next.lease.binding.lease_id, leases[0]);
}

#[tokio::test]
async fn concurrent_callers_get_the_result_of_one_request_even_a_failure() {
    let world = Stepped::new().await;
    world.share("role").await;
    let away = || Fault::Answer(503, "ServiceUnavailable", "later");
    let world = Arc::new(world);
    // With a store connection for each caller, all arrive at the same time.
    let mut eight = JoinSet::new();
    for _ in 0..8 {
        let world = Arc::clone(&world);
        eight.spawn(async move { world.issue("federation").await.is_ok() });
    }
    assert!(eight.join_all().await.into_iter().all(|issued| issued));
    world.proxy.inject("AssumeRole", away());
    world.issue("role").await.unwrap_err();
    let alone = world.proxy.calls("AssumeRole").len();
    let mut eight = JoinSet::new();
    for _ in 0..8 {
        let world = Arc::clone(&world);
        eight.spawn(async move { world.issue("role").await.is_err() });
    }
    assert!(eight.join_all().await.into_iter().all(|failed| failed));
    assert_eq!(world.proxy.calls("AssumeRole").len(), 2 * alone);

    // The live session is used while no other can be had.
    world.proxy.heal();
    world.wait(60);
    let first = world.issue("role").await.unwrap();
    world.proxy.inject("AssumeRole", away());
    world.wait(3600 - 120);
    let left = world.issue("role").await.unwrap();
    assert_eq!(left.lease.binding.lease_id, first.lease.binding.lease_id);
    world.wait(120);
    world.issue("role").await.unwrap_err();
}
