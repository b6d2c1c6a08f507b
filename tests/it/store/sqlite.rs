//! What SQLite promises beyond the port: one private file, one broker, nothing lost.

use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::Path};

use credbroker::{
    broker::ports::Store,
    domain::audit::Event,
    store::sqlite::{OpenError, SqliteStore},
};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::{Engine, active, audit, granted};

pub(super) async fn open() -> Engine {
    let home = TempDir::new().unwrap();
    let store = at(home.path()).await.unwrap();
    Engine {
        store: Box::new(store),
        _home: Box::new(home),
    }
}

async fn at(home: &Path) -> Result<SqliteStore, OpenError> {
    SqliteStore::open(&home.join("credbroker.db")).await
}

#[tokio::test]
async fn every_file_of_the_store_is_for_its_owner_alone() {
    let home = TempDir::new().unwrap();
    let store = at(home.path()).await.unwrap();
    store.record(audit(Event::StatusRead)).await.unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(home.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{entry:?}");
        names.push(entry.file_name().into_string().unwrap());
    }
    for name in ["credbroker.db", "credbroker.db-wal", "credbroker.db-shm"] {
        assert!(
            names.iter().any(|found| found == name),
            "{name} in {names:?}"
        );
    }
}

#[tokio::test]
async fn a_file_that_others_could_read_is_closed_to_them() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("credbroker.db");
    at(home.path()).await.unwrap().close().await;
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let _store = at(home.path()).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[tokio::test]
async fn the_journal_is_a_write_ahead_log() {
    let home = TempDir::new().unwrap();
    let store = at(home.path()).await.unwrap();
    let options = SqliteConnectOptions::new().filename(home.path().join("credbroker.db"));
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(mode, "wal");
    store.close().await;
}

#[tokio::test]
async fn a_second_broker_on_the_same_file_is_refused() {
    let home = TempDir::new().unwrap();
    let store = at(home.path()).await.unwrap();
    let second = at(home.path()).await.unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second:?}");
    assert!(second.to_string().contains("another broker is using"));
    let link = home.path().join("other.db");
    std::os::unix::fs::symlink(home.path().join("credbroker.db"), &link).unwrap();
    let second = SqliteStore::open(&link).await.unwrap_err();
    assert!(
        matches!(second, OpenError::InUse(_)),
        "by another name: {second:?}"
    );
    store.close().await;
    drop(store);
    at(home.path()).await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_opened_again_has_everything() {
    let home = TempDir::new().unwrap();
    let store = at(home.path()).await.unwrap();
    let grant = granted(&store, "payments-api/work").await;
    let lease = active(&store, &grant, 10).await;
    let counts = store.counts().await.unwrap();
    // Not closed: as after a crash.
    drop(store);
    let store = at(home.path()).await.unwrap();
    assert_eq!(store.counts().await.unwrap(), counts);
    assert_eq!(store.grant(&grant.name).await.unwrap(), Some(grant));
    let id = lease.binding.lease_id.clone();
    assert_eq!(store.lease(&id).await.unwrap(), Some(lease));
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_told_by_name() {
    let home = TempDir::new().unwrap();
    let missing = home.path().join("missing");
    let error = at(&missing).await.unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    assert!(
        error.to_string().contains("missing/credbroker.db"),
        "{error}"
    );
}
