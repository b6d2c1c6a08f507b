//! Rate limits of each service, so that a service in a restart loop does not use up the account,
//! the broker or its log for the others.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    broker::{Broker, Error},
    domain::{
        audit::{AuditEvent, Event},
        name::Name,
        principal::Principal,
        token_bucket::TokenBucket,
    },
};

/// A rate and its burst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) at_once: f64,
}

impl Rate {
    /// Creates a rate of `count` per second, with a burst of twice as many.
    pub(super) fn per_second(count: u32) -> Self {
        let per_second = f64::from(count.max(1));
        Self {
            per_second,
            at_once: 2.0 * per_second,
        }
    }

    /// Creates a rate of `count` per minute, with a burst of a third as many.
    pub(super) fn per_minute(count: u32) -> Self {
        let count = f64::from(count.max(1));
        Self {
            per_second: count / 60.0,
            at_once: (count / 3.0).max(1.0),
        }
    }
}

/// Token buckets by service. Registered services only.
#[derive(Debug, Default)]
pub(super) struct RateLimiter(Mutex<HashMap<Name, TokenBucket>>);

impl RateLimiter {
    /// Admits one request of a service.
    ///
    /// # Errors
    /// The service exceeds the rate; the value is the time after which a retry is worthwhile.
    pub(super) fn admit(&self, service: &Name, pace: Rate) -> Result<(), Duration> {
        let now = Instant::now().into_std();
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = paces
            .entry(service.clone())
            .or_insert_with(|| TokenBucket::full(pace.at_once, now));
        bucket.refill(now, pace.per_second);
        let wait = bucket.wait(pace.per_second);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        bucket.take();
        Ok(())
    }
}

impl Broker {
    /// Checks the rate limit of a service's calls. Operators have none.
    ///
    /// # Errors
    /// The service exceeds the rate; the store's error.
    pub async fn admit_call(&self, principal: &Principal) -> Result<(), Error> {
        let Some(service) = principal.service() else {
            return Ok(());
        };
        let most = self.limits().calls_per_second;
        let Err(wait) = self.call_paces.admit(service, Rate::per_second(most)) else {
            return Ok(());
        };
        let error = Error::Limited {
            reason: "TOO_MANY_REQUESTS",
            message: format!("the service calls more than {most} times a second"),
            next: "call less often; if the service is right to call so often, the broker's \
                   operator can raise limits.calls_per_second"
                .to_owned(),
            retry_after: Some(wait),
        };
        let audit = AuditEvent::by(principal, Event::RequestDenied, self.now());
        let audit = audit.instance(&self.instance).service(service);
        let audit = audit.denied(error.reason()).detail(&error.to_string());
        self.record_by(principal, audit).await?;
        Err(error)
    }

    /// Counts a refused call of a service. Returns whether the refusals exceed the rate.
    pub fn is_refused_too_often(&self, service: &Name) -> bool {
        let most = self.limits().calls_per_second;
        let admitted = self.refused_paces.admit(service, Rate::per_second(most));
        admitted.is_err()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_service_that_asks_too_fast_does_not_slow_its_neighbour() {
        let (paces, loops, calm) = (
            RateLimiter::default(),
            "loops".parse().unwrap(),
            "calm".parse().unwrap(),
        );
        let pace = Rate::per_second(10);
        let through = (0..100).filter(|_| paces.admit(&loops, pace).is_ok());
        assert_eq!(through.count(), 20);
        assert_eq!(paces.admit(&calm, pace), Ok(()));
        let hint = paces.admit(&loops, pace).unwrap_err();
        advance(hint).await;
        assert_eq!(paces.admit(&loops, pace), Ok(()));
        assert!(paces.admit(&loops, pace).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_counted_by_the_minute_comes_back_one_by_one() {
        let (paces, service) = (RateLimiter::default(), "api".parse().unwrap());
        let pace = Rate::per_minute(30);
        let through = (0..100).filter(|_| paces.admit(&service, pace).is_ok());
        assert_eq!(through.count(), 10);
        let hint = paces.admit(&service, pace).unwrap_err();
        assert!(hint <= Duration::from_secs(2), "{hint:?}");
        advance(hint).await;
        assert_eq!(paces.admit(&service, pace), Ok(()));
        // Even at the slowest rate, one request is admitted.
        let slow = "slow".parse().unwrap();
        assert_eq!(paces.admit(&slow, Rate::per_minute(1)), Ok(()));
    }
}
