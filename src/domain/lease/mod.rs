//! One issuance of credentials, from intent to end.
//!
//! ```text
//! pending ─▶ active ─▶ expired ─▶ revoking   (an STS session, by AWS's clock, revoked afterwards)
//!    │          └────▶ revoking ─▶ revoked   (released, revoked, never handed out)
//!    └───────────────────┘ │ ▲ └─▶ expired   (an IAM user whose time ran out)
//!                          ▼ │
//!                      quarantined           (AWS keeps refusing; tried for ever)
//! ```
//!
//! A transition consumes the lease and takes the time. What has ended stays ended, but for a
//! session whose end may be outlived by access that was made from it: that can be revoked. Each
//! adds one to the revision, and the store replaces a lease only by the successor of what it
//! holds: a change of a lease that another caller has moved on meanwhile is refused.

mod cause;
mod state;
#[cfg(test)]
mod tests;

use aws_lc_rs::digest;
use data_encoding::BASE32_NOPAD;
use jiff::Timestamp;

pub use self::{
    cause::Cause,
    state::{
        CLAIM, CONSISTENCY_WINDOW, InvalidTransition, Issued, LeaseState, PENDING_LIMIT, Removal,
        Standing,
    },
};
use crate::domain::{
    arn::UserArn,
    denial::Holder,
    grant::{Grant, GrantSpec, Kind, KindSpec, OWN_TAG_PREFIX, Tag},
    name::{GrantName, LeaseId, Name},
    request::NamedRequest,
};

/// What a lease is about; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The lease's id.
    pub lease_id: LeaseId,
    /// The grant it was issued under.
    pub grant: GrantName,
    /// Which version of it.
    pub grant_version: u64,
    /// How the credentials are made.
    pub kind: Kind,
    /// Role session name, federated user name or IAM user name.
    pub aws_name: String,
    /// The lease that this one carries on: an STS session cannot be prolonged, so its
    /// renewal is a new session.
    pub renews: Option<LeaseId>,
    /// Whose policies AWS asks when a session acts; `None` for an IAM user, and for a session
    /// that no user federated.
    pub holder: Option<Holder>,
}

impl Binding {
    /// What a new lease of `grant` is about; `federated_by` is the user that federates its
    /// sessions.
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
                KindSpec::AssumeRole { role_arn, .. } => Some(Holder::Role(role_arn.clone())),
                KindSpec::FederationToken { .. } => federated_by.map(Holder::User),
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

    /// The tags on the lease's session or user: the broker's three, then the
    /// operator's. CloudTrail leads from them to the lease.
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

/// The name that AWS and CloudTrail show. `SERVICE.LEASE` (up to 59 of 64 characters)
/// for sessions and users. A federated user has 32 characters: the service, or for one
/// longer than 18 its first 9 characters, `+` and 8 of its SHA-256, then `.` and the
/// last 13 characters of the lease id (65 random bits).
#[must_use]
pub fn aws_name(kind: Kind, service: &Name, lease: &LeaseId) -> String {
    let lease = match kind {
        Kind::AssumeRole | Kind::IamUser => lease.as_str(),
        Kind::FederationToken => &lease.as_str()[13..],
    };
    format!("{}{lease}", aws_name_prefix(kind, service))
}

/// What all names of a service begin with, and no other's: it ends with the dot.
#[must_use]
pub fn aws_name_prefix(kind: Kind, service: &Name) -> String {
    match kind {
        Kind::AssumeRole | Kind::IamUser => format!("{service}."),
        Kind::FederationToken => format!("{}.", short(service)),
    }
}

/// Longest name of a service that a federated user bears whole.
const WHOLE_MAX: usize = 18;
/// Length of the part that it bears of a longer one.
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

/// Beginning of the names of services whose federated users may bear the same name as those of
/// this one; `None` where no other's can.
#[must_use]
pub fn federated_head(service: &Name) -> Option<&str> {
    let name = service.as_str();
    (name.len() > WHOLE_MAX).then(|| &name[..HEAD])
}

/// Returns whether a denial of the federated users of one service would meet the other's: their
/// names are cut to the same 40 bits of a hash.
#[must_use]
pub fn federated_alike(one: &Name, other: &Name) -> bool {
    one != other && short(one) == short(other)
}

/// The service and lease that the name of an IAM user tells, if it is one of ours.
#[must_use]
pub fn told_by_user_name(user: &str) -> Option<(Name, LeaseId)> {
    let (service, lease) = user.split_once('.')?;
    Some((service.parse().ok()?, lease.parse().ok()?))
}

/// One issuance of credentials. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it is about.
    pub binding: Binding,
    /// The request that it answers, if the caller named it. An issue that came to
    /// nothing gives the name back, so that the request can be repeated.
    pub request: Option<NamedRequest>,
    /// When the service asked.
    pub requested_at: Timestamp,
    /// Where it stands.
    pub state: LeaseState,
    /// Counts its changes: its fencing token.
    pub revision: u64,
}
