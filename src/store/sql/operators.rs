use jiff::Timestamp;

use super::{
    dialect::{Connection, Pool, Row},
    row::{exactly_one, micros, parse, store_error, time, token_id},
};
use crate::{
    broker::ports::StoreError,
    domain::{
        name::Name,
        operator::{Operator, Role},
    },
};

const TABLE: &str = "operators";

pub(super) async fn insert(
    tx: &mut Connection,
    name: &Name,
    role: Role,
    at: Timestamp,
) -> Result<(), StoreError> {
    let done = sqlx::query("INSERT INTO operators (name, role, created_at) VALUES ($1, $2, $3)")
        .bind(name.as_str())
        .bind(role.as_str())
        .bind(micros(at))
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn ensure_admin(
    tx: &mut Connection,
    name: &Name,
    at: Timestamp,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "INSERT INTO operators (name, role, created_at) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE SET role = excluded.role",
    )
    .bind(name.as_str())
    .bind(Role::Admin.as_str())
    .bind(micros(at))
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn list(pool: &Pool) -> Result<Vec<Operator>, StoreError> {
    let rows = sqlx::query(
        "SELECT o.*, t.token_id FROM operators o JOIN tokens t ON t.operator = o.name ORDER BY o.name",
    )
    .fetch_all(pool)
    .await
    .map_err(store_error)?;
    rows.iter().map(operator).collect()
}

/// Deletes an operator, and the approvals that the operator requested or gave. `Conflict` for the
/// last admin. A foreign key deletes the token.
pub(super) async fn delete(tx: &mut Connection, name: &Name) -> Result<(), StoreError> {
    let done = sqlx::query(
        "DELETE FROM operators WHERE name = $1
         AND (role <> 'admin' OR EXISTS (SELECT 1 FROM operators WHERE role = 'admin' AND name <> $1))",
    )
    .bind(name.as_str())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)?;
    sqlx::query("DELETE FROM approvals WHERE requested_by = $1 OR approved_by = $1")
        .bind(name.as_str())
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    Ok(())
}

pub(super) fn operator(row: &Row) -> Result<Operator, StoreError> {
    Ok(Operator {
        name: parse(row, TABLE, "name")?,
        role: parse(row, TABLE, "role")?,
        token_id: token_id(row)?,
        created_at: time(row, TABLE, "created_at")?,
    })
}
