//! Single flight of issues, by request id: a repeat that arrives meanwhile joins the first call and
//! gets the same answer.

use std::{
    collections::{HashMap, hash_map::Entry},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::OnceCell;

use crate::{
    broker::{Error, IssuedLease},
    domain::{
        name::Name,
        request::{IdempotencyKey, RequestId},
    },
};

type SharedOutcome = Result<IssuedLease, Error>;

/// Issues in progress.
#[derive(Default)]
pub(super) struct SingleFlight(Mutex<HashMap<(Name, RequestId), InFlight>>);

struct InFlight {
    digest: [u8; 32],
    outcome: Arc<OnceCell<SharedOutcome>>,
}

/// An outcome, and whether the caller only waited for it.
pub(super) struct Joined {
    pub(super) outcome: SharedOutcome,
    pub(super) by_waiting: bool,
}

impl SingleFlight {
    /// Runs `work`. If the same request is in progress, waits for its outcome instead.
    ///
    /// # Errors
    /// A different request is in progress under the same id.
    pub(super) async fn join(
        &self,
        service: &Name,
        request: &IdempotencyKey,
        work: Pin<Box<impl Future<Output = SharedOutcome>>>,
    ) -> Result<Joined, Error> {
        let key = (service.clone(), request.id.clone());
        let cell = self.enter(&key, request)?;
        let worked = AtomicBool::new(false);
        let outcome = cell.get_or_init(async || {
            worked.store(true, Ordering::Relaxed);
            work.await
        });
        let outcome = outcome.await.clone();
        self.leave(&key, &cell);
        Ok(Joined {
            outcome,
            by_waiting: !worked.into_inner(),
        })
    }

    fn enter(
        &self,
        key: &(Name, RequestId),
        request: &IdempotencyKey,
    ) -> Result<Arc<OnceCell<SharedOutcome>>, Error> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let issue = under_way.entry(key.clone()).or_insert_with(|| InFlight {
            digest: request.digest,
            outcome: Arc::default(),
        });
        if issue.digest != request.digest {
            return Err(Error::request_id_reused());
        }
        Ok(Arc::clone(&issue.outcome))
    }

    /// Removes the entry, unless another caller that shared its outcome has removed it already.
    fn leave(&self, key: &(Name, RequestId), cell: &Arc<OnceCell<SharedOutcome>>) {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(entry) = under_way.entry(key.clone())
            && Arc::ptr_eq(&entry.get().outcome, cell)
        {
            entry.remove();
        }
    }
}
