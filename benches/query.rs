//! Time to find a page of audit records in a long log: `cargo bench --bench query`. Ten million
//! records, or as many as `CREDBROKER_BENCH_RECORDS` says, against the same queries in a log of ten
//! thousand, in the same run.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on stops"
)]

use std::{path::Path, time::Instant};

use credbroker::{
    broker::ports::{AuditFilter, PageRequest, Store},
    store::sqlite::SqliteStore,
};
use jiff::Timestamp;
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

const RECORDS: i64 = 10_000_000;
const FEW: i64 = 10_000;
const ROUNDS: usize = 21;
/// Services, each with ten grants, and four records to a lease.
const FILL: &str = "
    WITH RECURSIVE n(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM n WHERE seq < ?1),
    r AS (SELECT seq,
        1700000000000000 + seq * 1000000 AS time,
        CASE seq % 4 WHEN 0 THEN 'lease.requested' WHEN 1 THEN 'lease.issued'
                     WHEN 2 THEN 'lease.released' ELSE 'lease.revoked' END AS event,
        CASE WHEN seq % 1000 = 7 THEN 'denied' ELSE 'success' END AS outcome,
        printf('s%d', seq / 4 % 200) AS service,
        printf('s%d/g%d', seq / 4 % 200, seq / 800 % 10) AS grant_name,
        printf('%026d', seq / 4) AS lease_id,
        printf('AKIA%016d', seq / 4) AS access_key_id
    FROM n)
    INSERT INTO audit (seq, leaf, time, event, outcome, actor, service, grant_name, lease_id, access_key_id)
    SELECT seq, CAST(json_object(
            'seq', seq, 'time', strftime('%Y-%m-%dT%H:%M:%S', time / 1000000, 'unixepoch') || '.000000Z',
            'event', event, 'outcome', outcome, 'actor', 'service:' || service, 'token_id', 'abcdefghijklmnop',
            'peer', '10.0.0.1:40000', 'method', 'credbroker.v1.CredentialService/IssueCredentials',
            'service', service, 'grant', grant_name, 'grant_version', 1, 'lease_id', lease_id,
            'access_key_id', access_key_id) AS BLOB),
        time, event, outcome, 'service:' || service, service, grant_name, lease_id, access_key_id
    FROM r";
const SPANS: &str = "
    INSERT INTO audit_spans (idx, earliest, latest)
    SELECT (seq - 1) / 256, min(time), max(time) FROM audit GROUP BY (seq - 1) / 256 HAVING count(*) = 256";

async fn filled(path: &Path, records: i64) -> SqliteStore {
    SqliteStore::open(path).await.unwrap().close().await;
    let mut raw = SqliteConnectOptions::new()
        .filename(path)
        .connect()
        .await
        .unwrap();
    // The database must be searchable, not durable.
    sqlx::raw_sql("PRAGMA synchronous = OFF; PRAGMA cache_size = -500000")
        .execute(&mut raw)
        .await
        .unwrap();
    sqlx::query(FILL)
        .bind(records)
        .execute(&mut raw)
        .await
        .unwrap();
    sqlx::query(SPANS).execute(&mut raw).await.unwrap();
    raw.close().await.unwrap();
    SqliteStore::open(path).await.unwrap()
}

/// Queries on a log with this number of records.
fn questions(records: i64) -> Vec<(&'static str, AuditFilter)> {
    let any = AuditFilter::default;
    let text = |text: &str| Some(text.to_owned());
    let time = |seq: i64| Some(Timestamp::from_second(1_700_000_000 + seq).unwrap());
    let lease = records / 8;
    vec![
        ("no filter", any()),
        (
            "service",
            AuditFilter {
                service: text("s7"),
                ..any()
            },
        ),
        (
            "grant",
            AuditFilter {
                grant: text("s7/g3"),
                ..any()
            },
        ),
        (
            "lease",
            AuditFilter {
                lease_id: Some(format!("{lease:026}")),
                ..any()
            },
        ),
        (
            "access key",
            AuditFilter {
                access_key_id: Some(format!("AKIA{lease:016}")),
                ..any()
            },
        ),
        (
            "actor",
            AuditFilter {
                actor: text("service:s7"),
                ..any()
            },
        ),
        (
            "event",
            AuditFilter {
                event: text("lease.issued"),
                ..any()
            },
        ),
        (
            "an event that never was",
            AuditFilter {
                event: text("lease.quarantined"),
                ..any()
            },
        ),
        (
            "outcome",
            AuditFilter {
                outcome: text("denied"),
                ..any()
            },
        ),
        (
            "an hour",
            AuditFilter {
                since: time(records / 2),
                until: time(records / 2 + 3600),
                ..any()
            },
        ),
        (
            "before all",
            AuditFilter {
                until: time(-5),
                ..any()
            },
        ),
        (
            "service, denied",
            AuditFilter {
                service: text("s7"),
                outcome: text("denied"),
                ..any()
            },
        ),
        (
            "grant, event, second half",
            AuditFilter {
                grant: text("s7/g3"),
                event: text("lease.issued"),
                since: time(records / 2),
                ..any()
            },
        ),
    ]
}

/// Median milliseconds for a page of 100.
async fn took(store: &SqliteStore, filter: &AuditFilter) -> f64 {
    let page = PageRequest {
        after: None,
        limit: 100,
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        store.audit(filter, &page).await.unwrap();
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[tokio::main]
async fn main() {
    let records = std::env::var("CREDBROKER_BENCH_RECORDS");
    let records = records.map_or(RECORDS, |text| text.parse().unwrap());
    let home = TempDir::new().unwrap();
    let few = filled(&home.path().join("few.db"), FEW).await;
    let many = filled(&home.path().join("many.db"), records).await;
    println!("a page of 100 records out of {records}, and of {FEW}, ms");
    for ((name, large), (_, small)) in questions(records).into_iter().zip(questions(FEW)) {
        let (large, small) = (took(&many, &large).await, took(&few, &small).await);
        println!(
            "{name:26} {large:9.2} {small:9.2}  {:6.1} times",
            large / small
        );
    }
    few.close().await;
    many.close().await;
}
