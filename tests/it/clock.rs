//! Leases end by AWS's clock, whatever the machine's clock says.

use std::time::Duration;

use credbroker::domain::clock::wall_time;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::harness::{
    Key, World, eventually,
    proxy::Fault,
    stepped::{self, Stepped, Ways},
};

#[tokio::test]
async fn a_machine_whose_clock_is_an_hour_wrong_neither_kills_nor_prolongs_a_lease() {
    for hours in [-1, 1] {
        let world = Stepped::with(Ways {
            wall_wrong_by: Some(SignedDuration::from_hours(hours)),
            ..Ways::default()
        })
        .await;
        // Every start does this before any lease ends.
        world.admin_key().await.identity.unwrap();
        world.broker.settle_clock().await;
        let off = world.broker.now().duration_since(wall_time());
        assert!(off.abs() < SignedDuration::from_secs(3), "{off:?}");

        let kept = world.issue("user").await.unwrap();
        let brief = world.issue_of("user", Some(Duration::from_secs(2)), None);
        let brief = brief.await.unwrap();
        let session = world.issue("role").await.unwrap();
        world.broker.clean_up_once().await.unwrap();
        let ends = brief.lease.issued().unwrap().expires_at;
        let ended = async || {
            world.broker.clean_up_once().await.unwrap();
            let lease = world.lease(&brief.lease).await;
            lease.ended_at()
        };
        let ended = eventually("the end of the brief one", ended).await;
        let late = ended.duration_since(ends);
        assert!(
            late >= SignedDuration::ZERO && late < SignedDuration::from_secs(5),
            "{late:?}"
        );
        assert!(stepped::key(&kept).works().await);
        for lease in [&kept.lease, &session.lease] {
            assert_eq!(world.lease(lease).await.state.as_str(), "active");
        }
        // The lease records AWS's own expiration.
        let told = session.credentials.expires_at.unwrap();
        assert_eq!(session.lease.issued().unwrap().expires_at, told);
    }
}

/// Makes the broker ask AWS for its identity, and so for the time.
async fn asks_for_the_time(world: &World) -> Value {
    world.broker.json(&["status"]).await
}

#[tokio::test]
async fn one_answer_with_a_wrong_date_ends_no_lease_and_a_revocation_reaches_all() {
    for days in [-61, 61] {
        let world = Stepped::with(Ways {
            wall_wrong_by: Some(SignedDuration::ZERO),
            ..Ways::quick()
        })
        .await;
        let issued = [
            world.issue("role").await.unwrap(),
            world.issue("federation").await.unwrap(),
            world.issue("user").await.unwrap(),
        ];
        let wrong = Fault::Skew(SignedDuration::from_hours(days * 24));
        world.proxy.inject_in_turn("GetCallerIdentity", [wrong]);
        world.admin_key().await.identity.unwrap();
        world.broker.clean_up_once().await.unwrap();
        for issued in &issued {
            let lease = world.lease(&issued.lease).await;
            assert_eq!(lease.state.as_str(), "active");
        }
        let revoked = world.shut_out().await.unwrap();
        assert!(revoked.confirmed(), "{revoked:?}");
        assert_eq!((revoked.leases.len(), revoked.denials.len()), (3, 2));
        for issued in &issued {
            assert!(!stepped::key(issued).is_served().await);
        }
    }
}

#[tokio::test]
async fn while_answers_contradict_each_other_nothing_is_issued_and_revocation_works() {
    let world = World::new().await;
    let session = Key::issued(&world.issued(&["role"]).await);
    let wrong = (1..1000).map(|minutes| Fault::Skew(SignedDuration::from_mins(20 * minutes)));
    world.proxy.inject_in_turn("GetCallerIdentity", wrong);
    let refused = async || {
        let told = asks_for_the_time(&world).await;
        let run = world.issue(&["role"]).await;
        (told["clock_uncertain"] == json!(true) && run.code != 0).then_some(run)
    };
    let refused = eventually("nothing is issued", refused).await;
    refused.fails(7, &["do not agree on the time", "reason: CLOCK_UNCERTAIN"]);
    let metrics = world.broker.https_get("/metrics").await;
    assert!(
        metrics.contains("credbroker_clock_uncertain 1"),
        "{metrics}"
    );
    let revoked = world.broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], json!(true));
    assert!(!session.is_served().await);

    world.proxy.heal();
    let reinstate = ["service", "reinstate", "payments-api"];
    world.broker.run(&reinstate).await.ok();
    let issues = async || (world.issue(&["user"]).await.code == 0).then_some(());
    eventually("it issues again", issues).await;
}
