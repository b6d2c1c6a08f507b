//! Access keys and their acceptance by AWS; the broker's own key is one of them.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout};

use super::{
    AwsAccount, Clients,
    error::{not_yet, on},
    iam,
    rate_budget::Purpose,
    sts::identity,
};
use crate::{
    broker::ports::{AdminIdentity, AdminKeyApi, AwsFailure, FailureClass},
    domain::credential::AccessKey,
};

/// Times in a row that AWS must accept a new key: one of AWS's servers may know the key already
/// while the next does not.
const PROOFS: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Longest time that the standard AWS chain may take to return its key.
const CHAIN_LIMIT: Duration = Duration::from_secs(2);

/// Waits until AWS accepts a key: IAM spreads a new key gradually. Returns the key's owner.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html>
pub(super) async fn prove(clients: &Clients, key: &AccessKey) -> Result<AdminIdentity, AwsFailure> {
    let sts = clients.sts_of(key);
    let operation = on("sts:GetCallerIdentity", &key.id);
    let (began, mut proofs, mut pause) = (Instant::now(), 0, FIRST_PAUSE);
    loop {
        let call = sts.client.get_caller_identity().send();
        match sts.ask(&operation, call).await {
            Ok(owner) => {
                proofs += 1;
                if proofs == PROOFS {
                    return identity(owner);
                }
            }
            Err(failure) if failure.aws_said.starts_with("SignatureDoesNotMatch") => {
                return Err(failure);
            }
            Err(_) if began.elapsed() + pause < clients.acceptance => {
                proofs = 0;
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(failure) if failure.class == FailureClass::Refused => {
                let seconds = clients.acceptance.as_secs();
                let message = format!("AWS does not accept the access key after {seconds} s");
                return Err(AwsFailure {
                    aws_said: failure.aws_said,
                    aws_request_id: failure.aws_request_id,
                    ..not_yet("AWS_KEY_NOT_ACCEPTED", message)
                });
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Returns the name at the end of a user's ARN, without its path.
fn name(user: &str) -> &str {
    user.rsplit('/').next().unwrap_or(user)
}

#[async_trait]
impl AdminKeyApi for AwsAccount {
    fn adopt(&self, key: &AccessKey) {
        let clients = self.session().clients.with_key(key);
        self.work_with(clients);
    }

    async fn id(&self) -> Option<String> {
        let session = self.session();
        timeout(CHAIN_LIMIT, session.clients.key_id())
            .await
            .ok()
            .flatten()
    }

    async fn prove(&self, key: &AccessKey) -> Result<AdminIdentity, AwsFailure> {
        prove(&self.session().clients, key).await
    }

    async fn keys(&self, user: &str) -> Result<Vec<String>, AwsFailure> {
        let session = self.session();
        iam::keys(&session.clients.iam(Purpose::Complete), name(user)).await
    }

    async fn create(&self, user: &str) -> Result<AccessKey, AwsFailure> {
        let session = self.session();
        let iam = session.clients.iam(Purpose::Complete);
        let made = iam::create_key(&iam, name(user)).await?;
        Ok(AccessKey {
            id: made.access_key_id,
            secret: made.secret_access_key,
        })
    }

    async fn deactivate(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure> {
        let session = self.session();
        let iam = session.clients.iam(Purpose::Complete);
        iam::deactivate_key(&iam, name(user), access_key_id).await
    }

    async fn delete(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure> {
        let session = self.session();
        let iam = session.clients.iam(Purpose::Complete);
        iam::delete_key(&iam, name(user), access_key_id).await
    }
}
