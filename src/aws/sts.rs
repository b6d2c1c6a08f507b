//! Sessions: AssumeRole, GetFederationToken, and who the admin key is.

use aws_sdk_sts::operation::{RequestId, get_caller_identity::GetCallerIdentityOutput};
use aws_sdk_sts::types::{Credentials as StsCredentials, PolicyDescriptorType, Tag as StsTag};
use secrecy::SecretString;

use super::{
    Clients,
    budget::Purpose,
    error::{CLOCK_SKEWED, Operation, incomplete, wrong_kind},
    timestamp,
};
use crate::{
    broker::ports::{AdminIdentity, AwsFailure},
    domain::{
        credential::Credentials,
        decide::Issue,
        grant::{KindSpec, Tag},
        lease::Binding,
    },
};

/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>
pub(super) async fn assume_role(
    clients: &Clients,
    issue: &Issue,
    lease: &Binding,
    admin: &str,
) -> Result<Credentials, AwsFailure> {
    let grant = &issue.grant;
    let KindSpec::AssumeRole {
        role_arn,
        external_id,
        source_identity,
        region,
        ..
    } = &grant.spec.kind
    else {
        return Err(wrong_kind());
    };
    let tags = lease.aws_tags(&grant.spec);
    let transitive: Vec<String> = tags
        .iter()
        .filter(|t| t.transitive)
        .map(|t| t.key.clone())
        .collect();
    let operation = Operation {
        name: "sts:AssumeRole",
        on: role_arn.as_str(),
        admin,
    };
    let sts = clients.sts(region.as_deref(), Purpose::Begin);
    let call = sts
        .client
        .assume_role()
        .role_arn(role_arn.as_str())
        .role_session_name(&lease.aws_name)
        .set_external_id(external_id.clone())
        .set_source_identity(source_identity.then(|| grant.name.service.to_string()))
        .set_policy(policy(issue))
        .set_policy_arns(policy_arns(issue))
        .set_tags(Some(sts_tags(tags)?))
        .set_transitive_tag_keys((!transitive.is_empty()).then_some(transitive))
        .duration_seconds(seconds(issue));
    let answer = sts.ask(&operation, call.send()).await?;
    let request_id = answer.request_id().map(ToOwned::to_owned);
    credentials(answer.credentials, request_id)
}

/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetFederationToken.html>
pub(super) async fn get_federation_token(
    clients: &Clients,
    issue: &Issue,
    lease: &Binding,
) -> Result<Credentials, AwsFailure> {
    let KindSpec::FederationToken { region, .. } = &issue.grant.spec.kind else {
        return Err(wrong_kind());
    };
    let operation = Operation {
        name: "sts:GetFederationToken",
        on: &lease.aws_name,
        admin: "",
    };
    let sts = clients.sts(region.as_deref(), Purpose::Begin);
    let call = sts
        .client
        .get_federation_token()
        .name(&lease.aws_name)
        .set_policy(policy(issue))
        .set_policy_arns(policy_arns(issue))
        .set_tags(Some(sts_tags(lease.aws_tags(&issue.grant.spec))?))
        .duration_seconds(seconds(issue));
    let answer = sts.ask(&operation, call.send()).await?;
    let request_id = answer.request_id().map(ToOwned::to_owned);
    credentials(answer.credentials, request_id)
}

/// Whom the admin key belongs to. AWS answers this whatever the policies say. The first
/// call of all: it may find the machine's clock wrong.
pub(super) async fn admin(clients: &Clients) -> Result<AdminIdentity, AwsFailure> {
    match ask_admin(clients).await {
        Err(failure) if failure.reason == CLOCK_SKEWED => ask_admin(clients).await,
        answer => answer,
    }
}

async fn ask_admin(clients: &Clients) -> Result<AdminIdentity, AwsFailure> {
    let operation = Operation {
        name: "sts:GetCallerIdentity",
        on: "",
        admin: "",
    };
    let sts = clients.sts(None, Purpose::Complete);
    let call = sts.client.get_caller_identity().send();
    identity(sts.ask(&operation, call).await?)
}

/// Whose a key is, as AWS tells.
pub(super) fn identity(answer: GetCallerIdentityOutput) -> Result<AdminIdentity, AwsFailure> {
    let account = answer.account.unwrap_or_default().parse();
    Ok(AdminIdentity {
        arn: answer.arn.unwrap_or_default(),
        account: account.map_err(|_| incomplete("AWS did not say whose the key is"))?,
    })
}

fn policy(issue: &Issue) -> Option<String> {
    issue
        .grant
        .spec
        .effective_policy()
        .map(|document| document.to_json())
}

fn policy_arns(issue: &Issue) -> Option<Vec<PolicyDescriptorType>> {
    let arns = &issue.grant.spec.managed_policies;
    let described = arns
        .iter()
        .map(|arn| PolicyDescriptorType::builder().arn(arn.as_str()).build());
    (!arns.is_empty()).then(|| described.collect())
}

fn sts_tags(tags: Vec<Tag>) -> Result<Vec<StsTag>, AwsFailure> {
    tags.into_iter()
        .map(|tag| {
            StsTag::builder()
                .key(tag.key)
                .value(tag.value)
                .build()
                .map_err(|_| incomplete("a tag is incomplete"))
        })
        .collect()
}

fn seconds(issue: &Issue) -> i32 {
    i32::try_from(issue.ttl.as_secs()).unwrap_or(i32::MAX)
}

fn credentials(
    answer: Option<StsCredentials>,
    aws_request_id: Option<String>,
) -> Result<Credentials, AwsFailure> {
    let answer = answer.ok_or_else(|| incomplete(WITHOUT))?;
    Ok(Credentials {
        expires_at: Some(timestamp(&answer.expiration).ok_or_else(|| incomplete(WITHOUT))?),
        access_key_id: answer.access_key_id,
        secret_access_key: SecretString::from(answer.secret_access_key),
        session_token: Some(SecretString::from(answer.session_token)),
        usable_after: None,
        aws_request_id,
    })
}

const WITHOUT: &str = "AWS answered without the credentials it should have sent";
