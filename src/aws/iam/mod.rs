//! IAM users: created for one lease, removed with it, listed for reconciliation.
//!
//! IAM has no idempotency token; the user's name, made of the lease's id, serves as one.

mod inventory;
mod make;
mod remove;

use aws_sdk_iam::types::StatusType;

pub(super) use self::{
    inventory::{is_ours, users},
    make::{create, create_key, replace_key},
    remove::remove,
};
use super::{client::IamCalls, error::on};
use crate::broker::ports::AwsFailure;

/// Collects all entries of a paged list; none if the object that it belongs to is gone.
macro_rules! every {
    ($iam:expr, $operation:expr, $call:expr, $page:ident => $entries:expr) => {{
        let (mut entries, mut marker) = (Vec::new(), None);
        loop {
            let call = $call.set_marker(marker).send();
            let Some($page) = $iam.list(&$operation, call).await? else {
                break;
            };
            marker = $page.marker.clone().filter(|_| $page.is_truncated);
            entries.extend($entries);
            if marker.is_none() {
                break;
            }
        }
        entries
    }};
}
pub(super) use every;

/// Name of the inline policy that carries the grant's document.
const GRANT_POLICY: &str = "credbroker-grant";
/// Name of the inline policy that ends all access at once.
pub(super) const REVOKED_POLICY: &str = "credbroker-revoked";

/// Returns whether AWS shows a user. Calls GetUser: AWS answers other calls about a missing user
/// with a denial, since the user has no path that a policy could match.
async fn exists(iam: &IamCalls, user: &str) -> Result<bool, AwsFailure> {
    let call = iam.client.get_user().user_name(user).send();
    Ok(iam
        .call_if_exists(&on("iam:GetUser", user), call)
        .await?
        .is_some())
}

async fn put_policy(
    iam: &IamCalls,
    user: &str,
    name: &str,
    document: &str,
) -> Result<(), AwsFailure> {
    let call = iam
        .client
        .put_user_policy()
        .user_name(user)
        .policy_name(name)
        .policy_document(document);
    iam.ask(&on("iam:PutUserPolicy", user), call.send()).await?;
    Ok(())
}

/// Returns the ids of a user's keys.
pub(super) async fn keys(iam: &IamCalls, user: &str) -> Result<Vec<String>, AwsFailure> {
    let keys = every!(iam, on("iam:ListAccessKeys", user),
        iam.client.list_access_keys().user_name(user),
        page => page.access_key_metadata);
    Ok(keys
        .into_iter()
        .filter_map(|key| key.access_key_id)
        .collect())
}

/// Deactivates a key, then deletes it.
pub(super) async fn remove_key(iam: &IamCalls, user: &str, id: &str) -> Result<(), AwsFailure> {
    deactivate_key(iam, user, id).await?;
    delete_key(iam, user, id).await
}

pub(super) async fn deactivate_key(iam: &IamCalls, user: &str, id: &str) -> Result<(), AwsFailure> {
    let off = iam
        .client
        .update_access_key()
        .user_name(user)
        .access_key_id(id)
        .status(StatusType::Inactive);
    iam.call_if_exists(&on("iam:UpdateAccessKey", user), off.send())
        .await?;
    Ok(())
}

pub(super) async fn delete_key(iam: &IamCalls, user: &str, id: &str) -> Result<(), AwsFailure> {
    let delete = iam
        .client
        .delete_access_key()
        .user_name(user)
        .access_key_id(id);
    iam.call_if_exists(&on("iam:DeleteAccessKey", user), delete.send())
        .await?;
    Ok(())
}
