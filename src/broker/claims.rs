//! What one of several brokers has to itself: a claim in the store, which outlives neither
//! its broker nor its time. Where a store serves one broker alone, everything is its own.

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

/// How long somebody else's claim is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it is free.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a store is asked again that does not answer.
const INSISTENCE: Duration = Duration::from_secs(5);
/// When it is worth trying again after that.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long work that goes on is done without claiming it again.
const RENEW_AFTER: Duration = Duration::from_secs(5);

/// Of one broker among several: when it last said that it lives, and what it works on.
#[derive(Default)]
pub(super) struct Claims {
    alive: Mutex<Option<Instant>>,
    /// The id of the broker's emergency file.
    pub(super) emergency_file: OnceCell<String>,
    living: AtomicU64,
    left: AtomicBool,
    /// Work that goes on, and when it was last claimed.
    work: Mutex<HashMap<String, Instant>>,
}

impl Claims {
    /// The broker has said, at this moment or later, that it lives, with so many in all.
    pub(super) fn said_alive(&self, at: Instant, living: u64) {
        self.living.store(living, Ordering::Relaxed);
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// How many live.
    pub(super) fn living(&self) -> u64 {
        self.living.load(Ordering::Relaxed).max(1)
    }

    /// What is under way is nobody's, in part: a broker has died, or there was none.
    pub(super) fn are_left(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// The same, told once.
    pub(super) fn take_left(&self) -> bool {
        self.left.swap(false, Ordering::Relaxed)
    }

    /// Whether nobody takes it for dead yet. One that was stopped for a while finds out here
    /// that it is.
    fn is_alive(&self) -> bool {
        let alive = *self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.is_some_and(|at| at.elapsed() < DEAD_AFTER.length())
    }

    fn work(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That something is done by nobody else; given back when dropped.
pub(super) struct Claim(Option<Held>);

struct Held {
    store: Arc<dyn Store>,
    claims: Arc<Claims>,
    what: String,
    epoch: u64,
    since: Instant,
}

impl Claim {
    /// Where there is nobody else.
    pub(super) const fn alone() -> Self {
        Self(None)
    }

    /// Its number; those of one thing follow each other.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.0.as_ref().map(|held| held.epoch)
    }

    /// Whether it is too early for anybody to have taken it over, as far as can be told
    /// without asking.
    pub(super) fn is_sure(&self) -> bool {
        let sure =
            |held: &Held| held.since.elapsed() < CLAIMED_FOR.length() && held.claims.is_alive();
        self.0.as_ref().is_none_or(sure)
    }

    /// Whether nobody has taken it over.
    ///
    /// # Errors
    /// The store's, for some seconds.
    pub(super) async fn stands(&self) -> Result<bool, StoreError> {
        let Some((held, peers)) = self
            .0
            .as_ref()
            .and_then(|held| Some((held, held.store.peers()?)))
        else {
            return Ok(true);
        };
        insistently(|| peers.is_claimed(&held.what, held.epoch)).await
    }
}

/// Asks the store until it answers, for some seconds: a connection may have been cut.
async fn insistently<T, F>(ask: impl Fn() -> F) -> Result<T, StoreError>
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

impl Drop for Held {
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
    /// Has `what` to itself until the claim is dropped; waits for others that have it.
    ///
    /// # Errors
    /// The store's, or somebody has it for too long.
    pub(super) async fn claim(&self, what: &str) -> Result<Claim, Error> {
        let Some(peers) = self.store().peers() else {
            return Ok(Claim::alone());
        };
        let began = Instant::now();
        loop {
            if !self.claims.is_alive() {
                self.say_alive(peers).await?;
            }
            let since = Instant::now();
            let claim = || peers.claim(what, &self.instance);
            if let Some(epoch) = insistently(claim).await? {
                return Ok(Claim(Some(Held {
                    store: Arc::clone(&self.parts.store),
                    claims: Arc::clone(&self.claims),
                    what: what.to_owned(),
                    epoch,
                    since,
                })));
            }
            if began.elapsed() > PATIENCE {
                let busy = format!("another broker has been at \"{what}\" for too long");
                return Err(AwsFailure::held_back("ANOTHER_BROKER", busy, LOOK_AGAIN).into());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether this broker is the one of several that does some work which goes on.
    pub(super) async fn is_ours(&self, work: &str) -> bool {
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
