//! Locks among replicas, kept in the store with a fencing token. A lock ends when its time is up or
//! its replica dies. A store for a single broker has no locks: there every lock is granted.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::OnceCell,
    time::{Instant, sleep},
};

use crate::broker::{
    Broker, Error,
    ports::{AwsFailure, CLAIMED_FOR, DEAD_AFTER, Store, StoreError},
};

/// Longest wait for a lock that another replica holds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Interval between two attempts to take a lock or to reach the store.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Time for which a store that does not answer is asked again.
const INSISTENCE: Duration = Duration::from_secs(5);
/// Retry delay that the error after [`PATIENCE`] recommends.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Time for which continuous work goes on before its lock is taken again.
const RENEW_AFTER: Duration = Duration::from_secs(5);

/// State of this replica among the others: its last heartbeat, and the work that it does.
#[derive(Default)]
pub(super) struct ClusterLocks {
    alive: Mutex<Option<Instant>>,
    /// Id of the replica's journal (the emergency file).
    pub(super) emergency_file: OnceCell<String>,
    living: AtomicU64,
    left: AtomicBool,
    /// Continuous work of this replica, and the time when its lock was last taken.
    work: Mutex<HashMap<String, Instant>>,
}

impl ClusterLocks {
    /// Records a heartbeat that the replica has sent at `at` or later, and the number of living
    /// replicas.
    pub(super) fn record_heartbeat(&self, at: Instant, living: u64) {
        self.living.store(living, Ordering::Relaxed);
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Returns the number of living replicas, this one included.
    pub(super) fn living(&self) -> u64 {
        self.living.load(Ordering::Relaxed).max(1)
    }

    /// Records that some work in progress may belong to no replica: a replica has died, or this one
    /// is the first.
    pub(super) fn mark_orphaned_work(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Returns whether such work was recorded, and clears the record.
    pub(super) fn take_orphaned_work(&self) -> bool {
        self.left.swap(false, Ordering::Relaxed)
    }

    /// Returns whether the last heartbeat is too recent for other replicas to take this one for
    /// dead. A process that was paused for a while detects here that it is taken for dead.
    fn is_alive(&self) -> bool {
        let alive = *self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.is_some_and(|at| at.elapsed() < DEAD_AFTER.length())
    }

    fn work(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lock on some work, which no other replica does meanwhile. Released when dropped.
pub(super) struct LockGuard(Option<LockState>);

struct LockState {
    store: Arc<dyn Store>,
    claims: Arc<ClusterLocks>,
    what: String,
    epoch: u64,
    since: Instant,
}

impl LockGuard {
    /// Returns a lock that is not in the store: for a single broker, or while the store fails.
    pub(super) const fn single_replica() -> Self {
        Self(None)
    }

    /// Returns the fencing token. Each new lock on the same work has the next number. `None` for a
    /// lock that is not in the store.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.0.as_ref().map(|held| held.epoch)
    }

    /// Returns whether it is too early for another replica to have taken the lock, as far as this
    /// can be known without a query.
    pub(super) fn is_certainly_held(&self) -> bool {
        let sure = |held: &LockState| {
            held.since.elapsed() < CLAIMED_FOR.length() && held.claims.is_alive()
        };
        self.0.as_ref().is_none_or(sure)
    }

    /// Asks the store whether no other replica has taken the lock.
    ///
    /// # Errors
    /// The store's error, after some seconds of attempts.
    pub(super) async fn is_held(&self) -> Result<bool, StoreError> {
        let Some((held, peers)) = self
            .0
            .as_ref()
            .and_then(|held| Some((held, held.store.peers()?)))
        else {
            return Ok(true);
        };
        retry(|| peers.is_claimed(&held.what, held.epoch)).await
    }
}

/// Repeats a query for some seconds until the store answers: a connection may have been cut.
async fn retry<T, F>(ask: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let began = Instant::now();
    loop {
        match ask().await {
            Err(StoreError::Unavailable(_)) if began.elapsed() < INSISTENCE => {
                sleep(LOOK_EVERY).await;
            }
            answer => return answer,
        }
    }
}

impl Drop for LockState {
    fn drop(&mut self) {
        let (store, what, epoch) = (Arc::clone(&self.store), self.what.clone(), self.epoch);
        tokio::spawn(async move {
            if let Some(peers) = store.peers()
                && let Err(error) = peers.release(&what, epoch).await
            {
                tracing::debug!(what, %error, "a claim ends by its time");
            }
        });
    }
}

impl Broker {
    /// Takes the lock on `what`, which is held until it is dropped. Waits while another replica
    /// holds it.
    ///
    /// # Errors
    /// The store's error, or another replica holds the lock for too long.
    pub(super) async fn lock(&self, what: &str) -> Result<LockGuard, Error> {
        let Some(peers) = self.store().peers() else {
            return Ok(LockGuard::single_replica());
        };
        let began = Instant::now();
        loop {
            if !self.claims.is_alive() {
                self.send_heartbeat(peers).await?;
            }
            let since = Instant::now();
            let claim = || peers.claim(what, &self.instance);
            if let Some(epoch) = retry(claim).await? {
                return Ok(LockGuard(Some(LockState {
                    store: Arc::clone(&self.parts.store),
                    claims: Arc::clone(&self.claims),
                    what: what.to_owned(),
                    epoch,
                    since,
                })));
            }
            if began.elapsed() > PATIENCE {
                let busy = format!("timed out waiting for another replica to finish \"{what}\"");
                return Err(AwsFailure::deferred("ANOTHER_BROKER", busy, LOOK_AGAIN).into());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Returns whether this replica is the one that does some continuous work. Takes or renews the
    /// lock on the work if necessary.
    pub(super) async fn hold_lock(&self, work: &str) -> bool {
        let Some(peers) = self.store().peers() else {
            return true;
        };
        let claimed = self.claims.work().get(work).copied();
        if claimed.is_some_and(|at| at.elapsed() < RENEW_AFTER && self.claims.is_alive()) {
            return true;
        }
        let now = Instant::now();
        let claimed = matches!(peers.claim(work, &self.instance).await, Ok(Some(_)));
        let mut ours = self.claims.work();
        if claimed {
            ours.insert(work.to_owned(), now);
        } else {
            ours.remove(work);
        }
        claimed
    }
}
