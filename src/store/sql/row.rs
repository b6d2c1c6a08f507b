//! Conversion between SQL values and the domain's types.

use std::{fmt::Display, str::FromStr};

use jiff::Timestamp;
use sqlx::{ColumnIndex, Decode, Row as _, Type};

use super::dialect::{self, Db, Pool, QueryResult, Row};
use crate::{
    audit::leaf,
    broker::ports::{StoreCounts, StoreError},
    domain::{audit::AuditRecord, token::TokenId},
};

pub(in super::super) fn store_error(error: sqlx::Error) -> StoreError {
    let sqlx::Error::Database(database) = error else {
        return StoreError::Unavailable(error.to_string());
    };
    if database.is_unique_violation() || database.is_foreign_key_violation() {
        return StoreError::Conflict;
    }
    StoreError::Unavailable(dialect::why(database.as_ref()))
}

/// Checks that a statement changed exactly one row; otherwise `Conflict`.
pub(super) fn exactly_one(done: &QueryResult) -> Result<(), StoreError> {
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        Err(StoreError::Conflict)
    }
}

pub(super) fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// Reads a column as it is.
pub(super) fn get<'r, T>(row: &'r Row, column: &'static str) -> Result<T, StoreError>
where
    T: Decode<'r, Db> + Type<Db>,
    &'static str: ColumnIndex<Row>,
{
    row.try_get(column).map_err(store_error)
}

/// Reads a text column and parses it into a domain type.
pub(super) fn parse<T: FromStr>(
    row: &Row,
    table: &'static str,
    column: &'static str,
) -> Result<T, StoreError> {
    let text: String = get(row, column)?;
    text.parse().map_err(|_| inconsistent(table, column))
}

/// Reads a text column that may be NULL, and parses it into a domain type.
pub(super) fn parse_optional<T: FromStr>(
    row: &Row,
    table: &'static str,
    column: &'static str,
) -> Result<Option<T>, StoreError> {
    let text: Option<String> = get(row, column)?;
    text.map(|text| text.parse().map_err(|_| inconsistent(table, column)))
        .transpose()
}

/// Reads a count, which the database stores as a signed number.
pub(super) fn count(row: &Row, column: &'static str) -> Result<u64, StoreError> {
    Ok(u64::try_from(get::<i64>(row, column)?).unwrap_or(0))
}

/// Reads a point in time, stored in microseconds.
pub(super) fn time(
    row: &Row,
    table: &'static str,
    column: &'static str,
) -> Result<Timestamp, StoreError> {
    time_optional(row, table, column)?.ok_or_else(|| inconsistent(table, column))
}

/// Reads a point in time that may be NULL.
pub(super) fn time_optional(
    row: &Row,
    table: &'static str,
    column: &'static str,
) -> Result<Option<Timestamp>, StoreError> {
    let micros: Option<i64> = get(row, column)?;
    micros
        .map(|m| Timestamp::from_microsecond(m).map_err(|_| inconsistent(table, column)))
        .transpose()
}

pub(super) fn token_id(row: &Row) -> Result<TokenId, StoreError> {
    let id: String = get(row, "token_id")?;
    TokenId::parse(&id).ok_or_else(|| inconsistent("tokens", "token_id"))
}

pub(super) fn inconsistent(table: &'static str, what: impl Display) -> StoreError {
    StoreError::Inconsistent {
        table,
        detail: what.to_string(),
    }
}

/// Decodes the audit record of a row from its leaf.
pub(in super::super) fn record(row: &Row) -> Result<AuditRecord, StoreError> {
    let leaf: Vec<u8> = get(row, "leaf")?;
    leaf::decode(&leaf).map_err(|error| inconsistent("audit", error))
}

pub(super) async fn counts(pool: &Pool) -> Result<StoreCounts, StoreError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM services) AS services,
                (SELECT count(*) FROM grants) AS grants,
                (SELECT count(*) FROM live_leases) AS live_leases,
                (SELECT count(*) FROM unsettled_leases WHERE state = 'pending') AS pending_leases,
                (SELECT count(*) FROM unsettled_leases WHERE state = 'revoking') AS revoking_leases,
                (SELECT count(*) FROM unsettled_leases WHERE state = 'quarantined') AS quarantined_leases,
                (SELECT count(*) FROM denials WHERE refused_at IS NULL) AS open_denials,
                (SELECT count(*) FROM denials WHERE refused_at IS NOT NULL) AS refused_denials,
                (SELECT coalesce(max(seq), 0) FROM audit) AS audit_records",
    )
    .fetch_one(pool)
    .await
    .map_err(store_error)?;
    Ok(StoreCounts {
        services: count(&row, "services")?,
        grants: count(&row, "grants")?,
        live_leases: count(&row, "live_leases")?,
        pending_leases: count(&row, "pending_leases")?,
        revoking_leases: count(&row, "revoking_leases")?,
        quarantined_leases: count(&row, "quarantined_leases")?,
        open_denials: count(&row, "open_denials")?,
        refused_denials: count(&row, "refused_denials")?,
        audit_records: count(&row, "audit_records")?,
    })
}

/// Most rows that one statement writes.
const AT_ONCE: usize = 64;

/// Splits rows into portions whose lengths are powers of two. Each length is a statement of its
/// own, which the database prepares once.
pub(super) fn portions<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = 1 << rows.len().min(AT_ONCE).checked_ilog2()?;
        rows.split_off(..length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_in_portions_that_are_powers_of_two() {
        for (count, expected) in [
            (0, vec![]),
            (1, vec![1]),
            (3, vec![2, 1]),
            (63, vec![32, 16, 8, 4, 2, 1]),
            (64, vec![64]),
            (200, vec![64, 64, 64, 8]),
        ] {
            let rows: Vec<u8> = (0..count).collect();
            let portions: Vec<&[u8]> = portions(&rows).collect();
            let lengths: Vec<usize> = portions.iter().map(|rows| rows.len()).collect();
            assert_eq!(lengths, expected);
            assert_eq!(portions.concat(), rows);
        }
    }
}
