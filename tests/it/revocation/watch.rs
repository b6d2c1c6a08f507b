//! Watchers: holders of credentials learn of a revocation at once.

use std::time::Duration;

use credbroker::proto::{RevocationNotice, WatchRevocationsRequest, revocation_notice::What};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::harness::World;

/// Longest time that a watcher should wait for a notice.
const AT_ONCE: Duration = Duration::from_secs(1);

struct Watcher(Streaming<RevocationNotice>);

impl Watcher {
    async fn of(world: &World, lease_ids: &[&str]) -> Self {
        let client = world.broker.try_client(&world.token).await.unwrap();
        let request = WatchRevocationsRequest {
            lease_ids: lease_ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let watching = client.credentials().watch_revocations(request).await;
        Self(watching.unwrap().into_inner())
    }

    async fn next(&mut self) -> Result<Option<What>, Status> {
        let next = timeout(AT_ONCE, self.0.message()).await;
        let notice = next.expect("a notice within a second")?;
        Ok(notice.and_then(|notice| notice.what))
    }
}

async fn lease(world: &World) -> String {
    let issued = world.issued(&["role"]).await;
    issued["lease_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_watcher_is_notified_of_revocations_and_ends_with_its_service() {
    let world = World::new().await;
    let id = lease(&world).await;
    let mut watcher = Watcher::of(&world, &[&id]).await;
    // Revocations of other services are not reported.
    world.broker.service("billing").await;
    world.broker.run(&["revoke", "billing"]).await.ok();
    let revoking = ["lease", "revoke", &id];
    world.broker.run(&revoking).await.ok();
    assert_eq!(watcher.next().await.unwrap(), Some(What::LeaseId(id)));
    let revoking = ["revoke", "payments-api/role"];
    world.broker.run(&revoking).await.ok();
    let grant = "payments-api/role".to_owned();
    assert_eq!(watcher.next().await.unwrap(), Some(What::Grant(grant)));
    let revoking = ["revoke", "payments-api"];
    world.broker.run(&revoking).await.ok();
    assert_eq!(watcher.next().await.unwrap(), Some(What::Everything(true)));
    let end = watcher.next().await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
}

#[tokio::test]
async fn a_returning_watcher_gets_ended_leases_first() {
    let world = World::new().await;
    let (over, lives) = (lease(&world).await, lease(&world).await);
    world.broker.run(&["lease", "revoke", &over]).await.ok();
    let foreign = "0".repeat(26);
    let mut watcher = Watcher::of(&world, &[&over, &lives, &foreign]).await;
    for id in [over, foreign] {
        assert_eq!(watcher.next().await.unwrap(), Some(What::LeaseId(id)));
    }
}

#[tokio::test]
async fn a_suspended_service_watches_no_longer_nor_does_a_deleted_token() {
    let world = World::new().await;
    let id = &world.token[4..20];
    for (refuse, code) in [
        (
            ["service", "suspend", "payments-api", "--reason", "audit"].as_slice(),
            Code::PermissionDenied,
        ),
        (
            &["service", "token", "delete", "payments-api", id],
            Code::Unauthenticated,
        ),
    ] {
        let mut watcher = Watcher::of(&world, &[]).await;
        world.broker.run(refuse).await.ok();
        let end = timeout(2 * AT_ONCE, watcher.0.message()).await.unwrap();
        assert_eq!(end.unwrap_err().code(), code);
        let reinstate = ["service", "reinstate", "payments-api"];
        let _ = world.broker.run(&reinstate).await;
    }
}
