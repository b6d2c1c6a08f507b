//! Promises of SQLite beyond the port: one private file, one broker, nothing lost.

use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use credbroker::{
    audit::tree::{Frontier, leaf_hash},
    broker::ports::{AuditFilter, Store},
    domain::{audit::Event, service::Service},
    store::sqlite::{OpenError, SqliteStore},
};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::{process::Command, task::JoinSet};

use super::{Engine, INDEXED, active, at as moment, audit, granted, name, page};
use crate::harness::eventually;

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
async fn commits_are_checkpointed_while_the_store_is_open() {
    let (home, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = at(home.path()).await.unwrap();
    granted(&store, "payments-api/work").await;
    let alone = elsewhere.path().join("credbroker.db");
    let carried_over = async || {
        // Another process copies the file: closing it here would release this process's locks on
        // it.
        let mut copy = Command::new("cp");
        copy.arg(home.path().join("credbroker.db")).arg(&alone);
        assert!(copy.status().await.unwrap().success());
        let options = SqliteConnectOptions::new().filename(&alone);
        let mut copy = SqliteConnection::connect_with(&options).await.ok()?;
        let grants = sqlx::query_scalar("SELECT count(*) FROM grants");
        let grants: i64 = grants.fetch_one(&mut copy).await.ok()?;
        copy.close().await.ok()?;
        (grants == 1).then_some(())
    };
    eventually("the grant is in the file", carried_over).await;
    store.close().await;
}

/// Checks the version: earlier ones may lose commits while another connection checkpoints:
/// <https://sqlite.org/wal.html#walresetbug>.
#[tokio::test]
async fn sqlite_version_checkpoints_safely_beside_commits() {
    let mut memory = SqliteConnection::connect("sqlite::memory:").await.unwrap();
    let version = sqlx::query_scalar("SELECT sqlite_version()");
    let version: String = version.fetch_one(&mut memory).await.unwrap();
    let parts = version.split('.').map(|part| part.parse().unwrap());
    let parts: Vec<u32> = parts.collect();
    assert!(parts.as_slice() >= [3, 51, 3].as_slice(), "{version}");
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
    // The store is not closed, like after a crash.
    drop(store);
    let store = at(home.path()).await.unwrap();
    assert_eq!(store.counts().await.unwrap(), counts);
    assert_eq!(
        store.grant(&grant.name).await.unwrap().as_deref(),
        Some(&grant)
    );
    let id = lease.binding.lease_id.clone();
    assert_eq!(store.lease(&id).await.unwrap(), Some(lease));
}

#[tokio::test]
async fn a_missing_directory_is_named_in_the_error() {
    let home = TempDir::new().unwrap();
    let missing = home.path().join("missing");
    let error = at(&missing).await.unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    assert!(
        error.to_string().contains("missing/credbroker.db"),
        "{error}"
    );
}

#[tokio::test]
async fn changes_at_the_same_moment_are_each_done_or_refused_for_themselves() {
    let home = TempDir::new().unwrap();
    let store = Arc::new(at(home.path()).await.unwrap());
    let mut tasks = JoinSet::new();
    for number in 0..600 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            // Every third uses the same name, which succeeds once.
            if number % 3 > 0 {
                return store.record(audit(Event::StatusRead)).await.is_ok();
            }
            let service = Service {
                name: name("payments-api"),
                created_at: moment(number),
                suspension: None,
            };
            let created = store.create_service(&service, audit(Event::ServiceCreated));
            created.await.is_ok()
        });
    }
    let done = tasks.join_all().await.into_iter().filter(|done| *done);
    let done = u64::try_from(done.count()).unwrap();
    assert_eq!(done, 401);
    assert_eq!(store.audit_size().await.unwrap(), done);
    let created = AuditFilter {
        event: Some("service.created".to_owned()),
        ..AuditFilter::default()
    };
    let created = store.audit(&created, &page(None, 10)).await.unwrap();
    assert_eq!(created.len(), 1);
}

#[tokio::test]
async fn the_log_grows_as_a_merkle_tree_across_restarts() {
    let home = TempDir::new().unwrap();
    for _ in 0..3 {
        let store = Arc::new(at(home.path()).await.unwrap());
        let mut tasks = JoinSet::new();
        for _ in 0..201 {
            let store = Arc::clone(&store);
            tasks.spawn(async move { store.record(audit(Event::StatusRead)).await.unwrap() });
        }
        tasks.join_all().await;
        // The store is not closed, like after a crash.
    }
    let path = home.path().join("credbroker.db");
    let options = SqliteConnectOptions::new().filename(path);
    let mut reader = SqliteConnection::connect_with(&options).await.unwrap();
    let leaves: Vec<Vec<u8>> = sqlx::query_scalar("SELECT leaf FROM audit ORDER BY seq")
        .fetch_all(&mut reader)
        .await
        .unwrap();
    let (mut tree, mut tiles) = (Frontier::default(), Vec::new());
    for leaf in &leaves {
        for (node, hash) in tree.push(leaf_hash(leaf)) {
            if node.level == 8 {
                tiles.push(hash.to_vec());
            }
        }
    }
    assert_eq!((leaves.len(), tiles.len()), (603, 2));
    let kept: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT hash FROM audit_tiles WHERE level = 1 ORDER BY idx")
            .fetch_all(&mut reader)
            .await
            .unwrap();
    assert_eq!(kept, tiles);
    let edge: (i64, Vec<u8>) = sqlx::query_as("SELECT size, subtrees FROM audit_edge")
        .fetch_one(&mut reader)
        .await
        .unwrap();
    assert_eq!(edge, (603, tree.subtrees().as_flattened().to_vec()));
}

#[tokio::test]
async fn frequent_queries_use_an_index() {
    let home = TempDir::new().unwrap();
    at(home.path()).await.unwrap().close().await;
    let options = SqliteConnectOptions::new().filename(home.path().join("credbroker.db"));
    let mut raw = SqliteConnection::connect_with(&options).await.unwrap();
    for (query, index) in INDEXED {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"));
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(explain).fetch_all(&mut raw).await.unwrap();
        let [(.., step)] = plan.as_slice() else {
            panic!("{plan:?}");
        };
        assert!(step.starts_with("SEARCH") && step.contains(index), "{step}");
    }
}
