//! State of the denials in the memory of one broker process, beside the store.

use std::{
    collections::{BTreeSet, HashMap},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use tokio::{sync::OwnedMutexGuard, time::Instant};

use crate::{
    broker::{Broker, Error, claims::Claim, ports::Put, settle::Settling, trial::Trial},
    domain::{
        denial::{Against, Denial, Holder, Place},
        policy::Document,
    },
};

/// State of the denials in this process.
#[derive(Default)]
pub(super) struct Denying {
    /// Last write at each location; locked while the location is written.
    places: Mutex<HashMap<Place, Arc<tokio::sync::Mutex<Written>>>>,
    /// Canary sessions of the denials that AWS did not enforce in time.
    pub(super) trials: Mutex<HashMap<Against, Trial>>,
    /// Denials that AWS was seen to enforce, before the second look.
    pub(super) settling: Settling,
    /// Locations whose current content is unknown: another write may have replaced the last write
    /// of this broker. With the time from which each is to be written once more.
    unsure: Mutex<BTreeSet<(Place, Instant)>>,
    /// Denials that the store could not record yet.
    unrecorded: Mutex<Vec<InMemory>>,
    /// True if AWS did not answer the last write of a policy.
    pub(super) is_unanswered: AtomicBool,
    /// True if the store may be an older copy. Denials in AWS that the store does not know then
    /// stay.
    pub(super) keeps_unknown: AtomicBool,
    /// Denials in progress, and the number of tasks for each.
    busy: Mutex<HashMap<Against, usize>>,
}

/// A denial that the store could not record.
#[derive(Clone)]
pub(super) struct InMemory {
    /// Denial as it is to be written.
    pub(super) denial: Denial,
    /// Time when the denial was put in memory.
    pub(super) since: Instant,
    /// True once AWS has accepted the denial.
    pub(super) is_written: bool,
    /// True if the store has the earlier state of the denial. Otherwise the journal accounts for
    /// the denial.
    pub(super) is_stored: bool,
}

/// Mark that a denial is in progress; removed when dropped.
pub(super) struct Mark<'a> {
    denying: &'a Denying,
    against: Against,
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        let mut busy = self.denying.busy();
        if let Some(count) = busy.get_mut(&self.against) {
            *count -= 1;
        }
        busy.retain(|_, count| *count > 0);
    }
}

/// Exclusive access to a location.
pub(super) struct AtPlace {
    written: OwnedMutexGuard<Written>,
    /// Lock that other replicas wait for.
    pub(super) claim: Claim,
}

impl AtPlace {
    /// Stores the lock. If another replica may have changed the location since the last lock, the
    /// content of the location is unknown from now on.
    fn is_claimed(&mut self, claim: Claim) {
        let next = self.epoch.map(|last| last + 1);
        if claim.epoch() != next {
            *self.written = Written::default();
        }
        self.epoch = claim.epoch();
        self.claim = claim;
    }
}

impl Broker {
    /// Waits for exclusive access to a location, among the tasks of this broker and the other
    /// replicas.
    ///
    /// # Errors
    /// Another replica holds the lock for too long.
    pub(super) async fn at_place(&self, place: &Place) -> Result<AtPlace, Error> {
        let written = self.denying.place(place).lock_owned().await;
        let claim = Claim::alone();
        let mut at = AtPlace { written, claim };
        self.claim_place(place, &mut at).await?;
        Ok(at)
    }

    /// Takes the lock on a location, for the first time or again.
    pub(super) async fn claim_place(&self, place: &Place, at: &mut AtPlace) -> Result<(), Error> {
        let claim = match self.claim(&format!("denials at {place}")).await {
            Err(Error::Store(error)) => {
                // Revocation continues while nothing can be recorded.
                tracing::error!(%error, %place, "other brokers may write there as well");
                self.denying.is_unsure(place);
                Claim::alone()
            }
            claimed => claimed?,
        };
        at.is_claimed(claim);
        Ok(())
    }
}

impl Deref for AtPlace {
    type Target = Written;

    fn deref(&self) -> &Written {
        &self.written
    }
}

impl DerefMut for AtPlace {
    fn deref_mut(&mut self) -> &mut Written {
        &mut self.written
    }
}

#[derive(Default)]
pub(super) struct Written {
    pub(super) at: Option<Instant>,
    /// Roles and users that the policy was attached to in this process, if it is a managed one.
    pub(super) attached: BTreeSet<Holder>,
    pub(super) document: Option<Document>,
    pub(super) put: Put,
    /// True once the location is known to hold nothing of an earlier configuration.
    pub(super) emptied: bool,
    /// Fencing token of the last lock; `None` without other replicas.
    epoch: Option<u64>,
}

impl Denying {
    pub(super) fn place(&self, place: &Place) -> Arc<tokio::sync::Mutex<Written>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(place.clone()).or_default())
    }

    /// Marks a location: it is to be written once more, now, under its lock.
    pub(super) fn is_unsure(&self, place: &Place) {
        self.is_unsure_until(place, Instant::now());
    }

    /// Marks a location: it is to be written once more at `then`. Other writes may change its
    /// content until then.
    pub(super) fn is_unsure_until(&self, place: &Place, then: Instant) {
        self.unsure().insert((place.clone(), then));
    }

    /// Returns whether the content of a location may come from an earlier write of a replica.
    pub(super) fn may_be_overtaken(&self, place: &Place) -> bool {
        self.unsure().iter().any(|(unsure, _)| unsure == place)
    }

    /// Returns the locations that are to be written once more by `now`.
    pub(super) fn unsure_by(&self, now: Instant) -> BTreeSet<Place> {
        let unsure = self.unsure();
        let due = unsure.iter().filter(|(_, then)| *then <= now);
        due.map(|(place, _)| place.clone()).collect()
    }

    /// Removes the marks of a location that was written once more, if they were due by `moment`.
    pub(super) fn is_sure_since(&self, place: &Place, moment: Instant) {
        let mut unsure = self.unsure();
        unsure.retain(|(of, then)| of != place || *then > moment);
    }

    fn unsure(&self) -> MutexGuard<'_, BTreeSet<(Place, Instant)>> {
        self.unsure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<Against, usize>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mark(&self, against: &Against) -> Mark<'_> {
        *self.busy().entry(against.clone()).or_default() += 1;
        Mark {
            denying: self,
            against: against.clone(),
        }
    }

    /// Returns whether a task of this process is enforcing a denial.
    pub(super) fn is_busy(&self, against: &Against) -> bool {
        self.busy().contains_key(against)
    }

    pub(super) fn unrecorded(&self) -> MutexGuard<'_, Vec<InMemory>> {
        let unrecorded = self.unrecorded.lock();
        unrecorded.unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps denials in memory. Each write of their policy by this process then includes them.
    pub(super) fn keep_in_memory(&self, denials: &[Denial], is_stored: bool) {
        let kept = denials.iter().map(|denial| InMemory {
            denial: denial.clone(),
            since: Instant::now(),
            is_written: false,
            is_stored,
        });
        self.unrecorded().extend(kept);
    }
}
