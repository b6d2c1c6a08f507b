//! The checkpoint that the witness of the audit log has cosigned.

use super::{
    dialect::{Connection, Pool, Row},
    row::{count, get, store_error},
};
use crate::broker::ports::{CosignedCheckpoint, StoreError};

pub(super) async fn cosigned(pool: &Pool) -> Result<Option<CosignedCheckpoint>, StoreError> {
    let row = sqlx::query("SELECT size, note FROM audit_witness")
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    let cosigned = |row: &Row| {
        Ok(CosignedCheckpoint {
            size: count(row, "size")?,
            note: get(row, "note")?,
        })
    };
    row.as_ref().map(cosigned).transpose()
}

pub(super) async fn keep_cosigned(
    tx: &mut Connection,
    cosigned: &CosignedCheckpoint,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_witness (single, size, note) VALUES (1, $1, $2)
         ON CONFLICT (single) DO UPDATE SET size = $1, note = $2",
    )
    .bind(cosigned.size.cast_signed())
    .bind(cosigned.note.as_str())
    .execute(tx)
    .await
    .map_err(store_error)?;
    Ok(())
}
