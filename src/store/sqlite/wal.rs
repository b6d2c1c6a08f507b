//! The write-ahead log: what was committed is carried over into the file beside the work, not
//! inside of a commit that somebody waits for (<https://sqlite.org/wal.html#ckpt>).

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
/// Pages (64 MiB) from which on a commit carries over what is left and waits until the file is
/// on disk. The write-ahead log begins anew only when a commit finds everything carried over and
/// nobody reading from it.
pub(super) const COMMITS_HELP_FROM: &str = "16384";
/// Nobody waits for it. SQLite before 3.51.3 could lose what was committed meanwhile
/// (<https://sqlite.org/wal.html#walresetbug>).
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
            .connect_with(options.disable_statement_logging())
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
