//! Restore of a database from its dump: the newest continues, an older one is noticed.

use std::path::Path;

use credbroker::store::postgres::migrate;
use secrecy::SecretString;
use tempfile::TempDir;

use crate::harness::{
    Account, Broker, Key, World,
    broker::dev,
    postgres::{empty, migrated, run},
    proxy::Proxy,
    stored::Stored,
};

/// Dumps a whole database to a file.
async fn dump(database: &SecretString, file: &str) {
    run("pg_dump", &["--format=custom", "--file", file], database).await;
}

#[tokio::test]
async fn a_restored_dump_continues_and_an_older_one_issues_nothing() {
    let home = TempDir::new().unwrap();
    let file = |name: &str| home.path().join(name).display().to_string();
    let url = migrated().await;
    let (account, proxy) = (Account::new().await, Proxy::start().await);
    let command = |state: &Path| dev(state, &account.admin, &proxy.endpoint);
    let store = |_: &Path| Stored::Database(url.clone());
    let broker = Broker::start_on(store, command).await;
    let mut world = World::with(account, proxy, broker).await;
    let issued = world.issued(&["user"]).await;
    // The broker works during the dump.
    dump(&url, &file("older")).await;
    world.assert_issues("user").await;
    assert!(world.broker.stop().await);
    dump(&url, &file("newest")).await;

    let (admin, endpoint) = (world.account.admin.clone(), world.proxy.endpoint.clone());
    for name in ["newest", "older"] {
        let restored = empty().await;
        run("pg_restore", &["--exit-on-error", &file(name)], &restored).await;
        // The dump's tables are those of this version.
        migrate(&restored).await.unwrap();
        world.broker.store = Stored::Database(restored);
        world.broker = world.broker.start_again(&admin, &endpoint).await;
        if name == "newest" {
            world.assert_issues("user").await;
            let id = issued["lease_id"].as_str().unwrap();
            world.broker.run(&["lease", "show", id]).await.ok();
        } else {
            let refused = world.issue(&["user"]).await;
            refused.fails(6, &["the store is an older copy"]);
            world.broker.run(&["revoke", "payments-api"]).await.ok();
            assert!(!Key::issued(&issued).works().await);
        }
        assert!(world.broker.stop().await);
    }
}
