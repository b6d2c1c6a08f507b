//! What a service holds, read from a store that a broker may have open or not.

use std::path::Path;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::{denials, deployment, grants, leases, row::store_error, services};
use crate::{
    broker::ports::{Held, StoreError, Target},
    domain::denial::{Denial, Scope},
};

/// What has not ended of `target`, and the denials that its sessions would take; `None` for
/// what the store does not know. Nothing is written.
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
    let store = one.connect_with(options).await.map_err(store_error)?;
    if services::get(&store, target.service()).await?.is_none() {
        return Ok(None);
    }
    let account = deployment::account(&store).await?;
    let mut reader = store.acquire().await.map_err(store_error)?;
    let (grant, scope) = match target {
        Target::Service(_) => (None, Scope::Service),
        Target::Grant(name) => {
            match grants::known(&mut reader, name).await {
                Err(StoreError::Conflict) => return Ok(None),
                known => known?,
            }
            (Some(&name.grant), Scope::Grant(name.grant.clone()))
        }
    };
    let leases = leases::live(&mut reader, target.service(), grant).await?;
    let concerned = denials::concerned(&mut reader, &scope, &leases, now).await?;
    let denial = |concerned| Denial::ask(concerned, None, now);
    Ok(Some(Held {
        account,
        denials: concerned.into_iter().map(denial).collect(),
        leases,
    }))
}
