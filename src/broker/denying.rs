//! What one run of the broker knows of the denials that it carries out, beside the store.

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

/// What this run knows of denials.
#[derive(Default)]
pub(super) struct Denying {
    /// What was last written where; held while it is written.
    places: Mutex<HashMap<Place, Arc<tokio::sync::Mutex<Written>>>>,
    /// Sessions by which denials are tried that AWS did not enforce in time.
    pub(super) trials: Mutex<HashMap<Against, Trial>>,
    /// Denials that AWS was seen to enforce, before the second look.
    pub(super) settling: Settling,
    /// Places where what stands may be neither this broker's last word nor another's, and from
    /// when on they are to be written once more.
    unsure: Mutex<BTreeSet<(Place, Instant)>>,
    /// Denials that the store could not take yet.
    unrecorded: Mutex<Vec<InMemory>>,
    /// AWS has not answered the last time that a policy was to be written.
    pub(super) is_unanswered: AtomicBool,
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

/// A place that nobody else writes to.
pub(super) struct AtPlace {
    written: OwnedMutexGuard<Written>,
    /// What other brokers wait for.
    pub(super) claim: Claim,
}

impl AtPlace {
    /// Its own by this claim from now on: what another broker may have changed there since the
    /// last is not known any more.
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
    /// Waits until nobody else writes to a place, of this broker and of others.
    ///
    /// # Errors
    /// Somebody writes there for too long.
    pub(super) async fn at_place(&self, place: &Place) -> Result<AtPlace, Error> {
        let written = self.denying.place(place).lock_owned().await;
        let claim = Claim::alone();
        let mut at = AtPlace { written, claim };
        self.claim_place(place, &mut at).await?;
        Ok(at)
    }

    /// Claims it, once more if need be.
    pub(super) async fn claim_place(&self, place: &Place, at: &mut AtPlace) -> Result<(), Error> {
        let claim = match self.claim(&format!("denials at {place}")).await {
            Err(Error::Store(error)) => {
                // Shutting out goes on while nothing can be recorded.
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
    /// Whom it was attached to in this run, where it is a managed one.
    pub(super) attached: BTreeSet<Holder>,
    pub(super) document: Option<Document>,
    pub(super) put: Put,
    /// An earlier configuration has left nothing there.
    pub(super) emptied: bool,
    /// By which claim, where there are other brokers.
    epoch: Option<u64>,
}

impl Denying {
    pub(super) fn place(&self, place: &Place) -> Arc<tokio::sync::Mutex<Written>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(place.clone()).or_default())
    }

    /// It is to be written once more, by a claim.
    pub(super) fn is_unsure(&self, place: &Place) {
        self.is_unsure_until(place, Instant::now());
    }

    /// Others may change what stands there until then.
    pub(super) fn is_unsure_until(&self, place: &Place, then: Instant) {
        self.unsure().insert((place.clone(), then));
    }

    /// Whether what stands there may be an earlier word of a broker's.
    pub(super) fn may_be_overtaken(&self, place: &Place) -> bool {
        self.unsure().iter().any(|(unsure, _)| unsure == place)
    }

    /// What is to be written once more now.
    pub(super) fn unsure_by(&self, now: Instant) -> BTreeSet<Place> {
        let unsure = self.unsure();
        let due = unsure.iter().filter(|(_, then)| *then <= now);
        due.map(|(place, _)| place.clone()).collect()
    }

    /// What was to be written once more by this moment has been.
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
