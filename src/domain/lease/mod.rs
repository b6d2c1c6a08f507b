//! Leases: each is the record of one issue of credentials, from intent to end.
//!
//! ```text
//! pending ─▶ active ─▶ expired ─▶ revoking   (an STS session, by AWS's clock, revoked afterwards)
//!    │          └────▶ revoking ─▶ revoked   (released, revoked, never handed out)
//!    └───────────────────┘ │ ▲ └─▶ expired   (an IAM user that expired)
//!                          ▼ │
//!                      quarantined           (AWS keeps refusing; retried indefinitely)
//! ```
//!
//! A transition consumes the lease; one that depends on the time takes the time as an argument. An
//! ended lease stays ended, with one exception: access made from a session may outlive the session,
//! so that an expired or released session can still be revoked. Each transition adds one to the
//! revision. The store replaces a lease only by the successor of the stored one: if another caller
//! has changed the lease meanwhile, the store refuses the change.

mod cause;
mod state;
#[cfg(test)]
mod tests;

use aws_lc_rs::digest;
use data_encoding::BASE32_NOPAD;
use jiff::Timestamp;

pub use self::{
    cause::EndReason,
    state::{
        CLAIM, CONSISTENCY_WINDOW, CredentialState, InvalidTransition, IssuedCredentials,
        LeaseState, PENDING_LIMIT, Removal,
    },
};
use crate::domain::{
    arn::UserArn,
    denial::PolicyOwner,
    grant::{Grant, GrantSpec, Kind, KindSpec, OWN_TAG_PREFIX, Tag},
    name::{GrantName, LeaseId, Name},
    request::IdempotencyKey,
};

/// Fixed part of a lease; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuance {
    /// Lease id.
    pub lease_id: LeaseId,
    /// Grant that the lease was issued under.
    pub grant: GrantName,
    /// Version of that grant.
    pub grant_version: u64,
    /// Kind of the credentials, which decides how they are made.
    pub kind: Kind,
    /// Role session name, federated user name or IAM user name.
    pub aws_name: String,
    /// Lease that this one continues: an STS session cannot be extended, so its renewal is a new
    /// session.
    pub renews: Option<LeaseId>,
    /// Role or user whose policies AWS checks when a session acts; `None` for an IAM user, and for
    /// a session that no user federated.
    pub holder: Option<PolicyOwner>,
}

impl Issuance {
    /// Returns the fixed part of a new lease of `grant`; `federated_by` is the user that federates
    /// the sessions of the lease.
    #[must_use]
    pub fn new(
        lease_id: LeaseId,
        grant: &Grant,
        federated_by: Option<UserArn>,
        renews: Option<LeaseId>,
    ) -> Self {
        let kind = grant.spec.kind();
        Self {
            holder: match &grant.spec.kind {
                KindSpec::AssumeRole { role_arn, .. } => Some(PolicyOwner::Role(role_arn.clone())),
                KindSpec::FederationToken { .. } => federated_by.map(PolicyOwner::User),
                KindSpec::IamUser { .. } => None,
            },
            aws_name: aws_name(kind, &grant.name.service, &lease_id),
            lease_id,
            grant: grant.name.clone(),
            grant_version: grant.version,
            kind,
            renews,
        }
    }

    /// Returns the tags on the lease's session or user: the broker's three, then the operator's. In
    /// CloudTrail they lead to the lease.
    #[must_use]
    pub fn aws_tags(&self, spec: &GrantSpec) -> Vec<Tag> {
        let own = |key: &str, value: &str| Tag {
            key: format!("{OWN_TAG_PREFIX}{key}"),
            value: value.to_owned(),
            transitive: false,
        };
        let mut tags = vec![
            own("service", self.grant.service.as_str()),
            own("grant", self.grant.grant.as_str()),
            own("lease", self.lease_id.as_str()),
        ];
        tags.extend_from_slice(spec.tags());
        tags
    }
}

/// Returns the name that AWS and CloudTrail show. Sessions of a role and IAM users are named
/// `SERVICE.LEASE` (up to 59 of 64 characters). A federated user has 32 characters: the service,
/// `.` and the last 13 characters of the lease id (65 random bits). A service name longer than 18
/// characters is shortened to its first 9 characters, `+` and 8 characters of its SHA-256.
#[must_use]
pub fn aws_name(kind: Kind, service: &Name, lease: &LeaseId) -> String {
    let lease = match kind {
        Kind::AssumeRole | Kind::IamUser => lease.as_str(),
        Kind::FederationToken => &lease.as_str()[13..],
    };
    format!("{}{lease}", aws_name_prefix(kind, service))
}

/// Returns the prefix of the names of a service in AWS. The prefix ends with the dot, so that no
/// other service's names begin with it. [`federated_alike`] finds the exception.
#[must_use]
pub fn aws_name_prefix(kind: Kind, service: &Name) -> String {
    match kind {
        Kind::AssumeRole | Kind::IamUser => format!("{service}."),
        Kind::FederationToken => format!("{}.", short(service)),
    }
}

/// Longest service name that the name of a federated user contains unshortened.
const WHOLE_MAX: usize = 18;
/// Length of the beginning of a longer service name that the name of a federated user contains.
const HEAD: usize = 9;

fn short(service: &Name) -> String {
    let name = service.as_str();
    if name.len() <= WHOLE_MAX {
        return name.to_owned();
    }
    let sum = digest::digest(&digest::SHA256, name.as_bytes());
    let hash = BASE32_NOPAD.encode(&sum.as_ref()[..5]).to_ascii_lowercase();
    format!("{}+{hash}", &name[..HEAD])
}

/// Returns the beginning of the names of those services whose federated users may have the same
/// name as those of this service; `None` where no other service can have such users.
#[must_use]
pub fn federated_head(service: &Name) -> Option<&str> {
    let name = service.as_str();
    (name.len() > WHOLE_MAX).then(|| &name[..HEAD])
}

/// Returns whether a denial of the federated users of one service would match the other's too: both
/// names are shortened to the same 40 bits of a hash.
#[must_use]
pub fn federated_alike(one: &Name, other: &Name) -> bool {
    one != other && short(one) == short(other)
}

/// Returns the service and the lease in the name of an IAM user, if the name has the broker's form.
#[must_use]
pub fn parse_user_name(user: &str) -> Option<(Name, LeaseId)> {
    let (service, lease) = user.split_once('.')?;
    Some((service.parse().ok()?, lease.parse().ok()?))
}

/// Record of one issue of credentials. Never contains a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Fixed part of the lease.
    pub binding: Issuance,
    /// Request that the lease answers, if the caller named the request. A failed issue clears this
    /// field, so that the request can be repeated.
    pub request: Option<IdempotencyKey>,
    /// Time of the request.
    pub requested_at: Timestamp,
    /// Current state.
    pub state: LeaseState,
    /// Number of changes of the lease: its fencing token.
    pub revision: u64,
}
