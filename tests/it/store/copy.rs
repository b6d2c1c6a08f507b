//! Migration from a file to a database.

use std::path::Path;

use credbroker::proto::WhoAmIRequest;
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::process::Command;

use crate::harness::{
    Key, Run, World,
    broker::{aws_env, credbroker},
    emulator::emulator,
    postgres::{connection, empty, migrated},
};

async fn copy(from: &str, to: &str) -> Run {
    Run::of(
        credbroker(&["store", "copy", "--from", from, "--to", to, "-o", "json"]),
        "",
    )
    .await
}

/// Command `dev` in the same directory, on a database.
fn on(database: &str, state: &Path, admin: &Key) -> Command {
    let endpoint = emulator().endpoint.as_str();
    let state = state.to_str().unwrap();
    let mut command = credbroker(&["dev", "--state-dir", state, "--aws-endpoint", endpoint]);
    command
        .envs(aws_env(admin))
        .env("CREDBROKER_STORE", database);
    command
}

#[tokio::test]
async fn a_broker_moved_to_a_database_continues_its_log() {
    let mut world = World::new().await;
    world.put_user(&[]).await;
    let issued = world.issued(&["user"]).await;
    // Each call of an operator has a record.
    let client = world.broker.client(world.broker.admin_token()).await;
    for _ in 0..600 {
        client.identity().who_am_i(WhoAmIRequest {}).await.unwrap();
    }
    drop(client);
    let from = format!("sqlite:{}", world.broker.database().display());
    let url = migrated().await;
    let to = url.expose_secret();

    copy(&from, to).await.fails(6, &["another broker is using"]);
    assert!(world.broker.stop().await);
    let nothing = empty().await;
    let refused = copy(&from, nothing.expose_secret()).await;
    refused.fails(6, &["credbroker migrate"]);
    let refused = copy("sqlite:nowhere.db", to).await;
    refused.fails(2, &["there is no store nowhere.db"]);
    copy("nowhere.db", to)
        .await
        .fails(2, &["write sqlite:FILE"]);

    let moved = copy(&from, to).await.ok().json();
    assert!(moved["records"].as_u64().unwrap() > 600, "{moved}");
    assert!(!world.broker.database().exists());
    let again = copy(&format!("{from}.moved"), to).await;
    again.fails(6, &["holds services already", "empty one"]);

    let admin = world.account.admin.clone();
    let again = |state: &Path| on(to, state, &admin);
    let broker = world.broker.start_again_by(again).await;
    let status = broker.json(&["status"]).await;
    assert_eq!(status["live_leases"], json!(1), "{status}");
    let records = broker.audit().await;
    let told = |event: &str| records.iter().find(|record| record["event"] == event);
    let size = moved["records"].as_u64().unwrap();
    assert_eq!(told("store.moved").unwrap()["seq"], json!(size + 1));
    assert!(Key::issued(&issued).works().await);
    let id = issued["lease_id"].as_str().unwrap();
    broker.run(&["lease", "revoke", id]).await.ok();
    assert!(!Key::issued(&issued).works().await);
    let mut raw = connection(&url).await;
    let tables: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM information_schema.tables
         WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'",
    )
    .fetch_one(&mut raw)
    .await
    .unwrap();
    // The copy's list has a line for each table, except one of versions and two of live replicas.
    assert_eq!(tables, 18 + 1 + 2);
}
