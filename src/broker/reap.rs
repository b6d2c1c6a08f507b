//! Background clean-up of leases: whose time ran out, whose issue was abandoned, that
//! AWS has not let go yet.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    broker::{Broker, By, Error},
    domain::{
        audit::Event,
        lease::{Cause, Lease, LeaseState},
        name::LeaseId,
    },
};

/// How often the store is asked what is due; the query is indexed and mostly empty.
const EVERY: Duration = Duration::from_secs(1);
/// How many leases are cleaned up at the same time.
const PARALLEL: usize = 16;

/// Leases that are being cleaned up.
#[derive(Debug, Default)]
pub(super) struct Busy(Mutex<HashSet<LeaseId>>);

impl Busy {
    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Marks a lease, until the mark is dropped; `None` when it is marked already or
    /// as many as may be are.
    fn mark(self: &Arc<Self>, id: &LeaseId) -> Option<Mark> {
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (busy.len() < PARALLEL && busy.insert(id.clone())).then(|| Mark {
            busy: Arc::clone(self),
            id: id.clone(),
        })
    }
}

struct Mark {
    busy: Arc<Busy>,
    id: LeaseId,
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut busy = self.busy.0.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.id);
    }
}

impl Broker {
    /// Cleans up until the broker ends. Being cut off is harmless: what was under way is
    /// due again. One lease's failure, or slowness, does not stop the others.
    pub async fn reap(self: Arc<Self>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.parts.stop.clone();
        let rounds = async {
            let mut tasks = JoinSet::new();
            loop {
                ticks.tick().await;
                while tasks.try_join_next().is_some() {}
                if let Err(error) = self.begin_reaping(&mut tasks).await {
                    tracing::warn!(%error, "the clean-up failed and is tried again");
                }
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    /// One round over what is due now, to its end.
    ///
    /// # Errors
    /// When the store does not tell what is due.
    pub async fn reap_once(self: &Arc<Self>) -> Result<(), Error> {
        let mut tasks = JoinSet::new();
        self.begin_reaping(&mut tasks).await?;
        tasks.join_all().await;
        Ok(())
    }

    async fn begin_reaping(self: &Arc<Self>, tasks: &mut JoinSet<()>) -> Result<(), Error> {
        let limit = u32::try_from(PARALLEL + self.busy.count()).unwrap_or(u32::MAX);
        for lease in self.store().leases_due(self.now(), limit).await? {
            let id = lease.binding.lease_id.clone();
            let Some(mark) = self.busy.mark(&id) else {
                continue;
            };
            let broker = Arc::clone(self);
            tasks.spawn(async move {
                let _mark = mark;
                if let Err(error) = broker.reap_lease(lease).await {
                    tracing::warn!(lease = %id, %error, "a lease could not be cleaned up and is tried again");
                }
            });
        }
        Ok(())
    }

    async fn reap_lease(&self, lease: Lease) -> Result<(), Error> {
        let cause = match &lease.state {
            LeaseState::Revoking(_) | LeaseState::Quarantined(_) => {
                self.take_away(By::Broker, lease).await?;
                return Ok(());
            }
            LeaseState::Active { issued, .. } if issued.expires_at > self.now() => {
                return self.end_replacement(lease).await;
            }
            LeaseState::Active { .. } if lease.binding.kind.is_session() => {
                return self.expire(lease).await;
            }
            LeaseState::Active { .. } => Cause::Expired,
            _ => Cause::NotIssued("abandoned".to_owned()),
        };
        self.end(By::Broker, lease, cause, Event::LeaseRevoking)
            .await?;
        Ok(())
    }
}
