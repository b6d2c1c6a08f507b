//! What one run of the broker knows of the denials that it carries out, beside the store.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use tokio::time::Instant;

use crate::{
    broker::{ports::Put, trial::Trial},
    domain::{
        denial::{Against, Denial, Holder, Place},
        policy::Document,
    },
};

/// What this run knows of denials.
#[derive(Default)]
pub(super) struct Denying {
    /// What was last written where; held while it is written.
    places: Mutex<HashMap<Place, Arc<tokio::sync::Mutex<Written>>>>,
    /// Sessions by which denials are tried that AWS did not enforce in time.
    pub(super) trials: Mutex<HashMap<Against, Trial>>,
    /// Denials that the store could not take yet.
    unrecorded: Mutex<Vec<InMemory>>,
    /// The store may be an older copy: what AWS denies beyond it stays.
    pub(super) keeps_unknown: AtomicBool,
    /// What is being carried out, and by how many.
    busy: Mutex<HashMap<Against, usize>>,
}

/// A denial that the store could not take.
#[derive(Clone)]
pub(super) struct InMemory {
    /// As it is to be written.
    pub(super) denial: Denial,
    /// Since when.
    pub(super) since: Instant,
    /// Whether AWS has taken it.
    pub(super) is_written: bool,
    /// Whether the store has it as it was before; else the emergency file accounts for it.
    pub(super) is_stored: bool,
}

/// That a denial is being carried out.
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

#[derive(Default)]
pub(super) struct Written {
    pub(super) at: Option<Instant>,
    /// Whom it was attached to in this run, where it is a managed one.
    pub(super) attached: BTreeSet<Holder>,
    pub(super) document: Option<Document>,
    pub(super) put: Put,
    /// An earlier configuration has left nothing there.
    pub(super) emptied: bool,
}

impl Denying {
    pub(super) fn place(&self, place: &Place) -> Arc<tokio::sync::Mutex<Written>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(place.clone()).or_default())
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

    /// Whether somebody carries it out at the moment.
    pub(super) fn is_busy(&self, against: &Against) -> bool {
        self.busy().contains_key(against)
    }

    pub(super) fn unrecorded(&self) -> MutexGuard<'_, Vec<InMemory>> {
        let unrecorded = self.unrecorded.lock();
        unrecorded.unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on whoever writes the policy that these belong into writes them, too.
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
