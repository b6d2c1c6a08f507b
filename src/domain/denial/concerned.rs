//! Sessions that are to be denied, and what of them a denial names.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Against, Holder, Scope};
use crate::domain::{grant::Kind, lease::Lease, name::GrantName};

/// A session that was issued and may still be of use, by itself or by what was made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Grant that it was issued under.
    pub grant: GrantName,
    /// Version of that grant.
    pub grant_version: u64,
    /// Role or user whose policies AWS asks when it acts.
    pub holder: Holder,
    /// Time at which it expires, or has expired.
    pub expires_at: Timestamp,
}

impl Session {
    /// The session of a lease, if it has one that can be denied.
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

    /// Tells whether it, or access that was made from it, may live at `now`.
    #[must_use]
    pub fn may_be_of_use(&self, now: Timestamp) -> bool {
        self.access_ends() > now
    }

    /// End of the last access that may have been made from it.
    pub(super) fn access_ends(&self) -> Timestamp {
        let outlived_by = self.holder.kind().outlived_by().unwrap_or_default();
        let ends = self.expires_at.checked_add(outlived_by);
        ends.unwrap_or(Timestamp::MAX)
    }
}

/// Sessions that are to be denied at a role or user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concerned {
    /// Whose, of which service, and which.
    pub against: Against,
    /// A grant that they were issued under.
    pub grant: GrantName,
    /// Version of that grant.
    pub grant_version: u64,
    /// True where any bears the service's name as source identity.
    pub source_identity: bool,
    /// End of the last access that may have been made from them.
    pub access_ends: Timestamp,
}

impl Concerned {
    /// Everything that was issued until `now` at a role or user, by any maker. It is tried by a
    /// session of this grant.
    #[must_use]
    pub fn everyone(holder: Holder, grant: GrantName, grant_version: u64, now: Timestamp) -> Self {
        let longest = Kind::FederationToken;
        let outlived_by = longest.outlived_by().unwrap_or_default();
        let ends = now.checked_add(longest.ttl_bounds().1);
        let ends = ends.and_then(|ends| ends.checked_add(outlived_by));
        Self {
            against: Against {
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

    /// Collects what is to be denied at each role and user so that none of these sessions is of use
    /// after `now`, nor what was made from them. A session whose own time is up is among them
    /// while access made from it may live. Whether sessions bear a source identity is for the
    /// caller to say.
    #[must_use]
    pub fn of<'a>(
        scope: &Scope,
        sessions: impl IntoIterator<Item = &'a Session>,
        now: Timestamp,
    ) -> BTreeMap<Holder, Self> {
        let mut found: BTreeMap<Holder, Self> = BTreeMap::new();
        let useful = sessions.into_iter().filter(|s| s.may_be_of_use(now));
        for session in useful {
            let holder = &session.holder;
            let concerned = found.entry(holder.clone()).or_insert_with(|| Self {
                against: Against {
                    holder: holder.clone(),
                    service: session.grant.service.clone(),
                    scope: scope.clone(),
                },
                grant: session.grant.clone(),
                grant_version: session.grant_version,
                source_identity: false,
                access_ends: session.access_ends(),
            });
            // By a session of the newest version it is tried.
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
