use std::collections::BTreeMap;

use serde::Serialize;

use super::{role, time};
use crate::proto::{self, service_binding::KnownBy};

#[derive(Serialize)]
pub(in crate::cli) struct Binding {
    service: String,
    pub(in crate::cli) binding_id: String,
    spiffe_id: Option<String>,
    dns_name: Option<String>,
    enrolled_key_sha256: Option<String>,
    oidc: Option<Oidc>,
    created_at: Option<String>,
    expires_at: Option<String>,
}

#[derive(Serialize)]
struct Oidc {
    issuer: String,
    subject: String,
    audience: Option<String>,
    claims: BTreeMap<String, String>,
}

impl From<proto::OidcIdentity> for Oidc {
    fn from(rule: proto::OidcIdentity) -> Self {
        Self {
            issuer: rule.issuer,
            subject: rule.subject,
            audience: (!rule.audience.is_empty()).then_some(rule.audience),
            claims: rule.claims.into_iter().collect(),
        }
    }
}

impl From<proto::ServiceBinding> for Binding {
    fn from(binding: proto::ServiceBinding) -> Self {
        let mut shown = Self {
            service: binding.service,
            binding_id: binding.binding_id,
            spiffe_id: None,
            dns_name: None,
            enrolled_key_sha256: None,
            oidc: None,
            created_at: time(binding.created_at.as_ref()),
            expires_at: time(binding.expires_at.as_ref()),
        };
        match binding.known_by {
            Some(KnownBy::SpiffeId(id)) => shown.spiffe_id = Some(id),
            Some(KnownBy::DnsName(name)) => shown.dns_name = Some(name),
            Some(KnownBy::EnrolledKeySha256(key)) => shown.enrolled_key_sha256 = Some(key),
            Some(KnownBy::Oidc(rule)) => shown.oidc = Some(Oidc::from(rule)),
            None => {}
        }
        shown
    }
}

#[derive(Serialize)]
pub(in crate::cli) struct WhoAmI {
    actor: String,
    role: Option<&'static str>,
    token_id: Option<String>,
    evidence: Option<String>,
    binding: Option<Binding>,
    expires_at: Option<String>,
    peer: Option<String>,
}

impl From<proto::WhoAmIResponse> for WhoAmI {
    fn from(known: proto::WhoAmIResponse) -> Self {
        let is_operator = known.role.is_some();
        Self {
            role: is_operator.then(|| role(known.role())),
            actor: known.actor,
            token_id: known.token_id,
            evidence: known.evidence,
            binding: known.binding.map(Binding::from),
            expires_at: time(known.expires_at.as_ref()),
            peer: known.peer,
        }
    }
}
