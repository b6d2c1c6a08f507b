//! AWS account of the broker and of all its leases.

use crate::{
    broker::{
        Actor, Broker, Error, on_conflict,
        ports::{AdminIdentity, AwsFailure},
    },
    domain::{
        arn::AccountId,
        audit::{Event, Subject},
    },
};

impl Broker {
    /// Checks that the current key belongs to the account of the store's leases. A new store
    /// records the account here. With a key of another account, every IAM user of a lease would
    /// look deleted.
    ///
    /// # Errors
    /// The key belongs to another account, or AWS or the store does not answer.
    async fn verify_account(&self) -> Result<(), Error> {
        let admin = self.parts.issuer.identity().await?;
        self.bind_account(Actor::Broker, &admin).await
    }

    /// Checks that the current key belongs to the store's account. After one success the check is
    /// not repeated.
    ///
    /// # Errors
    /// The key belongs to another account, or AWS or the store does not answer.
    pub async fn account_is_ours(&self) -> Result<(), Error> {
        let verified = self.account.get_or_try_init(|| self.verify_account());
        verified.await.copied()
    }

    /// Asks AWS for the ARN of the identity behind the current key.
    pub(super) async fn admin_arn(&self) -> Result<String, AwsFailure> {
        let admin = self.parts.issuer.identity().await?;
        Ok(admin.arn)
    }

    pub(super) async fn bind_account(
        &self,
        by: Actor<'_>,
        admin: &AdminIdentity,
    ) -> Result<(), Error> {
        match self.store().account().await? {
            Some(known) if known == admin.account => Ok(()),
            Some(known) => Err(other_account(&known, admin)),
            None => {
                let account = &admin.account;
                let audit = self.event(by, Event::AccountBound).detail(account.as_str());
                let bound = self.store().bind_account(account, audit).await;
                match self.store().account().await? {
                    // Another replica bound the account first.
                    Some(known) if known == *account => Ok(()),
                    _ => on_conflict(bound, || Error::Conflict(Subject::AdminKey)),
                }
            }
        }
    }
}

fn other_account(known: &AccountId, admin: &AdminIdentity) -> Error {
    Error::WrongState {
        subject: Subject::AdminKey,
        reason: "OTHER_ACCOUNT",
        message: format!(
            "the AWS key belongs to {}, and everything in the store is in account {known}",
            admin.arn
        ),
        next: "use a key of that account, or give the broker another store".to_owned(),
    }
}
