//! Background clean-up: leases whose time ran out, whose issue was abandoned, or that
//! AWS has not let go yet.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    broker::{Broker, By, Error},
    domain::{
        audit::Event,
        lease::{Cause, Lease, LeaseState},
    },
};

/// How often the store is asked what is due; the query is indexed and mostly empty.
const EVERY: Duration = Duration::from_secs(1);
/// How many leases are cleaned up at the same time.
const ROUND: u32 = 16;

impl Broker {
    /// Cleans up until the broker ends. Being cut off is harmless: what was under way is
    /// due again.
    pub async fn reap(self: Arc<Self>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.parts.stop.clone();
        let rounds = async {
            loop {
                ticks.tick().await;
                if let Err(error) = self.reap_once().await {
                    tracing::warn!(%error, "the clean-up failed and is tried again");
                }
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    /// One round over what is due now. One lease's failure does not stop the others.
    ///
    /// # Errors
    /// When the store does not tell what is due.
    pub async fn reap_once(self: &Arc<Self>) -> Result<(), Error> {
        let mut round = JoinSet::new();
        for lease in self.store().leases_due(self.now(), ROUND).await? {
            let broker = Arc::clone(self);
            round.spawn(async move {
                let id = lease.binding.lease_id.clone();
                if let Err(error) = broker.reap_lease(lease).await {
                    tracing::warn!(lease = %id, %error, "a lease could not be cleaned up and is tried again");
                }
            });
        }
        round.join_all().await;
        Ok(())
    }

    async fn reap_lease(&self, lease: Lease) -> Result<(), Error> {
        let cause = match lease.state {
            LeaseState::Revoking { .. } => {
                self.take_away(By::Broker, lease).await?;
                return Ok(());
            }
            LeaseState::Active(_) if lease.binding.kind.is_session() => {
                return self.expire(lease).await;
            }
            LeaseState::Active(_) => Cause::Expired,
            _ => Cause::NotIssued("abandoned".to_owned()),
        };
        self.end(By::Broker, lease, cause, Event::LeaseRevoking)
            .await?;
        Ok(())
    }
}
