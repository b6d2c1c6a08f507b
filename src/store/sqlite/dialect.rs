//! What SQLite calls by its own names.

use std::time::Duration;

use sqlx::error::DatabaseError;

use super::{SqliteStore, wal::CarryingOver};
use crate::{broker::ports::Peers, store::locked_file::LockedFile};

pub(super) use sqlx::{
    Sqlite as Db, SqliteConnection as Connection, SqlitePool as Pool,
    sqlite::{SqliteArguments as Arguments, SqliteQueryResult as QueryResult, SqliteRow as Row},
};

/// What is held for as long as the store is open: the lock of its file, and who keeps its
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

    /// Nothing works on the file any more but those who write.
    pub(super) async fn close(&self) {
        self.carrying_over.end().await;
    }
}

/// Nobody else writes while the store is open.
pub(super) const ALONE: bool = true;
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";
pub(super) const BEGIN_SNAPSHOT: &str = "BEGIN";
/// The edge of the log is as this store has left it.
pub(super) const LOCK_EDGE: Option<&str> = None;
/// A file answers, if late.
pub(super) const ANSWER_LIMIT: Option<Duration> = None;

// Primary result codes: <https://sqlite.org/rescode.html>.
const FULL: i64 = 13;
const READ_ONLY: i64 = 8;
const IO_ERROR: i64 = 10;
const BUSY: i64 = 5;

/// Nobody else works on it.
pub(super) const fn peers(_: &SqliteStore) -> Option<&dyn Peers> {
    None
}

/// Why it does not work.
pub(super) fn why(error: &dyn DatabaseError) -> String {
    let code: Option<i64> = error.code().and_then(|code| code.parse().ok());
    match code.map(|extended| extended & 0xff) {
        Some(FULL) => "its disk is full".to_owned(),
        Some(READ_ONLY) => "it is read-only".to_owned(),
        Some(IO_ERROR) => format!("its disk refuses to work ({})", error.message()),
        Some(BUSY) => "somebody else has locked it".to_owned(),
        _ => error.message().to_owned(),
    }
}
