//! Renewal: a user lives longer with its key; a session is followed by a new one.

use serde_json::{Value, json};

use crate::harness::{Key, Run, World, eventually};

async fn world() -> World {
    let world = World::new().await;
    world.put_user(&["--ttl", "10s", "--max-ttl", "2h"]).await;
    world
}

impl World {
    async fn renew(&self, lease: &Value, args: &[&str]) -> Run {
        let id = lease["lease_id"].as_str().unwrap();
        let args = [&["lease", "renew", id], args, &["-o", "json"]].concat();
        self.broker.run_as(Some(&self.token), &args).await
    }
}

#[tokio::test]
async fn a_renewed_user_keeps_its_key_and_lives_longer() {
    let world = world().await;
    let issued = world.broker.issue(&world.token, "user").await;
    let neighbour = world
        .broker
        .json_as(Some(&world.token), &["issue", "user", "--ttl", "1s"]);
    let neighbour = neighbour.await;
    let renewed = world.renew(&issued, &["--ttl", "1h"]).await.ok().json();
    assert_eq!(renewed["lease_id"], issued["lease_id"]);
    assert_eq!(renewed["access_key_id"], issued["access_key_id"]);
    assert_eq!(
        (&renewed["secret_access_key"], &renewed["session_token"]),
        (&Value::Null, &Value::Null)
    );
    assert!(renewed["expiration"].as_str() > issued["expiration"].as_str());
    let ended = async || (!Key::issued(&neighbour).works().await).then_some(());
    eventually("the neighbour's end", ended).await;
    assert!(Key::issued(&issued).works().await);
    let records = world.broker.audit().await;
    let record = records
        .iter()
        .find(|record| record["event"] == "lease.renewed");
    assert_eq!(record.unwrap()["lease_id"], issued["lease_id"]);

    // The environment gets the new end, and keeps its key.
    let id = issued["lease_id"].as_str().unwrap();
    let exports = ["lease", "renew", id, "-o", "env"];
    let exports = world.broker.run_as(Some(&world.token), &exports).await.ok();
    let end = renewed["expiration"].as_str().unwrap();
    let expected =
        format!("export AWS_CREDENTIAL_EXPIRATION='{end}'\nexport CREDBROKER_LEASE_ID='{id}'\n");
    assert_eq!(exports.stdout, expected);

    // A renewal never shortens.
    let again = world.renew(&issued, &["--ttl", "1m"]).await.ok().json();
    assert_eq!(again["expiration"], renewed["expiration"]);
}

#[tokio::test]
async fn a_user_lives_no_longer_than_its_grant_allows() {
    let world = world().await;
    let issued = world.broker.issue(&world.token, "user").await;
    let words = ["at the latest", "reason: RENEWAL_ABOVE_MAXIMUM", "next: "];
    let too_long = world.renew(&issued, &["--ttl", "2h"]).await;
    too_long.fails(6, &words);
    let above = world.renew(&issued, &["--ttl", "3h"]).await;
    above.fails(2, &["ttl: 3h is above the maximum"]);
    world.renew(&issued, &["--ttl", "119m"]).await.ok();
}

#[tokio::test]
async fn a_renewed_session_is_a_new_one_that_names_the_old() {
    let world = world().await;
    let issued = world.broker.issue(&world.token, "role").await;
    let id = "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10";
    let args = ["--ttl", "90m", "--request-id", id];
    let renewed = world.renew(&issued, &args).await.ok().json();
    assert_ne!(renewed["lease_id"], issued["lease_id"]);
    assert_eq!(renewed["renews_lease_id"], issued["lease_id"]);
    assert_ne!(renewed["access_key_id"], issued["access_key_id"]);
    assert!(Key::issued(&renewed).works().await);
    let id_of = |lease: &Value| lease["lease_id"].as_str().unwrap().to_owned();
    let exports = ["lease", "renew", &id_of(&issued), "-o", "env"];
    let exports = world.broker.run_as(Some(&world.token), &exports).await.ok();
    for name in ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        assert!(exports.stdout.contains(&format!("export {name}='")));
    }
    // The old session expires at its time.
    assert!(Key::issued(&issued).works().await);
    let again = world.renew(&issued, &args).await.ok().json();
    assert_eq!(again["lease_id"], renewed["lease_id"]);
    let reused = world.renew(&renewed, &args).await;
    reused.fails(
        2,
        &["request_id: this request id was used for another request"],
    );
    // The answer stays the same after the old lease was revoked.
    let old = issued["lease_id"].as_str().unwrap();
    world.broker.run(&["lease", "revoke", old]).await.ok();
    let again = world.renew(&issued, &args).await.ok().json();
    assert_eq!(again["lease_id"], renewed["lease_id"]);
    world.renew(&issued, &[]).await.fails(6, &["LEASE_ENDED"]);
    let lease = renewed["lease_id"].as_str().unwrap();
    let shown = world.broker.json(&["lease", "show", lease]).await;
    assert_eq!(
        (&shown["renews_lease_id"], &shown["request_id"]),
        (&issued["lease_id"], &json!(id))
    );
}

#[tokio::test]
async fn a_foreign_or_ended_lease_is_not_renewed() {
    let world = world().await;
    let issued = world.broker.issue(&world.token, "user").await;
    let id = issued["lease_id"].as_str().unwrap();
    let stranger = world.broker.service("billing").await;
    let renew = ["lease", "renew", id];
    let foreign = world.broker.run_as(Some(&stranger), &renew).await;
    foreign.fails(5, &["there is no lease"]);
    let operator = world.broker.run(&renew).await;
    operator.fails(4, &["this call is for services"]);

    world.put_user(&["--ttl", "20s", "--max-ttl", "2h"]).await;
    let changed = world.renew(&issued, &[]).await;
    changed.fails(6, &["an earlier version of its grant"]);
    world.broker.run(&["lease", "revoke", id]).await.ok();
    let over = world.renew(&issued, &[]).await;
    over.fails(6, &["is revoked", "next: issue again"]);
    assert!(world.account.issued_users().await.is_empty());
}
