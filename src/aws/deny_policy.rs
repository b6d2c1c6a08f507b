//! Denials of sessions, in policies of roles and of the broker's own user.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_iam::{operation::RequestId, types::AttachedPolicy};
use jiff::SignedDuration;
use percent_encoding::percent_decode_str;

use super::{
    AwsAccount, PATH,
    client::IamCalls,
    error::{EXISTS, MISSING, not_set_up, on, wrong_kind},
    iam::every,
    probe,
    rate_budget::Purpose,
    sts,
};
use crate::{
    broker::ports::{
        AssumedRevokerRole, AwsFailure, DenyPolicyApi, NO_REVOKER, PolicyState, PolicyWritten,
        ProbeOutcome,
    },
    domain::{
        arn::{AccountId, UserArn},
        credential::Credentials,
        denial::{PolicyLocation, PolicyOwner},
        grant::{Grant, KindSpec},
        lease::Issuance,
        policy::{self, Document},
        probe::Probe,
    },
};

/// Shortest remaining life of a session that is still used.
const LEFT: SignedDuration = SignedDuration::from_secs(60);
/// Life of a canary session: the shortest that AWS allows.
const CANARY_TTL: Duration = Duration::from_secs(900);
/// Most versions of a managed policy that AWS stores:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/access_policies_managed-versioning.html>.
const VERSIONS_MAX: usize = 5;
/// Content of a managed policy while nothing is denied: AWS accepts no policy without a statement.
const NOTHING: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"DateLessThan":{"aws:TokenIssueTime":"1970-01-01T00:00:00Z"}}}]}"#;

impl AwsAccount {
    /// Returns IAM of an account: the broker's own, or another by a session of the role there.
    async fn iam_of(&self, account: &AccountId) -> Result<IamCalls, AwsFailure> {
        let session = self.session();
        if session.admin().await?.account == *account {
            return Ok(session.clients.iam(Purpose::Revoke));
        }
        let credentials = self
            .entered(account)
            .ok_or_else(|| no_revoker_role(account))?;
        Ok(session.clients.iam_with(&credentials, Purpose::Revoke))
    }

    /// Returns the session of the role in another account, if it lives long enough to be used.
    fn entered(&self, account: &AccountId) -> Option<Credentials> {
        let entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        let credentials = entered.get(account)?;
        let lives = credentials.expires_at? > self.session().clients.now() + LEFT;
        lives.then(|| credentials.clone())
    }

    async fn put_inline(
        &self,
        iam: &IamCalls,
        holder: &PolicyOwner,
        document: &str,
    ) -> Result<Option<String>, AwsFailure> {
        let name = &self.denials;
        match holder {
            PolicyOwner::Role(role) => {
                let call = iam.client.put_role_policy().role_name(role.name());
                let call = call.policy_name(name).policy_document(document).send();
                let answer = iam
                    .ask(&on("iam:PutRolePolicy", role.as_str()), call)
                    .await?;
                Ok(answer.request_id().map(ToOwned::to_owned))
            }
            PolicyOwner::User(user) => {
                let call = iam.client.put_user_policy().user_name(user.name());
                let call = call.policy_name(name).policy_document(document).send();
                let answer = iam
                    .ask(&on("iam:PutUserPolicy", user.as_str()), call)
                    .await?;
                Ok(answer.request_id().map(ToOwned::to_owned))
            }
        }
    }

    async fn remove_inline(
        &self,
        iam: &IamCalls,
        holder: &PolicyOwner,
    ) -> Result<Option<String>, AwsFailure> {
        let name = &self.denials;
        match holder {
            PolicyOwner::Role(role) => {
                let call = iam.client.delete_role_policy().role_name(role.name());
                let call = call.policy_name(name).send();
                let answer = iam
                    .call_if_exists(&on("iam:DeleteRolePolicy", role.as_str()), call)
                    .await?;
                Ok(answer.and_then(|answer| answer.request_id().map(ToOwned::to_owned)))
            }
            PolicyOwner::User(user) => {
                let call = iam.client.delete_user_policy().user_name(user.name());
                let call = call.policy_name(name).send();
                let answer = iam
                    .call_if_exists(&on("iam:DeleteUserPolicy", user.as_str()), call)
                    .await?;
                Ok(answer.and_then(|answer| answer.request_id().map(ToOwned::to_owned)))
            }
        }
    }

    async fn read_inline(
        &self,
        iam: &IamCalls,
        holder: &PolicyOwner,
    ) -> Result<Option<String>, AwsFailure> {
        let name = &self.denials;
        match holder {
            PolicyOwner::Role(role) => {
                let call = iam.client.get_role_policy().role_name(role.name());
                let call = call.policy_name(name).send();
                let answer = iam
                    .call_if_exists(&on("iam:GetRolePolicy", role.as_str()), call)
                    .await?;
                Ok(answer.map(|answer| answer.policy_document))
            }
            PolicyOwner::User(user) => {
                let call = iam.client.get_user_policy().user_name(user.name());
                let call = call.policy_name(name).send();
                let answer = iam
                    .call_if_exists(&on("iam:GetUserPolicy", user.as_str()), call)
                    .await?;
                Ok(answer.map(|answer| answer.policy_document))
            }
        }
    }

    fn managed_arn(&self, account: &AccountId) -> String {
        let (partition, name) = (self.partition, &self.denials);
        format!("arn:{partition}:iam::{account}:policy{PATH}{name}")
    }

    async fn put_managed(
        &self,
        iam: &IamCalls,
        account: &AccountId,
        holders: &BTreeSet<PolicyOwner>,
        document: &str,
    ) -> Result<PolicyWritten, AwsFailure> {
        let arn = self.managed_arn(account);
        let call = iam
            .client
            .create_policy()
            .path(PATH)
            .policy_name(&self.denials)
            .description("Sessions that credbroker has revoked")
            .policy_document(document);
        let made = iam.ask(&on("iam:CreatePolicy", &arn), call.send()).await;
        let aws_request_id = match made {
            Ok(answer) => answer.request_id().map(ToOwned::to_owned),
            Err(failure) if failure.reason == EXISTS => new_version(iam, &arn, document).await?,
            Err(failure) => return Err(failure),
        };
        let mut missed = BTreeMap::new();
        for holder in holders {
            if let Err(failure) = attach(iam, holder, &arn).await {
                missed.insert(holder.clone(), failure);
            }
        }
        Ok(PolicyWritten {
            aws_request_id,
            missed,
        })
    }

    async fn read_managed(
        &self,
        iam: &IamCalls,
        account: &AccountId,
    ) -> Result<Option<String>, AwsFailure> {
        let arn = self.managed_arn(account);
        let call = iam.client.get_policy().policy_arn(&arn).send();
        let Some(found) = iam.call_if_exists(&on("iam:GetPolicy", &arn), call).await? else {
            return Ok(None);
        };
        let version = found.policy.and_then(|policy| policy.default_version_id);
        let call = iam.client.get_policy_version().policy_arn(&arn);
        let call = call.set_version_id(version).send();
        let found = iam
            .call_if_exists(&on("iam:GetPolicyVersion", &arn), call)
            .await?;
        Ok(found
            .and_then(|found| found.policy_version)
            .and_then(|version| version.document))
    }
}

/// Returns whether the policy is attached to this role or user.
async fn is_attached(iam: &IamCalls, holder: &PolicyOwner, arn: &str) -> Result<bool, AwsFailure> {
    let attached = match holder {
        PolicyOwner::Role(role) => every!(iam, on("iam:ListAttachedRolePolicies", role.as_str()),
            iam.client.list_attached_role_policies().role_name(role.name()),
            page => page.attached_policies.unwrap_or_default()),
        PolicyOwner::User(user) => every!(iam, on("iam:ListAttachedUserPolicies", user.as_str()),
            iam.client.list_attached_user_policies().user_name(user.name()),
            page => page.attached_policies.unwrap_or_default()),
    };
    let is_it = |policy: &AttachedPolicy| policy.policy_arn.as_deref() == Some(arn);
    Ok(attached.iter().any(is_it))
}

fn no_revoker_role(account: &AccountId) -> AwsFailure {
    let message =
        format!("no role is configured by which the policies of account {account} can be changed");
    AwsFailure {
        next: "name one in [[revocation.accounts]]; deploy/README.md shows how to make it"
            .to_owned(),
        ..not_set_up(NO_REVOKER, message)
    }
}

/// Creates a version and puts it in force. If AWS stores as many versions as it may, the oldest
/// that is not in force is deleted first.
async fn new_version(
    iam: &IamCalls,
    arn: &str,
    document: &str,
) -> Result<Option<String>, AwsFailure> {
    let mut versions = every!(iam, on("iam:ListPolicyVersions", arn),
        iam.client.list_policy_versions().policy_arn(arn),
        page => page.versions.unwrap_or_default());
    versions.sort_by_key(|version| version.create_date.map(|date| date.as_nanos()));
    if versions.len() >= VERSIONS_MAX
        && let Some(oldest) = versions
            .into_iter()
            .find(|version| !version.is_default_version)
    {
        let call = iam.client.delete_policy_version().policy_arn(arn);
        let call = call.set_version_id(oldest.version_id).send();
        iam.call_if_exists(&on("iam:DeletePolicyVersion", arn), call)
            .await?;
    }
    let call = iam
        .client
        .create_policy_version()
        .policy_arn(arn)
        .policy_document(document)
        .set_as_default(true);
    let answer = iam
        .ask(&on("iam:CreatePolicyVersion", arn), call.send())
        .await?;
    Ok(answer.request_id().map(ToOwned::to_owned))
}

/// Attaches a policy. Safe to repeat: AWS accepts what is attached already.
async fn attach(iam: &IamCalls, holder: &PolicyOwner, arn: &str) -> Result<(), AwsFailure> {
    match holder {
        PolicyOwner::Role(role) => {
            let call = iam.client.attach_role_policy().role_name(role.name());
            let call = call.policy_arn(arn).send();
            iam.ask(&on("iam:AttachRolePolicy", role.as_str()), call)
                .await?;
        }
        PolicyOwner::User(user) => {
            let call = iam.client.attach_user_policy().user_name(user.name());
            let call = call.policy_arn(arn).send();
            iam.ask(&on("iam:AttachUserPolicy", user.as_str()), call)
                .await?;
        }
    }
    Ok(())
}

/// Decodes a policy document, which IAM returns percent-encoded (RFC 3986).
fn read(encoded: Option<String>) -> PolicyState {
    let Some(encoded) = encoded else {
        return PolicyState::Nothing;
    };
    let json = percent_decode_str(&encoded).decode_utf8();
    let document = json.ok().and_then(|json| Document::parse(&json).ok());
    match document {
        Some(document) if document.to_json() == NOTHING => PolicyState::Nothing,
        Some(document) => PolicyState::Policy(document),
        None => PolicyState::Other,
    }
}

#[async_trait]
impl DenyPolicyApi for AwsAccount {
    fn region(&self) -> Option<String> {
        self.session().clients.region().map(ToOwned::to_owned)
    }

    async fn federates(&self) -> Result<Option<UserArn>, AwsFailure> {
        let session = self.session();
        Ok(session.admin().await?.arn.parse().ok())
    }

    async fn open_account(
        &self,
        account: &AccountId,
    ) -> Result<Option<AssumedRevokerRole>, AwsFailure> {
        let session = self.session();
        let ours = session.admin().await?.account == *account;
        if ours || self.entered(account).is_some() {
            return Ok(None);
        }
        let role = self
            .revokers
            .get(account)
            .ok_or_else(|| no_revoker_role(account))?;
        let credentials = sts::act_as(&session.clients, role).await?;
        let entered = AssumedRevokerRole {
            role: role.clone(),
            access_key_id: credentials.access_key_id.clone(),
            aws_request_id: credentials.aws_request_id.clone(),
        };
        let mut known = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(account.clone(), credentials);
        Ok(Some(entered))
    }

    async fn write(
        &self,
        place: &PolicyLocation,
        holders: &BTreeSet<PolicyOwner>,
        document: Option<&Document>,
    ) -> Result<PolicyWritten, AwsFailure> {
        let iam = self.iam_of(place.account()).await?;
        let json = document.map(Document::to_json);
        let aws_request_id = match (place, json) {
            (PolicyLocation::Inline(holder), Some(json)) => {
                self.put_inline(&iam, holder, &json).await?
            }
            (PolicyLocation::Inline(holder), None) => self.remove_inline(&iam, holder).await?,
            (PolicyLocation::Managed(account), Some(json)) => {
                return self.put_managed(&iam, account, holders, &json).await;
            }
            (PolicyLocation::Managed(account), None) => {
                match new_version(&iam, &self.managed_arn(account), NOTHING).await {
                    Err(failure) if failure.reason == MISSING => None,
                    written => written?,
                }
            }
        };
        Ok(PolicyWritten {
            aws_request_id,
            ..PolicyWritten::default()
        })
    }

    async fn read(
        &self,
        place: &PolicyLocation,
        holders: &BTreeSet<PolicyOwner>,
    ) -> Result<PolicyState, AwsFailure> {
        let iam = self.iam_of(place.account()).await?;
        let account = match place {
            PolicyLocation::Inline(holder) => {
                return Ok(read(self.read_inline(&iam, holder).await?));
            }
            PolicyLocation::Managed(account) => account,
        };
        let found = read(self.read_managed(&iam, account).await?);
        for holder in holders {
            match is_attached(&iam, holder, &self.managed_arn(account)).await {
                Ok(true) => {}
                Ok(false) => return Ok(PolicyState::Other),
                // The role or user is gone: there is nothing to attach the policy to.
                Err(failure) if failure.reason == MISSING => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(found)
    }

    async fn canary(
        &self,
        grant: &Grant,
        binding: &Issuance,
        probes: &[Probe],
    ) -> Result<Credentials, AwsFailure> {
        let session = self.session();
        let policy = policy::canary(probes);
        let asked = sts::SessionRequest {
            spec: &grant.spec,
            binding,
            policy: Some(policy.to_json()),
            managed: &[],
            ttl: CANARY_TTL,
            purpose: Purpose::Revoke,
        };
        match &grant.spec.kind {
            KindSpec::AssumeRole { .. } => {
                let admin = session.admin().await?;
                sts::assume_role(&session.clients, &asked, &admin.arn).await
            }
            KindSpec::FederationToken { .. } => {
                sts::get_federation_token(&session.clients, &asked).await
            }
            KindSpec::IamUser { .. } => Err(wrong_kind()),
        }
    }

    async fn probe(
        &self,
        credentials: &Credentials,
        probe: Probe,
        region: Option<&str>,
    ) -> Result<ProbeOutcome, AwsFailure> {
        let session = self.session();
        probe::probe(&session.clients, credentials, probe, region).await
    }
}
