//! A request with an id has one lease, however often it is repeated.

use std::{sync::Arc, time::Duration};

use credbroker::domain::{
    lease::{CredentialState, LeaseState},
    random::SystemRandom,
    request::RequestId,
};
use serde_json::{Value, json};

use crate::harness::{
    Key, World, eventually,
    proxy::Fault,
    stepped::{self, Stepped, Ways},
};

const ID: &str = "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10";
const OTHER: &str = "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f11";

impl World {
    /// Issues in answer to the request with this id; the issue must succeed.
    async fn answer(&self, grant: &str, id: &str) -> Value {
        self.issue(&[grant, "--request-id", id]).await.ok().json()
    }
}

#[tokio::test]
async fn a_repeated_request_for_a_user_gets_another_key_of_the_same_user() {
    let world = World::new().await;
    let first = world.answer("user", ID).await;
    let again = world.answer("user", ID).await;
    assert_eq!(again["lease_id"], first["lease_id"]);
    assert_eq!(again["expiration"], first["expiration"]);
    assert_eq!(
        (&first["redelivered"], &again["redelivered"]),
        (&json!(false), &json!(true))
    );
    assert_ne!(again["access_key_id"], first["access_key_id"]);
    assert!(!Key::issued(&first).works().await);
    assert!(Key::issued(&again).works().await);
    assert_eq!(world.account.issued_users().await.len(), 1);

    let leases = world.leases().await;
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0]["access_key_id"], again["access_key_id"]);
    assert_eq!(leases[0]["request_id"], ID);
    let records = world.broker.audit().await;
    let the = |event: &str| {
        let mut told = records.iter().filter(|record| record["event"] == *event);
        let first = told.next().unwrap();
        assert!(told.next().is_none(), "{event}");
        first
    };
    the("lease.issued");
    let redelivered = the("lease.redelivered");
    assert_eq!(redelivered["access_key_id"], again["access_key_id"]);
    let intended = the("lease.replacing");
    assert!(intended["seq"].as_u64() < redelivered["seq"].as_u64());
}

#[tokio::test]
async fn a_repeated_request_for_a_session_gets_another_that_lives_no_longer() {
    let world = World::new().await;
    let first = world.answer("role", ID).await;
    let again = world.answer("role", ID).await;
    assert_eq!(again["lease_id"], first["lease_id"]);
    assert_ne!(again["access_key_id"], first["access_key_id"]);
    assert!(again["expiration"].as_str() <= first["expiration"].as_str());
    assert!(Key::issued(&again).works().await);
    assert_eq!(world.leases().await.len(), 1);
    let sent = world.proxy.calls("AssumeRole");
    let name = |body: &String| {
        let name = body
            .split('&')
            .find(|pair| pair.starts_with("RoleSessionName="));
        name.unwrap().to_owned()
    };
    assert_eq!(name(&sent[0]), name(&sent[1]));
}

#[tokio::test]
async fn other_requests_have_other_leases() {
    let world = World::new().await;
    let first = world.answer("user", ID).await;
    let other = world.answer("user", OTHER).await;
    assert_ne!(first["lease_id"], other["lease_id"]);
    assert!(Key::issued(&first).works().await);
    assert!(Key::issued(&other).works().await);
    // The command line makes an id of its own if none is given.
    world.issue(&["user"]).await.ok();
    world.issue(&["user"]).await.ok();
    assert_eq!(world.leases().await.len(), 4);
}

#[tokio::test]
async fn an_id_given_to_another_request_is_refused_and_changes_nothing() {
    let world = World::new().await;
    let first = world.answer("user", ID).await;
    for other in [
        &["role", "--request-id", ID][..],
        &["user", "--ttl", "30m", "--request-id", ID],
    ] {
        let words = ["request_id: this request id was used for another request"];
        world.issue(other).await.fails(2, &words);
    }
    let wrong = world.issue(&["user", "--request-id", "1"]).await;
    wrong.fails(2, &["a request id is a UUID"]);
    assert!(Key::issued(&first).works().await);
    assert_eq!(world.leases().await.len(), 1);
}

#[tokio::test]
async fn a_repetition_joins_the_request_in_progress() {
    for (grant, action) in [("user", "CreateAccessKey"), ("role", "AssumeRole")] {
        let world = World::new().await;
        world.proxy.inject(action, Fault::Hold);
        let both = async { tokio::join!(world.answer(grant, ID), world.answer(grant, ID)) };
        let other = async {
            let held = async || world.proxy.calls(action).pop();
            eventually(action, held).await;
            // A different request is in progress under this id.
            let other = ["user", "--ttl", "30m", "--request-id", ID];
            world.issue(&other).await.fails(2, &["another request"]);
            let records = async || {
                let records = world.broker.audit().await;
                let denied = records
                    .iter()
                    .find(|record| record["event"] == "request.denied");
                denied.cloned()
            };
            eventually("a refusal", records).await;
            world.proxy.heal();
        };
        let ((first, second), ()) = tokio::join!(both, other);
        assert_eq!(first["access_key_id"], second["access_key_id"]);
        assert_eq!(first["secret_access_key"], second["secret_access_key"]);
        assert_ne!(first["redelivered"], second["redelivered"]);
        assert_eq!(world.proxy.calls(action).len(), 1);
        assert!(Key::issued(&first).works().await);
        let records = world.broker.audit().await;
        for event in ["lease.requested", "lease.issued", "lease.redelivered"] {
            let told = records.iter().filter(|record| record["event"] == event);
            assert_eq!(told.count(), 1, "{event}");
        }
    }
}

#[tokio::test]
async fn a_repetition_for_an_ended_lease_is_refused() {
    let world = World::new().await;
    let first = world.answer("user", ID).await;
    let lease = first["lease_id"].as_str().unwrap();
    world.broker.run(&["lease", "revoke", lease]).await.ok();
    let words = [
        &format!("lease {lease} is revoked"),
        "reason: LEASE_ENDED",
        "next: issue again, with a new request id",
    ];
    let again = world.issue(&["user", "--request-id", ID]).await;
    again.fails(6, &words);
    assert!(world.account.issued_users().await.is_empty());
    world.answer("user", OTHER).await;
}

#[tokio::test]
async fn a_repetition_under_a_changed_grant_is_refused_and_leaves_the_key() {
    let world = World::new().await;
    let first = world.answer("user", ID).await;
    world.put_user(&["--ttl", "20m"]).await;
    let again = world.issue(&["user", "--request-id", ID]).await;
    again.fails(
        6,
        &["an earlier version of its grant", "reason: GRANT_CHANGED"],
    );
    assert!(Key::issued(&first).works().await);
}

#[tokio::test]
async fn a_failed_issue_can_be_repeated_under_its_id() {
    let world = World::new().await;
    for action in ["CreateUser", "CreateAccessKey"] {
        let denied = Fault::Answer(403, "AccessDenied", "not now");
        world.proxy.inject(action, denied);
        world
            .issue(&["user", "--request-id", ID])
            .await
            .fails(6, &[]);
        world.proxy.heal();
        assert!(world.account.issued_users().await.is_empty(), "{action}");
    }
    let answered = world.answer("user", ID).await;
    assert_eq!(answered["redelivered"], false);
    assert!(Key::issued(&answered).works().await);
    let states: Vec<Value> = world
        .leases()
        .await
        .iter()
        .map(|lease| lease["state"].clone())
        .collect();
    assert_eq!(states, ["active", "revoked", "revoked"]);
}

#[tokio::test]
async fn a_repetition_takes_over_what_a_lost_answer_has_left() {
    for action in ["CreateUser", "CreateAccessKey"] {
        let world = World::new().await;
        world.proxy.inject(action, Fault::LoseAnswer);
        let lost = world.issue(&["user", "--request-id", ID]).await;
        let words = ["gave no answer", "try again", "repeated with --request-id"];
        lost.fails(7, &words);
        let made = world.account.issued_users().await;
        world.proxy.heal();
        let answered = world.answer("user", ID).await;
        assert_eq!(world.account.issued_users().await, made);
        let keys = world.account.keys_of(&made[0]).await;
        assert_eq!(keys, [answered["access_key_id"].as_str().unwrap()]);
        assert!(Key::issued(&answered).works().await);
        assert_eq!(world.leases().await.len(), 1);
        let records = world.broker.audit().await;
        let resumed = records
            .iter()
            .find(|record| record["event"] == "lease.resumed");
        assert_eq!(resumed.unwrap()["lease_id"], answered["lease_id"]);
    }
}

#[tokio::test]
async fn a_user_of_the_leases_name_that_is_not_its_own_is_left_alone() {
    let world = World::new().await;
    world.proxy.inject("CreateUser", Fault::LoseAnswer);
    world
        .issue(&["user", "--request-id", ID])
        .await
        .fails(7, &[]);
    world.proxy.heal();
    let user = world.account.issued_users().await.remove(0);
    // The user now lacks the broker's tags, as if another program had made it.
    let iam = world.account.root.iam();
    let untag = iam
        .untag_user()
        .user_name(&user)
        .tag_keys("credbroker:lease");
    untag.send().await.unwrap();
    let refused = world.issue(&["user", "--request-id", ID]).await;
    let words = ["that this broker did not make", "reason: AWS_NAME_TAKEN"];
    refused.fails(6, &words);
    assert_eq!(world.account.issued_users().await, [user]);
}

#[tokio::test]
async fn a_client_whose_deadline_passes_finds_its_lease_by_repeating() {
    use credbroker::proto::IssueCredentialsRequest;
    let world = World::new().await;
    world.proxy.inject("CreateAccessKey", Fault::Hold);
    let mut credentials = world.broker.client(&world.token).await.credentials();
    let mut request = tonic::Request::new(IssueCredentialsRequest {
        grant: "user".to_owned(),
        ttl: None,
        request_id: ID.to_owned(),
    });
    request.set_timeout(std::time::Duration::from_millis(300));
    let status = credentials.issue_credentials(request).await.unwrap_err();
    let codes = [tonic::Code::DeadlineExceeded, tonic::Code::Cancelled];
    assert!(codes.contains(&status.code()), "{status:?}");
    world.proxy.heal();
    let answered = world.answer("user", ID).await;
    assert!(Key::issued(&answered).works().await);
    assert_eq!(world.leases().await.len(), 1);
    let user = world.account.issued_users().await.remove(0);
    assert_eq!(world.account.keys_of(&user).await.len(), 1);
}

#[tokio::test]
async fn a_user_whose_key_was_lost_in_a_repetition_gets_another_in_the_next() {
    let world = Stepped::new().await;
    let id = RequestId::random(&SystemRandom);
    let first = world.issue_named("user", &id).await.unwrap();
    let denied = Fault::Answer(403, "AccessDenied", "not now");
    world.proxy.inject("CreateAccessKey", denied);
    world.issue_named("user", &id).await.unwrap_err();
    assert!(!stepped::key(&first).works().await);
    let lost = world.lease(&first.lease).await;
    let LeaseState::Active { standing, .. } = lost.state else {
        panic!("{lost:?}");
    };
    assert_eq!(standing, CredentialState::KeyLost);
    // The broker knows that the key is gone, so it does not report it.
    world.step(600).await;
    assert!(world.reconcile().await.vanished.is_empty());
    world.proxy.heal();
    let again = world.issue_named("user", &id).await.unwrap();
    assert_eq!(again.lease.binding.lease_id, first.lease.binding.lease_id);
    assert!(stepped::key(&again).works().await);
}

#[tokio::test]
async fn a_session_is_reissued_until_the_first_expires() {
    let world = Stepped::new().await;
    let id = RequestId::random(&SystemRandom);
    let quarter = Some(Duration::from_mins(15));
    let ask = || world.issue_of("role", quarter, Some(id.clone()));
    let first = ask().await.unwrap();
    for _ in 0..2 {
        world.step(420).await;
        let again = ask().await.unwrap();
        assert_eq!(again.lease.binding.lease_id, first.lease.binding.lease_id);
        assert!(stepped::key(&again).works().await);
    }
    world.step(60).await;
    let late = ask().await.unwrap_err();
    assert_eq!(late.reason(), "LEASE_ENDED");
}

#[tokio::test]
async fn a_user_is_not_renewed_while_its_key_is_being_replaced() {
    let world = Arc::new(Stepped::new().await);
    let id = RequestId::random(&SystemRandom);
    let first = world.issue_named("user", &id).await.unwrap();
    world.proxy.inject("CreateAccessKey", Fault::Hold);
    let repeating = {
        let (world, id) = (Arc::clone(&world), id.clone());
        tokio::spawn(async move { world.issue_named("user", &id).await })
    };
    let held = async || (world.proxy.calls("CreateAccessKey").len() == 2).then_some(());
    eventually("the replacement", held).await;
    let ttl = Some(Duration::from_hours(2));
    let renewed = world.renew(&first.lease, ttl, None).await.unwrap_err();
    assert_eq!(renewed.reason(), "CONCURRENT_CHANGE");
    world.proxy.heal();
    let again = repeating.await.unwrap().unwrap();
    assert!(stepped::key(&again).works().await);
    world.renew(&first.lease, ttl, None).await.unwrap();
}

#[tokio::test]
async fn a_user_request_without_an_answer_is_not_sent_twice() {
    let world = Stepped::with(Ways::quick()).await;
    world.proxy.inject("CreateUser", Fault::Cut);
    world.issue("user").await.unwrap_err();
    assert_eq!(world.proxy.calls("CreateUser").len(), 1);
}

#[tokio::test]
async fn a_repetition_that_aws_refuses_leaves_nothing_and_one_that_must_wait_loses_nothing() {
    let world = World::new().await;
    world.proxy.inject("CreateUser", Fault::LoseAnswer);
    let repeat = ["user", "--request-id", ID];
    world.issue(&repeat).await.fails(7, &[]);
    let made = world.account.issued_users().await;
    let throttled = Fault::Answer(400, "Throttling", "Rate exceeded");
    world.proxy.inject("CreateUser", throttled);
    let waits = world.issue(&repeat).await;
    waits.fails(7, &["reason: AWS_THROTTLED"]);
    assert_eq!(world.leases().await[0]["state"], "pending");
    world.proxy.heal();
    let answered = world.answer("user", ID).await;
    assert_eq!(world.account.issued_users().await, made);
    assert!(Key::issued(&answered).works().await);
    assert_eq!(world.leases().await.len(), 1);

    world.proxy.inject("CreateUser", Fault::LoseAnswer);
    let repeat = ["user", "--request-id", OTHER];
    world.issue(&repeat).await.fails(7, &[]);
    let denied = Fault::Answer(403, "AccessDenied", "not any more");
    world.proxy.inject("CreateUser", denied);
    world.issue(&repeat).await.fails(6, &[]);
    assert_eq!(world.account.issued_users().await, made);
}
