//! Background clean-up of leases: expired ones, abandoned issues, and leases that AWS has not
//! deleted yet.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    broker::{Actor, Broker, Error, ports::LeaseTransition, removal::end_event},
    domain::{
        audit::Event,
        lease::{EndReason, InvalidTransition, Lease, LeaseState},
        name::LeaseId,
    },
};

/// Interval at which the store is queried for due leases; the query is indexed and mostly returns
/// nothing.
const EVERY: Duration = Duration::from_secs(1);
/// Number of sessions that are cleaned up in one transaction. Issues wait for the transaction
/// before theirs, so that it is small.
const BATCH: usize = 8;
/// Larger batch once a clean-up has reached `MANY`. The small batch would never catch up with a
/// broker that issues as fast as it can.
const BATCH_OF_MANY: usize = 64;
const MANY: usize = 20_000;
/// Reason of an issue that was never completed.
const ABANDONED: &str = "abandoned";

/// Leases whose clean-up is in progress.
#[derive(Debug, Default)]
pub(super) struct InProgressIds(Mutex<HashSet<LeaseId>>);

impl InProgressIds {
    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Marks a lease until the mark is dropped; `None` if the lease is marked already or `most`
    /// leases are.
    fn mark(self: &Arc<Self>, id: &LeaseId, most: usize) -> Option<Mark> {
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (busy.len() < most && busy.insert(id.clone())).then(|| Mark {
            busy: Arc::clone(self),
            id: id.clone(),
        })
    }
}

struct Mark {
    busy: Arc<InProgressIds>,
    id: LeaseId,
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut busy = self.busy.0.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.id);
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Broker {
    /// Cleans up until the broker stops. An interruption is harmless: unfinished leases are due
    /// again. The failure or slowness of one lease does not stop the others.
    pub async fn run_cleanup(self: Arc<Self>) {
        let stop = self.parts.stop.clone();
        let rounds = async { tokio::join!(self.clean_up_users(), self.clean_up_sessions()) };
        stop.run_until_cancelled(rounds).await;
    }

    /// Cleans up everything that is due now, and waits for the end.
    ///
    /// # Errors
    /// The store cannot list the due leases.
    pub async fn clean_up_once(self: &Arc<Self>) -> Result<(), Error> {
        self.expire_sessions().await?;
        let mut tasks = JoinSet::new();
        self.begin_removals(&mut tasks).await?;
        tasks.join_all().await;
        Ok(())
    }

    async fn clean_up_sessions(&self) {
        let mut ticks = ticks();
        loop {
            ticks.tick().await;
            self.shared.evict_expired(self.now());
            if let Err(error) = self.expire_sessions().await {
                tracing::warn!(%error, "the clean-up of sessions failed and is tried again");
            }
        }
    }

    async fn clean_up_users(self: &Arc<Self>) {
        let (mut ticks, mut tasks, mut more_are_due) = (ticks(), JoinSet::new(), false);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Some(_) = tasks.join_next(), if more_are_due => {}
            }
            while tasks.try_join_next().is_some() {}
            more_are_due = match self.begin_removals(&mut tasks).await {
                Ok(()) => self.busy.count() >= self.parts.issuer.removals_at_once(),
                Err(error) => {
                    tracing::warn!(%error, "the clean-up of users failed and is tried again");
                    false
                }
            };
        }
    }

    /// Records the end of due sessions. AWS ends sessions without a call.
    async fn expire_sessions(&self) -> Result<(), Error> {
        if !self.clock_is_certain() {
            return Ok(());
        }
        let (mut count, mut passed_over) = (0, 0);
        loop {
            let now = self.now();
            let batch = if count < MANY { BATCH } else { BATCH_OF_MANY };
            // Leases that were passed over stay due and come first again.
            let most = batch + passed_over;
            let due = self.store().sessions_due(now, most).await?;
            let (found, all) = (due.len(), due.len() < most);
            let settle = |lease| {
                self.expire_session(lease, now)
                    .inspect_err(|refused| tracing::error!(%refused, "a lease is passed over"))
                    .ok()
            };
            let settled: Vec<LeaseTransition> = due.into_iter().filter_map(settle).collect();
            count += settled.len();
            passed_over = found - settled.len();
            let is_done = settled.is_empty() || self.store().update_leases(&settled).await? > 0;
            if all || !is_done {
                return Ok(());
            }
        }
    }

    fn expire_session(
        &self,
        lease: Lease,
        now: Timestamp,
    ) -> Result<LeaseTransition, InvalidTransition> {
        let (from, ends) = (
            lease.revision,
            lease.issued().map(|issued| issued.expires_at),
        );
        let lives = ends.filter(|ends| *ends > now);
        let (lease, event) = match (&lease.state, lives) {
            (LeaseState::Pending { .. }, _) => (
                lease.abandon(ABANDONED.to_owned(), now)?,
                Event::LeaseRevoked,
            ),
            (LeaseState::Active { .. }, Some(_)) => {
                (lease.cancel_replacement(false)?, Event::LeaseKept)
            }
            (LeaseState::Active { .. }, None) => (lease.expire(now)?, Event::LeaseExpired),
            (_, Some(ends)) => (lease.wait(ends)?, Event::LeasePostponed),
            (_, None) => {
                let ended = lease.finish(now)?;
                let event = end_event(&ended);
                (ended, event)
            }
        };
        let audit = self.event(Actor::Broker, event).lease(&lease);
        let cause = lease.cause().map(ToString::to_string);
        let audit = audit.detail(&cause.unwrap_or_default());
        Ok(LeaseTransition { from, lease, audit })
    }

    async fn begin_removals(self: &Arc<Self>, tasks: &mut JoinSet<()>) -> Result<(), Error> {
        let most = self.parts.issuer.removals_at_once();
        let limit = most + self.busy.count();
        let due = self.store().users_due(self.now(), limit).await?;
        let by_time = self.clock_is_certain();
        for lease in due {
            if !by_time && lease.removal().is_none() {
                continue;
            }
            let id = lease.binding.lease_id.clone();
            let Some(mark) = self.busy.mark(&id, most) else {
                continue;
            };
            let broker = Arc::clone(self);
            tasks.spawn(async move {
                let _mark = mark;
                if let Err(error) = broker.clean_up_user(lease).await {
                    tracing::warn!(lease = %id, %error, "a lease could not be cleaned up and is tried again");
                }
            });
        }
        Ok(())
    }

    async fn clean_up_user(&self, lease: Lease) -> Result<(), Error> {
        let cause = match &lease.state {
            LeaseState::Revoking(_) | LeaseState::Quarantined(_) => {
                self.remove_credentials(Actor::Broker, lease).await?;
                return Ok(());
            }
            LeaseState::Active { issued, .. } if issued.expires_at > self.now() => {
                return self.finish_replacement_of(lease).await;
            }
            LeaseState::Active { .. } => EndReason::Expired,
            _ => EndReason::NotIssued(ABANDONED.to_owned()),
        };
        self.end(Actor::Broker, lease, cause, Event::LeaseRevoking)
            .await?;
        Ok(())
    }
}
