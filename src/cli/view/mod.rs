//! Output for scripts: the JSON of the contract, snake_case, times in RFC 3339 UTC.

mod audit;
mod identity;
mod lookup;
mod revocation;

use std::time::Duration;

use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub(super) use self::{
    audit::{AuditRecord, Checkpoint},
    identity::{Binding, WhoAmI},
    lookup::{Found, KeyOwner, TokenOwner},
    revocation::{Revocation, RevokedSessions},
};
use super::convert;
use crate::{audit::checkpoint::Receipt, proto};

/// Returns a time in RFC 3339, UTC, to the millisecond.
pub(super) fn time(time: Option<&ProtoTimestamp>) -> Option<String> {
    let time = convert::time(*time?)?;
    Some(format!("{time:.3}"))
}

fn seconds(duration: Option<&ProtoDuration>) -> Option<i64> {
    duration.map(|duration| duration.seconds)
}

pub(super) fn kind(kind: i32) -> &'static str {
    match proto::Kind::try_from(kind) {
        Ok(proto::Kind::AssumeRole) => "assume_role",
        Ok(proto::Kind::FederationToken) => "federation_token",
        Ok(proto::Kind::IamUser) => "iam_user",
        _ => "unknown",
    }
}

pub(super) fn state(state: i32) -> &'static str {
    match proto::LeaseState::try_from(state) {
        Ok(proto::LeaseState::Pending) => "pending",
        Ok(proto::LeaseState::Active) => "active",
        Ok(proto::LeaseState::Revoking) => "revoking",
        Ok(proto::LeaseState::Revoked) => "revoked",
        Ok(proto::LeaseState::Expired) => "expired",
        Ok(proto::LeaseState::Quarantined) => "quarantined",
        _ => "unknown",
    }
}

const fn role(role: proto::Role) -> &'static str {
    match role {
        proto::Role::Viewer => "viewer",
        proto::Role::Auditor => "auditor",
        proto::Role::GrantAdmin => "grant-admin",
        proto::Role::Responder => "responder",
        proto::Role::Admin => "admin",
        proto::Role::Unspecified => "unknown",
    }
}

#[derive(Serialize)]
pub(super) struct Service {
    name: String,
    suspended: bool,
    created_at: Option<String>,
    suspended_at: Option<String>,
    suspend_reason: Option<String>,
    live_leases: u64,
    last_issued_at: Option<String>,
}

impl From<proto::Service> for Service {
    fn from(service: proto::Service) -> Self {
        Self {
            name: service.name,
            suspended: service.suspended,
            created_at: time(service.created_at.as_ref()),
            suspended_at: time(service.suspended_at.as_ref()),
            suspend_reason: service.suspend_reason,
            live_leases: service.live_leases,
            last_issued_at: time(service.last_issued_at.as_ref()),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Token {
    service: String,
    pub(super) token_id: String,
    created_at: Option<String>,
    expires_at: Option<String>,
}

impl From<proto::ServiceToken> for Token {
    fn from(token: proto::ServiceToken) -> Self {
        Self {
            service: token.service,
            token_id: token.token_id,
            created_at: time(token.created_at.as_ref()),
            expires_at: time(token.expires_at.as_ref()),
        }
    }
}

#[derive(Serialize)]
pub(super) struct NewToken {
    service: String,
    token_id: String,
    token: String,
    expires_at: Option<String>,
}

impl From<proto::CreateServiceTokenResponse> for NewToken {
    fn from(created: proto::CreateServiceTokenResponse) -> Self {
        let stored = created.service_token.unwrap_or_default();
        Self {
            service: stored.service,
            token_id: stored.token_id,
            token: created.token,
            expires_at: time(stored.expires_at.as_ref()),
        }
    }
}

impl From<proto::CreateEnrollmentTokenResponse> for NewToken {
    fn from(created: proto::CreateEnrollmentTokenResponse) -> Self {
        Self {
            service: created.service,
            token_id: created.token_id,
            token: created.token,
            expires_at: time(created.expires_at.as_ref()),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Operator {
    name: String,
    role: &'static str,
    token_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    created_at: Option<String>,
}

impl Operator {
    pub(super) fn with_token(self, token: String) -> Self {
        Self {
            token: Some(token),
            ..self
        }
    }
}

impl From<proto::Operator> for Operator {
    fn from(operator: proto::Operator) -> Self {
        Self {
            role: role(operator.role()),
            name: operator.name,
            token_id: operator.token_id,
            token: None,
            created_at: time(operator.created_at.as_ref()),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Grant {
    name: String,
    version: u64,
    kind: &'static str,
    #[serde(flatten)]
    of_kind: Map<String, Value>,
    policy: Value,
    managed_policy_arns: Vec<String>,
    default_ttl_seconds: Option<i64>,
    max_ttl_seconds: Option<i64>,
    allow_broad: bool,
    breadth: Vec<String>,
    probe: Option<String>,
    further_probes: Vec<String>,
    probe_regions: Vec<String>,
    ends_by_policy: bool,
    reuse: Option<String>,
    effective_policy: Value,
    created_at: Option<String>,
    created_by: String,
}

impl From<proto::Grant> for Grant {
    fn from(grant: proto::Grant) -> Self {
        let (kind, of_kind) = of_kind(grant.kind);
        Self {
            name: grant.name,
            version: grant.version,
            kind,
            of_kind,
            policy: policy(grant.policy),
            managed_policy_arns: grant.managed_policy_arns,
            default_ttl_seconds: seconds(grant.default_ttl.as_ref()),
            max_ttl_seconds: seconds(grant.max_ttl.as_ref()),
            allow_broad: grant.allow_broad,
            breadth: grant.breadth,
            probe: grant.probe,
            further_probes: grant.further_probes,
            probe_regions: grant.probe_regions,
            ends_by_policy: grant.ends_by_policy,
            reuse: grant.reuse,
            effective_policy: document(&grant.effective_policy),
            created_at: time(grant.created_at.as_ref()),
            created_by: grant.created_by,
        }
    }
}

fn of_kind(kind: Option<proto::grant::Kind>) -> (&'static str, Map<String, Value>) {
    let (name, fields) = match kind {
        Some(proto::grant::Kind::AssumeRole(kind)) => (
            "assume_role",
            json!({
                "role_arn": kind.role_arn, "external_id": kind.external_id,
                "source_identity": kind.source_identity, "region": kind.region, "tags": tags(kind.tags),
            }),
        ),
        Some(proto::grant::Kind::FederationToken(kind)) => (
            "federation_token",
            json!({ "region": kind.region, "tags": tags(kind.tags) }),
        ),
        Some(proto::grant::Kind::IamUser(kind)) => (
            "iam_user",
            json!({
                "groups": kind.groups, "path": kind.path,
                "permissions_boundary_arn": kind.permissions_boundary_arn, "tags": tags(kind.tags),
            }),
        ),
        None => ("unknown", json!({})),
    };
    let fields = if let Value::Object(fields) = fields {
        fields
    } else {
        Map::new()
    };
    (name, fields)
}

fn tags(tags: Vec<proto::Tag>) -> Vec<Value> {
    tags.into_iter()
        .map(|tag| json!({ "key": tag.key, "value": tag.value, "transitive": tag.transitive }))
        .collect()
}

fn policy(policy: Option<proto::InlinePolicy>) -> Value {
    match policy.and_then(|policy| policy.source) {
        None => Value::Null,
        Some(proto::inline_policy::Source::Document(json)) => document(&json),
        Some(proto::inline_policy::Source::Template(template)) => {
            let parameters: Map<_, _> = template
                .parameters
                .into_iter()
                .map(|(name, value)| (name, Value::String(value)))
                .collect();
            json!({ "template": template.name, "parameters": parameters })
        }
    }
}

fn document(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or(Value::Null)
}

#[derive(Serialize)]
pub(super) struct Lease {
    lease_id: String,
    service: String,
    grant: String,
    grant_version: u64,
    kind: &'static str,
    state: &'static str,
    access_key_id: Option<String>,
    aws_name: String,
    requested_at: Option<String>,
    issued_at: Option<String>,
    expires_at: Option<String>,
    ended_at: Option<String>,
    reason: Option<String>,
    renews_lease_id: Option<String>,
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused_after_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_after_seconds: Option<f64>,
}

/// Returns a receipt as `SEQ:SIZE:ROOT`, the form of `audit verify --receipt`.
fn receipt(receipt: Option<proto::Receipt>) -> Option<String> {
    let proto::Receipt { seq, size, root } = receipt?;
    let root = root.try_into().ok()?;
    Some(Receipt { seq, size, root }.to_string())
}

impl Lease {
    /// Returns the lease in the answer to its release.
    pub(super) fn released(done: proto::ReleaseLeaseResponse) -> Self {
        Self {
            receipt: receipt(done.receipt),
            notice: (!done.notice.is_empty()).then_some(done.notice),
            ..Self::from(done.lease.unwrap_or_default())
        }
    }

    /// Returns the lease in the answer to its revocation.
    pub(super) fn revoked(done: proto::RevokeLeaseResponse) -> Self {
        Self {
            receipt: receipt(done.receipt),
            notice: (!done.notice.is_empty()).then_some(done.notice),
            refused_after_seconds: done.refused_after_seconds,
            gone_after_seconds: done.gone_after_seconds,
            ..Self::from(done.lease.unwrap_or_default())
        }
    }
}

impl From<proto::Lease> for Lease {
    fn from(lease: proto::Lease) -> Self {
        Self {
            kind: kind(lease.kind),
            state: state(lease.state),
            lease_id: lease.lease_id,
            service: lease.service,
            grant: lease.grant,
            grant_version: lease.grant_version,
            access_key_id: lease.access_key_id,
            aws_name: lease.aws_name,
            requested_at: time(lease.requested_at.as_ref()),
            issued_at: time(lease.issued_at.as_ref()),
            expires_at: time(lease.expires_at.as_ref()),
            ended_at: time(lease.ended_at.as_ref()),
            reason: lease.reason,
            renews_lease_id: lease.renews_lease_id,
            request_id: lease.request_id,
            notice: None,
            receipt: None,
            refused_after_seconds: None,
            gone_after_seconds: None,
        }
    }
}

/// Output of `issue -o json`.
#[derive(Serialize)]
pub(super) struct Credentials {
    pub(super) service: String,
    pub(super) grant: String,
    pub(super) kind: &'static str,
    pub(super) lease_id: String,
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) session_token: Option<String>,
    pub(super) expiration: Option<String>,
    /// Seconds that AWS took to accept a new key.
    pub(super) usable_after_seconds: Option<f64>,
    pub(super) redelivered: bool,
    /// Receipt: proof that the issue is in the audit log.
    pub(super) receipt: Option<String>,
}

/// Variables that `-o env` exports; the key only if there is a new one.
pub(super) struct Exports<'a> {
    /// Access key id and secret.
    pub(super) key: Option<(&'a str, &'a str)>,
    pub(super) session_token: Option<&'a str>,
    pub(super) expiration: Option<&'a str>,
    pub(super) lease_id: &'a str,
}

impl Credentials {
    /// Returns the document that SDKs read from a process.
    /// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>
    pub(super) fn for_process(&self) -> Value {
        let mut document = json!({
            "Version": 1,
            "AccessKeyId": self.access_key_id,
            "SecretAccessKey": self.secret_access_key,
            "Expiration": self.expiration,
        });
        if let Some(token) = &self.session_token {
            document["SessionToken"] = json!(token);
        }
        document
    }

    pub(super) fn exports(&self) -> Exports<'_> {
        Exports {
            key: Some((&self.access_key_id, &self.secret_access_key)),
            session_token: self.session_token.as_deref(),
            expiration: self.expiration.as_deref(),
            lease_id: &self.lease_id,
        }
    }
}

impl Renewal {
    pub(super) fn exports(&self) -> Exports<'_> {
        let secret = self.secret_access_key.as_deref();
        Exports {
            key: self.access_key_id.as_deref().zip(secret),
            session_token: self.session_token.as_deref(),
            expiration: self.expiration.as_deref(),
            lease_id: &self.lease_id,
        }
    }
}

/// Output of `lease renew -o json`: the shape of `issue`, without secrets if none is new.
#[derive(Serialize)]
pub(super) struct Renewal {
    service: String,
    grant: String,
    kind: &'static str,
    lease_id: String,
    renews_lease_id: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
    expiration: Option<String>,
    receipt: Option<String>,
}

impl From<proto::RenewLeaseResponse> for Renewal {
    fn from(renewed: proto::RenewLeaseResponse) -> Self {
        let lease = renewed.lease.unwrap_or_default();
        Self {
            service: lease.service,
            grant: lease.grant,
            kind: kind(lease.kind),
            lease_id: lease.lease_id,
            renews_lease_id: lease.renews_lease_id,
            access_key_id: lease.access_key_id,
            secret_access_key: renewed.secret_access_key,
            session_token: renewed.session_token,
            expiration: time(renewed.expiration.as_ref()),
            receipt: receipt(renewed.receipt),
        }
    }
}

impl From<proto::IssueCredentialsResponse> for Credentials {
    fn from(issued: proto::IssueCredentialsResponse) -> Self {
        let lease = issued.lease.unwrap_or_default();
        Self {
            service: lease.service,
            grant: lease.grant,
            kind: kind(lease.kind),
            lease_id: lease.lease_id,
            access_key_id: lease.access_key_id.unwrap_or_default(),
            secret_access_key: issued.secret_access_key,
            session_token: issued.session_token,
            expiration: time(issued.expiration.as_ref()),
            usable_after_seconds: issued.usable_after.as_ref().map(fractional),
            redelivered: issued.redelivered,
            receipt: receipt(issued.receipt),
        }
    }
}

fn fractional(duration: &ProtoDuration) -> f64 {
    Duration::try_from(*duration)
        .unwrap_or_default()
        .as_secs_f64()
}
