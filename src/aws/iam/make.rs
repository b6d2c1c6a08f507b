//! Creation of a user and its key.
//!
//! Everything that can be set at CreateUser is set there, so that a user never exists without its
//! boundary, path and tags.

use aws_sdk_iam::{operation::RequestId, types::Tag as IamTag};
use secrecy::SecretString;
use tokio::time::Instant;

use super::{GRANT_POLICY, exists, is_ours, keys, put_policy, remove_key};
use crate::{
    aws::{
        admin_key,
        client::{Clients, IamCalls, never_twice},
        error::{EXISTS, incomplete, no_longer_there, not_ours, not_yet, on, wrong_kind},
        rate_budget::Purpose,
    },
    broker::ports::{AwsFailure, FailureClass, IssueFailure, Residue},
    domain::{
        credential::{AccessKey, Credentials},
        decide::Issue,
        grant::{GrantSpec, KindSpec},
        lease::Issuance,
    },
};

/// Creates the user, its permissions, and last its key. Takes over what an earlier attempt for the
/// same lease has created, except keys.
pub(in crate::aws) async fn create(
    clients: &Clients,
    issue: &Issue,
    lease: &Issuance,
    path: &str,
    boundary: String,
) -> Result<Credentials, IssueFailure> {
    let user = &lease.aws_name;
    let spec = &issue.grant.spec;
    let made = create_user(&clients.iam(Purpose::Begin), lease, spec, path, boundary).await;
    let iam = &clients.iam(Purpose::Complete);
    let taken_over = match made {
        Ok(()) => false,
        Err(failure) if failure.reason == EXISTS => {
            claim(iam, path, user).await?;
            true
        }
        Err(failure) => {
            return Err(match failure.class {
                FailureClass::Uncertain => touched(failure),
                _ => untouched(failure),
            });
        }
    };
    let equipped = async {
        equip(iam, user, spec).await?;
        if taken_over {
            remove_keys(iam, user).await?;
        }
        new_key(clients, user).await
    };
    equipped.await.map_err(touched)
}

/// Deletes every key of a user, the recorded one even if AWS does not list it, and creates another.
pub(in crate::aws) async fn replace_key(
    clients: &Clients,
    user: &str,
    recorded: &str,
    settled: bool,
) -> Result<Credentials, IssueFailure> {
    let iam = &clients.iam(Purpose::Begin);
    if !exists(iam, user).await.map_err(untouched)? {
        return Err(untouched(if settled {
            no_longer_there(user)
        } else {
            not_yet(
                "AWS_INCONSISTENT",
                format!("AWS does not show user {user} yet"),
            )
        }));
    }
    let iam = &clients.iam(Purpose::Complete);
    let replaced = async {
        // AWS's list may be older than this key.
        remove_key(iam, user, recorded).await?;
        remove_keys(iam, user).await?;
        new_key(clients, user).await
    };
    replaced.await.map_err(touched)
}

const fn touched(failure: AwsFailure) -> IssueFailure {
    IssueFailure {
        failure,
        left: Residue::Something,
    }
}

const fn untouched(failure: AwsFailure) -> IssueFailure {
    IssueFailure {
        failure,
        left: Residue::Nothing,
    }
}

async fn create_user(
    iam: &IamCalls,
    lease: &Issuance,
    spec: &GrantSpec,
    path: &str,
    boundary: String,
) -> Result<(), AwsFailure> {
    let KindSpec::IamUser {
        path: below,
        permissions_boundary,
        ..
    } = &spec.kind
    else {
        return Err(wrong_kind());
    };
    let boundary = permissions_boundary
        .as_ref()
        .map_or(boundary, ToString::to_string);
    let tags: Result<Vec<_>, _> = lease
        .aws_tags(spec)
        .into_iter()
        .map(|tag| IamTag::builder().key(tag.key).value(tag.value).build())
        .collect();
    let call = iam
        .client
        .create_user()
        .user_name(&lease.aws_name)
        .path(format!("{path}{}", below.trim_start_matches('/')))
        .permissions_boundary(&boundary)
        .set_tags(Some(tags.map_err(|_| incomplete("a tag is incomplete"))?));
    // The SDK reports only its last attempt, and an earlier one may have reached AWS.
    let sent = call.customize().config_override(never_twice()).send();
    iam.ask(&on("iam:CreateUser", &boundary), sent).await?;
    Ok(())
}

/// Checks that a user of the lease's name is the lease's own.
async fn claim(iam: &IamCalls, path: &str, user: &str) -> Result<(), IssueFailure> {
    match is_ours(iam, path, user).await.map_err(touched)? {
        Some(true) => Ok(()),
        Some(false) => Err(IssueFailure {
            failure: not_ours(user),
            left: Residue::NotOurs,
        }),
        None => Err(touched(not_yet(
            "AWS_INCONSISTENT",
            format!("AWS has a user {user}, and does not show it yet"),
        ))),
    }
}

/// Gives a user the permissions of its grant. Each call may be repeated.
async fn equip(iam: &IamCalls, user: &str, spec: &GrantSpec) -> Result<(), AwsFailure> {
    if let Some(document) = spec.effective_policy() {
        put_policy(iam, user, GRANT_POLICY, &document.to_json()).await?;
    }
    for arn in &spec.managed_policies {
        let call = iam
            .client
            .attach_user_policy()
            .user_name(user)
            .policy_arn(arn.as_str());
        iam.ask(&on("iam:AttachUserPolicy", arn.as_str()), call.send())
            .await?;
    }
    let KindSpec::IamUser { groups, .. } = &spec.kind else {
        return Err(wrong_kind());
    };
    for group in groups {
        let call = iam
            .client
            .add_user_to_group()
            .user_name(user)
            .group_name(group);
        iam.ask(&on("iam:AddUserToGroup", group), call.send())
            .await?;
    }
    Ok(())
}

async fn remove_keys(iam: &IamCalls, user: &str) -> Result<(), AwsFailure> {
    for key in keys(iam, user).await? {
        remove_key(iam, user, &key).await?;
    }
    Ok(())
}

/// Creates a key and waits until AWS accepts it. A key whose secret never arrived is useless: it is
/// deleted, and another is created.
async fn new_key(clients: &Clients, user: &str) -> Result<Credentials, AwsFailure> {
    let iam = &clients.iam(Purpose::Complete);
    let made = match create_key(iam, user).await {
        Err(failure) if failure.class == FailureClass::Uncertain => {
            remove_keys(iam, user).await?;
            create_key(iam, user).await
        }
        made => made,
    };
    let mut credentials = made?;
    let key = AccessKey {
        id: credentials.access_key_id.clone(),
        secret: credentials.secret_access_key.clone(),
    };
    let began = Instant::now();
    admin_key::prove(clients, &key).await?;
    credentials.usable_after = Some(began.elapsed());
    Ok(credentials)
}

pub(in crate::aws) async fn create_key(
    iam: &IamCalls,
    user: &str,
) -> Result<Credentials, AwsFailure> {
    let call = iam.client.create_access_key().user_name(user);
    let sent = call.customize().config_override(never_twice()).send();
    let answer = iam.ask(&on("iam:CreateAccessKey", user), sent).await?;
    let aws_request_id = answer.request_id().map(ToOwned::to_owned);
    let key = answer
        .access_key
        .ok_or_else(|| incomplete("AWS answered without a key"))?;
    Ok(Credentials {
        access_key_id: key.access_key_id,
        secret_access_key: SecretString::from(key.secret_access_key),
        session_token: None,
        expires_at: None,
        usable_after: None,
        aws_request_id,
    })
}
