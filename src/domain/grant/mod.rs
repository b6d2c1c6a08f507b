//! Standing permissions: what a service may be issued, and how.
//!
//! A [`GrantSpec`] is a document: it is stored as JSON and compared as a whole. Its
//! rules, AWS's and the broker's own, stand in [`check`].

pub mod check;
mod reuse;

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

/// How a grant's credentials are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An STS session on a role, narrowed by a session policy.
    AssumeRole,
    /// An STS session derived from the broker's own IAM user.
    FederationToken,
    /// An IAM user and key made for one lease.
    IamUser,
}

impl Kind {
    /// The kind's name, as in product terms.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AssumeRole => "assume_role",
            Self::FederationToken => "federation_token",
            Self::IamUser => "iam_user",
        }
    }

    /// Whether AWS itself ends the credentials, and cannot be asked to end them sooner.
    #[must_use]
    pub const fn is_session(self) -> bool {
        matches!(self, Self::AssumeRole | Self::FederationToken)
    }

    /// Shortest and longest lifetime: AWS's bounds for STS kinds
    /// (`DurationSeconds` of AssumeRole and GetFederationToken), the broker's for users.
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
    /// Longest time for which access that was made from a session lives on after the session's
    /// end: it signs in to the console in its last second. `None` for users, with whom all ends
    /// that was made from them.
    ///
    /// A sign-in token is good for 15 minutes and a console session of a role for up to 12 hours
    /// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_enable-console-custom-url.html>),
    /// as is a CodeArtifact token
    /// (<https://docs.aws.amazon.com/codeartifact/latest/APIReference/API_GetAuthorizationToken.html>);
    /// what is made by `GetFederationToken`, for up to 36 hours.
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

/// Everything an operator says about a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantSpec {
    /// The kind and what it needs.
    pub kind: KindSpec,
    /// The inline policy.
    pub policy: Option<InlinePolicy>,
    /// Managed policies, in the order given.
    pub managed_policies: Vec<PolicyArn>,
    /// Lifetime when the caller names none.
    #[serde(with = "seconds")]
    pub default_ttl: Duration,
    /// Longest lifetime a caller may ask for.
    #[serde(with = "seconds")]
    pub max_ttl: Duration,
    /// The operator said that the grant may be broad.
    pub allow_broad: bool,
    /// The session policy denies everything once the session's time is up, so that nothing that was
    /// made from it lives longer. Sessions alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_by_policy: bool,
    /// Shows that a revoked session is refused; `None` for the usual one. Sessions alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Further calls that show the same. Sessions alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_probes: Vec<Probe>,
    /// Regions beside its own in which a revoked session is shown to be refused. Sessions alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probe_regions: Vec<String>,
    /// Who shares a session; `None` for a session for each who asks. Sessions alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
}

/// What each kind needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KindSpec {
    /// See [`Kind::AssumeRole`].
    AssumeRole {
        /// The role to assume.
        role_arn: RoleArn,
        /// Demanded by the role's trust policy.
        external_id: Option<String>,
        /// Set the service's name as source identity.
        source_identity: bool,
        /// STS region other than the broker's.
        region: Option<String>,
        /// Session tags beside the broker's own.
        tags: Vec<Tag>,
    },
    /// See [`Kind::FederationToken`].
    FederationToken {
        /// STS region other than the broker's.
        region: Option<String>,
        /// Session tags beside the broker's own.
        tags: Vec<Tag>,
    },
    /// See [`Kind::IamUser`].
    IamUser {
        /// Groups the user joins.
        groups: Vec<String>,
        /// Path below the broker's own, `/` or `/name/`.
        path: String,
        /// Another boundary than the broker's.
        permissions_boundary: Option<PolicyArn>,
        /// Tags beside the broker's own.
        tags: Vec<Tag>,
    },
}

/// A tag of a session or user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Up to 128 characters.
    pub key: String,
    /// Up to 256 characters.
    pub value: String,
    /// Passed on through role chaining.
    #[serde(default)]
    pub transitive: bool,
}

/// The inline policy, and the catalogue entry it was made from, if any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlinePolicy {
    /// The document itself.
    pub document: Document,
    /// Where it came from.
    pub template: Option<TemplateUse>,
}

/// A catalogue entry with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateUse {
    /// Name in the catalogue.
    pub name: String,
    /// Parameter name to value.
    pub parameters: BTreeMap<String, String>,
}

impl GrantSpec {
    /// A federation session that may do what its session policy allows, for an hour.
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

    /// The kind alone.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self.kind {
            KindSpec::AssumeRole { .. } => Kind::AssumeRole,
            KindSpec::FederationToken { .. } => Kind::FederationToken,
            KindSpec::IamUser { .. } => Kind::IamUser,
        }
    }

    /// Calls that show that a revoked session is refused.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        let first = self.probe.unwrap_or_default();
        std::iter::once(first)
            .chain(self.further_probes.iter().copied())
            .collect()
    }

    /// The operator's tags.
    #[must_use]
    pub fn tags(&self) -> &[Tag] {
        match &self.kind {
            KindSpec::AssumeRole { tags, .. }
            | KindSpec::FederationToken { tags, .. }
            | KindSpec::IamUser { tags, .. } => tags,
        }
    }

    /// The inline policy as it is sent to AWS.
    ///
    /// Unless the operator allowed a broad grant, a session's policy also denies what makes
    /// access that outlives the session; a user has the permissions boundary for that. Session
    /// policies only narrow: a role grant that names none gets "all the role may, less that",
    /// one with managed policies alone gets the denial alone.
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

    /// The session policy as it is sent to AWS for a session that ends then: the effective one, and
    /// where the grant says so a denial of everything from then on.
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

    /// Whether it may permit more than `before`: anything but the same with shorter lives,
    /// or with no leave to be broad. What a policy permits is not compared.
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

    /// In words, why the grant counts as broad; empty when it is narrow.
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
    /// Its full name.
    pub name: GrantName,
    /// From 1, one more with each change.
    pub version: u64,
    /// What it says.
    pub spec: GrantSpec,
    /// When this version was put.
    pub created_at: Timestamp,
    /// Who put it.
    pub created_by: Name,
}

/// Tag keys under this prefix are the broker's own.
pub const OWN_TAG_PREFIX: &str = "credbroker:";
/// How many tags of its own the broker sets.
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
            // What a policy permits is not compared.
            (spec(900, false, "s3:GetObjectTagging"), true),
        ] {
            assert_eq!(after.may_widen(Some(&before)), widens, "{after:?}");
        }
        assert!(before.may_widen(None));
        assert!(before.may_widen(Some(&spec(3600, false, "s3:GetObject"))));
    }
}
