//! Checkpoints of the write-ahead log (WAL) in the background, so that commits do not pay for them
//! (<https://sqlite.org/wal.html#ckpt>).

use std::time::Duration;

use sqlx::{
    ConnectOptions, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

const EVERY: Duration = Duration::from_millis(250);
/// WAL length, pages (64 MiB), from which on a commit makes the checkpoint itself and waits until
/// the file is on disk. The WAL starts over only when a commit finds a complete checkpoint and no
/// reader of the WAL.
pub(super) const COMMITS_HELP_FROM: &str = "16384";
/// Checkpoint that blocks neither readers nor writers. SQLite before 3.51.3 could lose what was
/// committed meanwhile (<https://sqlite.org/wal.html#walresetbug>).
const CARRY_OVER: &str = "PRAGMA wal_checkpoint(PASSIVE)";

/// Task that makes the checkpoints, on a connection of its own.
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
            .connect_with(options.disable_statement_logging())
            .await?;
        let task = tokio::spawn(carry_over(pool.clone()));
        Ok(Self { pool, task })
    }

    /// Waits until no checkpoint is in progress, and ends the task.
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
    let (mut ticks, mut fails) = (interval(EVERY), false);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if pool.is_closed() {
            return;
        }
        let carried = sqlx::query(CARRY_OVER).execute(&pool).await;
        if let Err(error) = &carried
            && !fails
        {
            tracing::warn!(%error, "the store's write-ahead log grows until it can be carried over");
        }
        fails = carried.is_err();
    }
}
