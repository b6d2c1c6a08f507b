//! What must stand in the account before the first issue: the permissions boundary.

use aws_sdk_iam::error::ProvideErrorMetadata;

use super::{
    AwsIssuer, PATH,
    error::{Operation, failure},
};
use crate::{broker::ports::AwsFailure, domain::policy};

/// Name of the managed policy that bounds every issued user.
pub const BOUNDARY_NAME: &str = "credbroker-boundary";

/// Why the account is not ready.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The boundary is not there.
    #[error(
        "the permissions boundary {0} is not in the account; make it with deploy/aws/bootstrap.sh, \
         or with `aws iam create-policy --path /credbroker/ --policy-name credbroker-boundary \
         --policy-document file://deploy/aws/boundary-policy.json`"
    )]
    NoBoundary(String),
    /// AWS did not answer, or refused.
    #[error("{}: {}", .0.message, .0.next)]
    Aws(#[from] AwsFailure),
}

impl AwsIssuer {
    /// Sees that the boundary is there.
    ///
    /// # Errors
    /// It is not, or AWS does not tell.
    pub async fn check_boundary(&self) -> Result<(), SetupError> {
        let arn = self.boundary_arn().await?;
        match self
            .clients
            .iam()
            .get_policy()
            .policy_arn(&arn)
            .send()
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("NoSuchEntity") => Err(SetupError::NoBoundary(arn)),
            Err(error) => {
                let operation = Operation {
                    name: "iam:GetPolicy",
                    on: &arn,
                    admin: "",
                };
                Err(failure(&operation, &error).into())
            }
        }
    }

    /// Makes the boundary if it is not there.
    ///
    /// # Errors
    /// AWS does not answer, or refuses.
    pub async fn ensure_boundary(&self) -> Result<(), SetupError> {
        match self.check_boundary().await {
            Err(SetupError::NoBoundary(arn)) => {
                let call = self
                    .clients
                    .iam()
                    .create_policy()
                    .path(PATH)
                    .policy_name(BOUNDARY_NAME)
                    .description("Bounds every IAM user that credbroker issues")
                    .policy_document(policy::boundary().to_json());
                let operation = Operation {
                    name: "iam:CreatePolicy",
                    on: &arn,
                    admin: "",
                };
                call.send()
                    .await
                    .map_err(|error| failure(&operation, &error))?;
                Ok(())
            }
            checked => checked,
        }
    }
}
