//! Position of each sink in the audit log.

use super::{
    dialect::{Connection, Pool},
    row::store_error,
};
use crate::{broker::ports::StoreError, domain::name::Name};

pub(super) async fn cursor(pool: &Pool, name: &Name) -> Result<u64, StoreError> {
    let seq: Option<i64> = sqlx::query_scalar("SELECT seq FROM audit_sinks WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    Ok(seq.unwrap_or(0).cast_unsigned())
}

pub(super) async fn keep_cursor(
    tx: &mut Connection,
    name: &Name,
    seq: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_sinks (name, seq) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET seq = $2 WHERE audit_sinks.seq < $2",
    )
    .bind(name.as_str())
    .bind(seq.cast_signed())
    .execute(tx)
    .await
    .map_err(store_error)?;
    Ok(())
}
