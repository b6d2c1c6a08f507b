//! A request with an id has one lease, however often it is repeated.

use serde_json::{Value, json};

use crate::harness::{Key, World, proxy::Fault};

const ID: &str = "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10";
const OTHER: &str = "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f11";

impl World {
    /// Issues in answer to the request of this id; it must succeed.
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
    // The command line makes an id of its own where none is given.
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
        let words = ["request_id: this id was given to another request"];
        world.issue(other).await.fails(2, &words);
    }
    let wrong = world.issue(&["user", "--request-id", "1"]).await;
    wrong.fails(2, &["a request id is a UUID"]);
    assert!(Key::issued(&first).works().await);
    assert_eq!(world.leases().await.len(), 1);
}

#[tokio::test]
async fn a_repetition_joins_the_request_that_is_under_way() {
    for (grant, action) in [("user", "CreateAccessKey"), ("role", "AssumeRole")] {
        let world = World::new().await;
        world.proxy.inject(action, Fault::Hold);
        let both = async { tokio::join!(world.answer(grant, ID), world.answer(grant, ID)) };
        let other = async {
            let held = async || world.proxy.calls(action).pop();
            crate::harness::eventually(action, held).await;
            // Under way under this id is something else.
            let other = ["user", "--ttl", "30m", "--request-id", ID];
            world.issue(&other).await.fails(2, &["another request"]);
            let records = async || {
                let records = world.broker.audit().await;
                let denied = records
                    .iter()
                    .find(|record| record["event"] == "request.denied");
                denied.cloned()
            };
            crate::harness::eventually("a refusal", records).await;
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
async fn a_repetition_of_what_has_ended_is_refused() {
    let world = World::new().await;
    let first = world.answer("user", ID).await;
    let lease = first["lease_id"].as_str().unwrap();
    world.broker.run(&["lease", "revoke", lease]).await.ok();
    let words = [
        &format!("lease {lease} is revoked"),
        "reason: LEASE_ENDED",
        "next: issue anew, with a new request id",
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
async fn an_issue_that_came_to_nothing_can_be_repeated_under_its_id() {
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
    // Somebody made it meanwhile, with tags of their own.
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
