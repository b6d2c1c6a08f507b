//! Bounds on the live sessions of services, so that not every issue counts thousands of them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::dialect;
use crate::domain::{grant::Kind, lease::Lease, name::Name};

/// Upper bound on the live sessions of each service: the last count, plus the sessions begun since,
/// ended or not. Used only with a single writer.
#[derive(Debug, Default)]
pub(super) struct SessionUpperBound(Mutex<HashMap<Name, u64>>);

impl SessionUpperBound {
    /// Returns whether a lease's session is certainly within `most`, and counts it as begun if so.
    /// If false, the live sessions must be counted.
    pub(super) fn try_reserve(&self, lease: &Lease, most: u64) -> bool {
        let is_session = lease.binding.kind != Kind::IamUser;
        dialect::ALONE && is_session && self.takes(&lease.binding.grant.service, most)
    }

    fn takes(&self, service: &Name, most: u64) -> bool {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match begun.get_mut(service) {
            Some(begun) if *begun < most => {
                *begun += 1;
                true
            }
            _ => false,
        }
    }

    /// Forgets all bounds: what was counted or begun may have been rolled back.
    pub(super) fn forget(&self) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.clear();
    }

    /// Records the count of live sessions, taken before one more begins.
    pub(super) fn counted(&self, service: &Name, live: u64) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.insert(service.clone(), live.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_counted_when_there_may_be_too_many() {
        let (sessions, service) = (
            SessionUpperBound::default(),
            "payments-api".parse().unwrap(),
        );
        assert!(!sessions.takes(&service, 10));
        sessions.counted(&service, 7);
        let taken: Vec<bool> = (0..4).map(|_| sessions.takes(&service, 10)).collect();
        assert_eq!(taken, [true, true, false, false]);
        // Some sessions have ended.
        sessions.counted(&service, 3);
        assert!(sessions.takes(&service, 10));
        // The limit is lower now.
        assert!(!sessions.takes(&service, 4));
    }
}
