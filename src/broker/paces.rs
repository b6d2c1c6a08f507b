//! How fast one service may ask, so that one in a restart loop does not use up the
//! account for the others.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::{bucket::TokenBucket, name::Name};

/// How fast each service has been asking. Only registered services are known here.
#[derive(Debug, Default)]
pub(super) struct Paces(Mutex<HashMap<Name, TokenBucket>>);

impl Paces {
    /// Lets one request of a service through.
    ///
    /// # Errors
    /// It asks too fast; worth asking again after the time that is returned.
    pub(super) fn admit(&self, service: &Name, per_second: u32) -> Result<(), Duration> {
        let (now, rate) = (Instant::now().into_std(), f64::from(per_second.max(1)));
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = paces
            .entry(service.clone())
            .or_insert_with(|| TokenBucket::full(2.0 * rate, now));
        bucket.fill(now, rate);
        let wait = bucket.wait(rate);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        bucket.take();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_service_that_asks_too_fast_does_not_slow_its_neighbour() {
        let (paces, loops, calm) = (
            Paces::default(),
            "loops".parse().unwrap(),
            "calm".parse().unwrap(),
        );
        let through = (0..100).filter(|_| paces.admit(&loops, 10).is_ok()).count();
        assert_eq!(through, 20);
        assert_eq!(paces.admit(&calm, 10), Ok(()));
        let hint = paces.admit(&loops, 10).unwrap_err();
        advance(hint).await;
        assert_eq!(paces.admit(&loops, 10), Ok(()));
        assert!(paces.admit(&loops, 10).is_err());
    }
}
