//! Background clean-up: leases whose time ran out, whose issue was abandoned, or that
//! AWS has not let go yet.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Broker, By, Error},
    domain::{
        audit::Event,
        lease::{Cause, Lease, LeaseState},
    },
};

/// How often the store is asked what is due; the query is indexed and mostly empty.
const EVERY: Duration = Duration::from_secs(1);
/// How many leases one round takes on.
const ROUND: u32 = 100;

impl Broker {
    /// Cleans up until told to stop.
    pub async fn reap(&self, stop: CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Err(error) = self.reap_once().await {
                tracing::warn!(%error, "the clean-up failed and is tried again");
            }
        }
    }

    /// One round over what is due now. One lease's failure does not stop the others.
    ///
    /// # Errors
    /// When the store does not tell what is due.
    pub async fn reap_once(&self) -> Result<(), Error> {
        for lease in self.store().leases_due(self.now(), ROUND).await? {
            let id = lease.binding.lease_id.clone();
            if let Err(error) = self.reap_lease(lease).await {
                tracing::warn!(lease = %id, %error, "a lease could not be cleaned up and is tried again");
            }
        }
        Ok(())
    }

    async fn reap_lease(&self, lease: Lease) -> Result<(), Error> {
        let cause = match lease.state {
            LeaseState::Revoking { .. } => {
                self.take_away(By::Broker, lease).await?;
                return Ok(());
            }
            LeaseState::Active(_) => Cause::Expired,
            _ => Cause::NotIssued("abandoned".to_owned()),
        };
        self.end(By::Broker, lease, cause, Event::LeaseRevoking)
            .await?;
        Ok(())
    }
}
