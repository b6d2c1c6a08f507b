//! Sessions that are to be denied, and the subjects of their denials.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{DenialSubject, PolicyOwner, Scope};
use crate::domain::{grant::Kind, lease::Lease, name::GrantName};

/// An issued session that may still be usable, itself or through access made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenialSession {
    /// Grant of the session.
    pub grant: GrantName,
    /// Version of that grant.
    pub grant_version: u64,
    /// Role or user whose policies AWS evaluates when the session makes a call.
    pub holder: PolicyOwner,
    /// Time of expiry, also in the past.
    pub expires_at: Timestamp,
}

impl DenialSession {
    /// Returns the session of a lease, if the lease has one that can be denied.
    #[must_use]
    pub fn of(lease: &Lease) -> Option<Self> {
        let binding = &lease.binding;
        Some(Self {
            grant: binding.grant.clone(),
            grant_version: binding.grant_version,
            holder: binding.holder.clone()?,
            expires_at: lease.issued()?.expires_at,
        })
    }

    /// Returns whether the session, or access made from it, may still work at `now`.
    #[must_use]
    pub fn may_be_of_use(&self, now: Timestamp) -> bool {
        self.access_ends() > now
    }

    /// Returns the end of the last access that may have been made from the session.
    pub(super) fn access_ends(&self) -> Timestamp {
        let outlived_by = self.holder.kind().outlived_by().unwrap_or_default();
        let ends = self.expires_at.checked_add(outlived_by);
        ends.unwrap_or(Timestamp::MAX)
    }
}

/// Sessions that are to be denied at one role or user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedSessions {
    /// Subject of the denial: role or user, service and scope.
    pub against: DenialSubject,
    /// Grant of some of the sessions. The canary is made under this grant.
    pub grant: GrantName,
    /// Version of that grant.
    pub grant_version: u64,
    /// True if any of the sessions has the service's name as source identity.
    pub source_identity: bool,
    /// End of the last access that may have been made from the sessions.
    pub access_ends: Timestamp,
}

impl AffectedSessions {
    /// Returns all sessions that were issued until `now` at a role or user, by the broker or by
    /// others. The canary is made under this grant.
    #[must_use]
    pub fn everyone(
        holder: PolicyOwner,
        grant: GrantName,
        grant_version: u64,
        now: Timestamp,
    ) -> Self {
        let longest = Kind::FederationToken;
        let outlived_by = longest.outlived_by().unwrap_or_default();
        let ends = now.checked_add(longest.ttl_bounds().1);
        let ends = ends.and_then(|ends| ends.checked_add(outlived_by));
        Self {
            against: DenialSubject {
                holder,
                service: grant.service.clone(),
                scope: Scope::Everyone,
            },
            grant,
            grant_version,
            source_identity: false,
            access_ends: ends.unwrap_or(Timestamp::MAX),
        }
    }

    /// Collects, per role and user, the sessions to be denied so that none of them, and no access
    /// made from them, works after `now`. An expired session is included while access made from it
    /// may still work. The caller sets `source_identity`.
    #[must_use]
    pub fn of<'a>(
        scope: &Scope,
        sessions: impl IntoIterator<Item = &'a DenialSession>,
        now: Timestamp,
    ) -> BTreeMap<PolicyOwner, Self> {
        let mut found: BTreeMap<PolicyOwner, Self> = BTreeMap::new();
        let useful = sessions.into_iter().filter(|s| s.may_be_of_use(now));
        for session in useful {
            let holder = &session.holder;
            let concerned = found.entry(holder.clone()).or_insert_with(|| Self {
                against: DenialSubject {
                    holder: holder.clone(),
                    service: session.grant.service.clone(),
                    scope: scope.clone(),
                },
                grant: session.grant.clone(),
                grant_version: session.grant_version,
                source_identity: false,
                access_ends: session.access_ends(),
            });
            // The canary is made under the newest version of the grant.
            let is_newer =
                session.grant != concerned.grant || session.grant_version > concerned.grant_version;
            if is_newer {
                concerned.grant.clone_from(&session.grant);
                concerned.grant_version = session.grant_version;
            }
            concerned.access_ends = concerned.access_ends.max(session.access_ends());
        }
        found
    }
}
