use std::path::Path;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::sql;
use crate::broker::ports::{Held, StoreError, Target};

/// What has not ended of `target` in the store of a broker that may have it open or not, and
/// the denials that its sessions would take; `None` for what the store does not know. Nothing
/// is written.
///
/// # Errors
/// It is no store of this version, or cannot be read.
pub async fn held(
    path: &Path,
    target: &Target,
    now: Timestamp,
) -> Result<Option<Held>, StoreError> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let one = SqlitePoolOptions::new().max_connections(1);
    let store = one.connect_with(options).await.map_err(sql::store_error)?;
    sql::held(&store, target, now).await
}
