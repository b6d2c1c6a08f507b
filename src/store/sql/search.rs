//! Search for records. Each filter by equality has an index in the order of the log. A time is
//! first translated into record numbers, by the spans of full bundles.

use jiff::Timestamp;
use sqlx::QueryBuilder;

use super::{
    dialect::{Connection, Db, Pool},
    log,
    row::{micros, record, store_error},
};
use crate::{
    audit::tile::WIDTH,
    broker::ports::{AuditFilter, PageRequest, StoreError},
    domain::audit::{AuditRecord, Outcome},
};

/// Range of record numbers: after the first, up to the second.
type Numbers = (i64, i64);

/// Stores the earliest and the latest time of a full bundle's records.
pub(super) async fn keep_span(tx: &mut Connection, bundle: u64) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_spans (idx, earliest, latest)
         SELECT $1, min(time), max(time) FROM audit WHERE seq > $1 * $2 AND seq <= ($1 + 1) * $2",
    )
    .bind(bundle.cast_signed())
    .bind(WIDTH.cast_signed())
    .execute(tx)
    .await
    .map_err(store_error)?;
    Ok(())
}

pub(super) async fn list(
    pool: &Pool,
    filter: &AuditFilter,
    page: &PageRequest,
) -> Result<Vec<AuditRecord>, StoreError> {
    let after = page.after.as_deref().and_then(|text| text.parse().ok());
    let (start, end) = numbers(pool, filter).await?;
    let pruned = log::pruned(pool).await?.cast_signed();
    let mut query: QueryBuilder<Db> = QueryBuilder::new("SELECT leaf FROM audit WHERE seq > ");
    query.push_bind(start.max(after.unwrap_or(0)).max(pruned));
    query.push(" AND seq <= ").push_bind(end);
    let failed = filter.outcome.clone().filter(|outcome| outcome != SUCCESS);
    let equals = [
        (" AND service = ", &filter.service),
        (" AND grant_name = ", &filter.grant),
        (" AND lease_id = ", &filter.lease_id),
        (" AND access_key_id = ", &filter.access_key_id),
        (" AND actor = ", &filter.actor),
        (" AND event = ", &filter.event),
        (FAILED, &failed),
        (" AND outcome = ", &filter.outcome),
    ];
    for (condition, value) in equals {
        if let Some(value) = value {
            query.push(condition).push_bind(value.as_str());
        }
    }
    for (condition, bound) in [
        (" AND time >= ", filter.since),
        (" AND time < ", filter.until),
    ] {
        if let Some(bound) = bound {
            query.push(condition).push_bind(micros(bound));
        }
    }
    query
        .push(" ORDER BY seq LIMIT ")
        .push_bind(i64::from(page.limit));
    let rows = query.build().fetch_all(pool).await.map_err(store_error)?;
    rows.iter().map(record).collect()
}

/// Condition on an outcome that is not a success. The inequality makes the database choose the
/// index of such records.
const FAILED: &str = " AND outcome <> 'success' AND outcome = ";
const SUCCESS: &str = Outcome::Success.as_str();

/// Returns a range of record numbers: no record outside of it has a time within the filter.
async fn numbers(pool: &Pool, filter: &AuditFilter) -> Result<Numbers, StoreError> {
    let start = match filter.since {
        Some(since) => older(pool, since).await?.cast_signed(),
        None => 0,
    };
    let end = match filter.until {
        Some(until) => end(pool, until).await?,
        None => i64::MAX,
    };
    Ok((start, end))
}

/// Returns the number of records in the leading full bundles that end before a time.
pub(super) async fn older(pool: &Pool, before: Timestamp) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(
        "SELECT $2 * coalesce((SELECT idx FROM audit_spans WHERE latest >= $1 ORDER BY idx LIMIT 1),
                              (SELECT max(idx) + 1 FROM audit_spans), 0)",
    )
    .bind(micros(before))
    .bind(WIDTH.cast_signed())
    .fetch_one(pool)
    .await
    .map_err(store_error)?;
    Ok(count.cast_unsigned())
}

async fn end(pool: &Pool, until: Timestamp) -> Result<i64, StoreError> {
    let last: Option<i64> = sqlx::query_scalar(
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM audit WHERE time < $1
                     AND seq > $2 * coalesce((SELECT max(idx) + 1 FROM audit_spans), 0)) THEN NULL
                ELSE $2 * coalesce((SELECT idx + 1 FROM audit_spans WHERE earliest < $1
                                    ORDER BY idx DESC LIMIT 1), 0) END",
    )
    .bind(micros(until))
    .bind(WIDTH.cast_signed())
    .fetch_one(pool)
    .await
    .map_err(store_error)?;
    Ok(last.unwrap_or(i64::MAX))
}

/// Number of a bundle, and the times of its earliest and its latest record, in microseconds.
pub(super) type Span = (u64, (i64, i64));

/// Returns the spans of all full bundles after the first `skipped`.
pub(super) async fn spans(
    connection: &mut Connection,
    skipped: u64,
) -> Result<Vec<Span>, StoreError> {
    let spans: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT idx, earliest, latest FROM audit_spans WHERE idx >= $1 ORDER BY idx",
    )
    .bind(skipped.cast_signed())
    .fetch_all(connection)
    .await
    .map_err(store_error)?;
    let span =
        |(index, earliest, latest): (i64, i64, i64)| (index.cast_unsigned(), (earliest, latest));
    Ok(spans.into_iter().map(span).collect())
}
