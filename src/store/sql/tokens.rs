use super::{
    dialect::{Connection, Pool, Row},
    operators,
    row::{exactly_one, get, inconsistent, micros, store_error, time, time_optional, token_id},
    services,
};
use crate::{
    broker::ports::{StoreError, TokenOwner},
    domain::{
        name::Name,
        service::TOKENS_MAX,
        token::{StoredToken, TokenDigest, TokenId},
    },
};

const TABLE: &str = "tokens";

pub(super) async fn insert_for_service(
    tx: &mut Connection,
    service: &Name,
    token: &StoredToken,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "INSERT INTO tokens (token_id, service, digest, created_at, expires_at)
         SELECT $1, $2, $3, $4, $5 WHERE (SELECT count(*) FROM tokens WHERE service = $2 AND NOT enrolls) < $6",
    )
    .bind(token.id.as_str())
    .bind(service.as_str())
    .bind(token.digest.as_bytes())
    .bind(micros(token.created_at))
    .bind(token.expires_at.map(micros))
    .bind(i64::try_from(TOKENS_MAX).unwrap_or(i64::MAX))
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

/// Adds an enrolment token, and deletes the service's expired ones.
pub(super) async fn insert_for_enrollment(
    tx: &mut Connection,
    service: &Name,
    token: &StoredToken,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM tokens WHERE service = $1 AND enrolls AND expires_at <= $2")
        .bind(service.as_str())
        .bind(micros(token.created_at))
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    let done = sqlx::query(
        "INSERT INTO tokens (token_id, service, digest, created_at, expires_at, enrolls)
         VALUES ($1, $2, $3, $4, $5, TRUE)",
    )
    .bind(token.id.as_str())
    .bind(service.as_str())
    .bind(token.digest.as_bytes())
    .bind(micros(token.created_at))
    .bind(token.expires_at.map(micros))
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

/// Deletes an enrolment token, which is good for one enrolment.
pub(super) async fn use_up(
    tx: &mut Connection,
    service: &Name,
    id: &TokenId,
) -> Result<(), StoreError> {
    let done = sqlx::query("DELETE FROM tokens WHERE token_id = $1 AND service = $2 AND enrolls")
        .bind(id.as_str())
        .bind(service.as_str())
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    exactly_one(&done)
}

/// Deletes the enrolment tokens of a service that is revoked.
pub(super) async fn end_enrollments(tx: &mut Connection, service: &Name) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM tokens WHERE service = $1 AND enrolls")
        .bind(service.as_str())
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Adds an operator's token in place of the earlier one: an operator has one token.
pub(super) async fn insert_for_operator(
    tx: &mut Connection,
    operator: &Name,
    token: &StoredToken,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM tokens WHERE operator = $1")
        .bind(operator.as_str())
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    let done = sqlx::query(
        "INSERT INTO tokens (token_id, operator, digest, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(token.id.as_str())
    .bind(operator.as_str())
    .bind(token.digest.as_bytes())
    .bind(micros(token.created_at))
    .bind(token.expires_at.map(micros))
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn list(pool: &Pool, service: &Name) -> Result<Vec<StoredToken>, StoreError> {
    let rows = sqlx::query(
        "SELECT token_id, digest, created_at AS token_created_at, expires_at
         FROM tokens WHERE service = $1 AND NOT enrolls ORDER BY created_at, token_id",
    )
    .bind(service.as_str())
    .fetch_all(pool)
    .await
    .map_err(store_error)?;
    rows.iter().map(stored).collect()
}

pub(super) async fn delete(
    tx: &mut Connection,
    service: &Name,
    id: &TokenId,
) -> Result<(), StoreError> {
    let done =
        sqlx::query("DELETE FROM tokens WHERE token_id = $1 AND service = $2 AND NOT enrolls")
            .bind(id.as_str())
            .bind(service.as_str())
            .execute(&mut *tx)
            .await
            .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn owner(
    pool: &Pool,
    id: &TokenId,
) -> Result<Option<(StoredToken, TokenOwner)>, StoreError> {
    let service = sqlx::query(
        "SELECT t.token_id, t.digest, t.created_at AS token_created_at, t.expires_at, t.enrolls, s.*
         FROM tokens t JOIN services s ON s.name = t.service WHERE t.token_id = $1",
    );
    if let Some(row) = service
        .bind(id.as_str())
        .fetch_optional(pool)
        .await
        .map_err(store_error)?
    {
        let service = services::service(&row)?;
        let owner = if get(&row, "enrolls")? {
            TokenOwner::Enrollee(service)
        } else {
            TokenOwner::Service(service)
        };
        return Ok(Some((stored(&row)?, owner)));
    }
    let operator = sqlx::query(
        "SELECT t.token_id, t.digest, t.created_at AS token_created_at, t.expires_at, o.*
         FROM tokens t JOIN operators o ON o.name = t.operator WHERE t.token_id = $1",
    );
    match operator
        .bind(id.as_str())
        .fetch_optional(pool)
        .await
        .map_err(store_error)?
    {
        Some(row) => Ok(Some((
            stored(&row)?,
            TokenOwner::Operator(operators::operator(&row)?),
        ))),
        None => Ok(None),
    }
}

fn stored(row: &Row) -> Result<StoredToken, StoreError> {
    let digest: Vec<u8> = get(row, "digest")?;
    Ok(StoredToken {
        id: token_id(row)?,
        digest: TokenDigest::from_bytes(&digest).ok_or_else(|| inconsistent(TABLE, "digest"))?,
        created_at: time(row, TABLE, "token_created_at")?,
        expires_at: time_optional(row, TABLE, "expires_at")?,
    })
}
