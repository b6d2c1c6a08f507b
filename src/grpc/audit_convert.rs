//! Audit records and queries for them, between proto and domain.

use std::{str::FromStr, time::Duration};

use super::convert::{Fields, parse_time, to_time};
use crate::{
    audit::proof::InclusionProof,
    broker::{
        Error, SignedCheckpoint,
        ports::{AuditFilter, LogKey, Receipt},
    },
    domain::{
        audit::{Actor, AuditRecord, Event, Outcome, Permissions},
        name::{GrantName, LeaseId, Name},
    },
    proto,
};

/// Parses the filter of an audit query. A value that no record can have is an error, not an empty
/// answer.
pub(super) fn parse_audit_filter(
    asked: &proto::ListAuditRecordsRequest,
) -> Result<AuditFilter, Error> {
    fn known<T: FromStr>(
        fields: &mut Fields,
        field: &str,
        text: &str,
        like: &str,
    ) -> Option<String> {
        if !text.is_empty() && text.parse::<T>().is_err() {
            fields.add(field, format!("no record has this: write it like {like}"));
        }
        (!text.is_empty()).then(|| text.to_owned())
    }
    let mut fields = Fields::default();
    let filter = AuditFilter {
        service: known::<Name>(&mut fields, "service", &asked.service, "payments-api"),
        grant: known::<GrantName>(&mut fields, "grant", &asked.grant, "payments-api/uploads"),
        lease_id: known::<LeaseId>(
            &mut fields,
            "lease_id",
            &asked.lease_id,
            "an id of `credbroker lease list`",
        ),
        access_key_id: known::<String>(&mut fields, "access_key_id", &asked.access_key_id, ""),
        actor: known::<Actor>(
            &mut fields,
            "actor",
            &asked.actor,
            "operator:ann, service:payments-api, broker or unknown",
        ),
        event: known::<Event>(&mut fields, "event", &asked.event, &Event::NAMES.join(", ")),
        outcome: known::<Outcome>(
            &mut fields,
            "outcome",
            &asked.outcome,
            "success, denied or failure",
        ),
        since: parse_time("since", asked.since.as_ref())?,
        until: parse_time("until", asked.until.as_ref())?,
    };
    if filter
        .since
        .zip(filter.until)
        .is_some_and(|(since, until)| since >= until)
    {
        fields.add("until", "it is not after since");
    }
    fields.done(Some(filter))
}

pub(super) fn to_record(record: &AuditRecord) -> proto::AuditRecord {
    let event = &record.event;
    proto::AuditRecord {
        seq: record.seq,
        time: Some(to_time(event.time)),
        event: event.event.as_str().to_owned(),
        outcome: event.outcome.as_str().to_owned(),
        actor: event.actor.to_string(),
        token_id: event.token_id.as_ref().map(ToString::to_string),
        peer: event.peer.map(|peer| peer.to_string()),
        method: event.method.clone(),
        service: event.service.as_ref().map(ToString::to_string),
        grant: event.grant.as_ref().map(ToString::to_string),
        grant_version: event.grant_version,
        lease_id: event.lease_id.as_ref().map(ToString::to_string),
        access_key_id: event.access_key_id.clone(),
        aws_request_id: event.aws_request_id.clone(),
        reason: event.reason.clone(),
        detail: event.detail.clone(),
        instance: event.instance.clone(),
        request_id: event.request_id.as_ref().map(|id| id.as_str().to_owned()),
        kind: event.kind.map(|kind| kind.as_str().to_owned()),
        aws_name: event.aws_name.clone(),
        expires_at: event.expires_at.map(to_time),
        permissions: event.permissions.as_ref().map(to_permissions),
        late: event.late,
        holder: event.holder.as_ref().map(ToString::to_string),
        refused_after_seconds: event.refused_after.as_ref().map(Duration::as_secs_f64),
        evidence: event.evidence.clone(),
        gone_after_seconds: event.gone_after.as_ref().map(Duration::as_secs_f64),
    }
}

fn to_permissions(permissions: &Permissions) -> proto::Permissions {
    proto::Permissions {
        policy: permissions.policy.clone(),
        policy_sha256: permissions.policy_sha256.clone(),
        managed_policy_arns: permissions.managed_policies.clone(),
        role_arn: permissions.role.clone(),
    }
}

pub(super) fn to_receipt(receipt: &Receipt) -> proto::Receipt {
    proto::Receipt {
        seq: receipt.seq,
        size: receipt.size,
        root: receipt.root.to_vec(),
    }
}

pub(super) fn to_checkpoint(signed: SignedCheckpoint) -> proto::Checkpoint {
    proto::Checkpoint {
        note: signed.note,
        verifier_key: signed.verifier,
        keys: signed.keys.into_iter().map(to_log_key).collect(),
        start: signed.start,
    }
}

fn to_log_key(key: LogKey) -> proto::LogKey {
    proto::LogKey {
        verifier_key: key.verifier,
        since: Some(to_time(key.since)),
        handover: key.handover,
    }
}

pub(super) fn to_proof(proof: &InclusionProof) -> proto::InclusionProof {
    proto::InclusionProof {
        leaf: proof.leaf.clone(),
        index: proof.index,
        hashes: proof.hashes.iter().map(|hash| hash.to_vec()).collect(),
    }
}
