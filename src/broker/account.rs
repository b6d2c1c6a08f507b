//! The AWS account that everything of this broker's is in.

use crate::{
    broker::{
        Broker, By, Error, on_conflict,
        ports::{AdminIdentity, AwsFailure},
    },
    domain::{
        arn::AccountId,
        audit::{Event, Subject},
    },
};

impl Broker {
    /// Sees that the key at work is of the account that the store's leases are in; a new
    /// store learns it here. In another account every one of their users would look
    /// removed.
    ///
    /// # Errors
    /// It is of another account; AWS or the store does not tell.
    async fn verify_account(&self) -> Result<(), Error> {
        let admin = self.parts.issuer.identity().await?;
        self.bind_account(By::Broker, &admin).await
    }

    /// Whether the key at work is of the store's account, asked until it has held once.
    ///
    /// # Errors
    /// It is of another account; AWS or the store does not tell.
    pub async fn account_is_ours(&self) -> Result<(), Error> {
        let verified = self.account.get_or_try_init(|| self.verify_account());
        verified.await.copied()
    }

    /// ARN of the identity behind the key at work, asked of AWS.
    pub(super) async fn admin_arn(&self) -> Result<String, AwsFailure> {
        let admin = self.parts.issuer.identity().await?;
        Ok(admin.arn)
    }

    pub(super) async fn bind_account(
        &self,
        by: By<'_>,
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
                    // Another broker was first.
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
