//! Access that was made from a session and outlives it.

use aws_sdk_sts::types::Tag;
use credbroker::broker::Revocation;
use serde_json::Value;

use super::{Neighbours, denials_of_role, hands::restarted};
use crate::{
    enforcement::refused,
    harness::{
        Account, Key, eventually,
        proxy::{Fault, Proxy},
        stepped::{self, Stepped},
    },
};

const HOUR: i64 = 3600;

/// Number of roles and users at which AWS has a denial.
async fn denied(world: &Stepped) -> usize {
    world.account.denials().await.len()
}

/// States of a revocation's leases.
fn leases(revocation: &Revocation) -> Vec<&'static str> {
    let leases = revocation.leases.iter();
    leases.map(|told| told.lease.state.as_str()).collect()
}

#[tokio::test]
async fn a_denial_stands_until_derived_access_has_expired() {
    let world = Stepped::new().await;
    let role = world.issue("role").await.unwrap();
    let federated = world.issue("federation").await.unwrap();
    assert!(world.shut_out().await.unwrap().confirmed());
    // The sessions themselves live for an hour.
    world.step(2 * HOUR).await;
    world.step(11 * HOUR).await;
    assert_eq!(denied(&world).await, 2);
    assert!(!stepped::key(&role).is_served().await);
    world.step(HOUR).await;
    assert_eq!(denied(&world).await, 1, "12 hours after the role's");
    world.step(23 * HOUR).await;
    assert_eq!(denied(&world).await, 1);
    assert!(!stepped::key(&federated).is_served().await);
    world.step(HOUR).await;
    assert_eq!(denied(&world).await, 0, "36 hours after the user's");
}

#[tokio::test]
async fn an_expired_session_is_denied_while_derived_access_may_live() {
    let world = Stepped::new().await;
    let issued = world.issue("role").await.unwrap();
    world.step(3 * HOUR).await;
    assert_eq!(world.lease(&issued.lease).await.state.as_str(), "expired");
    let revoked = world.shut_out().await.unwrap();
    assert!(revoked.confirmed());
    assert_eq!((leases(&revoked), revoked.denials.len()), (vec![], 1));
    assert!(!stepped::key(&issued).is_served().await);
    // The denial stands until such access has expired; then nothing is left to deny.
    world.step(10 * HOUR).await;
    assert_eq!(denied(&world).await, 1);
    world.step(HOUR).await;
    assert_eq!(denied(&world).await, 0);
    let revoked = world.shut_out().await.unwrap();
    assert!(revoked.confirmed());
    assert_eq!(revoked.denials.len(), 0);
}

#[tokio::test]
async fn a_lease_is_revoked_by_its_id_after_its_session_has_expired() {
    let world = Stepped::new().await;
    let issued = world.issue("role").await.unwrap();
    let other = world.issue("role").await.unwrap();
    world.step(3 * HOUR).await;
    let revoked = world.revoke(&issued.lease).await.unwrap();
    assert_eq!(revoked.lease.state.as_str(), "revoked");
    assert!(revoked.seen.is_some());
    assert!(!stepped::key(&issued).is_served().await);
    assert!(stepped::key(&other).is_served().await);
    world.step(11 * HOUR).await;
    let late = world.revoke(&other.lease).await.unwrap_err();
    assert_eq!(late.reason(), "LEASE_ENDED");
}

/// Session with the service's tag, like one made from the service's sessions.
async fn derived(account: &Account, role: &str) -> Key {
    let service = Tag::builder().key("credbroker:service");
    let service = service.value("payments-api").build().unwrap();
    let assume = account.admin.sts().assume_role().role_arn(role);
    let assume = assume
        .role_session_name("payments-api.derived")
        .tags(service);
    let made = assume.send().await.unwrap().credentials.unwrap();
    Key {
        id: made.access_key_id,
        secret: made.secret_access_key,
        token: Some(made.session_token),
    }
}

#[tokio::test]
async fn a_session_made_after_the_revocation_is_denied_until_reinstatement() {
    let two = Neighbours::new().await;
    two.issue("payments-api", "work").await;
    let (_, neighbour) = two.issue("billing", "work").await;
    assert_eq!(two.revoke("payments-api").await["confirmed"], true);
    let (account, queue) = (&two.world.account, &two.world.queue);
    let later = derived(account, &two.role).await;
    refused("sending", later.send_message(queue).await);
    // A repeated revocation is proven with a canary that is denied from the start.
    assert_eq!(two.revoke("payments-api").await["confirmed"], true);

    two.reinstate("payments-api").await;
    let (_, new) = two.issue("payments-api", "work").await;
    assert!(two.works(&new).await);
    assert!(two.works(&neighbour).await);
    refused("sending", later.send_message(queue).await);
}

/// Cutoff of the denials at a role.
async fn moment(two: &Neighbours) -> Option<Value> {
    let (_, policy) = denials_of_role(&two.world.account, &two.role).await?;
    let condition = &policy["Statement"][0]["Condition"];
    condition.get("DateLessThan").cloned()
}

#[tokio::test]
async fn a_reinstated_service_is_given_no_session_that_aws_still_denies() {
    let proxy = Proxy::start().await;
    let two = restarted(Neighbours::new().await, &proxy.endpoint).await;
    two.issue("payments-api", "work").await;
    assert_eq!(two.revoke("payments-api").await["confirmed"], true);
    let (written, assumed) = (
        || proxy.calls("PutRolePolicy").len(),
        || proxy.calls("AssumeRole").len(),
    );
    let (before, made) = (written(), assumed());
    proxy.inject("PutRolePolicy", Fault::Answer(503, "Slow", "not now"));
    two.reinstate("payments-api").await;
    let refused = async || (written() > before).then_some(());
    eventually("AWS does not take it", refused).await;
    let issuing = two.issue("payments-api", "work");
    let healing = async {
        let waits = "SELECT count(*) FROM leases WHERE state = 'pending'";
        let begun = async || (two.world.broker.count(waits).await == 1).then_some(());
        eventually("the issue has begun", begun).await;
        assert_eq!((assumed(), moment(&two).await), (made, None));
        proxy.heal();
    };
    let ((_, key), ()) = tokio::join!(issuing, healing);
    assert!(moment(&two).await.is_some());
    assert!(two.works(&key).await);
}

#[tokio::test]
async fn a_new_service_with_the_name_of_a_deleted_one_is_served() {
    let mut two = Neighbours::new().await;
    let (_, old) = two.issue("payments-api", "work").await;
    assert_eq!(two.revoke("payments-api").await["confirmed"], true);
    let broker = &two.world.broker;
    broker
        .run(&["service", "delete", "payments-api"])
        .await
        .ok();
    let token = broker.service("payments-api").await;
    let flags = ["--role-arn", &two.role];
    let policy = two.world.narrow_policy();
    broker.grant("payments-api/work", &flags, &policy).await;
    two.tokens.insert("payments-api", token);
    let (_, new) = two.issue("payments-api", "work").await;
    assert!(two.works(&new).await);
    two.dead(&old).await;
}
