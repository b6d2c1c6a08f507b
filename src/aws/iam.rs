//! IAM users: made for one lease, removed with it.
//!
//! Everything settable at CreateUser is set there, so that a user never exists without
//! its boundary, path and tags. IAM has no idempotency token; the user's name, made of
//! the lease's id, serves as one.

use aws_sdk_iam::error::ProvideErrorMetadata;
use aws_sdk_iam::{
    error::SdkError,
    operation::RequestId,
    types::{StatusType, Tag as IamTag},
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use secrecy::SecretString;

use super::{
    Clients, PATH,
    client::never_twice,
    error::{Operation, failure, on},
};
use crate::{
    broker::ports::{AwsFailure, FailureClass},
    domain::{
        credential::Credentials,
        decide::Issue,
        grant::{KindSpec, Tag},
        lease::Binding,
        policy,
    },
};

/// Name of the inline policy that carries the grant's document.
const GRANT_POLICY: &str = "credbroker-grant";
/// Name of the inline policy that ends all access at once.
const REVOKED_POLICY: &str = "credbroker-revoked";

/// Makes the user, its permissions, and last its key.
pub(super) async fn create(
    clients: &Clients,
    issue: &Issue,
    lease: &Binding,
    boundary: String,
) -> Result<Credentials, AwsFailure> {
    let spec = &issue.grant.spec;
    let KindSpec::IamUser {
        groups,
        path,
        permissions_boundary,
        ..
    } = &spec.kind
    else {
        return Err(missing("the grant is of another kind"));
    };
    let user = &lease.aws_name;
    let boundary = permissions_boundary
        .as_ref()
        .map_or(boundary, ToString::to_string);
    let path = format!("{PATH}{}", path.trim_start_matches('/'));
    create_user(
        clients,
        user,
        path,
        boundary,
        lease.aws_tags(&issue.grant.spec),
    )
    .await?;
    if let Some(document) = spec.effective_policy() {
        put_policy(clients, user, GRANT_POLICY, &document.to_json()).await?;
    }
    for arn in &spec.managed_policies {
        let operation = on("iam:AttachUserPolicy", arn.as_str());
        let call = clients
            .iam()
            .attach_user_policy()
            .user_name(user)
            .policy_arn(arn.as_str());
        call.send()
            .await
            .map_err(|error| failure(&operation, &error))?;
    }
    for group in groups {
        let operation = on("iam:AddUserToGroup", group);
        let call = clients
            .iam()
            .add_user_to_group()
            .user_name(user)
            .group_name(group);
        call.send()
            .await
            .map_err(|error| failure(&operation, &error))?;
    }
    create_key(clients, user).await
}

async fn create_user(
    clients: &Clients,
    user: &str,
    path: String,
    boundary: String,
    tags: Vec<Tag>,
) -> Result<(), AwsFailure> {
    let tags: Result<Vec<_>, _> = tags
        .into_iter()
        .map(|tag| IamTag::builder().key(tag.key).value(tag.value).build())
        .collect();
    let call = clients
        .iam()
        .create_user()
        .user_name(user)
        .path(path)
        .permissions_boundary(&boundary)
        .set_tags(Some(tags.map_err(|_| missing("a tag is incomplete"))?));
    let operation = on("iam:CreateUser", &boundary);
    let sent = call.customize().config_override(never_twice()).send().await;
    sent.map_err(|error| failure(&operation, &error))?;
    Ok(())
}

async fn create_key(clients: &Clients, user: &str) -> Result<Credentials, AwsFailure> {
    let call = clients.iam().create_access_key().user_name(user);
    let sent = call.customize().config_override(never_twice()).send().await;
    let answer = sent.map_err(|error| failure(&on("iam:CreateAccessKey", user), &error))?;
    let aws_request_id = answer.request_id().map(ToOwned::to_owned);
    let key = answer
        .access_key
        .ok_or_else(|| missing("AWS answered without a key"))?;
    Ok(Credentials {
        access_key_id: key.access_key_id,
        secret_access_key: SecretString::from(key.secret_access_key),
        session_token: None,
        expires_at: None,
        aws_request_id,
    })
}

/// Takes a user away, access first: deny everything (which also ends sessions made
/// from its keys), keys, managed policies, groups, inline policies with the denial last,
/// the user. Returns once AWS does not know it.
///
/// Whether a user exists is asked with GetUser: of other calls about a missing user AWS
/// says that they are not allowed, since it has no path that a policy could match.
pub(super) async fn remove(clients: &Clients, user: &str) -> Result<(), AwsFailure> {
    if !exists(clients, user).await? {
        return Ok(());
    }
    // A denial that fails must not keep the keys alive.
    let denied = put_policy(clients, user, REVOKED_POLICY, &policy::deny_all().to_json()).await;
    delete_keys(clients, user).await?;
    denied?;
    detach_policies(clients, user).await?;
    leave_groups(clients, user).await?;
    delete_inline_policies(clients, user).await?;
    let operation = on("iam:DeleteUser", user);
    gone(
        clients.iam().delete_user().user_name(user).send().await,
        &operation,
    )?;
    if exists(clients, user).await? {
        return Err(AwsFailure {
            class: FailureClass::Unavailable,
            ..missing("AWS still shows the user after its deletion")
        });
    }
    Ok(())
}

async fn exists(clients: &Clients, user: &str) -> Result<bool, AwsFailure> {
    let asked = clients.iam().get_user().user_name(user).send().await;
    Ok(gone(asked, &on("iam:GetUser", user))?.is_some())
}

async fn delete_keys(clients: &Clients, user: &str) -> Result<(), AwsFailure> {
    let mut pages = clients
        .iam()
        .list_access_keys()
        .user_name(user)
        .into_paginator()
        .items()
        .send();
    while let Some(key) = pages.next().await {
        let Some(key) = gone(key, &on("iam:ListAccessKeys", user))? else {
            return Ok(());
        };
        let Some(id) = key.access_key_id else {
            continue;
        };
        let off = clients
            .iam()
            .update_access_key()
            .user_name(user)
            .access_key_id(&id)
            .status(StatusType::Inactive);
        gone(off.send().await, &on("iam:UpdateAccessKey", user))?;
        let delete = clients
            .iam()
            .delete_access_key()
            .user_name(user)
            .access_key_id(&id);
        gone(delete.send().await, &on("iam:DeleteAccessKey", user))?;
    }
    Ok(())
}

async fn delete_inline_policies(clients: &Clients, user: &str) -> Result<(), AwsFailure> {
    let mut pages = clients
        .iam()
        .list_user_policies()
        .user_name(user)
        .into_paginator()
        .items()
        .send();
    let mut names = Vec::new();
    while let Some(name) = pages.next().await {
        let Some(name) = gone(name, &on("iam:ListUserPolicies", user))? else {
            return Ok(());
        };
        names.push(name);
    }
    // The denial goes last.
    names.sort_by_key(|name| name == REVOKED_POLICY);
    for name in names {
        let delete = clients
            .iam()
            .delete_user_policy()
            .user_name(user)
            .policy_name(name);
        gone(delete.send().await, &on("iam:DeleteUserPolicy", user))?;
    }
    Ok(())
}

async fn detach_policies(clients: &Clients, user: &str) -> Result<(), AwsFailure> {
    let mut pages = clients
        .iam()
        .list_attached_user_policies()
        .user_name(user)
        .into_paginator()
        .items()
        .send();
    while let Some(policy) = pages.next().await {
        let Some(policy) = gone(policy, &on("iam:ListAttachedUserPolicies", user))? else {
            return Ok(());
        };
        let detach = clients
            .iam()
            .detach_user_policy()
            .user_name(user)
            .set_policy_arn(policy.policy_arn);
        gone(detach.send().await, &on("iam:DetachUserPolicy", user))?;
    }
    Ok(())
}

async fn leave_groups(clients: &Clients, user: &str) -> Result<(), AwsFailure> {
    let mut pages = clients
        .iam()
        .list_groups_for_user()
        .user_name(user)
        .into_paginator()
        .items()
        .send();
    while let Some(group) = pages.next().await {
        let Some(group) = gone(group, &on("iam:ListGroupsForUser", user))? else {
            return Ok(());
        };
        let leave = clients
            .iam()
            .remove_user_from_group()
            .user_name(user)
            .group_name(group.group_name);
        gone(leave.send().await, &on("iam:RemoveUserFromGroup", user))?;
    }
    Ok(())
}

async fn put_policy(
    clients: &Clients,
    user: &str,
    name: &str,
    document: &str,
) -> Result<(), AwsFailure> {
    let call = clients
        .iam()
        .put_user_policy()
        .user_name(user)
        .policy_name(name)
        .policy_document(document);
    call.send()
        .await
        .map_err(|error| failure(&on("iam:PutUserPolicy", user), &error))?;
    Ok(())
}

/// "Not found" is what a removal wants: `None`.
fn gone<T, E>(
    result: Result<T, SdkError<E, HttpResponse>>,
    operation: &Operation<'_>,
) -> Result<Option<T>, AwsFailure>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code() == Some("NoSuchEntity") => Ok(None),
        Err(error) => Err(failure(operation, &error)),
    }
}

fn missing(what: &str) -> AwsFailure {
    AwsFailure {
        class: FailureClass::Uncertain,
        reason: "AWS_ANSWER_INCOMPLETE",
        message: what.to_owned(),
        next: "try again in a minute; what AWS may have made is found and removed by the broker"
            .to_owned(),
        aws_said: String::new(),
        aws_request_id: None,
    }
}
