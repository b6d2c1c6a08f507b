use std::path::Path;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::sql;
use crate::broker::ports::{RevokeTarget, ServiceHoldings, StoreError};

/// Reads the leases of `target` that have not ended, and the denials that its sessions would get.
/// The store's broker may have it open. `None`: the store does not know `target`. Writes nothing.
///
/// # Errors
/// The file is not a store of this version, or cannot be read.
pub async fn held(
    path: &Path,
    target: &RevokeTarget,
    now: Timestamp,
) -> Result<Option<ServiceHoldings>, StoreError> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let one = SqlitePoolOptions::new().max_connections(1);
    let store = one.connect_with(options).await.map_err(sql::store_error)?;
    sql::held(&store, target, now).await
}
