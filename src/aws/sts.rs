//! Sessions by AssumeRole and GetFederationToken, and the identity of the admin key.

use std::time::Duration;

use aws_sdk_sts::operation::{RequestId, get_caller_identity::GetCallerIdentityOutput};
use aws_sdk_sts::types::{Credentials as StsCredentials, PolicyDescriptorType, Tag as StsTag};
use jiff::Timestamp;
use secrecy::SecretString;

use super::{
    Clients,
    error::{CLOCK_SKEWED, Operation, incomplete, on, wrong_kind},
    rate_budget::Purpose,
    timestamp,
};
use crate::{
    broker::ports::{AdminIdentity, AwsFailure},
    domain::{
        arn::{PolicyArn, RoleArn},
        clock::AGREEING,
        credential::Credentials,
        decide::Issue,
        grant::{GrantSpec, KindSpec, Tag},
        lease::Issuance,
    },
};

/// Time that a request may take to reach AWS. A session's policy ends the session later than its
/// length by this time.
const ON_THE_WAY: Duration = Duration::from_secs(60);

/// Request for a session.
pub(super) struct SessionRequest<'a> {
    pub(super) spec: &'a GrantSpec,
    pub(super) binding: &'a Issuance,
    /// The inline session policy, JSON.
    pub(super) policy: Option<String>,
    /// Managed session policies.
    pub(super) managed: &'a [PolicyArn],
    pub(super) ttl: Duration,
    pub(super) purpose: Purpose,
}

impl<'a> SessionRequest<'a> {
    /// Returns the request for the session of a lease, at `now`.
    pub(super) fn of(issue: &'a Issue, binding: &'a Issuance, now: Timestamp) -> Self {
        let spec = &issue.grant.spec;
        let ends = now
            .checked_add(issue.ttl + ON_THE_WAY)
            .unwrap_or(Timestamp::MAX);
        Self {
            spec,
            binding,
            policy: spec.session_policy(ends).map(|document| document.to_json()),
            managed: &spec.managed_policies,
            ttl: issue.ttl,
            purpose: Purpose::Begin,
        }
    }

    fn policy_arns(&self) -> Option<Vec<PolicyDescriptorType>> {
        let described = self
            .managed
            .iter()
            .map(|arn| PolicyDescriptorType::builder().arn(arn.as_str()).build());
        (!self.managed.is_empty()).then(|| described.collect())
    }

    fn seconds(&self) -> i32 {
        i32::try_from(self.ttl.as_secs()).unwrap_or(i32::MAX)
    }
}

/// Calls AssumeRole: <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>
pub(super) async fn assume_role(
    clients: &Clients,
    session: &SessionRequest<'_>,
    admin: &str,
) -> Result<Credentials, AwsFailure> {
    let KindSpec::AssumeRole {
        role_arn,
        external_id,
        source_identity,
        region,
        ..
    } = &session.spec.kind
    else {
        return Err(wrong_kind());
    };
    let binding = session.binding;
    let tags = binding.aws_tags(session.spec);
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
    let sts = clients.sts(region.as_deref(), session.purpose);
    let call = sts
        .client
        .assume_role()
        .role_arn(role_arn.as_str())
        .role_session_name(&binding.aws_name)
        .set_external_id(external_id.clone())
        .set_source_identity(source_identity.then(|| binding.grant.service.to_string()))
        .set_policy(session.policy.clone())
        .set_policy_arns(session.policy_arns())
        .set_tags(Some(sts_tags(tags)?))
        .set_transitive_tag_keys((!transitive.is_empty()).then_some(transitive))
        .duration_seconds(session.seconds());
    let answer = sts.ask(&operation, call.send()).await?;
    let request_id = answer.request_id().map(ToOwned::to_owned);
    credentials(answer.credentials, request_id)
}

/// Calls GetFederationToken:
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetFederationToken.html>
pub(super) async fn get_federation_token(
    clients: &Clients,
    session: &SessionRequest<'_>,
) -> Result<Credentials, AwsFailure> {
    let KindSpec::FederationToken { region, .. } = &session.spec.kind else {
        return Err(wrong_kind());
    };
    let binding = session.binding;
    let operation = Operation {
        name: "sts:GetFederationToken",
        on: &binding.aws_name,
        admin: "",
    };
    let sts = clients.sts(region.as_deref(), session.purpose);
    let call = sts
        .client
        .get_federation_token()
        .name(&binding.aws_name)
        .set_policy(session.policy.clone())
        .set_policy_arns(session.policy_arns())
        .set_tags(Some(sts_tags(binding.aws_tags(session.spec))?))
        .duration_seconds(session.seconds());
    let answer = sts.ask(&operation, call.send()).await?;
    let request_id = answer.request_id().map(ToOwned::to_owned);
    credentials(answer.credentials, request_id)
}

/// Returns a session of a role in another account, by which that account's policies are changed.
pub(super) async fn act_as(clients: &Clients, role: &RoleArn) -> Result<Credentials, AwsFailure> {
    let operation = on("sts:AssumeRole", role.as_str());
    let sts = clients.sts(None, Purpose::Revoke);
    let call = sts
        .client
        .assume_role()
        .role_arn(role.as_str())
        .role_session_name("credbroker")
        .duration_seconds(900);
    let answer = sts.ask(&operation, call.send()).await?;
    let request_id = answer.request_id().map(ToOwned::to_owned);
    credentials(answer.credentials, request_id)
}

/// Returns the owner of the admin key. AWS answers this call whatever the policies say. This is the
/// first call of all: if it finds the machine's clock wrong, it is repeated until the clock is set.
pub(super) async fn admin(clients: &Clients) -> Result<AdminIdentity, AwsFailure> {
    for _ in 0..AGREEING {
        match ask_admin(clients).await {
            Err(failure) if failure.reason == CLOCK_SKEWED => {}
            answer => return answer,
        }
    }
    ask_admin(clients).await
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

/// Reads the owner of a key from AWS's answer.
pub(super) fn identity(answer: GetCallerIdentityOutput) -> Result<AdminIdentity, AwsFailure> {
    let account = answer.account.unwrap_or_default().parse();
    Ok(AdminIdentity {
        arn: answer.arn.unwrap_or_default(),
        account: account.map_err(|_| incomplete("AWS did not say whose the key is"))?,
    })
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
