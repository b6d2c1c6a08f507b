//! Audit records per second that become durable: `cargo bench --bench log`.
//!
//! Writers that each wait for their record before they write the next, against the same number of
//! bare inserts of a row of the same size, a commit each, on the same disk in the same run. Both
//! are SQLite in WAL mode with `synchronous = FULL`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on stops"
)]

use std::{path::Path, sync::Arc, time::Instant};

use credbroker::{
    broker::ports::Store,
    domain::audit::{AuditEvent, Event},
    store::sqlite::SqliteStore,
};
use jiff::Timestamp;
use sqlx::{
    ConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tempfile::TempDir;
use tokio::task::JoinSet;

const WRITERS: [u32; 4] = [1, 8, 64, 512];
/// Records of each measurement, and number of measurements.
const RECORDS: u32 = 4096;
const ROUNDS: usize = 5;
/// Bare inserts of each measurement.
const INSERTS: u32 = 512;

fn event() -> AuditEvent {
    let event = AuditEvent::by_broker(Event::LeaseRead, Timestamp::UNIX_EPOCH);
    event
        .service(&"payments-api".parse().unwrap())
        .access_key("AKIAIOSFODNN7EXAMPLE")
        .detail(&"as many words as a usual record has ".repeat(4))
}

async fn written_a_second(store: &Arc<SqliteStore>, writers: u32) -> f64 {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            for _ in 0..RECORDS / writers {
                store.record(event()).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    f64::from(RECORDS) / began.elapsed().as_secs_f64()
}

async fn inserted_a_second(home: &Path) -> f64 {
    let options = SqliteConnectOptions::new()
        .filename(home.join("bare.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut bare = options.connect().await.unwrap();
    let table = "CREATE TABLE IF NOT EXISTS record (seq INTEGER PRIMARY KEY, leaf BLOB NOT NULL)";
    sqlx::query(table).execute(&mut bare).await.unwrap();
    let began = Instant::now();
    for _ in 0..INSERTS {
        let insert = sqlx::query("INSERT INTO record (leaf) VALUES (?)").bind([7; 400].to_vec());
        insert.execute(&mut bare).await.unwrap();
    }
    f64::from(INSERTS) / began.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[tokio::main]
async fn main() {
    let home = TempDir::new().unwrap();
    let store = SqliteStore::open(&home.path().join("credbroker.db")).await;
    let store = Arc::new(store.unwrap());
    let (mut bare, mut rates) = (Vec::new(), WRITERS.map(|_| Vec::new()));
    for _ in 0..ROUNDS {
        bare.push(inserted_a_second(home.path()).await);
        for (writers, rates) in WRITERS.iter().zip(&mut rates) {
            rates.push(written_a_second(&store, *writers).await);
        }
    }
    let bare = median(bare);
    println!("a commit per record, one writer: {bare:8.0} records/s");
    for (writers, rates) in WRITERS.iter().zip(rates) {
        let rate = median(rates);
        println!(
            "{writers:3} writers: {rate:8.0} records/s, {:5.2} times as many",
            rate / bare
        );
    }
    store.close().await;
}
