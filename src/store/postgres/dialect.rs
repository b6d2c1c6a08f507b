//! What PostgreSQL calls by its own names.

use std::time::Duration;

use sqlx::error::DatabaseError;

use super::PostgresStore;
use crate::broker::ports::Peers;

pub(super) use sqlx::{
    PgConnection as Connection, PgPool as Pool, Postgres as Db,
    postgres::{PgArguments as Arguments, PgQueryResult as QueryResult, PgRow as Row},
};

/// Nothing beside the connections is held.
#[derive(Debug)]
pub(super) struct Guard;

impl Guard {
    /// Nothing is left to close.
    #[expect(clippy::unused_async, reason = "a file has")]
    pub(super) async fn close(&self) {}
}

/// Others may write as well.
pub(super) const ALONE: bool = false;
pub(super) const BEGIN: &str = "BEGIN";
pub(super) const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// Others may have written: the edge is read, and nobody writes until the transaction ends.
pub(super) const LOCK_EDGE: Option<&str> = Some("SELECT size, subtrees FROM audit_edge FOR UPDATE");
/// Longest time that a transaction that writes may take, and its commit once more: longer than
/// it may wait for others. A connection that a network has dropped says nothing for a quarter
/// of an hour.
pub(super) const ANSWER_LIMIT: Option<Duration> = Some(Duration::from_secs(15));

/// Others may work on it.
#[expect(clippy::unnecessary_wraps, reason = "a file has none")]
pub(super) fn peers(store: &PostgresStore) -> Option<&dyn Peers> {
    Some(store)
}

/// Why it does not work, by the code of it:
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
pub(super) fn why(error: &dyn DatabaseError) -> String {
    match error.code().as_deref() {
        Some("53100") => "its disk is full".to_owned(),
        Some("25006") => "it is read-only".to_owned(),
        Some("57P01" | "57P02" | "57P03") => "it is starting or ending".to_owned(),
        Some("40001" | "40P01") => "another transaction was in the way".to_owned(),
        Some("55P03" | "57014") => "it did not answer in time".to_owned(),
        _ => error.message().to_owned(),
    }
}
