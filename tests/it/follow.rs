//! Streams of credentials: a caller gets the next credentials before the old ones end, and learns
//! of a revocation at once.

use std::time::Duration;

use credbroker::{
    broker::{CredentialUpdate, Error, Subscription},
    domain::lease::LeaseState,
    proto::{
        IssueCredentialsResponse, WatchCredentialsRequest, WatchCredentialsResponse,
        watch_credentials_response::What,
    },
};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::harness::{Key, World, proxy::Fault, stepped::Stepped};

/// Longest time that a caller should wait for a notice.
const AT_ONCE: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(20);

struct Follower(Streaming<WatchCredentialsResponse>);

impl Follower {
    async fn of(world: &World, grant: &str, lease_id: &str) -> Self {
        let client = world.broker.try_client(&world.token).await.unwrap();
        let request = WatchCredentialsRequest {
            grant: grant.to_owned(),
            ttl: None,
            lease_id: lease_id.to_owned(),
        };
        let watching = client.credentials().watch_credentials(request).await;
        Self(watching.unwrap().into_inner())
    }

    async fn told(&mut self, limit: Duration) -> Result<Option<What>, Status> {
        let told = timeout(limit, self.0.message()).await;
        let told = told.expect("news in time")?;
        Ok(told.and_then(|told| told.what))
    }

    async fn issued(&mut self) -> Held {
        match self.told(LIMIT).await.unwrap() {
            Some(What::Issued(issued)) => Held(issued),
            other => panic!("{other:?}"),
        }
    }

    async fn revoked(&mut self) {
        let told = self.told(AT_ONCE).await.unwrap();
        assert_eq!(told, Some(What::Revoked(true)));
    }
}

struct Held(IssueCredentialsResponse);

impl Held {
    fn lease(&self) -> &str {
        &self.0.lease.as_ref().unwrap().lease_id
    }

    fn key(&self) -> Key {
        let lease = self.0.lease.as_ref().unwrap();
        Key {
            id: lease.access_key_id.clone().unwrap(),
            secret: self.0.secret_access_key.clone(),
            token: self.0.session_token.clone(),
        }
    }
}

#[tokio::test]
async fn the_next_credentials_come_while_the_old_ones_work() {
    let world = World::new().await;
    world.put_user(&["--ttl", "8s", "--max-ttl", "8s"]).await;
    let mut follower = Follower::of(&world, "user", "").await;
    let first = follower.issued().await;
    let next = follower.issued().await;
    assert_ne!(first.lease(), next.lease());
    assert!(first.key().works().await && next.key().works().await);
    // The debug output contains no credentials.
    let shown = format!("{:?}", What::Issued(next.0.clone()));
    assert!(!shown.contains(&next.0.secret_access_key), "{shown}");
}

#[tokio::test]
async fn a_follower_is_notified_of_a_revocation_at_once_and_gets_the_next_credentials() {
    let world = World::new().await;
    let mut follower = Follower::of(&world, "role", "").await;
    let mut other = Follower::of(&world, "federation", "").await;
    let mut held = follower.issued().await;
    let theirs = other.issued().await;
    let lease = held.lease().to_owned();
    for revoke in [
        ["lease", "revoke", &lease],
        ["revoke", "payments-api/role", "-ojson"],
    ] {
        world.broker.run(&revoke).await.ok();
        follower.revoked().await;
        let next = follower.issued().await;
        assert_ne!(next.lease(), held.lease());
        assert!(next.key().works().await);
        held = next;
    }
    // Credentials of the other grant are not affected.
    assert!(theirs.key().works().await);
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    for follower in [&mut follower, &mut other] {
        follower.revoked().await;
        let end = follower.told(AT_ONCE).await.unwrap_err();
        assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    }
}

#[tokio::test]
async fn a_returning_follower_gets_new_credentials_only_if_its_lease_has_ended() {
    let world = World::new().await;
    let mut follower = Follower::of(&world, "role", "").await;
    let held = follower.issued().await;
    let lease = held.lease().to_owned();
    drop(follower);
    let mut again = Follower::of(&world, "role", &lease).await;
    world.broker.run(&["lease", "revoke", &lease]).await.ok();
    // The notice is the first message: nothing was issued before.
    again.revoked().await;
    let next = again.issued().await;
    drop(again);
    world
        .broker
        .run(&["lease", "revoke", next.lease()])
        .await
        .ok();
    let mut away = Follower::of(&world, "role", next.lease()).await;
    away.revoked().await;
    let third = away.issued().await;
    // A lease of another grant, or of another service, does not count.
    let mut other = Follower::of(&world, "federation", third.lease()).await;
    other.issued().await;
    let issued = world.leases().await.len();
    assert_eq!(issued, 4);
}

#[tokio::test]
async fn following_without_permission_is_refused_like_an_issue() {
    let world = World::new().await;
    let mut follower = Follower::of(&world, "nothing", "").await;
    let refused = follower.told(AT_ONCE).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let mut follower = Follower::of(&world, "role", "").await;
    follower.issued().await;
    let suspend = ["service", "suspend", "payments-api"];
    world.broker.run(&suspend).await.ok();
    let end = follower.told(2 * AT_ONCE).await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
}

async fn next(world: &Stepped, following: &mut Subscription) -> Result<CredentialUpdate, Error> {
    let next = timeout(LIMIT, world.broker.next_update(following)).await;
    next.expect("news in time").map(|told| told.unwrap())
}

#[tokio::test]
async fn a_failed_refresh_is_retried_while_the_old_credentials_live() {
    let world = Stepped::new().await;
    let mut following = world.follow("role").await.unwrap();
    let CredentialUpdate::Issued(first) = next(&world, &mut following).await.unwrap() else {
        panic!("nothing issued")
    };
    world.proxy.inject(
        "AssumeRole",
        Fault::Answer(503, "ServiceUnavailable", "later"),
    );
    // The next credentials are due 20 minutes before the end. AWS's clock has moved on since the
    // broker's stood still.
    world.wait(3600 - 20 * 60 + 60);
    let waiting = timeout(
        Duration::from_secs(3),
        world.broker.next_update(&mut following),
    );
    assert!(waiting.await.is_err(), "AWS has no others");
    let asked = world.proxy.calls("AssumeRole").len();
    assert!(asked > 1);
    world.proxy.heal();
    world.wait(120);
    let CredentialUpdate::Issued(second) = next(&world, &mut following).await.unwrap() else {
        panic!("nothing issued")
    };
    assert_ne!(second.lease.binding.lease_id, first.lease.binding.lease_id);
    let first = world.lease(&first.lease).await;
    assert!(matches!(first.state, LeaseState::Active { .. }));

    // Once they have expired, there is nothing to wait for.
    world.proxy.inject(
        "AssumeRole",
        Fault::Answer(503, "ServiceUnavailable", "later"),
    );
    world.wait(3601);
    let refused = next(&world, &mut following).await.unwrap_err();
    assert!(matches!(refused, Error::Aws(_)), "{refused:?}");
}
