use jiff::Timestamp;

use super::{
    dialect::{Connection, Pool, Row},
    row::{count, exactly_one, get as column, inconsistent, micros, parse, store_error, time},
};
use crate::{
    broker::ports::{PageRequest, StoreError},
    domain::{
        audit::AuditEvent,
        grant::Grant,
        name::{GrantName, Name},
    },
};

const TABLE: &str = "grant_versions";

pub(super) async fn insert(tx: &mut Connection, grant: &Grant) -> Result<(), StoreError> {
    let spec = serde_json::to_string(&grant.spec).map_err(|e| inconsistent(TABLE, e))?;
    let done = sqlx::query(
        "INSERT INTO grant_versions (service, grant_name, version, spec, created_at, created_by)
         SELECT $1, $2, $3, $4, $5, $6
         WHERE EXISTS (SELECT 1 FROM services WHERE name = $1)
           AND $3 = 1 + (SELECT coalesce(max(version), 0) FROM grant_versions
                         WHERE service = $1 AND grant_name = $2)",
    )
    .bind(grant.name.service.as_str())
    .bind(grant.name.grant.as_str())
    .bind(grant.version.cast_signed())
    .bind(spec)
    .bind(micros(grant.created_at))
    .bind(grant.created_by.as_str())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn get(pool: &Pool, name: &GrantName) -> Result<Option<Grant>, StoreError> {
    let row = sqlx::query("SELECT * FROM grants WHERE service = $1 AND grant_name = $2")
        .bind(name.service.as_str())
        .bind(name.grant.as_str())
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    row.as_ref().map(grant).transpose()
}

/// Checks that the grant exists or has existed; otherwise `Conflict`.
pub(super) async fn known(tx: &mut Connection, name: &GrantName) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT 1 FROM grant_versions WHERE service = $1 AND grant_name = $2")
        .bind(name.service.as_str())
        .bind(name.grant.as_str())
        .fetch_optional(tx)
        .await
        .map_err(store_error)?;
    row.map(drop).ok_or(StoreError::Conflict)
}

/// Returns a version that was in force at some time.
pub(super) async fn version(
    connection: &mut Connection,
    name: &GrantName,
    version: u64,
) -> Result<Option<Grant>, StoreError> {
    let row = sqlx::query(
        "SELECT * FROM grant_versions
         WHERE service = $1 AND grant_name = $2 AND version = $3 AND spec IS NOT NULL",
    )
    .bind(name.service.as_str())
    .bind(name.grant.as_str())
    .bind(version.cast_signed())
    .fetch_optional(connection)
    .await
    .map_err(store_error)?;
    row.as_ref().map(grant).transpose()
}

/// Returns every version that is not a deletion, oldest first for each grant. Each may be
/// unreadable by itself.
pub(super) async fn all_versions(
    pool: &Pool,
) -> Result<Vec<Result<Grant, StoreError>>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM grant_versions WHERE spec IS NOT NULL ORDER BY service, grant_name, version",
    )
    .fetch_all(pool)
    .await
    .map_err(store_error)?;
    Ok(rows.iter().map(grant).collect())
}

pub(super) async fn newest_version(pool: &Pool, name: &GrantName) -> Result<u64, StoreError> {
    let row = sqlx::query(
        "SELECT coalesce(max(version), 0) AS version FROM grant_versions WHERE service = $1 AND grant_name = $2",
    )
    .bind(name.service.as_str())
    .bind(name.grant.as_str())
    .fetch_one(pool)
    .await
    .map_err(store_error)?;
    count(&row, "version")
}

pub(super) async fn list(
    pool: &Pool,
    service: Option<&Name>,
    page: &PageRequest,
) -> Result<Vec<Grant>, StoreError> {
    let (after_service, after_grant) = page
        .after
        .as_deref()
        .and_then(|after| after.split_once('/'))
        .unwrap_or_default();
    let rows = sqlx::query(
        "SELECT * FROM grants
         WHERE (service, grant_name) > ($1, $2) AND ($3 IS NULL OR service = $3)
         ORDER BY service, grant_name LIMIT $4",
    )
    .bind(after_service)
    .bind(after_grant)
    .bind(service.map(Name::as_str))
    .bind(i64::from(page.limit))
    .fetch_all(pool)
    .await
    .map_err(store_error)?;
    rows.iter().map(grant).collect()
}

pub(super) async fn delete(
    tx: &mut Connection,
    name: &GrantName,
    at: Timestamp,
    by: &Name,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "INSERT INTO grant_versions (service, grant_name, version, spec, created_at, created_by)
         SELECT service, grant_name, version + 1, NULL, $3, $4 FROM grants
         WHERE service = $1 AND grant_name = $2",
    )
    .bind(name.service.as_str())
    .bind(name.grant.as_str())
    .bind(micros(at))
    .bind(by.as_str())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn delete_all(
    tx: &mut Connection,
    service: &Name,
    audit: &AuditEvent,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO grant_versions (service, grant_name, version, spec, created_at, created_by)
         SELECT service, grant_name, version + 1, NULL, $2, $3 FROM grants WHERE service = $1",
    )
    .bind(service.as_str())
    .bind(micros(audit.time))
    .bind(audit.actor.to_string())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    Ok(())
}

fn grant(row: &Row) -> Result<Grant, StoreError> {
    let spec: String = column(row, "spec")?;
    Ok(Grant {
        name: GrantName {
            service: parse(row, TABLE, "service")?,
            grant: parse(row, TABLE, "grant_name")?,
        },
        version: count(row, "version")?,
        spec: serde_json::from_str(&spec).map_err(|e| inconsistent(TABLE, e))?,
        created_at: time(row, TABLE, "created_at")?,
        created_by: parse(row, TABLE, "created_by")?,
    })
}
