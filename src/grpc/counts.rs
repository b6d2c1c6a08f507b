//! Counters by key, each with the same limit.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counters by key.
#[derive(Debug)]
pub struct Counts<K> {
    counts: Mutex<HashMap<K, usize>>,
    most: usize,
}

/// One unit of a count, until dropped.
#[derive(Debug)]
pub struct Counted<K: Eq + Hash> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> Counts<K> {
    /// Creates empty counters, each with the limit `most`.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        let counts = Mutex::default();
        Arc::new(Self { counts, most })
    }

    /// Adds one to a count; `None` if the count is at its limit.
    pub(super) fn add(self: &Arc<Self>, key: &K) -> Option<Counted<K>> {
        let mut counts = self.counts();
        let count = counts.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Counted {
            counts: Arc::clone(self),
            key: key.clone(),
        })
    }
}

impl<K> Counts<K> {
    fn counts(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.counts();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_so_many_and_an_end_makes_room() {
        let counts = Counts::new(2);
        let held = [counts.add(&"a").unwrap(), counts.add(&"a").unwrap()];
        assert!(counts.add(&"a").is_none());
        assert!(counts.add(&"b").is_some());
        drop(held);
        assert!(counts.counts().is_empty());
        assert!(counts.add(&"a").is_some());
    }
}
