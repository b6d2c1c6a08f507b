use super::{
    dialect::{Connection, Pool, Row},
    row::{count, exactly_one, get as column, micros, parse, store_error, time, time_optional},
};
use crate::{
    broker::ports::{PageRequest, StoreError},
    domain::{
        name::Name,
        service::{Service, ServiceOverview, Suspension},
    },
};

const TABLE: &str = "services";

pub(super) async fn insert(tx: &mut Connection, service: &Service) -> Result<(), StoreError> {
    let done = sqlx::query("INSERT INTO services (name, created_at) VALUES ($1, $2)")
        .bind(service.name.as_str())
        .bind(micros(service.created_at))
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    exactly_one(&done)
}

/// Finds names of services by their beginning, also of deleted services that still have denials. No
/// character of a name sorts after `~`.
pub(super) async fn names_like(pool: &Pool, head: &str) -> Result<Vec<Name>, StoreError> {
    let rows = sqlx::query(
        "SELECT name FROM services WHERE name >= $1 AND name < $2
         UNION SELECT service FROM denials WHERE service >= $1 AND service < $2",
    )
    .bind(head)
    .bind(format!("{head}~"))
    .fetch_all(pool)
    .await
    .map_err(store_error)?;
    rows.iter().map(|row| parse(row, TABLE, "name")).collect()
}

pub(super) async fn get(pool: &Pool, name: &Name) -> Result<Option<ServiceOverview>, StoreError> {
    let row = sqlx::query("SELECT * FROM service_overviews WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    row.as_ref().map(overview).transpose()
}

pub(super) async fn list(
    pool: &Pool,
    page: &PageRequest,
) -> Result<Vec<ServiceOverview>, StoreError> {
    let rows =
        sqlx::query("SELECT * FROM service_overviews WHERE name > $1 ORDER BY name LIMIT $2")
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(i64::from(page.limit))
            .fetch_all(pool)
            .await
            .map_err(store_error)?;
    rows.iter().map(overview).collect()
}

pub(super) async fn suspend(
    tx: &mut Connection,
    name: &Name,
    suspension: &Suspension,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE services SET suspended_at = $1, suspend_reason = $2 WHERE name = $3 AND suspended_at IS NULL",
    )
    .bind(micros(suspension.at))
    .bind(suspension.reason.as_deref())
    .bind(name.as_str())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

/// Suspends the service unless it is suspended already; returns the suspension in force.
pub(super) async fn ensure_suspended(
    tx: &mut Connection,
    name: &Name,
    suspension: &Suspension,
) -> Result<Suspension, StoreError> {
    let row = sqlx::query(
        "UPDATE services
         SET suspend_reason = CASE WHEN suspended_at IS NULL THEN $1 ELSE suspend_reason END,
             suspended_at = coalesce(suspended_at, $2)
         WHERE name = $3 RETURNING *",
    )
    .bind(suspension.reason.as_deref())
    .bind(micros(suspension.at))
    .bind(name.as_str())
    .fetch_optional(&mut *tx)
    .await
    .map_err(store_error)?;
    let standing = row.as_ref().map(service).transpose()?;
    standing
        .and_then(|service| service.suspension)
        .ok_or(StoreError::Conflict)
}

pub(super) async fn reinstate(tx: &mut Connection, name: &Name) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE services SET suspended_at = NULL, suspend_reason = NULL
         WHERE name = $1 AND suspended_at IS NOT NULL",
    )
    .bind(name.as_str())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

/// Deletes a service that has no live lease; otherwise `Conflict`. A foreign key deletes its
/// tokens.
pub(super) async fn delete(tx: &mut Connection, name: &Name) -> Result<(), StoreError> {
    let done = sqlx::query(
        "DELETE FROM services WHERE name = $1
         AND NOT EXISTS (SELECT 1 FROM live_leases WHERE service = $1)",
    )
    .bind(name.as_str())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) fn service(row: &Row) -> Result<Service, StoreError> {
    let at = time_optional(row, TABLE, "suspended_at")?;
    let reason: Option<String> = column(row, "suspend_reason")?;
    Ok(Service {
        name: parse(row, TABLE, "name")?,
        created_at: time(row, TABLE, "created_at")?,
        suspension: at.map(|at| Suspension { at, reason }),
    })
}

fn overview(row: &Row) -> Result<ServiceOverview, StoreError> {
    Ok(ServiceOverview {
        service: service(row)?,
        live_leases: count(row, "live_leases")?,
        last_issued_at: time_optional(row, TABLE, "last_issued_at")?,
    })
}
