//! Names and properties that are PostgreSQL's own.

use std::time::Duration;

use sqlx::error::DatabaseError;

use super::PostgresStore;
use crate::broker::ports::Peers;

pub(super) use sqlx::{
    PgConnection as Connection, PgPool as Pool, Postgres as Db,
    postgres::{PgArguments as Arguments, PgQueryResult as QueryResult, PgRow as Row},
};

/// Empty guard: the store holds nothing beside its connections.
#[derive(Debug)]
pub(super) struct Guard;

impl Guard {
    /// Does nothing: there is nothing left to close.
    #[expect(clippy::unused_async, reason = "a file has")]
    pub(super) async fn close(&self) {}
}

/// False: other replicas may write as well.
pub(super) const ALONE: bool = false;
pub(super) const BEGIN: &str = "BEGIN";
pub(super) const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// Statement that reads and locks the log's edge. Other replicas may have written before; none
/// writes until the transaction ends.
pub(super) const LOCK_EDGE: Option<&str> = Some("SELECT size, subtrees FROM audit_edge FOR UPDATE");
/// Time limit of a write transaction, and again of its commit. The limit is longer than a
/// transaction may wait for other writers. Without it, a connection that the network has dropped
/// would stay silent for a quarter of an hour.
pub(super) const ANSWER_LIMIT: Option<Duration> = Some(Duration::from_secs(15));

/// Returns the store: other replicas may work on the database.
#[expect(clippy::unnecessary_wraps, reason = "a file has none")]
pub(super) fn peers(store: &PostgresStore) -> Option<&dyn Peers> {
    Some(store)
}

/// Describes why the database does not work, by its error code:
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
