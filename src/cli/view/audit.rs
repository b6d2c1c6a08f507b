//! The audit log: its records, its checkpoints and its keys.

use serde::Serialize;

use super::time;
use crate::proto;

/// Output of `audit checkpoint -o json`.
#[derive(Serialize)]
pub(in crate::cli) struct Checkpoint {
    checkpoint: String,
    verifier_key: String,
    keys: Vec<LogKey>,
}

#[derive(Serialize)]
struct LogKey {
    verifier_key: String,
    since: Option<String>,
    handover: Option<String>,
}

impl From<proto::LogKey> for LogKey {
    fn from(key: proto::LogKey) -> Self {
        Self {
            verifier_key: key.verifier_key,
            since: time(key.since.as_ref()),
            handover: key.handover,
        }
    }
}

impl From<proto::Checkpoint> for Checkpoint {
    fn from(signed: proto::Checkpoint) -> Self {
        Self {
            checkpoint: signed.note,
            verifier_key: signed.verifier_key,
            keys: signed.keys.into_iter().map(LogKey::from).collect(),
        }
    }
}

#[derive(Serialize)]
pub(in crate::cli) struct AuditRecord {
    seq: u64,
    time: Option<String>,
    event: String,
    outcome: String,
    actor: String,
    token_id: Option<String>,
    peer: Option<String>,
    method: Option<String>,
    service: Option<String>,
    grant: Option<String>,
    grant_version: Option<u64>,
    lease_id: Option<String>,
    access_key_id: Option<String>,
    aws_request_id: Option<String>,
    reason: Option<String>,
    detail: Option<String>,
    instance: Option<String>,
    request_id: Option<String>,
    kind: Option<String>,
    aws_name: Option<String>,
    expires_at: Option<String>,
    permissions: Option<Permissions>,
    late: bool,
    holder: Option<String>,
    refused_after_seconds: Option<f64>,
    gone_after_seconds: Option<f64>,
    evidence: Option<String>,
}

#[derive(Serialize)]
struct Permissions {
    policy: Option<String>,
    policy_sha256: Option<String>,
    managed_policy_arns: Vec<String>,
    role_arn: Option<String>,
}

impl From<proto::Permissions> for Permissions {
    fn from(permissions: proto::Permissions) -> Self {
        Self {
            policy: permissions.policy,
            policy_sha256: permissions.policy_sha256,
            managed_policy_arns: permissions.managed_policy_arns,
            role_arn: permissions.role_arn,
        }
    }
}

impl From<proto::AuditRecord> for AuditRecord {
    fn from(record: proto::AuditRecord) -> Self {
        Self {
            seq: record.seq,
            time: time(record.time.as_ref()),
            event: record.event,
            outcome: record.outcome,
            actor: record.actor,
            token_id: record.token_id,
            peer: record.peer,
            method: record.method,
            service: record.service,
            grant: record.grant,
            grant_version: record.grant_version,
            lease_id: record.lease_id,
            access_key_id: record.access_key_id,
            aws_request_id: record.aws_request_id,
            reason: record.reason,
            detail: record.detail,
            instance: record.instance,
            request_id: record.request_id,
            kind: record.kind,
            aws_name: record.aws_name,
            expires_at: time(record.expires_at.as_ref()),
            permissions: record.permissions.map(Permissions::from),
            late: record.late,
            holder: record.holder,
            refused_after_seconds: record.refused_after_seconds,
            gone_after_seconds: record.gone_after_seconds,
            evidence: record.evidence,
        }
    }
}

impl AuditRecord {
    /// Returns one line for people.
    pub(in crate::cli) fn line(&self) -> String {
        let time = self.time.as_deref().unwrap_or("-");
        let mut line = format!(
            "{:>5}  {time:24}  {:18}  {:7}  {}",
            self.seq, self.event, self.outcome, self.actor
        );
        let told = |seconds: Option<f64>| seconds.map(|seconds| format!("{seconds:.2}s"));
        let refused_after = told(self.refused_after_seconds);
        let gone_after = told(self.gone_after_seconds);
        let about = self.grant.as_deref().or(self.service.as_deref());
        for (name, value) in [
            ("", about),
            ("lease=", self.lease_id.as_deref()),
            ("key=", self.access_key_id.as_deref()),
            ("at=", self.holder.as_deref()),
            ("refused_after=", refused_after.as_deref()),
            ("gone_after=", gone_after.as_deref()),
            ("reason=", self.reason.as_deref()),
            ("", self.detail.as_deref()),
        ] {
            if let Some(value) = value {
                line = line + "  " + name + value;
            }
        }
        line
    }
}
