//! Cache in memory of what each request reads: token owners, grants, active leases, and denials.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::dialect;
use crate::{
    broker::ports::{StoreError, TokenOwner},
    domain::{
        audit::{AuditEvent, Event},
        denial::Denial,
        grant::Grant,
        name::{GrantName, LeaseId, Name},
        token::{StoredToken, TokenId},
    },
};

/// The caches, by kind.
#[derive(Debug, Default)]
pub(super) struct Caches {
    pub(super) owners: ReadThroughCache<TokenId, (StoredToken, TokenOwner)>,
    pub(super) grants: ReadThroughCache<GrantName, Arc<Grant>>,
    pub(super) active: ReadThroughCache<LeaseId, ()>,
    /// Denials by the service whose sessions they deny.
    pub(super) denials: ReadThroughCache<Name, Vec<Denial>>,
}

impl Caches {
    /// Removes what these committed records may have changed. A record about a lease may have
    /// changed that lease, any other record anything. All that is cached, except denials, changes
    /// only with a record.
    pub(super) fn follow<'r>(&self, committed: impl IntoIterator<Item = &'r AuditEvent>) {
        for record in committed {
            match &record.lease_id {
                _ if !record.event.as_str().starts_with("lease.") => self.forget(),
                Some(lease) if record.event != Event::LeaseShared => self.active.forget_one(lease),
                _ => {}
            }
        }
    }

    /// Empties all caches: anything may have changed.
    pub(super) fn forget(&self) {
        self.owners.forget();
        self.grants.forget();
        self.denials.forget();
        self.active.forget();
    }
}

/// Most entries of one cache; a full cache is emptied.
const MOST: usize = 10_000;

/// Cache of values, each valid until a commit that may have changed it. Caches nothing if other
/// replicas write as well.
pub(super) struct ReadThroughCache<K, V>(Mutex<Read<K, V>>);

struct Read<K, V> {
    values: HashMap<K, V>,
    /// Number of removals so far. A value that was read in an earlier round is not cached.
    round: u64,
}

impl<K, V> Default for ReadThroughCache<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Read {
            values: HashMap::new(),
            round: 0,
        }))
    }
}

impl<K, V> fmt::Debug for ReadThroughCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadThroughCache").finish_non_exhaustive()
    }
}

impl<K: Clone + Eq + Hash, V: Clone> ReadThroughCache<K, V> {
    /// Returns the value of `key`, from the cache or by `reading`.
    ///
    /// # Errors
    /// The error of `reading`.
    pub(super) async fn get(
        &self,
        key: &K,
        reading: impl Future<Output = Result<Option<V>, StoreError>>,
    ) -> Result<Option<V>, StoreError> {
        if !dialect::ALONE {
            return reading.await;
        }
        let round = {
            let read = self.read();
            if let Some(value) = read.values.get(key) {
                return Ok(Some(value.clone()));
            }
            read.round
        };
        let value = reading.await?;
        if let Some(value) = &value {
            self.keep(round, key, value);
        }
        Ok(value)
    }

    fn keep(&self, round: u64, key: &K, value: &V) {
        let mut read = self.read();
        if read.round != round {
            return;
        }
        if read.values.len() >= MOST {
            read.values.clear();
        }
        read.values.insert(key.clone(), value.clone());
    }

    /// Removes one value. A read in progress is not cached.
    fn forget_one(&self, key: &K) {
        let mut read = self.read();
        read.round += 1;
        read.values.remove(key);
    }
}

impl<K, V> ReadThroughCache<K, V> {
    /// Removes all values. A read in progress is not cached.
    pub(super) fn forget(&self) {
        let mut read = self.read();
        read.round += 1;
        read.values.clear();
    }

    fn read(&self) -> MutexGuard<'_, Read<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use jiff::Timestamp;

    use super::*;

    #[tokio::test]
    async fn nothing_is_known_that_was_read_before_it_changed() {
        let known = ReadThroughCache::<u8, u8>::default();
        let get = async |read| known.get(&1, ready(Ok(Some(read)))).await.unwrap();
        if !dialect::ALONE {
            // Other replicas write, too.
            assert_eq!((get(1).await, get(2).await), (Some(1), Some(2)));
            return;
        }
        assert_eq!((get(1).await, get(2).await), (Some(1), Some(1)));
        known.forget();
        assert_eq!(get(2).await, Some(2));
        known.forget();
        let changed_meanwhile = async {
            known.forget();
            Ok(Some(3))
        };
        assert_eq!(known.get(&1, changed_meanwhile).await.unwrap(), Some(3));
        assert_eq!(get(4).await, Some(4));
    }

    #[tokio::test]
    async fn a_record_makes_forget_what_it_may_have_changed() {
        let registry = Caches::default();
        let ids = ["0".repeat(26), "1".repeat(26)];
        let [first, second] = ids.map(|id| id.parse::<LeaseId>().unwrap());
        let record = |event, lease: Option<&LeaseId>| AuditEvent {
            lease_id: lease.cloned(),
            ..AuditEvent::by_broker(event, Timestamp::UNIX_EPOCH)
        };
        for (event, lease, left) in [
            (Event::LeaseShared, Some(&first), (true, true, true)),
            (Event::LeaseDenied, None, (true, true, true)),
            (Event::LeaseRevoking, Some(&first), (false, true, true)),
            (Event::GrantPut, None, (false, false, false)),
            (Event::ServiceRevoked, None, (false, false, false)),
        ] {
            for id in [&first, &second] {
                registry.active.read().values.insert(id.clone(), ());
            }
            let round = registry.grants.read().round;
            registry.follow(&[record(event, lease)]);
            let is_active = |id| registry.active.read().values.contains_key(id);
            let as_before = registry.grants.read().round == round;
            let seen = (is_active(&first), is_active(&second), as_before);
            assert_eq!(seen, left, "{event:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_asked_for_again() {
        let known = ReadThroughCache::<u8, u8>::default();
        assert_eq!(known.get(&1, ready(Ok(None))).await.unwrap(), None);
        assert_eq!(known.get(&1, ready(Ok(Some(1)))).await.unwrap(), Some(1));
    }
}
