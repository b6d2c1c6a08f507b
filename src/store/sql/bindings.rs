use super::{
    dialect::{Connection, Pool, Row},
    row::{
        exactly_one, get as column, inconsistent, micros, parse, store_error, time, time_optional,
    },
    services,
};
use crate::{
    broker::ports::StoreError,
    domain::{
        binding::{BINDINGS_MAX, BindingId, ENROLLED_MAX, KnownBy, ServiceBinding},
        name::Name,
        service::Service,
    },
};

const TABLE: &str = "bindings";

pub(super) async fn insert(
    tx: &mut Connection,
    binding: &ServiceBinding,
) -> Result<(), StoreError> {
    if let Some(issuer) = binding.known_by.issuer() {
        // No rule of another service may match the same caller.
        let others = of_issuer(&mut *tx, issuer).await?;
        let meets = |(other, _): &(ServiceBinding, Service)| {
            other.service != binding.service && other.known_by.may_meet(&binding.known_by)
        };
        if others.iter().any(meets) {
            return Err(StoreError::Conflict);
        }
    }
    add(tx, binding, BINDINGS_MAX).await
}

/// Adds the binding of an enrolled host, in place of its earlier one. Deletes the service's
/// bindings whose certificates have expired.
pub(super) async fn insert_enrolled(
    tx: &mut Connection,
    binding: &ServiceBinding,
) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM bindings WHERE service = $1 AND bound_until IS NOT NULL AND (bound_until <= $2 OR known_by = $3)",
    )
    .bind(binding.service.as_str())
    .bind(micros(binding.created_at))
    .bind(binding.known_by.name())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    add(tx, binding, ENROLLED_MAX).await
}

/// Adds a binding. `Conflict` if the service has `most` bindings already, either of enrolled hosts
/// or of others.
async fn add(tx: &mut Connection, binding: &ServiceBinding, most: usize) -> Result<(), StoreError> {
    let done = sqlx::query(
        "INSERT INTO bindings (binding_id, service, kind, known_by, bound_at, bound_until, issuer)
         SELECT $1, $2, $3, $4, $5, $6, $7
         WHERE (SELECT count(*) FROM bindings
                WHERE service = $2 AND (bound_until IS NULL) = ($6 IS NULL)) < $8",
    )
    .bind(binding.id.as_str())
    .bind(binding.service.as_str())
    .bind(binding.known_by.kind())
    .bind(binding.known_by.name())
    .bind(micros(binding.created_at))
    .bind(binding.expires_at.map(micros))
    .bind(binding.known_by.issuer())
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn prolong(
    tx: &mut Connection,
    binding: &ServiceBinding,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE bindings SET bound_until = $1 WHERE binding_id = $2 AND service = $3 AND bound_until IS NOT NULL",
    )
    .bind(binding.expires_at.map(micros))
    .bind(binding.id.as_str())
    .bind(binding.service.as_str())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

/// Deletes the bindings of enrolled hosts of a service that is revoked.
pub(super) async fn end_enrolled(tx: &mut Connection, service: &Name) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM bindings WHERE service = $1 AND bound_until IS NOT NULL")
        .bind(service.as_str())
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    Ok(())
}

pub(super) async fn list(pool: &Pool, service: &Name) -> Result<Vec<ServiceBinding>, StoreError> {
    let rows =
        sqlx::query("SELECT * FROM bindings WHERE service = $1 ORDER BY bound_at, binding_id")
            .bind(service.as_str())
            .fetch_all(pool)
            .await
            .map_err(store_error)?;
    rows.iter().map(binding).collect()
}

pub(super) async fn get(
    pool: &Pool,
    service: &Name,
    id: &BindingId,
) -> Result<Option<ServiceBinding>, StoreError> {
    let row = sqlx::query("SELECT * FROM bindings WHERE binding_id = $1 AND service = $2")
        .bind(id.as_str())
        .bind(service.as_str())
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    row.as_ref().map(binding).transpose()
}

pub(super) async fn delete(
    tx: &mut Connection,
    service: &Name,
    id: &BindingId,
) -> Result<(), StoreError> {
    let done = sqlx::query("DELETE FROM bindings WHERE binding_id = $1 AND service = $2")
        .bind(id.as_str())
        .bind(service.as_str())
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn bound(
    pool: &Pool,
    known_by: &KnownBy,
) -> Result<Option<(ServiceBinding, Service)>, StoreError> {
    let row = sqlx::query(
        "SELECT b.*, s.* FROM bindings b JOIN services s ON s.name = b.service
         WHERE b.kind = $1 AND b.known_by = $2",
    )
    .bind(known_by.kind())
    .bind(known_by.name())
    .fetch_optional(pool)
    .await
    .map_err(store_error)?;
    row.as_ref().map(both).transpose()
}

pub(super) async fn of_issuer(
    reader: &mut Connection,
    issuer: &str,
) -> Result<Vec<(ServiceBinding, Service)>, StoreError> {
    let rows = sqlx::query(
        "SELECT b.*, s.* FROM bindings b JOIN services s ON s.name = b.service
         WHERE b.issuer = $1 ORDER BY b.bound_at, b.binding_id",
    )
    .bind(issuer)
    .fetch_all(reader)
    .await
    .map_err(store_error)?;
    rows.iter().map(both).collect()
}

fn both(row: &Row) -> Result<(ServiceBinding, Service), StoreError> {
    Ok((binding(row)?, services::service(row)?))
}

fn binding(row: &Row) -> Result<ServiceBinding, StoreError> {
    let (kind, known_by): (String, String) = (column(row, "kind")?, column(row, "known_by")?);
    let known_by = KnownBy::parse(&kind, &known_by);
    Ok(ServiceBinding {
        id: parse(row, TABLE, "binding_id")?,
        service: parse(row, TABLE, "service")?,
        known_by: known_by.ok_or_else(|| inconsistent(TABLE, "known_by"))?,
        created_at: time(row, TABLE, "bound_at")?,
        expires_at: time_optional(row, TABLE, "bound_until")?,
    })
}
