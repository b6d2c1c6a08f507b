//! Holdings of a service, for a reader beside the broker that works on the store.

use jiff::Timestamp;

use super::{denials, deployment, dialect::Pool, grants, leases, row::store_error, services};
use crate::{
    broker::ports::{RevokeTarget, ServiceHoldings, StoreError},
    domain::denial::{Denial, Scope},
};

/// Reads the leases of `target` that have not ended, and the denials that its sessions would get.
/// Sessions that have ended count as long as access made from them may live. `None`: the store does
/// not know `target`. Writes nothing.
pub(in super::super) async fn held(
    store: &Pool,
    target: &RevokeTarget,
    now: Timestamp,
) -> Result<Option<ServiceHoldings>, StoreError> {
    if services::get(store, target.service()).await?.is_none() {
        return Ok(None);
    }
    let account = deployment::account(store).await?;
    let mut reader = store.acquire().await.map_err(store_error)?;
    let (grant, scope) = match target {
        RevokeTarget::Service(_) => (None, Scope::Service),
        RevokeTarget::Grant(name) => {
            match grants::known(&mut reader, name).await {
                Err(StoreError::Conflict) => return Ok(None),
                known => known?,
            }
            (Some(&name.grant), Scope::Grant(name.grant.clone()))
        }
    };
    let leases = leases::live(&mut reader, target.service(), grant).await?;
    let last = leases::last_sessions(&mut reader, target.service(), grant).await?;
    let concerned = denials::concerned(&mut reader, &scope, &last.sessions, now).await?;
    let denial = |concerned| Denial::request(concerned, None, now);
    Ok(Some(ServiceHoldings {
        account,
        denials: concerned.into_iter().map(denial).collect(),
        leases,
    }))
}
