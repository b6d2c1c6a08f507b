//! State of the denials in the memory of one broker process, beside the store.

use std::{
    collections::{BTreeSet, HashMap},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use tokio::{sync::OwnedMutexGuard, time::Instant};

use crate::{
    broker::{
        Broker, Error, canary::Canary, locks::LockGuard, ports::PolicyWritten,
        second_checks::SecondChecks,
    },
    domain::{
        denial::{Denial, DenialSubject, PolicyLocation, PolicyOwner},
        policy::Document,
    },
};

/// State of the denials in this process.
#[derive(Default)]
pub(super) struct PolicyWriter {
    /// Last write at each location; locked while the location is written.
    places: Mutex<HashMap<PolicyLocation, Arc<tokio::sync::Mutex<LastWritten>>>>,
    /// Canary sessions of the denials that AWS did not enforce in time.
    pub(super) trials: Mutex<HashMap<DenialSubject, Canary>>,
    /// Denials that AWS was seen to enforce, before the second check.
    pub(super) settling: SecondChecks,
    /// Locations whose current content is unknown: another write may have replaced the last write
    /// of this broker. With the time from which each is to be written once more.
    unsure: Mutex<BTreeSet<(PolicyLocation, Instant)>>,
    /// Denials that the store could not record yet.
    unrecorded: Mutex<Vec<UnpersistedDenial>>,
    /// True if AWS did not answer the last write of a policy.
    pub(super) is_unanswered: AtomicBool,
    /// True if the store may be an older copy. Denials in AWS that the store does not know then
    /// stay.
    pub(super) keeps_unknown: AtomicBool,
    /// Denials in progress, and the number of tasks for each.
    busy: Mutex<HashMap<DenialSubject, usize>>,
}

/// A denial that the store could not record.
#[derive(Clone)]
pub(super) struct UnpersistedDenial {
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
pub(super) struct InProgressMark<'a> {
    denying: &'a PolicyWriter,
    against: DenialSubject,
}

impl Drop for InProgressMark<'_> {
    fn drop(&mut self) {
        let mut busy = self.denying.mark_in_progress();
        if let Some(count) = busy.get_mut(&self.against) {
            *count -= 1;
        }
        busy.retain(|_, count| *count > 0);
    }
}

/// Exclusive access to a location.
pub(super) struct LockedLocation {
    written: OwnedMutexGuard<LastWritten>,
    /// Lock that other replicas wait for.
    pub(super) claim: LockGuard,
}

impl LockedLocation {
    /// Stores the lock. If another replica may have changed the location since the last lock, the
    /// content of the location is unknown from now on.
    fn set_lock(&mut self, claim: LockGuard) {
        let next = self.epoch.map(|last| last + 1);
        if claim.epoch() != next {
            *self.written = LastWritten::default();
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
    pub(super) async fn lock_location(
        &self,
        place: &PolicyLocation,
    ) -> Result<LockedLocation, Error> {
        let written = self.denying.location(place).lock_owned().await;
        let claim = LockGuard::single_replica();
        let mut at = LockedLocation { written, claim };
        self.lock_in_cluster(place, &mut at).await?;
        Ok(at)
    }

    /// Takes the lock on a location, for the first time or again.
    pub(super) async fn lock_in_cluster(
        &self,
        place: &PolicyLocation,
        at: &mut LockedLocation,
    ) -> Result<(), Error> {
        let claim = match self.lock(&format!("denials at {place}")).await {
            Err(Error::Store(error)) => {
                // Revocation continues while nothing can be recorded.
                tracing::error!(%error, %place, "other brokers may write there as well");
                self.denying.mark_uncertain(place);
                LockGuard::single_replica()
            }
            claimed => claimed?,
        };
        at.set_lock(claim);
        Ok(())
    }
}

impl Deref for LockedLocation {
    type Target = LastWritten;

    fn deref(&self) -> &LastWritten {
        &self.written
    }
}

impl DerefMut for LockedLocation {
    fn deref_mut(&mut self) -> &mut LastWritten {
        &mut self.written
    }
}

#[derive(Default)]
pub(super) struct LastWritten {
    pub(super) at: Option<Instant>,
    /// Roles and users that the policy was attached to in this process, if it is a managed one.
    pub(super) attached: BTreeSet<PolicyOwner>,
    pub(super) document: Option<Document>,
    pub(super) put: PolicyWritten,
    /// True once the location is known to hold nothing of an earlier configuration.
    pub(super) emptied: bool,
    /// Fencing token of the last lock; `None` without other replicas.
    epoch: Option<u64>,
}

impl PolicyWriter {
    pub(super) fn location(&self, place: &PolicyLocation) -> Arc<tokio::sync::Mutex<LastWritten>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(place.clone()).or_default())
    }

    /// Marks a location: it is to be written once more, now, under its lock.
    pub(super) fn mark_uncertain(&self, place: &PolicyLocation) {
        self.mark_uncertain_until(place, Instant::now());
    }

    /// Marks a location: it is to be written once more at `then`. Other writes may change its
    /// content until then.
    pub(super) fn mark_uncertain_until(&self, place: &PolicyLocation, then: Instant) {
        self.uncertain().insert((place.clone(), then));
    }

    /// Returns whether the content of a location may come from an earlier write of a replica.
    pub(super) fn may_be_overtaken(&self, place: &PolicyLocation) -> bool {
        self.uncertain().iter().any(|(unsure, _)| unsure == place)
    }

    /// Returns the locations that are to be written once more by `now`.
    pub(super) fn uncertain_by(&self, now: Instant) -> BTreeSet<PolicyLocation> {
        let unsure = self.uncertain();
        let due = unsure.iter().filter(|(_, then)| *then <= now);
        due.map(|(place, _)| place.clone()).collect()
    }

    /// Removes the marks of a location that was written once more, if they were due by `moment`.
    pub(super) fn clear_uncertain(&self, place: &PolicyLocation, moment: Instant) {
        let mut unsure = self.uncertain();
        unsure.retain(|(of, then)| of != place || *then > moment);
    }

    fn uncertain(&self) -> MutexGuard<'_, BTreeSet<(PolicyLocation, Instant)>> {
        self.unsure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark_in_progress(&self) -> MutexGuard<'_, HashMap<DenialSubject, usize>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mark(&self, against: &DenialSubject) -> InProgressMark<'_> {
        *self.mark_in_progress().entry(against.clone()).or_default() += 1;
        InProgressMark {
            denying: self,
            against: against.clone(),
        }
    }

    /// Returns whether a task of this process is enforcing a denial.
    pub(super) fn is_in_progress(&self, against: &DenialSubject) -> bool {
        self.mark_in_progress().contains_key(against)
    }

    pub(super) fn unpersisted(&self) -> MutexGuard<'_, Vec<UnpersistedDenial>> {
        let unrecorded = self.unrecorded.lock();
        unrecorded.unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps denials in memory. Each write of their policy by this process then includes them.
    pub(super) fn keep_unpersisted(&self, denials: &[Denial], is_stored: bool) {
        let kept = denials.iter().map(|denial| UnpersistedDenial {
            denial: denial.clone(),
            since: Instant::now(),
            is_written: false,
            is_stored,
        });
        self.unpersisted().extend(kept);
    }
}
