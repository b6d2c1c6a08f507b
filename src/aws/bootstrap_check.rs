//! Requirement on the account before the first issue: the permissions boundary.

use percent_encoding::percent_decode_str;

use super::{
    AwsAccount, PATH,
    error::{not_set_up, on},
    rate_budget::Purpose,
};
use crate::{
    broker::ports::AwsFailure,
    domain::policy::{self, Document, Strength},
};

/// Name of the managed policy that bounds every issued user.
pub const BOUNDARY_NAME: &str = "credbroker-boundary";

/// Reason why the account is not ready.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The boundary is missing.
    #[error(
        "the permissions boundary {0} is not in the account; make it with deploy/aws/bootstrap.sh, \
         or with `aws iam create-policy --path /credbroker/ --policy-name credbroker-boundary \
         --policy-document file://deploy/aws/boundary-policy.json`"
    )]
    NoBoundary(String),
    /// The boundary would let issued users make further credentials.
    #[error(
        "the permissions boundary {0} does not deny issued users IAM and the calls of STS that make \
         credentials; give it the statement DenyMintingCredentials of \
         deploy/aws/boundary-policy.json, or run deploy/aws/bootstrap.sh"
    )]
    WeakBoundary(String),
    /// AWS did not answer, or refused.
    #[error("{}", .0.message)]
    Aws(#[from] AwsFailure),
}

impl SetupError {
    const fn reason(&self) -> &'static str {
        match self {
            Self::NoBoundary(_) => "BOUNDARY_MISSING",
            Self::WeakBoundary(_) => "BOUNDARY_WEAK",
            Self::Aws(failure) => failure.reason,
        }
    }
}

impl AwsAccount {
    /// Checks that the boundary exists and prevents issued users from making further credentials.
    /// Logs a boundary of an earlier version that denies less than this version knows of.
    ///
    /// # Errors
    /// The boundary is missing or too weak, or AWS does not answer or refuses.
    pub async fn check_boundary(&self) -> Result<(), SetupError> {
        self.bounded
            .get_or_try_init(|| self.look_at_boundary())
            .await?;
        Ok(())
    }

    async fn look_at_boundary(&self) -> Result<(), SetupError> {
        let arn = self.boundary_arn().await?;
        let session = self.session();
        let iam = session.clients.iam(Purpose::Complete);
        let call = iam.client.get_policy().policy_arn(&arn).send();
        let Some(found) = iam.call_if_exists(&on("iam:GetPolicy", &arn), call).await? else {
            return Err(SetupError::NoBoundary(arn));
        };
        let version = found.policy.and_then(|policy| policy.default_version_id);
        let call = iam
            .client
            .get_policy_version()
            .policy_arn(&arn)
            .set_version_id(version);
        let found = iam
            .ask(&on("iam:GetPolicyVersion", &arn), call.send())
            .await?;
        let document = found.policy_version.and_then(|version| version.document);
        match document.as_deref().map_or(Strength::Weak, strength_of) {
            Strength::Full => Ok(()),
            Strength::Outdated => {
                tracing::warn!(
                    "the permissions boundary {arn} is of an earlier version: it does not deny \
                     issued users everything that makes access beyond their lease; run \
                     deploy/aws/bootstrap.sh again"
                );
                Ok(())
            }
            Strength::Weak => Err(SetupError::WeakBoundary(arn)),
        }
    }

    /// Returns the ARN of the boundary, once it was checked: at the broker's start, AWS or a key
    /// may have been missing for the check.
    pub(super) async fn boundary(&self) -> Result<String, AwsFailure> {
        match self.check_boundary().await {
            Ok(()) => self.boundary_arn().await,
            Err(SetupError::Aws(failure)) => Err(failure),
            Err(error) => Err(not_set_up(error.reason(), error.to_string())),
        }
    }

    /// Creates the boundary if it is missing.
    ///
    /// # Errors
    /// AWS does not answer, or refuses.
    pub async fn ensure_boundary(&self) -> Result<(), SetupError> {
        match self.check_boundary().await {
            Err(SetupError::NoBoundary(arn)) => {
                let session = self.session();
                let iam = session.clients.iam(Purpose::Complete);
                let call = iam
                    .client
                    .create_policy()
                    .path(PATH)
                    .policy_name(BOUNDARY_NAME)
                    .description("Bounds every IAM user that credbroker issues")
                    .policy_document(policy::boundary().to_json());
                iam.ask(&on("iam:CreatePolicy", &arn), call.send()).await?;
                // Not set before: the boundary was missing.
                let _ = self.bounded.set(());
                Ok(())
            }
            checked => checked,
        }
    }
}

/// Returns the strength of a document, which IAM returns percent-encoded (RFC 3986). An unreadable
/// document bounds nothing.
fn strength_of(encoded: &str) -> Strength {
    let json = percent_decode_str(encoded).decode_utf8().ok();
    let document = json.and_then(|json| Document::parse(&json).ok());
    document.map_or(Strength::Weak, |document| policy::strength(&document))
}
