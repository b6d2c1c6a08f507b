//! Size limits of AWS: everything requested is denied. Without room, more of the same service is
//! denied or nothing new, never less.

use std::sync::Arc;

use credbroker::{
    broker::{IssuedLease, RevokedLease},
    domain::lease::LeaseState,
    proto::RevokeLeaseRequest,
};
use tokio::time::interval;

use super::{
    Neighbours,
    crowd::{each, issue, key},
    denials_of_role, denials_of_user, size,
};
use crate::{
    enforcement::refused,
    harness::{
        Broker, PACE, eventually, eventually_within, form::Form, proxy::Fault, stepped::Stepped,
    },
};

/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>
const ROLE_ROOM: usize = 10_240;
const USER_ROOM: usize = 2_048;

/// Moves every session, and access made from it, beyond its end, behind the broker's back.
async fn let_sessions_end(broker: &Broker) {
    broker
        .write_store("UPDATE denials SET lasts_until = lasts_until - 150000000000, due_at = due_at - 150000000000")
        .await;
}

async fn all_lifted(broker: &Broker) {
    let lifted = async || {
        let left = broker.count("SELECT count(*) FROM denials").await;
        (left == 0).then_some(())
    };
    eventually_within(20, "the denials are lifted", lifted).await;
}

#[tokio::test]
async fn three_hundred_services_on_one_role_are_denied_and_lifted_and_a_neighbour_works_on() {
    let two = Neighbours::new().await;
    let (_, neighbour) = two.issue("billing", "work").await;
    let crowd = two.crowd(300).await;
    let undisturbed = async {
        let mut pace = interval(PACE);
        loop {
            pace.tick().await;
            assert!(two.works(&neighbour).await);
        }
    };
    tokio::select! {
        () = two.revoke_all(&crowd) => {}
        () = undisturbed => {}
    }
    for member in &crowd {
        refused(
            &member.service,
            member.key.send_message(&two.world.queue).await,
        );
    }
    assert!(two.works(&neighbour).await);
    let (_, policy) = denials_of_role(&two.world.account, &two.role)
        .await
        .unwrap();
    let size = size(&policy);
    println!("300 services: {size} of {ROLE_ROOM} characters");
    assert!(size <= ROLE_ROOM, "{size}");
    let log = &two.world.broker;
    let widened = "SELECT count(*) FROM audit WHERE event = 'denial.widened'";
    assert_eq!(log.count(widened).await, 0);

    let_sessions_end(&two.world.broker).await;
    all_lifted(&two.world.broker).await;
    assert_eq!(two.policies().await, [""; 0]);
    assert!(two.works(&neighbour).await);
}

#[tokio::test]
async fn a_service_is_denied_as_a_whole_where_its_leases_take_too_much_room() {
    let two = Neighbours::new().await;
    let (_, neighbour) = two.issue("billing", "federated").await;
    let client = two.world.broker.client(&two.tokens["payments-api"]).await;
    let mut held = Vec::new();
    for _ in 0..120 {
        let issued = issue(&client, "federated").await;
        let lease = issued.lease.as_ref().unwrap().lease_id.clone();
        held.push((lease, key(issued)));
    }
    let admin = two.admin().await;
    let leases = held.iter().map(|(lease, _)| lease.clone()).collect();
    let answers = each(leases, |lease_id| {
        let admin = admin.clone();
        async move {
            let request = RevokeLeaseRequest {
                lease_id,
                reason: String::new(),
            };
            let revoked = admin.leases().revoke_lease(request).await;
            revoked.unwrap().into_inner()
        }
    })
    .await;
    let told = |words: &str| {
        let says = answers
            .iter()
            .filter(|answer| answer.notice.contains(words));
        says.count()
    };
    assert!(told("for want of room") >= 1, "{answers:?}");
    let ended = async || {
        let live = "SELECT count(*) FROM leases WHERE state = 'revoking'";
        (two.world.broker.count(live).await == 0).then_some(())
    };
    eventually_within(15, "all are recorded as revoked", ended).await;
    for (lease, key) in &held {
        refused(lease, key.send_message(&two.world.queue).await);
    }
    assert!(two.works(&neighbour).await);
    let (_, policy) = denials_of_user(&two.world.account).await.unwrap();
    assert!(size(&policy) <= USER_ROOM, "{}", size(&policy));
    let widened = "SELECT count(*) FROM audit WHERE event = 'denial.widened'";
    assert!(two.world.broker.count(widened).await >= 1);
}

/// Makes AWS refuse every document on a role that has more characters.
fn room_for(world: &Stepped, room: usize) {
    let too_long = move |body: &str| size(&Form::of(body).document("PolicyDocument")) > room;
    let fault = Fault::AnswerIf(Arc::new(too_long), 409, "LimitExceeded", "too long");
    world.proxy.inject("PutRolePolicy", fault);
}

async fn standing(world: &Stepped) -> Option<serde_json::Value> {
    let role = world.account.unique("credbroker-any");
    let found = denials_of_role(&world.account, &role).await;
    found.map(|(_, policy)| policy)
}

async fn is_revoked(world: &Stepped, issued: &IssuedLease) -> bool {
    let lease = world.lease(&issued.lease).await;
    matches!(lease.state, LeaseState::Revoked { .. })
}

fn notice(revoked: &RevokedLease) -> &str {
    revoked.notice.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn a_service_is_denied_as_a_whole_if_other_policies_leave_little_room() {
    let world = Stepped::new().await;
    let mut issued = Vec::new();
    for _ in 0..6 {
        issued.push(world.issue("role").await.unwrap());
    }
    room_for(&world, 300);
    let mut told = Vec::new();
    for one in &issued {
        let revoked = world.revoke(&one.lease).await.unwrap();
        assert!(revoked.seen.is_some(), "{revoked:?}");
        told.push(notice(&revoked).to_owned());
    }
    assert!(told[0].is_empty(), "{told:?}");
    assert!(
        told.iter().any(|told| told.contains("for want of room")),
        "{told:?}"
    );
    for one in &issued {
        assert!(is_revoked(&world, one).await);
    }
    assert!(!world.records("denial.widened").await.is_empty());
    assert!(size(&standing(&world).await.unwrap()) <= 300);
    let names = standing(&world).await.unwrap().to_string();
    assert!(names.contains("*:payments-api.*"), "{names}");
}

#[tokio::test]
async fn a_denial_without_room_is_reported_and_written_once_there_is_room() {
    let world = Stepped::new().await;
    let (first, second) = (
        world.issue("role").await.unwrap(),
        world.issue("role").await.unwrap(),
    );
    world.revoke(&first.lease).await.unwrap();
    let before = standing(&world).await.unwrap();
    room_for(&world, 10);
    let revoked = world.revoke(&second.lease).await.unwrap();
    assert_eq!(revoked.seen, None);
    assert!(notice(&revoked).contains("AWS has room for"), "{revoked:?}");
    assert!(
        notice(&revoked).contains("give services roles of their own"),
        "{revoked:?}"
    );
    assert!(!is_revoked(&world, &second).await);
    assert_eq!(standing(&world).await.unwrap(), before);
    let failures = world.records("denial.postponed").await;
    let reasons = failures
        .iter()
        .filter_map(|record| record.reason.as_deref());
    assert_eq!(reasons.collect::<Vec<_>>(), ["NO_ROOM_FOR_DENIAL"]);

    world.proxy.heal();
    world.wait(120);
    world.broker.maintain_denials_once().await.unwrap();
    let done = async || is_revoked(&world, &second).await.then_some(());
    eventually("it is denied", done).await;
    assert_ne!(standing(&world).await.unwrap(), before);
}
