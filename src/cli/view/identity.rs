use serde::Serialize;

use super::{role, time};
use crate::proto::{self, service_binding::KnownBy};

#[derive(Serialize)]
pub(in crate::cli) struct Binding {
    service: String,
    binding_id: String,
    spiffe_id: Option<String>,
    dns_name: Option<String>,
    created_at: Option<String>,
}

impl From<proto::ServiceBinding> for Binding {
    fn from(binding: proto::ServiceBinding) -> Self {
        let (spiffe_id, dns_name) = match binding.known_by {
            Some(KnownBy::SpiffeId(id)) => (Some(id), None),
            Some(KnownBy::DnsName(name)) => (None, Some(name)),
            None => (None, None),
        };
        Self {
            service: binding.service,
            binding_id: binding.binding_id,
            spiffe_id,
            dns_name,
            created_at: time(binding.created_at.as_ref()),
        }
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
