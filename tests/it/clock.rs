//! Leases end by AWS's clock, whatever the machine's says.

use std::time::Duration;

use credbroker::domain::clock::wall_time;
use jiff::SignedDuration;

use crate::harness::{
    eventually,
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
        // As at every start, before anything ends.
        world.admin_key().await.identity.unwrap();
        let off = world.broker.now().duration_since(wall_time());
        assert!(off.abs() < SignedDuration::from_secs(3), "{off:?}");

        let kept = world.issue("user").await.unwrap();
        let brief = world.issue_of("user", Some(Duration::from_secs(2)), None);
        let brief = brief.await.unwrap();
        let session = world.issue("role").await.unwrap();
        world.broker.reap_once().await.unwrap();
        let ends = brief.lease.issued().unwrap().expires_at;
        let ended = async || {
            world.broker.reap_once().await.unwrap();
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
        // AWS's own expiration is what is recorded.
        let told = session.credentials.expires_at.unwrap();
        assert_eq!(session.lease.issued().unwrap().expires_at, told);
    }
}
