//! Background work of a running broker.
//!
//! | loop | period | file |
//! |---|---|---|
//! | clean-up of due leases | 1 s | `cleanup.rs` |
//! | comparison of IAM users with leases | 5 min | `iam_reconcile.rs` |
//! | due denials, lifting, drift, second checks | 1 s to 5 min | `denial_maintenance.rs` |
//! | rotation of the admin key | 1 s | `admin_key.rs` |
//!
//! The composition root (`runtime`) starts the others, which run from the first moment on, even while
//! the log is in doubt: signing (1 s), witness (10 s), heartbeat of replicas, delivery to sinks,
//! aggregation of refusals (1 min), health and metrics.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    broker::{Broker, Error},
    domain::random::back_off,
};

/// Longest pause between two questions whose key is in use.
const RETRY: Duration = Duration::from_secs(30);

impl Broker {
    /// Cleans up and reconciles until the broker stops. Starts once AWS has confirmed the account
    /// of the admin key: before that, the clock or the account may be wrong. While the log is in
    /// doubt, only maintains the denials of what was revoked.
    ///
    /// # Errors
    /// The admin key belongs to another account than the store; the broker then stops.
    pub async fn run_background(self: Arc<Self>) -> Result<(), Error> {
        let stop = self.parts.stop.clone();
        if self.check_log_integrity().is_err() {
            // The store may be an older copy: users that it does not know would be taken for
            // orphans.
            self.run_denial_maintenance().await;
            return Ok(());
        }
        if let Some(Err(error)) = stop.run_until_cancelled(self.account_is_verified()).await {
            stop.cancel();
            return Err(error);
        }
        if let Err(error) = self.delete_pruned().await {
            tracing::warn!(%error, "pruned records are left to the next start");
        }
        tokio::join!(
            Arc::clone(&self).run_cleanup(),
            self.reconcile(),
            self.run_denial_maintenance(),
            self.run_admin_key()
        );
        Ok(())
    }

    async fn account_is_verified(&self) -> Result<(), Error> {
        let mut failures = 0;
        loop {
            match self.account_is_ours().await {
                Err(error @ Error::WrongState { .. }) => return Err(error),
                Err(error) => tracing::debug!(%error, "not yet known whose key is at work"),
                Ok(()) => return Ok(()),
            }
            sleep(back_off(failures, RETRY, self.parts.random.as_ref())).await;
            failures += 1;
        }
    }
}
