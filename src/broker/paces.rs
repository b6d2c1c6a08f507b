//! Rate limits of each service, so that one in a restart loop does not use up the account, the
//! broker or its log for the others.

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
        bucket::TokenBucket,
        name::Name,
        principal::Principal,
    },
};

/// How fast something may be asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) per_second: f64,
    pub(super) at_once: f64,
}

impl Pace {
    /// So many per second, and twice as many at once.
    pub(super) fn per_second(count: u32) -> Self {
        let per_second = f64::from(count.max(1));
        Self {
            per_second,
            at_once: 2.0 * per_second,
        }
    }

    /// So many per minute, and a third as many at once.
    pub(super) fn per_minute(count: u32) -> Self {
        let count = f64::from(count.max(1));
        Self {
            per_second: count / 60.0,
            at_once: (count / 3.0).max(1.0),
        }
    }
}

/// How fast each service has been asking. Only registered services are known here.
#[derive(Debug, Default)]
pub(super) struct Paces(Mutex<HashMap<Name, TokenBucket>>);

impl Paces {
    /// Lets one request of a service through.
    ///
    /// # Errors
    /// It asks too fast; worth asking again after the time that is returned.
    pub(super) fn admit(&self, service: &Name, pace: Pace) -> Result<(), Duration> {
        let now = Instant::now().into_std();
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = paces
            .entry(service.clone())
            .or_insert_with(|| TokenBucket::full(pace.at_once, now));
        bucket.fill(now, pace.per_second);
        let wait = bucket.wait(pace.per_second);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        bucket.take();
        Ok(())
    }
}

impl Broker {
    /// Lets a call of a service's through, unless it calls too fast. Operators have no pace.
    ///
    /// # Errors
    /// The service calls too fast; the store's.
    pub async fn admit_call(&self, principal: &Principal) -> Result<(), Error> {
        let Some(service) = principal.service() else {
            return Ok(());
        };
        let most = self.limits().calls_per_second;
        let Err(wait) = self.call_paces.admit(service, Pace::per_second(most)) else {
            return Ok(());
        };
        let error = Error::Limited {
            reason: "TOO_MANY_REQUESTS",
            message: format!("the service calls more than {most} times a second"),
            next: "call less often; if the service is right to call so often, whoever runs the \
                   broker raises limits.calls_per_second"
                .to_owned(),
            retry_after: Some(wait),
        };
        let audit = AuditEvent::by(principal, Event::RequestDenied, self.now());
        let audit = audit.instance(&self.instance).service(service);
        let audit = audit.denied(error.reason()).detail(&error.to_string());
        self.record_by(principal, audit).await?;
        Err(error)
    }

    /// Counts a refusal of a service's calls. Returns whether it was one too many.
    pub fn is_refused_too_often(&self, service: &Name) -> bool {
        let most = self.limits().calls_per_second;
        let admitted = self.refused_paces.admit(service, Pace::per_second(most));
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
            Paces::default(),
            "loops".parse().unwrap(),
            "calm".parse().unwrap(),
        );
        let pace = Pace::per_second(10);
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
        let (paces, service) = (Paces::default(), "api".parse().unwrap());
        let pace = Pace::per_minute(30);
        let through = (0..100).filter(|_| paces.admit(&service, pace).is_ok());
        assert_eq!(through.count(), 10);
        let hint = paces.admit(&service, pace).unwrap_err();
        assert!(hint <= Duration::from_secs(2), "{hint:?}");
        advance(hint).await;
        assert_eq!(paces.admit(&service, pace), Ok(()));
        // However slow the pace, one is let through.
        let slow = "slow".parse().unwrap();
        assert_eq!(paces.admit(&slow, Pace::per_minute(1)), Ok(()));
    }
}
