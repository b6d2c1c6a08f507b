//! Names and properties that are SQLite's own.

use std::time::Duration;

use sqlx::error::DatabaseError;

use super::{SqliteStore, wal::CarryingOver};
use crate::{broker::ports::Peers, store::locked_file::LockedFile};

pub(super) use sqlx::{
    Sqlite as Db, SqliteConnection as Connection, SqlitePool as Pool,
    sqlite::{SqliteArguments as Arguments, SqliteQueryResult as QueryResult, SqliteRow as Row},
};

/// Guard for as long as the store is open: the lock of its file, and the task that keeps its
/// write-ahead log short.
#[derive(Debug)]
pub(super) struct Guard {
    carrying_over: CarryingOver,
    _lock: LockedFile,
}

impl Guard {
    pub(super) const fn new(carrying_over: CarryingOver, lock: LockedFile) -> Self {
        Self {
            carrying_over,
            _lock: lock,
        }
    }

    /// Ends the task on the write-ahead log, so that only the writer still uses the file.
    pub(super) async fn close(&self) {
        self.carrying_over.end().await;
    }
}

/// True: no other process writes while the store is open.
pub(super) const ALONE: bool = true;
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";
pub(super) const BEGIN_SNAPSHOT: &str = "BEGIN";
/// `None`: the edge of the log is as this store has left it.
pub(super) const LOCK_EDGE: Option<&str> = None;
/// `None`: a file answers, if late.
pub(super) const ANSWER_LIMIT: Option<Duration> = None;

// Primary result codes: <https://sqlite.org/rescode.html>.
const FULL: i64 = 13;
const READ_ONLY: i64 = 8;
const IO_ERROR: i64 = 10;
const BUSY: i64 = 5;

/// Returns `None`: no other replica works on the file.
pub(super) const fn peers(_: &SqliteStore) -> Option<&dyn Peers> {
    None
}

/// Describes why the database does not work.
pub(super) fn why(error: &dyn DatabaseError) -> String {
    let code: Option<i64> = error.code().and_then(|code| code.parse().ok());
    match code.map(|extended| extended & 0xff) {
        Some(FULL) => "its disk is full".to_owned(),
        Some(READ_ONLY) => "it is read-only".to_owned(),
        Some(IO_ERROR) => format!("its disk refuses to work ({})", error.message()),
        Some(BUSY) => "another process has locked it".to_owned(),
        _ => error.message().to_owned(),
    }
}
