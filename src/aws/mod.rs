//! AWS by its own SDK: sessions, users, and the meaning of refusals.

mod admin_key;
mod bootstrap_check;
mod channel;
mod circuit_breaker;
mod client;
mod deny_policy;
mod error;
mod iam;
pub mod kms;
mod probe;
mod rate_budget;
pub mod revoke_script;
mod sts;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use async_trait::async_trait;
use aws_smithy_types::DateTime;
use jiff::Timestamp;
use tokio::sync::OnceCell;

use self::rate_budget::Purpose;
pub use self::{
    bootstrap_check::{BOUNDARY_NAME, SetupError},
    client::{ANSWER_LIMIT, AwsSettings, Clients, Timeouts, chain_region},
    error::Operation,
};
use crate::{
    broker::ports::{
        AdminIdentity, AwsFailure, DeleteOutcome, Inventory, IssueFailure, Issuer, Priority,
        Residue,
    },
    domain::{
        arn::{AccountId, Partition, RoleArn},
        credential::Credentials,
        decide::{Authorized, Issue},
        grant::KindSpec,
        lease::Issuance,
    },
};

/// IAM path of everything that the broker creates. Its users have a path of their deployment below
/// it.
pub const PATH: &str = "/credbroker/";

/// Prefix of the names of policies of denials.
const DENIALS: &str = "credbroker-denials-";

/// Creates and deletes credentials with the admin key.
#[derive(Debug)]
pub struct AwsAccount {
    session: RwLock<Arc<AwsSession>>,
    partition: Partition,
    /// Path of this deployment's users, apart from other brokers' users in the same account.
    users_path: String,
    /// Name of this deployment's policies of denials, apart from other brokers' policies.
    denials: String,
    /// Roles by which policies of other accounts are changed.
    revokers: BTreeMap<AccountId, RoleArn>,
    /// Sessions of the revoker roles.
    entered: Mutex<BTreeMap<AccountId, Credentials>>,
    /// Set once the boundary was checked.
    bounded: OnceCell<()>,
}

/// One admin key in use.
#[derive(Debug)]
struct AwsSession {
    clients: Clients,
    admin: OnceCell<AdminIdentity>,
}

impl AwsSession {
    fn new(clients: Clients) -> Arc<Self> {
        Arc::new(Self {
            clients,
            admin: OnceCell::new(),
        })
    }

    async fn admin(&self) -> Result<&AdminIdentity, AwsFailure> {
        self.admin
            .get_or_try_init(|| sts::admin(&self.clients))
            .await
    }
}

impl AwsAccount {
    /// Creates an issuer over these clients. The deployment's id marks its users and denials.
    #[must_use]
    pub fn new(
        clients: Clients,
        partition: Partition,
        deployment: &str,
        revokers: BTreeMap<AccountId, RoleArn>,
    ) -> Self {
        Self {
            denials: format!("{DENIALS}{deployment}"),
            revokers,
            entered: Mutex::default(),
            session: RwLock::new(AwsSession::new(clients)),
            partition,
            users_path: format!("{PATH}{deployment}/"),
            bounded: OnceCell::new(),
        }
    }

    /// Returns the admin key in use. An operation goes on with the key that it has begun with.
    fn session(&self) -> Arc<AwsSession> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&session)
    }

    fn work_with(&self, clients: Clients) {
        let mut session = self.session.write().unwrap_or_else(PoisonError::into_inner);
        *session = AwsSession::new(clients);
    }

    /// Returns the ARN of the broker's own permissions boundary.
    async fn boundary_arn(&self) -> Result<String, AwsFailure> {
        let session = self.session();
        let account = &session.admin().await?.account;
        Ok(format!(
            "arn:{}:iam::{account}:policy{PATH}{BOUNDARY_NAME}",
            self.partition
        ))
    }
}

/// Returns a failure that left nothing in AWS to delete, as that of a session.
const fn untouched(failure: AwsFailure) -> IssueFailure {
    IssueFailure {
        failure,
        left: Residue::Nothing,
    }
}

#[async_trait]
impl Issuer for AwsAccount {
    fn ready(&self, issue: &Authorized<Issue>) -> Result<(), AwsFailure> {
        let clients = &self.session().clients;
        match &issue.get().grant.spec.kind {
            KindSpec::AssumeRole { region, .. } | KindSpec::FederationToken { region, .. } => {
                clients.sts(region.as_deref(), Purpose::Begin).ready()
            }
            // STS shows whether a new key is accepted.
            KindSpec::IamUser { .. } => {
                clients.iam(Purpose::Begin).ready()?;
                clients.sts(None, Purpose::Begin).ready()
            }
        }
    }

    fn answers(&self) -> bool {
        let clients = &self.session().clients;
        clients.iam(Purpose::Begin).answers() && clients.sts(None, Purpose::Begin).answers()
    }

    fn share_with(&self, brokers: u64) {
        self.session().clients.share_with(brokers);
    }

    fn removals_at_once(&self) -> usize {
        self.session().clients.removals_at_once()
    }

    async fn issue(
        &self,
        issue: &Authorized<Issue>,
        lease: &Issuance,
    ) -> Result<Credentials, IssueFailure> {
        let (session, issue) = (self.session(), issue.get());
        let clients = &session.clients;
        match issue.grant.spec.kind {
            KindSpec::AssumeRole { .. } => {
                let admin = session.admin.get();
                let admin = admin.map_or("the broker's IAM user", |admin| &admin.arn);
                let asked = sts::SessionRequest::of(issue, lease, clients.now());
                let made = sts::assume_role(clients, &asked, admin).await;
                made.map_err(untouched)
            }
            KindSpec::FederationToken { .. } => {
                let asked = sts::SessionRequest::of(issue, lease, clients.now());
                let made = sts::get_federation_token(clients, &asked).await;
                made.map_err(untouched)
            }
            KindSpec::IamUser { .. } => {
                let boundary = self.boundary().await.map_err(untouched)?;
                iam::create(clients, issue, lease, &self.users_path, boundary).await
            }
        }
    }

    async fn replace_key(
        &self,
        lease: &Issuance,
        recorded: &str,
        settled: bool,
    ) -> Result<Credentials, IssueFailure> {
        let session = self.session();
        iam::replace_key(&session.clients, &lease.aws_name, recorded, settled).await
    }

    async fn withdraw(&self, user: &str, urgency: Priority) -> Result<DeleteOutcome, AwsFailure> {
        let purpose = match urgency {
            Priority::Ordinary => Purpose::Complete,
            Priority::Revocation => Purpose::Revoke,
        };
        let session = self.session();
        iam::remove(&session.clients.iam(purpose), user).await
    }

    async fn identity(&self) -> Result<AdminIdentity, AwsFailure> {
        let session = self.session();
        let admin = sts::admin(&session.clients).await?;
        // Already set after the first answer; an admin key does not change its account.
        let _ = session.admin.set(admin.clone());
        Ok(admin)
    }
}

#[async_trait]
impl Inventory for AwsAccount {
    async fn users(&self) -> Result<Vec<String>, AwsFailure> {
        let session = self.session();
        iam::users(&session.clients.iam(Purpose::Complete), &self.users_path).await
    }

    async fn is_ours(&self, user: &str) -> Result<Option<bool>, AwsFailure> {
        let session = self.session();
        iam::is_ours(
            &session.clients.iam(Purpose::Complete),
            &self.users_path,
            user,
        )
        .await
    }

    async fn keys(&self, user: &str) -> Result<Vec<String>, AwsFailure> {
        let session = self.session();
        iam::keys(&session.clients.iam(Purpose::Complete), user).await
    }

    async fn remove_key(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure> {
        let session = self.session();
        iam::remove_key(&session.clients.iam(Purpose::Complete), user, access_key_id).await
    }
}

/// Converts AWS's time.
fn timestamp(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}
