use sqlx::{QueryBuilder, Sqlite, SqlitePool, sqlite::SqliteRow};

use super::{
    Tx,
    row::{get, micros, parse, parse_optional, store_error, time},
};
use crate::{
    broker::ports::{AuditFilter, Page, StoreError},
    domain::{
        audit::{AuditEvent, AuditRecord},
        token::TokenId,
    },
};

const TABLE: &str = "audit";

pub(super) async fn append(tx: &mut Tx, event: &AuditEvent) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit (time, event, outcome, actor, token_id, peer, method, service, grant_name,
                            grant_version, lease_id, access_key_id, aws_request_id, reason, detail)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(micros(event.time))
    .bind(event.event.as_str())
    .bind(event.outcome.as_str())
    .bind(event.actor.to_string())
    .bind(event.token_id.as_ref().map(TokenId::as_str))
    .bind(event.peer.map(|peer| peer.to_string()))
    .bind(event.method.as_deref())
    .bind(event.service.as_ref().map(ToString::to_string))
    .bind(event.grant.as_ref().map(ToString::to_string))
    .bind(event.grant_version.map(u64::cast_signed))
    .bind(event.lease_id.as_ref().map(ToString::to_string))
    .bind(event.access_key_id.as_deref())
    .bind(event.aws_request_id.as_deref())
    .bind(event.reason.as_deref())
    .bind(event.detail.as_deref())
    .execute(&mut **tx)
    .await
    .map_err(store_error)?;
    Ok(())
}

pub(super) async fn size(pool: &SqlitePool) -> Result<u64, StoreError> {
    let size: i64 = sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM audit")
        .fetch_one(pool)
        .await
        .map_err(store_error)?;
    Ok(u64::try_from(size).unwrap_or(0))
}

pub(super) async fn list(
    pool: &SqlitePool,
    filter: &AuditFilter,
    page: &Page,
) -> Result<Vec<AuditRecord>, StoreError> {
    let after: i64 = page
        .after
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT * FROM audit WHERE seq > ");
    query.push_bind(after);
    let equals = [
        (" AND service = ", &filter.service),
        (" AND grant_name = ", &filter.grant),
        (" AND lease_id = ", &filter.lease_id),
        (" AND access_key_id = ", &filter.access_key_id),
        (" AND actor = ", &filter.actor),
        (" AND event = ", &filter.event),
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

fn record(row: &SqliteRow) -> Result<AuditRecord, StoreError> {
    let seq: i64 = get(row, "seq")?;
    let token_id: Option<String> = get(row, "token_id")?;
    let grant_version: Option<i64> = get(row, "grant_version")?;
    Ok(AuditRecord {
        seq: u64::try_from(seq).unwrap_or(0),
        event: AuditEvent {
            time: time(row, TABLE, "time")?,
            event: parse(row, TABLE, "event")?,
            outcome: parse(row, TABLE, "outcome")?,
            actor: parse(row, TABLE, "actor")?,
            token_id: token_id.as_deref().and_then(TokenId::parse),
            peer: parse_optional(row, TABLE, "peer")?,
            method: get(row, "method")?,
            service: parse_optional(row, TABLE, "service")?,
            grant: parse_optional(row, TABLE, "grant_name")?,
            grant_version: grant_version.map(i64::cast_unsigned),
            lease_id: parse_optional(row, TABLE, "lease_id")?,
            access_key_id: get(row, "access_key_id")?,
            aws_request_id: get(row, "aws_request_id")?,
            reason: get(row, "reason")?,
            detail: get(row, "detail")?,
        },
    })
}
