//! The guard is a statement that denies issued credentials every action that makes access which
//! outlives them.
//!
//! A denial of a session, or the end of its lease, does not reach credentials, tokens and logins
//! that were made from the session. `tests/it/oracle/outliving.rs` compares [`OUTLIVING_ACTIONS`]
//! with the service authorization reference, AWS's list of all its actions. Each action there that
//! may make a token is denied here, or `not_denied.txt` beside the test lists it with the reason
//! why not.
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>

use super::overbroad::halves_hold;
use super::wildcard::{covers, intersects};
use super::{Actions, Document, Effect, Resources, Statement, Texts};

/// Actions by which a principal makes credentials or permissions that reach any service.
///
/// The actions of STS are listed at
/// <https://docs.aws.amazon.com/service-authorization/latest/reference/list_awssecuritytokenservice.html>.
pub(super) const MINTING_ACTIONS: [&str; 5] = [
    "iam:*",
    "sts:Assume*",
    "sts:GetFederationToken",
    "sts:GetSessionToken",
    "sts:GetWebIdentityToken",
];

/// Actions that a resource's policy may allow to a session even if the session's own policies do
/// not: the trust policy of a role, or the policy of an Access Grants instance or of a function,
/// may name a session. So the guard denies these actions to every session.
const ALWAYS_DENIED: [&str; 5] = [
    "iam:*",
    "lambda:CreateMicrovm*Token",
    "s3:GetDataAccess",
    "sts:Assume*",
    "sts:Get*Token",
];

/// Every action by which a principal makes access that outlives the principal: credentials, bearer
/// tokens, sign-ins, standing keys, and identities outside IAM. Sorted.
pub const OUTLIVING_ACTIONS: [&str; 46] = [
    "athena:GetSessionEndpoint",
    "bedrock-agentcore:GetWorkloadAccessToken*",
    "cloud9:ModifyTemporaryCredentialsOnEnvironmentEC2",
    "cloudshell:PutCredentials",
    "cloudwatch:AssumeAccessProfile",
    "cloudwatch:GetSpaceCredentials*",
    "codeartifact:GetAuthorizationToken",
    "cognito-identity:GetCredentialsForIdentity",
    "cognito-identity:GetOpenIdToken*",
    "connect:AdminGetEmergencyAccessToken",
    "connect:GetFederationToken",
    "datazone:Get*Credentials",
    "datazone:GetIamPortalLoginUrl",
    "deadline:Assume*",
    "ds:EnableRoleAccess",
    "eks-auth:*",
    "elasticmapreduce:GetClusterSessionCredentials",
    "elasticmapreduce:GetSessionEndpoint",
    "emr-containers:GetManagedEndpointSessionCredentials",
    "emr-serverless:GetSessionEndpoint",
    "finspace-api:GetProgrammaticAccessCredentials",
    "gamelift:GetComputeA*",
    "gamelift:GetInstanceAccess",
    "gamelift:RequestUploadCredentials",
    "glue:GlueNotebookRefreshCredentials",
    "iam:*",
    "identitystore:*",
    "iq-permission:*",
    "lakeformation:GetTemporary*",
    "lambda:CreateMicrovm*Token",
    "license-manager:CreateToken",
    "license-manager:GetAccessToken",
    "lightsail:CreateBucketAccessKey",
    "organizations:*",
    "q:CreateScimAccessToken",
    "rolesanywhere:*",
    "s3:GetDataAccess",
    "signin:*",
    "ssm:GetAccessToken",
    "ssm:RequestManagedInstanceRoleToken",
    "sso-directory:*",
    "sso-oauth:*",
    "sso:*",
    "sts:Assume*",
    "sts:Get*Token",
    "workmail:AssumeImpersonationRole",
];

impl Document {
    /// Adds the guard at the end of this document: the statement `CredbrokerGuard`, which denies
    /// [`OUTLIVING_ACTIONS`]. The guard leaves out an action that no `Allow` of this document
    /// matches, unless a resource's policy may allow the action.
    #[must_use]
    pub fn guarded(self) -> Self {
        let denied = OUTLIVING_ACTIONS
            .into_iter()
            .filter(|action| ALWAYS_DENIED.contains(action) || self.may_allow(action));
        let guard = deny(GUARD, denied);
        self.with_statement(guard)
    }

    /// Adds the guard against all of [`OUTLIVING_ACTIONS`]: for a document beside managed policies,
    /// which the broker does not read.
    #[must_use]
    pub fn guarded_against_all(self) -> Self {
        self.with_statement(full())
    }

    /// Returns whether one statement denies these actions on every resource, without a condition.
    fn denies(&self, denied: &[&str]) -> bool {
        self.statements.iter().any(|statement| {
            let Actions::Only(actions) = &statement.actions else {
                return false;
            };
            let Resources::Only(resources) = &statement.resources else {
                return false;
            };
            let is_denied = |asked: &&str| actions.cover(asked);
            statement.effect == Effect::Deny
                && statement.condition.is_empty()
                && resources.0.iter().any(|resource| resource == "*")
                && denied.iter().all(is_denied)
        })
    }

    /// Returns whether an `Allow` of this document matches some action of this pattern.
    fn may_allow(&self, pattern: &str) -> bool {
        let allows = |statement: &Statement| match &statement.actions {
            Actions::Only(actions) => actions
                .0
                .iter()
                .any(|action| halves_hold(action, pattern, intersects)),
            Actions::AllBut(actions) => !actions.cover(pattern),
        };
        self.statements
            .iter()
            .any(|statement| statement.effect == Effect::Allow && allows(statement))
    }
}

impl Texts {
    /// Returns whether one of these patterns of actions matches every action of `pattern`.
    fn cover(&self, pattern: &str) -> bool {
        self.0
            .iter()
            .any(|whole| halves_hold(whole, pattern, covers))
    }
}

/// Strength of a permissions boundary against access that outlives an issued user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Denies all of [`OUTLIVING_ACTIONS`].
    Full,
    /// Denies IAM and the credentials of STS, but not all of [`OUTLIVING_ACTIONS`]: an earlier
    /// version of the broker wrote the boundary.
    Outdated,
    /// Leaves IAM or credentials of STS to an issued user.
    Weak,
}

/// Returns how strong this permissions boundary is.
#[must_use]
pub fn strength(boundary: &Document) -> Strength {
    if boundary.denies(&OUTLIVING_ACTIONS) {
        Strength::Full
    } else if boundary.denies(&MINTING_ACTIONS) {
        Strength::Outdated
    } else {
        Strength::Weak
    }
}

/// Returns the session policy of a grant that names managed policies only: the guard alone.
///
/// The guard allows nothing. AWS joins it with the managed policies, which allow actions.
#[must_use]
pub fn guard_alone() -> Document {
    Document {
        id: None,
        statements: vec![full()],
    }
}

/// Returns the permissions boundary of every IAM user made for a lease: the boundary allows
/// everything except [`OUTLIVING_ACTIONS`], so that the grant decides the rest. A role grant
/// without policies has the same document as its session policy.
///
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/access_policies_boundaries.html>
#[must_use]
pub fn boundary() -> Document {
    let allow = Statement::plain(
        Effect::Allow,
        "AllowWhatTheGrantAllows",
        Texts::of(["*"]),
        Texts::of(["*"]),
    );
    Document {
        id: None,
        statements: vec![allow, deny("DenyMintingCredentials", OUTLIVING_ACTIONS)],
    }
}

const GUARD: &str = "CredbrokerGuard";

fn full() -> Statement {
    deny(GUARD, OUTLIVING_ACTIONS)
}

fn deny(sid: &str, actions: impl IntoIterator<Item = &'static str>) -> Statement {
    Statement::plain(Effect::Deny, sid, Texts::of(actions), Texts::of(["*"]))
}
