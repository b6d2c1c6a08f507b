//! Conversion between the wire and the domain. `parse_*` turns a message into domain types, or
//! returns every invalid field; `to_*` is the other direction.

use std::{str::FromStr, time::Duration};

use jiff::Timestamp;
use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};

use crate::{
    broker::Error,
    domain::{
        arn::Partition,
        binding::{KnownBy, ServiceBinding},
        duration::HOUR,
        grant::{
            Grant, GrantSpec, InlinePolicy, Kind, KindSpec, Tag, TemplateUse, validate::Violation,
        },
        lease::{Lease, LeaseState},
        name::GrantName,
        operator::{Operator, Role},
        policy::Document,
        probe::Probe,
        service::ServiceOverview,
        templates,
        token::StoredToken,
    },
    proto::{self, service_binding},
};

/// Maximum length of an operator's reason, characters.
const REASON_MAX: usize = 256;

/// Collector of all invalid fields of a request, which is refused once for all of them.
#[derive(Default)]
pub(super) struct Fields(Vec<Violation>);

impl Fields {
    pub(super) fn add(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(Violation::new(field, message));
    }

    /// Parses `text` as a `T`. On failure adds a violation and returns `None`.
    pub(super) fn parse<T>(&mut self, field: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: ToString,
    {
        self.collect(
            field,
            text.parse().map_err(|error: T::Err| error.to_string()),
        )
    }

    fn collect<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.add(field, message)).ok()
    }

    /// Returns the value built from all fields, if no field was invalid.
    pub(super) fn done<T>(self, value: Option<T>) -> Result<T, Error> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Error::Invalid(self.0)),
        }
    }
}

/// Parses the only field of a request.
pub(super) fn parse<T>(field: &str, text: &str) -> Result<T, Error>
where
    T: FromStr,
    T::Err: ToString,
{
    let mut fields = Fields::default();
    let value = fields.parse(field, text);
    fields.done(value)
}

/// Parses a field that may be empty.
pub(super) fn parse_optional<T>(field: &str, text: &str) -> Result<Option<T>, Error>
where
    T: FromStr,
    T::Err: ToString,
{
    if text.is_empty() {
        Ok(None)
    } else {
        parse(field, text).map(Some)
    }
}

pub(super) fn parse_ttl(
    field: &str,
    ttl: Option<&ProtoDuration>,
) -> Result<Option<Duration>, Error> {
    let Some(ttl) = ttl else { return Ok(None) };
    match u64::try_from(ttl.seconds) {
        Ok(seconds) if ttl.nanos == 0 && seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(Error::Invalid(vec![Violation::new(
            field,
            "a lifetime is a whole number of seconds above 0",
        )])),
    }
}

pub(super) fn parse_reason(reason: &str) -> Result<String, Error> {
    if reason.chars().count() > REASON_MAX || reason.chars().any(char::is_control) {
        let message = format!("a reason has up to {REASON_MAX} characters, on one line");
        return Err(Error::Invalid(vec![Violation::new("reason", message)]));
    }
    Ok(reason.to_owned())
}

pub(super) fn parse_grant(
    grant: proto::Grant,
    partition: Partition,
) -> Result<(GrantName, GrantSpec), Error> {
    let mut fields = Fields::default();
    let name = fields.parse("grant.name", &grant.name);
    let policy = parse_policy(&mut fields, grant.policy, partition);
    let arns = grant.managed_policy_arns.iter();
    let managed_policies = arns
        .filter_map(|arn| fields.parse("grant.managed_policy_arns", arn))
        .collect();
    let (default_ttl, max_ttl) = parse_ttls(&mut fields, grant.default_ttl, grant.max_ttl);
    let kind = parse_kind(&mut fields, grant.kind);
    let probe = grant.probe.as_deref();
    let probe = probe.and_then(|probe| fields.parse("grant.probe", probe));
    let further_probes = grant.further_probes.iter();
    let further_probes = further_probes
        .filter_map(|probe| fields.parse("grant.further_probes", probe))
        .collect();
    let probe_regions = grant.probe_regions;
    let reuse = grant.reuse.as_deref();
    let reuse = reuse.and_then(|reuse| fields.parse("grant.reuse", reuse));
    let (allow_broad, ends_by_policy) = (grant.allow_broad, grant.ends_by_policy);
    let spec = kind.map(|kind| GrantSpec {
        kind,
        policy,
        managed_policies,
        default_ttl,
        max_ttl,
        allow_broad,
        ends_by_policy,
        probe,
        further_probes,
        probe_regions,
        reuse,
    });
    fields.done(name.zip(spec))
}

/// Parses the default and the maximum lifetime. Each is an hour if not given, but a longer default
/// raises the maximum, and a shorter maximum lowers the default.
fn parse_ttls(
    fields: &mut Fields,
    default: Option<ProtoDuration>,
    max: Option<ProtoDuration>,
) -> (Duration, Duration) {
    let mut read = |field, ttl: Option<ProtoDuration>| {
        if let Ok(ttl) = parse_ttl(field, ttl.as_ref()) {
            ttl
        } else {
            fields.add(field, "a lifetime is a whole number of seconds above 0");
            None
        }
    };
    match (
        read("grant.default_ttl", default),
        read("grant.max_ttl", max),
    ) {
        (None, None) => (HOUR, HOUR),
        (Some(default), None) => (default, default.max(HOUR)),
        (None, Some(max)) => (max.min(HOUR), max),
        (Some(default), Some(max)) => (default, max),
    }
}

fn parse_policy(
    fields: &mut Fields,
    policy: Option<proto::InlinePolicy>,
    partition: Partition,
) -> Option<InlinePolicy> {
    let Some(source) = policy?.source else {
        fields.add(
            "grant.policy",
            "a policy is a document or a template of the catalogue",
        );
        return None;
    };
    match source {
        proto::inline_policy::Source::Document(json) => {
            let document = fields.parse("grant.policy.document", &json)?;
            Some(InlinePolicy {
                document,
                template: None,
            })
        }
        proto::inline_policy::Source::Template(template) => {
            let document = fields.collect("grant.policy.template", render(&template, partition))?;
            let parameters = template.parameters.into_iter().collect();
            Some(InlinePolicy {
                document,
                template: Some(TemplateUse {
                    name: template.name,
                    parameters,
                }),
            })
        }
    }
}

/// Returns a policy of the catalogue, with its parameters filled in.
pub(super) fn render(
    template: &proto::TemplateUse,
    partition: Partition,
) -> Result<Document, String> {
    let known = templates::find(&template.name).ok_or_else(|| {
        let shown: String = template.name.chars().take(40).collect();
        format!("{shown:?} is not in the catalogue: `credbroker policy list` shows it")
    })?;
    let values = template.parameters.clone().into_iter().collect();
    known
        .render(&values, partition)
        .map_err(|error| error.to_string())
}

fn parse_kind(fields: &mut Fields, kind: Option<proto::grant::Kind>) -> Option<KindSpec> {
    match kind {
        Some(proto::grant::Kind::AssumeRole(kind)) => Some(KindSpec::AssumeRole {
            role_arn: fields.parse("grant.assume_role.role_arn", &kind.role_arn)?,
            external_id: kind.external_id,
            source_identity: kind.source_identity,
            region: kind.region,
            tags: kind.tags.into_iter().map(tag).collect(),
        }),
        Some(proto::grant::Kind::FederationToken(kind)) => Some(KindSpec::FederationToken {
            region: kind.region,
            tags: kind.tags.into_iter().map(tag).collect(),
        }),
        Some(proto::grant::Kind::IamUser(kind)) => {
            let boundary = kind.permissions_boundary_arn;
            let field = "grant.iam_user.permissions_boundary_arn";
            Some(KindSpec::IamUser {
                groups: kind.groups,
                path: kind.path.unwrap_or_else(|| "/".to_owned()),
                permissions_boundary: boundary.and_then(|arn| fields.parse(field, &arn)),
                tags: kind.tags.into_iter().map(tag).collect(),
            })
        }
        None => {
            fields.add(
                "grant.kind",
                "a grant is of kind assume_role, federation_token or iam_user",
            );
            None
        }
    }
}

fn tag(tag: proto::Tag) -> Tag {
    Tag {
        key: tag.key,
        value: tag.value,
        transitive: tag.transitive,
    }
}

pub(super) fn parse_role(role: i32) -> Result<Role, Error> {
    match proto::Role::try_from(role) {
        Ok(proto::Role::Viewer) => Ok(Role::Viewer),
        Ok(proto::Role::Auditor) => Ok(Role::Auditor),
        Ok(proto::Role::GrantAdmin) => Ok(Role::GrantAdmin),
        Ok(proto::Role::Responder) => Ok(Role::Responder),
        Ok(proto::Role::Admin) => Ok(Role::Admin),
        Ok(proto::Role::Unspecified) | Err(_) => {
            let message = "choose viewer, auditor, grant-admin, responder or admin";
            Err(Error::Invalid(vec![Violation::new("role", message)]))
        }
    }
}

/// Returns the name of the state to filter by; `None` for any state.
pub(super) fn parse_state(state: i32) -> Result<Option<&'static str>, Error> {
    match proto::LeaseState::try_from(state) {
        Ok(proto::LeaseState::Unspecified) => Ok(None),
        Ok(proto::LeaseState::Pending) => Ok(Some("pending")),
        Ok(proto::LeaseState::Active) => Ok(Some("active")),
        Ok(proto::LeaseState::Revoking) => Ok(Some("revoking")),
        Ok(proto::LeaseState::Revoked) => Ok(Some("revoked")),
        Ok(proto::LeaseState::Expired) => Ok(Some("expired")),
        Ok(proto::LeaseState::Quarantined) => Ok(Some("quarantined")),
        Err(_) => Err(Error::Invalid(vec![Violation::new(
            "state",
            "not a lease state",
        )])),
    }
}

pub(super) fn parse_time(
    field: &str,
    time: Option<&ProtoTimestamp>,
) -> Result<Option<Timestamp>, Error> {
    time.map(|time| {
        Timestamp::new(time.seconds, time.nanos)
            .map_err(|_| Error::Invalid(vec![Violation::new(field, "not a point in time")]))
    })
    .transpose()
}

pub(super) fn to_time(time: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

pub(super) fn to_duration(duration: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

pub(super) const fn to_kind(kind: Kind) -> proto::Kind {
    match kind {
        Kind::AssumeRole => proto::Kind::AssumeRole,
        Kind::FederationToken => proto::Kind::FederationToken,
        Kind::IamUser => proto::Kind::IamUser,
    }
}

pub(super) const fn to_state(state: &LeaseState) -> proto::LeaseState {
    match state {
        LeaseState::Pending { .. } => proto::LeaseState::Pending,
        LeaseState::Active { .. } => proto::LeaseState::Active,
        LeaseState::Revoking(_) => proto::LeaseState::Revoking,
        LeaseState::Quarantined(_) => proto::LeaseState::Quarantined,
        LeaseState::Revoked { .. } => proto::LeaseState::Revoked,
        LeaseState::Expired { .. } => proto::LeaseState::Expired,
    }
}

pub(super) fn to_lease(lease: &Lease) -> proto::Lease {
    let binding = &lease.binding;
    let issued = lease.issued();
    proto::Lease {
        lease_id: binding.lease_id.to_string(),
        service: binding.grant.service.to_string(),
        grant: binding.grant.to_string(),
        grant_version: binding.grant_version,
        kind: to_kind(binding.kind).into(),
        state: to_state(&lease.state).into(),
        access_key_id: issued.map(|issued| issued.access_key_id.clone()),
        aws_name: binding.aws_name.clone(),
        requested_at: Some(to_time(lease.requested_at)),
        issued_at: issued.map(|issued| to_time(issued.at)),
        expires_at: issued.map(|issued| to_time(issued.expires_at)),
        ended_at: lease.ended_at().map(to_time),
        reason: lease.cause().map(ToString::to_string),
        renews_lease_id: binding.renews.as_ref().map(ToString::to_string),
        request_id: lease.request.as_ref().map(|request| request.id.to_string()),
    }
}

pub(super) fn to_grant(grant: &Grant) -> proto::Grant {
    let spec = &grant.spec;
    proto::Grant {
        name: grant.name.to_string(),
        version: grant.version,
        kind: Some(to_kind_spec(&spec.kind)),
        policy: spec.policy.as_ref().map(to_policy),
        managed_policy_arns: spec
            .managed_policies
            .iter()
            .map(ToString::to_string)
            .collect(),
        default_ttl: Some(to_duration(spec.default_ttl)),
        max_ttl: Some(to_duration(spec.max_ttl)),
        allow_broad: spec.allow_broad,
        breadth: spec.breadth(),
        effective_policy: spec
            .effective_policy()
            .map(|document| document.to_json())
            .unwrap_or_default(),
        created_at: Some(to_time(grant.created_at)),
        created_by: grant.created_by.to_string(),
        probe: spec.probe.map(|probe| probe.to_string()),
        further_probes: spec.further_probes.iter().map(Probe::to_string).collect(),
        probe_regions: spec.probe_regions.clone(),
        ends_by_policy: spec.ends_by_policy,
        reuse: spec.reuse.map(|reuse| reuse.to_string()),
    }
}

fn to_policy(policy: &InlinePolicy) -> proto::InlinePolicy {
    let source = match &policy.template {
        None => proto::inline_policy::Source::Document(policy.document.to_json()),
        Some(template) => proto::inline_policy::Source::Template(proto::TemplateUse {
            name: template.name.clone(),
            parameters: template.parameters.clone().into_iter().collect(),
        }),
    };
    proto::InlinePolicy {
        source: Some(source),
    }
}

fn to_kind_spec(kind: &KindSpec) -> proto::grant::Kind {
    let to_tags = |tags: &[Tag]| tags.iter().map(to_tag).collect();
    match kind {
        KindSpec::AssumeRole {
            role_arn,
            external_id,
            source_identity,
            region,
            tags,
        } => proto::grant::Kind::AssumeRole(proto::AssumeRole {
            role_arn: role_arn.to_string(),
            external_id: external_id.clone(),
            source_identity: *source_identity,
            region: region.clone(),
            tags: to_tags(tags),
        }),
        KindSpec::FederationToken { region, tags } => {
            proto::grant::Kind::FederationToken(proto::FederationToken {
                region: region.clone(),
                tags: to_tags(tags),
            })
        }
        KindSpec::IamUser {
            groups,
            path,
            permissions_boundary,
            tags,
        } => proto::grant::Kind::IamUser(proto::IamUser {
            groups: groups.clone(),
            path: Some(path.clone()),
            permissions_boundary_arn: permissions_boundary.as_ref().map(ToString::to_string),
            tags: to_tags(tags),
        }),
    }
}

fn to_tag(tag: &Tag) -> proto::Tag {
    proto::Tag {
        key: tag.key.clone(),
        value: tag.value.clone(),
        transitive: tag.transitive,
    }
}

pub(super) fn to_service(overview: &ServiceOverview) -> proto::Service {
    let service = &overview.service;
    let suspension = service.suspension.as_ref();
    proto::Service {
        name: service.name.to_string(),
        suspended: suspension.is_some(),
        created_at: Some(to_time(service.created_at)),
        suspended_at: suspension.map(|suspension| to_time(suspension.at)),
        suspend_reason: suspension.and_then(|suspension| suspension.reason.clone()),
        live_leases: overview.live_leases,
        last_issued_at: overview.last_issued_at.map(to_time),
    }
}

pub(super) fn to_token(service: &str, token: &StoredToken) -> proto::ServiceToken {
    proto::ServiceToken {
        token_id: token.id.to_string(),
        service: service.to_owned(),
        created_at: Some(to_time(token.created_at)),
        expires_at: token.expires_at.map(to_time),
    }
}

pub(super) fn to_binding(binding: &ServiceBinding) -> proto::ServiceBinding {
    let known_by = match &binding.known_by {
        KnownBy::SpiffeId(id) => service_binding::KnownBy::SpiffeId(id.to_string()),
        KnownBy::DnsName(name) => service_binding::KnownBy::DnsName(name.to_string()),
        KnownBy::Oidc(rule) => service_binding::KnownBy::Oidc(proto::OidcIdentity {
            issuer: rule.issuer.clone(),
            subject: rule.subject.to_string(),
            audience: rule.audience.clone().unwrap_or_default(),
            claims: rule
                .claims
                .iter()
                .map(|(name, pattern)| (name.clone(), pattern.to_string()))
                .collect(),
        }),
        KnownBy::Enrolled(key) => service_binding::KnownBy::EnrolledKeySha256(key.to_string()),
    };
    proto::ServiceBinding {
        binding_id: binding.id.to_string(),
        service: binding.service.to_string(),
        known_by: Some(known_by),
        created_at: Some(to_time(binding.created_at)),
        expires_at: binding.expires_at.map(to_time),
    }
}

pub(super) const fn to_role(role: Role) -> proto::Role {
    match role {
        Role::Viewer => proto::Role::Viewer,
        Role::Auditor => proto::Role::Auditor,
        Role::GrantAdmin => proto::Role::GrantAdmin,
        Role::Responder => proto::Role::Responder,
        Role::Admin => proto::Role::Admin,
    }
}

pub(super) fn to_operator(operator: &Operator) -> proto::Operator {
    proto::Operator {
        name: operator.name.to_string(),
        role: to_role(operator.role).into(),
        token_id: operator.token_id.to_string(),
        created_at: Some(to_time(operator.created_at)),
    }
}
