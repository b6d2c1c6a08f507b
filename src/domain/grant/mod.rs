//! Grants: the credentials that a service may be issued, and their settings.
//!
//! A [`GrantSpec`] is a document: it is stored as JSON and compared as a whole. Its rules, AWS's
//! and the broker's own, are in [`validate`].

mod reuse;
pub mod validate;

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use self::reuse::Reuse;
use crate::domain::{
    arn::{PolicyArn, RoleArn},
    duration::{HOUR, seconds},
    name::{GrantName, Name},
    policy::{self, Document},
    probe::Probe,
};

/// Kind of a grant's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An STS session of a role, narrowed by a session policy.
    AssumeRole,
    /// An STS session derived from the broker's own IAM user.
    FederationToken,
    /// An IAM user with a key, created for one lease.
    IamUser,
}

impl Kind {
    /// Returns the kind's name in the product's terms.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AssumeRole => "assume_role",
            Self::FederationToken => "federation_token",
            Self::IamUser => "iam_user",
        }
    }

    /// Returns whether AWS itself ends the credentials and cannot end them sooner on request.
    #[must_use]
    pub const fn is_session(self) -> bool {
        matches!(self, Self::AssumeRole | Self::FederationToken)
    }

    /// Returns the shortest and the longest lifetime. STS kinds have AWS's bounds
    /// (`DurationSeconds` of AssumeRole and GetFederationToken), users have the broker's.
    #[must_use]
    pub const fn ttl_bounds(self) -> (Duration, Duration) {
        let (shortest, longest) = match self {
            Self::AssumeRole => (900, 43_200),
            Self::FederationToken => (900, 129_600),
            Self::IamUser => (1, 90 * 86_400),
        };
        (Duration::from_secs(shortest), Duration::from_secs(longest))
    }
}

impl Kind {
    /// Returns the longest time that access made from a session lives on after the session's end.
    /// The longest case: the session signs in to the console in its last second. `None` for users:
    /// all access made from a user ends with the user.
    ///
    /// A sign-in token is valid for 15 minutes, a console session of a role for up to 12 hours
    /// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_enable-console-custom-url.html>),
    /// and a CodeArtifact token for up to 12 hours
    /// (<https://docs.aws.amazon.com/codeartifact/latest/APIReference/API_GetAuthorizationToken.html>).
    /// A console session made from `GetFederationToken` is valid for up to 36 hours.
    #[must_use]
    pub const fn outlived_by(self) -> Option<SignedDuration> {
        let sign_in = SignedDuration::from_mins(15);
        let console = match self {
            Self::AssumeRole => SignedDuration::from_hours(12),
            Self::FederationToken => SignedDuration::from_hours(36),
            Self::IamUser => return None,
        };
        sign_in.checked_add(console)
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::AssumeRole, Self::FederationToken, Self::IamUser]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Settings of a grant, as an operator puts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantSpec {
    /// Kind of the credentials, with the settings of that kind.
    pub kind: KindSpec,
    /// Inline policy.
    pub policy: Option<InlinePolicy>,
    /// Managed policies, in the operator's order.
    pub managed_policies: Vec<PolicyArn>,
    /// Lifetime when the caller names none.
    #[serde(with = "seconds")]
    pub default_ttl: Duration,
    /// Longest lifetime that a caller may ask for.
    #[serde(with = "seconds")]
    pub max_ttl: Duration,
    /// True if the operator allows the grant to be broad.
    pub allow_broad: bool,
    /// True if the session policy denies everything after the session's end, so that access made
    /// from the session does not outlive it. Sessions only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_by_policy: bool,
    /// Call that shows that AWS refuses a revoked session; `None`: the default probe. Sessions
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Further calls that show the same. Sessions only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_probes: Vec<Probe>,
    /// Regions, besides the grant's own, in which the probes show that AWS refuses a revoked
    /// session. Sessions only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probe_regions: Vec<String>,
    /// Callers that share a session; `None`: a session for each request. Sessions only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
}

/// Settings of each kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KindSpec {
    /// See [`Kind::AssumeRole`].
    AssumeRole {
        /// Role to assume.
        role_arn: RoleArn,
        /// External id that the role's trust policy demands.
        external_id: Option<String>,
        /// True to set the service's name as source identity.
        source_identity: bool,
        /// STS region other than the broker's.
        region: Option<String>,
        /// Session tags besides the broker's own.
        tags: Vec<Tag>,
    },
    /// See [`Kind::FederationToken`].
    FederationToken {
        /// STS region other than the broker's.
        region: Option<String>,
        /// Session tags besides the broker's own.
        tags: Vec<Tag>,
    },
    /// See [`Kind::IamUser`].
    IamUser {
        /// Groups the user joins.
        groups: Vec<String>,
        /// Path below the broker's own, `/` or `/name/`.
        path: String,
        /// Permissions boundary in place of the broker's.
        permissions_boundary: Option<PolicyArn>,
        /// Tags besides the broker's own.
        tags: Vec<Tag>,
    },
}

/// A tag of a session or user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Name of the tag: 1 to 128 characters.
    pub key: String,
    /// Value of the tag: up to 256 characters.
    pub value: String,
    /// True if the tag is passed on through role chaining.
    #[serde(default)]
    pub transitive: bool,
}

/// Inline policy, with the catalogue entry it was made from, if any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlinePolicy {
    /// Policy document.
    pub document: Document,
    /// Catalogue entry that the document was made from.
    pub template: Option<TemplateUse>,
}

/// Catalogue entry with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateUse {
    /// Name of the entry in the catalogue.
    pub name: String,
    /// Values by parameter name.
    pub parameters: BTreeMap<String, String>,
}

impl GrantSpec {
    /// Returns a federation grant with a lifetime of one hour, and without policies.
    #[must_use]
    pub const fn federation() -> Self {
        Self {
            kind: KindSpec::FederationToken {
                region: None,
                tags: Vec::new(),
            },
            policy: None,
            managed_policies: Vec::new(),
            default_ttl: HOUR,
            max_ttl: HOUR,
            allow_broad: false,
            ends_by_policy: false,
            probe: None,
            further_probes: Vec::new(),
            probe_regions: Vec::new(),
            reuse: None,
        }
    }

    /// Returns the kind without its settings.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self.kind {
            KindSpec::AssumeRole { .. } => Kind::AssumeRole,
            KindSpec::FederationToken { .. } => Kind::FederationToken,
            KindSpec::IamUser { .. } => Kind::IamUser,
        }
    }

    /// Returns the calls that show that AWS refuses a revoked session.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        let first = self.probe.unwrap_or_default();
        std::iter::once(first)
            .chain(self.further_probes.iter().copied())
            .collect()
    }

    /// Returns the operator's tags.
    #[must_use]
    pub fn tags(&self) -> &[Tag] {
        match &self.kind {
            KindSpec::AssumeRole { tags, .. }
            | KindSpec::FederationToken { tags, .. }
            | KindSpec::IamUser { tags, .. } => tags,
        }
    }

    /// Returns the inline policy; for a session, with the broker's guard. AWS gets this policy for
    /// a user, and [`Self::session_policy`] for a session.
    ///
    /// A session's policy also denies the actions that make access which outlives the session,
    /// unless the operator allowed a broad grant. A user has the permissions boundary for that.
    /// Session policies only narrow. So a role grant without any policy gets all that the role may
    /// do, less those actions. A grant with managed policies alone gets the guard alone.
    #[must_use]
    pub fn effective_policy(&self) -> Option<Document> {
        let inline = self.policy.as_ref().map(|p| p.document.clone());
        if self.allow_broad || !self.kind().is_session() {
            return inline;
        }
        Some(match inline {
            Some(document) if self.managed_policies.is_empty() => document.guarded(),
            Some(document) => document.guarded_against_all(),
            None if self.managed_policies.is_empty() => policy::boundary(),
            None => policy::guard_alone(),
        })
    }

    /// Returns the session policy as it is sent to AWS for a session that ends at `ends`. It is the
    /// effective policy; if [`Self::ends_by_policy`] is set, it also denies everything after
    /// `ends`.
    #[must_use]
    pub fn session_policy(&self, ends: Timestamp) -> Option<Document> {
        let effective = self.effective_policy();
        if !self.ends_by_policy {
            return effective;
        }
        Some(match effective {
            Some(document) => document.ending(ends),
            None if self.managed_policies.is_empty() => policy::everything().ending(ends),
            None => policy::nothing_after(ends),
        })
    }

    /// Returns whether this spec may permit more than `before`. It may not if it is the same apart
    /// from shorter lifetimes, `allow_broad` withdrawn, `ends_by_policy` added, other probes or
    /// another `reuse`. Any other difference counts, since the permissions of policies are not
    /// compared.
    #[must_use]
    pub fn may_widen(&self, before: Option<&Self>) -> bool {
        let Some(before) = before else {
            return true;
        };
        let same_but_shorter = Self {
            default_ttl: self.default_ttl.min(before.default_ttl),
            max_ttl: self.max_ttl.min(before.max_ttl),
            allow_broad: self.allow_broad && before.allow_broad,
            ends_by_policy: self.ends_by_policy || before.ends_by_policy,
            probe: self.probe,
            further_probes: self.further_probes.clone(),
            probe_regions: self.probe_regions.clone(),
            reuse: self.reuse,
            ..before.clone()
        };
        *self != same_but_shorter
    }

    /// Returns the reasons why the grant counts as broad, in words; empty if it is narrow.
    #[must_use]
    pub fn breadth(&self) -> Vec<String> {
        let mut reasons: Vec<String> = Vec::new();
        if let Some(inline) = &self.policy {
            reasons.extend(inline.document.breadth().iter().map(ToString::to_string));
        }
        for arn in &self.managed_policies {
            reasons.extend(policy::breadth_of_managed(arn).map(|excess| format!("{arn} {excess}")));
        }
        if let KindSpec::IamUser {
            permissions_boundary: Some(boundary),
            ..
        } = &self.kind
        {
            reasons.push(format!(
                "{boundary} takes the place of the broker's permissions boundary"
            ));
        }
        if self.allow_broad && self.kind().is_session() {
            reasons
                .push("its sessions have no guard against making further credentials".to_owned());
        }
        reasons
    }
}

/// One version of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Full name: service and grant.
    pub name: GrantName,
    /// Number of the version: from 1, one more with each change.
    pub version: u64,
    /// Settings in this version.
    pub spec: GrantSpec,
    /// Time when this version was put.
    pub created_at: Timestamp,
    /// Operator who put this version.
    pub created_by: Name,
}

impl Grant {
    /// Returns the grant without source identity, which a denial may match besides the name.
    #[must_use]
    pub fn without_source_identity(&self) -> Self {
        let mut grant = self.clone();
        if let KindSpec::AssumeRole {
            source_identity, ..
        } = &mut grant.spec.kind
        {
            *source_identity = false;
        }
        grant
    }
}

/// Prefix of the tag keys that are the broker's own.
pub const OWN_TAG_PREFIX: &str = "credbroker:";
/// Number of tags that the broker sets itself.
pub const OWN_TAGS: usize = 3;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(max_ttl: u64, allow_broad: bool, action: &str) -> GrantSpec {
        let statement = json!({"Effect": "Allow", "Action": action, "Resource": "*"});
        let document = json!({"Version": "2012-10-17", "Statement": [statement]});
        let user = json!({"groups": [], "path": "/", "permissions_boundary": null, "tags": []});
        let spec = json!({
            "kind": {"iam_user": user},
            "policy": {"document": document, "template": null},
            "managed_policies": [],
            "default_ttl": 900,
            "max_ttl": max_ttl,
            "allow_broad": allow_broad,
        });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_grant_may_widen_unless_it_is_the_same_with_shorter_lives_or_less_leave() {
        let before = spec(3600, true, "s3:GetObject");
        for (after, widens) in [
            (spec(3600, true, "s3:GetObject"), false),
            (spec(900, true, "s3:GetObject"), false),
            (spec(3600, false, "s3:GetObject"), false),
            (spec(7200, true, "s3:GetObject"), true),
            // Permissions of policies are not compared.
            (spec(900, false, "s3:GetObjectTagging"), true),
        ] {
            assert_eq!(after.may_widen(Some(&before)), widens, "{after:?}");
        }
        assert!(before.may_widen(None));
        assert!(before.may_widen(Some(&spec(3600, false, "s3:GetObject"))));
    }
}
