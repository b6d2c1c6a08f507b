//! AWS through its own SDK: sessions, users, and what refusals mean.

mod client;
mod error;
mod iam;
mod setup;
mod sts;

use async_trait::async_trait;
use tokio::sync::OnceCell;

pub use self::{
    client::{AwsSettings, Clients},
    error::Operation,
    setup::{BOUNDARY_NAME, SetupError},
};
use crate::{
    broker::ports::{AwsFailure, Issuer},
    domain::{
        arn::{AccountId, Partition},
        credential::Credentials,
        decide::{Authorized, Issue},
        grant::KindSpec,
        lease::Binding,
    },
};

/// Everything the broker has in IAM lives under this path.
pub const PATH: &str = "/credbroker/";

/// Makes and takes away credentials with the admin key.
#[derive(Debug)]
pub struct AwsIssuer {
    clients: Clients,
    partition: Partition,
    admin: OnceCell<Admin>,
}

/// Whom the admin key belongs to.
#[derive(Clone, Debug)]
struct Admin {
    arn: String,
    account: AccountId,
}

impl AwsIssuer {
    /// An issuer over these clients.
    #[must_use]
    pub fn new(clients: Clients, partition: Partition) -> Self {
        Self {
            clients,
            partition,
            admin: OnceCell::new(),
        }
    }

    async fn admin(&self) -> Result<&Admin, AwsFailure> {
        self.admin
            .get_or_try_init(|| sts::admin(&self.clients))
            .await
    }

    /// ARN of the broker's own permissions boundary.
    async fn boundary_arn(&self) -> Result<String, AwsFailure> {
        let account = &self.admin().await?.account;
        Ok(format!(
            "arn:{}:iam::{account}:policy{PATH}{BOUNDARY_NAME}",
            self.partition
        ))
    }
}

#[async_trait]
impl Issuer for AwsIssuer {
    async fn issue(
        &self,
        issue: &Authorized<Issue>,
        lease: &Binding,
    ) -> Result<Credentials, AwsFailure> {
        match issue.get().grant.spec.kind {
            KindSpec::AssumeRole { .. } => {
                let admin = self
                    .admin
                    .get()
                    .map_or("the broker's IAM user", |admin| &admin.arn);
                sts::assume_role(&self.clients, issue.get(), lease, admin).await
            }
            KindSpec::FederationToken { .. } => {
                sts::get_federation_token(&self.clients, issue.get(), lease).await
            }
            KindSpec::IamUser { .. } => {
                let boundary = self.boundary_arn().await?;
                iam::create(&self.clients, issue.get(), lease, boundary).await
            }
        }
    }

    async fn withdraw(&self, lease: &Binding) -> Result<(), AwsFailure> {
        iam::remove(&self.clients, &lease.aws_name).await
    }

    async fn identity(&self) -> Result<String, AwsFailure> {
        let admin = sts::admin(&self.clients).await?;
        // Set at the first answer; an admin key does not change its account.
        let _ = self.admin.set(admin.clone());
        Ok(admin.arn)
    }
}
