//! Promises of PostgreSQL beyond the port: tables of one version, one broker, nothing lost.

use std::{
    io::ErrorKind,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use credbroker::{
    broker::ports::{Peers, Store},
    domain::{audit::Event, service::Service},
    store::postgres::{OpenError, PostgresStore, migrate},
};
use rcgen::{CertificateParams, KeyPair};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Engine, INDEXED, at as moment, audit, name};
use crate::harness::{
    eventually,
    postgres::{Server, connection, empty, migrated},
};

pub(super) async fn open() -> Engine {
    let store = at(&migrated().await).await.unwrap();
    Engine {
        store: Box::new(store),
        _home: Box::new(()),
    }
}

async fn at(url: &SecretString) -> Result<PostgresStore, OpenError> {
    PostgresStore::open(url).await
}

#[tokio::test]
async fn a_database_is_opened_with_the_tables_of_this_version_alone() {
    let url = empty().await;
    let refused = at(&url).await.unwrap_err();
    assert!(matches!(refused, OpenError::NotMigrated(_)), "{refused}");
    migrate(&url).await.unwrap();
    migrate(&url).await.unwrap();
    at(&url).await.unwrap().close().await;

    let mut raw = connection(&url).await;
    let later = "INSERT INTO _sqlx_migrations VALUES (99, 'later', now(), TRUE, '', 1)";
    raw.execute(later).await.unwrap();
    for refused in [at(&url).await.map(drop), migrate(&url).await.map(drop)] {
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, OpenError::Newer { version: 99, .. }),
            "{refused}"
        );
    }
    let other = "DELETE FROM _sqlx_migrations WHERE version = 99; UPDATE _sqlx_migrations SET checksum = 'x'";
    raw.execute(other).await.unwrap();
    let refused = at(&url).await.unwrap_err();
    assert!(matches!(refused, OpenError::Migrate { .. }), "{refused}");
}

/// Stores of two replicas on the same database.
async fn two() -> (PostgresStore, PostgresStore, PgConnection) {
    let url = migrated().await;
    let (ann, bob) = (at(&url).await.unwrap(), at(&url).await.unwrap());
    (ann, bob, connection(&url).await)
}

/// Moves the last heartbeat of a replica this many seconds into the past.
async fn unheard(raw: &mut PgConnection, broker: &str, seconds: f64) {
    let older = "UPDATE brokers SET seen = seen - $1 * INTERVAL '1 second' WHERE id = $2";
    let older = sqlx::query(older).bind(seconds).bind(broker);
    assert_eq!(older.execute(raw).await.unwrap().rows_affected(), 1);
}

#[tokio::test]
async fn live_replicas_are_counted_and_a_dead_one_is_reported_once() {
    let (ann, bob, mut raw) = two().await;
    let living = async |store: &PostgresStore, broker, place| {
        let living = store.appear(broker, place).await.unwrap();
        (living.brokers, living.buried)
    };
    assert_eq!(living(&ann, "ann", "a").await, (1, 0));
    assert_eq!(living(&bob, "bob", "b").await, (2, 0));
    assert_eq!(living(&ann, "ann", "a").await, (2, 0));
    unheard(&mut raw, "bob", 9.0).await;
    assert!(ann.lives("bob").await.unwrap());
    unheard(&mut raw, "bob", 2.0).await;
    assert!(!ann.lives("bob").await.unwrap());
    assert_eq!(living(&ann, "ann", "a").await, (1, 1));
    assert_eq!(living(&ann, "ann", "a").await, (1, 0));
    // A replica that was taken for dead comes back.
    assert_eq!(living(&bob, "bob", "b").await, (2, 0));
    // A replica that starts at the place of another knows that the other is dead.
    assert_eq!(living(&bob, "eve", "b").await, (2, 1));
    assert!(!ann.lives("bob").await.unwrap());
    // A replica that stops gracefully leaves its work to the others as well.
    bob.leave("eve").await.unwrap();
    assert!(!ann.lives("eve").await.unwrap());
    assert_eq!(living(&ann, "ann", "a").await, (1, 1));
}

#[tokio::test]
async fn a_lock_is_held_until_release_death_or_expiry() {
    let (ann, bob, mut raw) = two().await;
    ann.appear("ann", "a").await.unwrap();
    bob.appear("bob", "b").await.unwrap();
    let claim = async |store: &PostgresStore, broker| store.claim("it", broker).await.unwrap();
    assert_eq!(claim(&ann, "ann").await, Some(1));
    assert_eq!(claim(&bob, "bob").await, None);
    assert_eq!(bob.claim("other", "bob").await.unwrap(), Some(1));
    assert!(ann.is_claimed("it", 1).await.unwrap());
    // The lock was released.
    ann.release("it", 1).await.unwrap();
    assert_eq!(claim(&bob, "bob").await, Some(2));
    assert!(!ann.is_claimed("it", 1).await.unwrap());
    // A late release changes nothing.
    ann.release("it", 1).await.unwrap();
    assert_eq!(claim(&ann, "ann").await, None);
    // The holder is dead.
    unheard(&mut raw, "bob", 11.0).await;
    assert_eq!(claim(&ann, "ann").await, Some(3));
    bob.appear("bob", "b").await.unwrap();
    assert_eq!(claim(&bob, "bob").await, None);
    // The lock was renewed in time, and then not.
    assert_eq!(claim(&ann, "ann").await, Some(4));
    let older = "UPDATE claims SET until = until - INTERVAL '61 seconds' WHERE what = 'it'";
    raw.execute(older).await.unwrap();
    assert_eq!(claim(&bob, "bob").await, Some(5));
    // The holder stopped gracefully.
    bob.leave("bob").await.unwrap();
    assert_eq!(claim(&ann, "ann").await, Some(6));
}

#[tokio::test]
async fn concurrent_lock_attempts_succeed_once() {
    let (ann, _, _) = two().await;
    let ann = Arc::new(ann);
    for round in 0..20 {
        let mut claiming = JoinSet::new();
        for broker in 0..8 {
            let store = Arc::clone(&ann);
            claiming.spawn(async move {
                let broker = format!("broker-{broker}");
                store.appear(&broker, &broker).await.unwrap();
                store
                    .claim(&format!("round {round}"), &broker)
                    .await
                    .unwrap()
            });
        }
        let won = claiming.join_all().await.into_iter().flatten();
        assert_eq!(won.count(), 1);
    }
}

#[tokio::test]
async fn a_record_of_one_replica_is_read_by_the_others() {
    let (ann, bob, _) = two().await;
    for event in [
        Event::StatusRead,
        Event::ServiceSuspended,
        Event::StatusRead,
    ] {
        ann.record(audit(event)).await.unwrap();
    }
    let news = bob.news(0, 3).await.unwrap();
    let told: Vec<_> = news
        .records
        .iter()
        .map(|r| (r.seq, r.event.event))
        .collect();
    assert_eq!(told, [(2, Event::ServiceSuspended)]);
    assert_eq!(news.read, 3);
    assert_eq!(bob.news(3, 3).await.unwrap().records, []);
    // Records of either replica follow those of the other, whichever wrote last.
    bob.record(audit(Event::GrantRevoked)).await.unwrap();
    ann.record(audit(Event::StatusRead)).await.unwrap();
    assert_eq!(bob.log_head().await.unwrap(), ann.log_head().await.unwrap());
    assert_eq!(ann.check_log(&[5]).await.unwrap().fault, None);
}

#[tokio::test]
async fn store_errors_do_not_contain_the_password() {
    let nowhere = "postgres://ann:hunter2@127.0.0.1:1/x".to_owned().into();
    let remote = "postgres://ann:hunter2@db.example/x".to_owned().into();
    let no_url = "postgres://ann:hunter2@127.0.0.1:port/x".to_owned().into();
    for (url, words) in [
        (nowhere, "the database x at 127.0.0.1:1"),
        (remote, "sslmode=verify-full"),
        (no_url, "write postgres://"),
    ] {
        let refused = at(&url).await.unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
        assert!(!format!("{refused} {refused:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn the_log_is_not_rewritten_in_the_database() {
    let url = migrated().await;
    let store = at(&url).await.unwrap();
    store.record(audit(Event::StatusRead)).await.unwrap();
    let mut raw = connection(&url).await;
    for statement in [
        "UPDATE audit SET leaf = 'x'",
        "DELETE FROM audit",
        "TRUNCATE audit",
    ] {
        let refused = raw.execute(statement).await.unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
}

/// Data like after some time: the best index depends on the data.
const FILLED: &str = "
    CREATE TEMPORARY TABLE filling AS
    SELECT n, CASE n % 100 WHEN 1 THEN 'billing' ELSE 's' || n % 100 END AS service, n / 100 % 5 = 0 AS lives
    FROM generate_series(1, 20000) AS n;
    INSERT INTO leases (lease_id, service, grant_name, grant_version, kind, aws_name, requested_at, state, revision,
                        due_at, access_key_id, issued_at, expires_at, attempts, request_id)
    SELECT n, service, 'work', 1, CASE n % 3 WHEN 0 THEN 'iam_user' ELSE 'assume_role' END, n, n,
           CASE WHEN lives THEN 'active' ELSE 'expired' END, 1, CASE WHEN lives THEN n END, n, n, n, 0, n
    FROM filling;
    INSERT INTO audit (seq, leaf, time, event, outcome, actor, service, lease_id)
    SELECT n, '', n, 'lease.issued', 'success', service, service, n FROM filling;
    ANALYZE leases, audit";

#[tokio::test]
async fn frequent_queries_use_an_index() {
    let mut raw = connection(&migrated().await).await;
    raw.execute(FILLED).await.unwrap();
    for (query, index) in INDEXED {
        let explain = AssertSqlSafe(format!("EXPLAIN {query}"));
        let plan: Vec<String> = sqlx::query_scalar(explain)
            .fetch_all(&mut raw)
            .await
            .unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains(index) && !plan.contains("Seq Scan"), "{plan}");
    }
}

#[tokio::test]
async fn a_lost_durable_record_is_noticed() {
    let url = migrated().await;
    let store = at(&url).await.unwrap();
    let mut raw = connection(&url).await;
    let before = "CREATE TABLE before AS SELECT * FROM audit_edge";
    raw.execute(before).await.unwrap();
    store.record(audit(Event::StatusRead)).await.unwrap();
    // The state is like after a failover to a copy that lacks the record.
    let lose = "UPDATE audit_edge SET size = 0, subtrees = ''";
    raw.execute(lose).await.unwrap();
    let refused = store.record(audit(Event::StatusRead)).await.unwrap_err();
    assert!(
        refused.to_string().contains("ends at record 0"),
        "{refused}"
    );
    let refused = store.log_head().await.unwrap_err();
    assert!(
        refused.to_string().contains("ends at record 0"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_store_whose_connections_are_killed_goes_on_and_loses_nothing() {
    let url = migrated().await;
    let store = Arc::new(at(&url).await.unwrap());
    let mut writers = JoinSet::new();
    for number in 0..200 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let service = Service {
                name: name(&format!("service-{number}")),
                created_at: moment(1),
                suspension: None,
            };
            let event = audit(Event::ServiceCreated);
            let made = store.create_service(&service, event).await;
            (service.name, made.is_ok())
        });
    }
    let mut raw = connection(&url).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let mut made = Vec::new();
    while let Some(one) = writers.join_next().await {
        if made.len() % 20 == 0 {
            raw.execute(kill).await.unwrap();
        }
        made.push(one.unwrap());
    }
    for (name, is_made) in made {
        assert_eq!(store.service(&name).await.unwrap().is_some(), is_made);
    }
    let size = store.audit_size().await.unwrap();
    assert_eq!(store.check_log(&[size]).await.unwrap().fault, None);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_server_dies_goes_on_and_loses_nothing() {
    let mut server = Server::start(None);
    let (password, address) = (&server.password, &server.address);
    let url = format!("postgres://credbroker:{password}@{address}/postgres").into();
    migrate(&url).await.unwrap();
    let store = Arc::new(at(&url).await.unwrap());
    let (stop, mut writers) = (CancellationToken::new(), JoinSet::new());
    let count = Arc::new(AtomicUsize::new(0));
    let more = async || {
        let before = count.load(Ordering::Relaxed);
        let is_more = async || (count.load(Ordering::Relaxed) > before).then_some(());
        eventually("somebody writes", is_more).await;
    };
    for writer in 0..8 {
        let (store, stop, count) = (Arc::clone(&store), stop.clone(), Arc::clone(&count));
        writers.spawn(async move {
            let mut made = Vec::new();
            for number in 0.. {
                if stop.is_cancelled() {
                    break;
                }
                let service = Service {
                    name: name(&format!("service-{writer}-{number}")),
                    created_at: moment(1),
                    suspension: None,
                };
                let event = audit(Event::ServiceCreated);
                let is_made = store.create_service(&service, event).await.is_ok();
                count.fetch_add(usize::from(is_made), Ordering::Relaxed);
                made.push((service.name, is_made));
            }
            made
        });
    }
    for _ in 0..5 {
        more().await;
        let dying = tokio::task::spawn_blocking(move || {
            server.die_and_start();
            server
        });
        server = dying.await.unwrap();
    }
    more().await;
    stop.cancel();
    let made = writers.join_all().await.concat();
    for (name, is_made) in made {
        assert_eq!(store.service(&name).await.unwrap().is_some(), is_made);
    }
    let size = store.audit_size().await.unwrap();
    assert_eq!(store.check_log(&[size]).await.unwrap().fault, None);
}

#[tokio::test]
async fn a_database_connection_is_verified_by_tls() {
    let home = TempDir::new().unwrap();
    let write = |name: &str, pem: String| std::fs::write(home.path().join(name), pem).unwrap();
    for name in ["cert", "other"] {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let made = CertificateParams::new(names).unwrap().self_signed(&key);
        write(&format!("{name}.pem"), made.unwrap().pem());
        if name == "cert" {
            write("key.pem", key.serialize_pem());
        }
    }
    let server = Server::start(Some(home.path()));
    let url = |host: &str, ca: &str| -> SecretString {
        let (password, port) = (&server.password, server.address.rsplit(':').next().unwrap());
        let ca = home.path().join(ca);
        format!(
            "postgres://credbroker:{password}@{host}:{port}/postgres?sslmode=verify-full&sslrootcert={}",
            ca.display()
        )
        .into()
    };
    migrate(&url("localhost", "cert.pem")).await.unwrap();
    at(&url("localhost", "cert.pem"))
        .await
        .unwrap()
        .close()
        .await;
    for wrong in [url("localhost", "other.pem"), url("127.0.0.1", "cert.pem")] {
        let refused = at(&wrong).await.unwrap_err();
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
}

#[test]
fn a_server_of_the_tests_ends_with_its_launcher() {
    let mut server = Server::start(None);
    TcpStream::connect(&server.address).unwrap();
    server.terminate();
    let refused = TcpStream::connect(&server.address).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}
