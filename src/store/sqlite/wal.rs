//! The write-ahead log: what was committed is carried over into the file beside the work, not
//! inside of a commit that somebody waits for (<https://sqlite.org/wal.html#ckpt>).

use std::time::Duration;

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

const EVERY: Duration = Duration::from_millis(250);
/// Pages (64 MiB) from which on whoever writes carries over what is left, so that the
/// write-ahead log begins anew: it cannot while it grows.
pub(super) const PAGES_MAX: &str = "16384";
/// Nobody waits for it.
const CARRY_OVER: &str = "PRAGMA wal_checkpoint(PASSIVE)";

/// Who carries over, on a connection of its own.
#[derive(Debug)]
pub(super) struct CarryingOver {
    pool: SqlitePool,
    task: JoinHandle<()>,
}

impl CarryingOver {
    pub(super) async fn start(options: SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await?;
        let task = tokio::spawn(carry_over(pool.clone()));
        Ok(Self { pool, task })
    }

    /// Ends when nothing is being carried over any more.
    pub(super) async fn end(&self) {
        self.pool.close().await;
    }
}

impl Drop for CarryingOver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry_over(pool: SqlitePool) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !pool.is_closed() {
        ticks.tick().await;
        if let Err(error) = sqlx::query(CARRY_OVER).execute(&pool).await {
            tracing::debug!(%error, "what was committed stays in the write-ahead log for now");
        }
    }
}
