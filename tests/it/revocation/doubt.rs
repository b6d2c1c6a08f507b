//! Revocation on an older copy of the store, which lacks later revocations.

use std::{fs, path::PathBuf};

use tempfile::TempDir;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    Neighbours,
    hands::{repairs, restarted},
};
use crate::harness::{
    Key, eventually, eventually_within,
    proxy::{Fault, Proxy},
    stored::skipped_over_postgres,
};
use crate::lifecycle::channel;

/// Copy of the store of two neighbours from before one of them was revoked.
struct Older {
    two: Neighbours,
    /// Key of the revoked service.
    revoked: Key,
    other: Key,
    directory: TempDir,
}

impl Older {
    /// Creates the copy. The broker is down.
    async fn new() -> Self {
        let mut two = Neighbours::new().await;
        let (_, revoked) = two.issue("payments-api", "work").await;
        let (_, other) = two.issue("billing", "work").await;
        assert!(two.world.broker.stop().await);
        let directory = TempDir::new().unwrap();
        fs::copy(
            two.world.broker.database(),
            directory.path().join("copy.db"),
        )
        .unwrap();
        let mut two = two.start_again().await;
        two.revoke("payments-api").await;
        two.dead(&revoked).await;
        assert!(two.world.broker.stop().await);
        Self {
            two,
            revoked,
            other,
            directory,
        }
    }

    fn copy(&self) -> PathBuf {
        self.directory.path().join("copy.db")
    }
}

#[tokio::test]
async fn an_older_copy_of_the_store_deletes_no_denial() {
    if skipped_over_postgres() {
        return;
    }
    let older = Older::new().await;
    let copy = older.copy();
    let Older {
        mut two,
        revoked,
        other,
        ..
    } = older;
    fs::copy(copy, two.world.broker.database()).unwrap();
    let proxy = Proxy::start().await;
    let again = two
        .world
        .broker
        .start_again(&two.world.account.admin, &proxy.endpoint);
    two.world.broker = again.await;
    let issue = two
        .world
        .broker
        .run_as(Some(&two.tokens["billing"]), &["issue", "work"]);
    issue.await.fails(6, &["LOG_CONTRADICTED"]);
    let ready = two.world.broker.https_get("/readyz").await;
    assert!(
        ready.contains(" 503 ") && ready.contains("in doubt"),
        "{ready}"
    );
    let mut health = HealthClient::new(channel(&two.world.broker.env).await);
    let told = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(told.into_inner().status(), ServingStatus::NotServing);

    let refusal = Fault::Answer(403, "AccessDenied", "not now");
    proxy.inject("PutRolePolicy", refusal);
    let told = two.revoke("billing").await;
    assert_eq!(told["confirmed"], false, "{told:#}");
    assert!(two.works(&other).await);
    proxy.heal();
    let confirmed = async || {
        let denials = "SELECT count(*) FROM audit WHERE event = 'denial.confirmed'";
        (two.world.broker.count(denials).await == 1).then_some(())
    };
    eventually_within(30, "the denial is confirmed", confirmed).await;
    two.dead(&other).await;
    two.dead(&revoked).await;
}

#[tokio::test]
async fn denials_unknown_to_an_older_copy_are_not_recorded_as_drift() {
    if skipped_over_postgres() {
        return;
    }
    let mut two = Neighbours::new().await;
    two.issue("billing", "work").await;
    two.revoke("billing").await;
    two.reinstate("billing").await;
    let settled = "SELECT count(*) FROM denials WHERE due_at = lasts_until";
    let settled = async || (two.world.broker.count(settled).await == 1).then_some(());
    eventually("the denial is written as one with an end", settled).await;
    assert!(two.world.broker.stop().await);
    let directory = TempDir::new().unwrap();
    let copy = directory.path().join("copy.db");
    fs::copy(two.world.broker.database(), &copy).unwrap();
    let mut two = two.start_again().await;
    let (_, key) = two.issue("billing", "work").await;
    two.revoke("billing").await;
    assert!(two.world.broker.stop().await);

    fs::copy(copy, two.world.broker.database()).unwrap();
    let proxy = Proxy::start().await;
    two = restarted(two, &proxy.endpoint).await;
    let twice = async || (proxy.calls("PutRolePolicy").len() >= 2).then_some(());
    eventually_within(30, "it is written once more", twice).await;
    assert_eq!(repairs(&two.world.broker).await, 0);
    two.dead(&key).await;
}

#[tokio::test]
async fn a_copy_without_its_checkpoint_deletes_no_denial() {
    if skipped_over_postgres() {
        return;
    }
    let older = Older::new().await;
    let told = older
        .two
        .offline_on(&older.copy(), None, &["billing"])
        .await;
    assert!(told.ok().stdout.contains("AWS refuses them after"));
    older.two.dead(&older.other).await;
    older.two.dead(&older.revoked).await;
}

#[tokio::test]
async fn an_unreadable_denial_stays_in_aws_and_delays_no_other() {
    let two = Neighbours::new().await;
    let broker = &two.world.broker;
    let (_, unreadable) = two.issue("billing", "work").await;
    two.revoke("billing").await;
    let (_, next) = two.issue("payments-api", "work").await;
    // A newer replica on the same database may write this.
    broker
        .write_store("UPDATE denials SET scope = 'galaxy far-away', due_at = 0")
        .await;
    let revoked = two.revoke("payments-api").await;
    assert_eq!(revoked["confirmed"], true, "{revoked}");
    two.dead(&next).await;
    two.dead(&unreadable).await;
    let status = broker.run(&["status", "-o", "json"]).await.ok();
    assert_eq!(status.json()["unreadable_denials"], 1);
    assert!(
        status
            .stderr
            .contains("denials in the store cannot be read"),
        "{status:?}"
    );
}
