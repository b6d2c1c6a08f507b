//! Encoding of a record as bytes, which are hashed into the tree, stored and exported.
//!
//! A record is one JSON object (RFC 8259) without white space. Its fields are always in the same
//! order; absent fields are left out. Times are RFC 3339 in UTC with six decimals. Fields may be
//! added at the end; existing fields keep their meaning.

use std::{fmt::Display, net::SocketAddr, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{
    audit::{AuditEvent, AuditRecord, Permissions},
    token::TokenId,
};

/// Longest leaf, bytes: a bundle stores each leaf's length in 16 bits.
pub const LEAF_MAX: usize = u16::MAX as usize;

/// Reasons why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The bytes are not the JSON of a record.
    #[error("it is not the JSON of a record: {0}")]
    Json(#[from] serde_json::Error),
    /// A field has a value that a broker never writes there.
    #[error("its {0} is none")]
    Field(&'static str),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leaf {
    seq: u64,
    time: String,
    event: String,
    outcome: String,
    actor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aws_request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aws_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<Permits>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused_after_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_after_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Permits {
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    managed_policy_arns: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role_arn: Option<String>,
}

impl From<&Permissions> for Permits {
    fn from(permissions: &Permissions) -> Self {
        Self {
            policy: permissions.policy.clone(),
            policy_sha256: permissions.policy_sha256.clone(),
            managed_policy_arns: permissions.managed_policies.clone(),
            role_arn: permissions.role.clone(),
        }
    }
}

impl From<Permits> for Permissions {
    fn from(permits: Permits) -> Self {
        Self {
            policy: permits.policy,
            policy_sha256: permits.policy_sha256,
            managed_policies: permits.managed_policy_arns,
            role: permits.role_arn,
        }
    }
}

/// Returns the record's bytes.
///
/// # Errors
/// None for a record that a broker makes.
pub fn encode(record: &AuditRecord) -> Result<Vec<u8>, LeafError> {
    let event = &record.event;
    let leaf = Leaf {
        seq: record.seq,
        time: precise(event.time),
        event: event.event.as_str().to_owned(),
        outcome: event.outcome.as_str().to_owned(),
        actor: event.actor.to_string(),
        token_id: event.token_id.as_ref().map(|id| id.as_str().to_owned()),
        peer: text(event.peer.as_ref()),
        method: event.method.clone(),
        service: text(event.service.as_ref()),
        grant: text(event.grant.as_ref()),
        grant_version: event.grant_version,
        lease_id: text(event.lease_id.as_ref()),
        access_key_id: event.access_key_id.clone(),
        aws_request_id: event.aws_request_id.clone(),
        reason: event.reason.clone(),
        detail: event.detail.clone(),
        instance: event.instance.clone(),
        request_id: event.request_id.as_ref().map(|id| id.as_str().to_owned()),
        kind: text(event.kind.as_ref()),
        aws_name: event.aws_name.clone(),
        expires_at: event.expires_at.map(precise),
        permissions: event.permissions.as_ref().map(Permits::from),
        late: event.late,
        holder: text(event.holder.as_ref()),
        refused_after_seconds: event.refused_after.as_ref().map(Duration::as_secs_f64),
        gone_after_seconds: event.gone_after.as_ref().map(Duration::as_secs_f64),
        evidence: event.evidence.clone(),
    };
    Ok(serde_json::to_vec(&leaf)?)
}

fn precise(time: Timestamp) -> String {
    format!("{time:.6}")
}

fn text(value: Option<&impl Display>) -> Option<String> {
    value.map(ToString::to_string)
}

/// Returns the record of these bytes.
///
/// # Errors
/// The bytes are not a record.
pub fn decode(bytes: &[u8]) -> Result<AuditRecord, LeafError> {
    let leaf: Leaf = serde_json::from_slice(bytes)?;
    let token_id = leaf.token_id.as_deref().map(TokenId::parse);
    Ok(AuditRecord {
        seq: leaf.seq,
        event: AuditEvent {
            time: time(&leaf.time, "time")?,
            event: value(&leaf.event, "event")?,
            outcome: value(&leaf.outcome, "outcome")?,
            actor: value(&leaf.actor, "actor")?,
            token_id: match token_id {
                Some(None) => return Err(LeafError::Field("token_id")),
                Some(Some(id)) => Some(id),
                None => None,
            },
            peer: optional::<SocketAddr>(leaf.peer.as_deref(), "peer")?,
            method: leaf.method,
            service: optional(leaf.service.as_deref(), "service")?,
            grant: optional(leaf.grant.as_deref(), "grant")?,
            grant_version: leaf.grant_version,
            lease_id: optional(leaf.lease_id.as_deref(), "lease_id")?,
            access_key_id: leaf.access_key_id,
            aws_request_id: leaf.aws_request_id,
            reason: leaf.reason,
            detail: leaf.detail,
            instance: leaf.instance,
            request_id: optional(leaf.request_id.as_deref(), "request_id")?,
            kind: optional(leaf.kind.as_deref(), "kind")?,
            aws_name: leaf.aws_name,
            expires_at: leaf
                .expires_at
                .map(|text| time(&text, "expires_at"))
                .transpose()?,
            permissions: leaf.permissions.map(Permissions::from),
            late: leaf.late,
            holder: optional(leaf.holder.as_deref(), "holder")?,
            evidence: leaf.evidence,
            refused_after: to_the_millisecond(leaf.refused_after_seconds, "refused_after_seconds")?,
            gone_after: to_the_millisecond(leaf.gone_after_seconds, "gone_after_seconds")?,
        },
    })
}

fn to_the_millisecond(
    seconds: Option<f64>,
    field: &'static str,
) -> Result<Option<Duration>, LeafError> {
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    let none = || LeafError::Field(field);
    let precise = Duration::try_from_secs_f64(seconds).map_err(|_| none())?;
    let millis = u64::try_from((precise.as_micros() + 500) / 1000).map_err(|_| none())?;
    Ok(Some(Duration::from_millis(millis)))
}

/// Parses a time. Fractions of a microsecond are refused: no record is written with them.
fn time(text: &str, field: &'static str) -> Result<Timestamp, LeafError> {
    let time: Timestamp = value(text, field)?;
    let is_precise = time.subsec_nanosecond() % 1000 == 0;
    is_precise.then_some(time).ok_or(LeafError::Field(field))
}

fn value<T: FromStr>(text: &str, field: &'static str) -> Result<T, LeafError> {
    text.parse().map_err(|_| LeafError::Field(field))
}

fn optional<T: FromStr>(text: Option<&str>, field: &'static str) -> Result<Option<T>, LeafError> {
    text.map(|text| value(text, field)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_as_precise_as_it_is_written_and_no_more() {
        let record = |time: &str| {
            format!(
                r#"{{"seq":1,"time":"{time}","event":"broker.started","outcome":"success","actor":"broker"}}"#
            )
        };
        for (time, good) in [
            ("2026-11-26T12:42:02.447235Z", true),
            ("2026-11-26T12:42:02Z", true),
            ("2026-11-26T12:42:02.4472355Z", false),
        ] {
            let decoded = decode(record(time).as_bytes());
            assert_eq!(decoded.is_ok(), good, "{time}");
        }
    }
}
