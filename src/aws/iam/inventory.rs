//! Users that AWS has under the broker's path.

use super::every;
use crate::{
    aws::{client::IamCalls, error::on},
    broker::ports::AwsFailure,
    domain::{grant::OWN_TAG_PREFIX, lease::parse_user_name},
};

/// Returns the names of all users under `path`.
pub(in crate::aws) async fn users(iam: &IamCalls, path: &str) -> Result<Vec<String>, AwsFailure> {
    let users = every!(iam, on("iam:ListUsers", path),
        iam.client.list_users().path_prefix(path).max_items(1000),
        page => page.users);
    Ok(users.into_iter().map(|user| user.user_name).collect())
}

/// Returns whether a user is under `path` and its tags agree with its name; `None`: AWS knows no
/// such user.
pub(in crate::aws) async fn is_ours(
    iam: &IamCalls,
    path: &str,
    user: &str,
) -> Result<Option<bool>, AwsFailure> {
    let call = iam.client.get_user().user_name(user).send();
    let Some(found) = iam.call_if_exists(&on("iam:GetUser", user), call).await? else {
        return Ok(None);
    };
    let Some((found, (service, lease))) = found.user.zip(parse_user_name(user)) else {
        return Ok(Some(false));
    };
    let tags = found.tags.unwrap_or_default();
    let says = |key: &str, value: &str| {
        let key = format!("{OWN_TAG_PREFIX}{key}");
        tags.iter().any(|tag| tag.key == key && tag.value == value)
    };
    let ours = found.path.starts_with(path)
        && says("service", service.as_str())
        && says("lease", lease.as_str());
    Ok(Some(ours))
}
