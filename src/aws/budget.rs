//! How many calls AWS takes: a token bucket per API family, refilled at a fixed rate,
//! with a part that only revocation may draw on.
//!
//! AWS publishes no rates for IAM, and 600 calls a second for STS per account and
//! region (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>),
//! so the rate follows what AWS says: it is halved when AWS throttles and comes back
//! within a minute.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::bucket::TokenBucket;

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To make credentials, or to look at what there is: never from the reserve.
    Issue,
    /// To take credentials away.
    Revoke,
}

impl Purpose {
    /// Longest time that a call of this purpose waits for its turn.
    const fn patience(self) -> Duration {
        match self {
            Self::Issue => Duration::from_secs(1),
            Self::Revoke => Duration::from_secs(30),
        }
    }
}

/// A bucket holds what flows in during this time, seconds.
const BURST: f64 = 3.0;
/// Revocation alone may draw on what flows in during this time, seconds.
const RESERVE: f64 = 1.0;
/// The rate comes back in this time after AWS has throttled, seconds.
const RECOVERY: f64 = 60.0;
/// The rate never falls below this part of itself.
const SLOWEST: f64 = 1.0 / 32.0;

/// The budget of one API family.
#[derive(Debug)]
pub(super) struct Budget {
    /// Calls per second.
    rate: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Calls that may be made now; below zero when calls wait already.
    bucket: TokenBucket,
    /// The part of the rate that holds now, 1 for all of it.
    share: f64,
}

impl Budget {
    /// So many calls per second, and three times as many at once.
    pub(super) fn new(per_second: u32) -> Self {
        let rate = f64::from(per_second.max(1));
        let state = State {
            bucket: TokenBucket::full(BURST * rate, Instant::now().into_std()),
            share: 1.0,
        };
        Self {
            rate,
            state: Mutex::new(state),
        }
    }

    /// Books one call: how long to wait before it.
    ///
    /// # Errors
    /// Too many calls wait already: nothing is booked, and it is worth asking again
    /// after the time that is returned.
    pub(super) fn book(&self, purpose: Purpose) -> Result<Duration, Duration> {
        let mut state = self.filled();
        let wait = self.wait(&state, purpose)?;
        state.bucket.take();
        Ok(wait)
    }

    /// Whether a call could be booked.
    ///
    /// # Errors
    /// As [`Self::book`].
    pub(super) fn check(&self, purpose: Purpose) -> Result<(), Duration> {
        self.wait(&self.filled(), purpose).map(drop)
    }

    /// A call was made that nobody booked: the SDK repeats some by itself.
    pub(super) fn spend(&self) {
        self.filled().bucket.take();
    }

    /// AWS has said that it is too much.
    pub(super) fn throttled(&self) {
        let mut state = self.filled();
        state.bucket.halve();
        state.share = (state.share / 2.0).max(SLOWEST);
    }

    fn wait(&self, state: &State, purpose: Purpose) -> Result<Duration, Duration> {
        let kept = match purpose {
            Purpose::Issue => RESERVE * self.rate,
            Purpose::Revoke => 0.0,
        };
        let wait = state.bucket.wait(kept, self.rate * state.share);
        if wait > purpose.patience() {
            Err(wait)
        } else {
            Ok(wait)
        }
    }

    fn filled(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = self.rate * state.share;
        let passed = state.bucket.fill(Instant::now().into_std(), rate);
        state.share = (state.share + passed / RECOVERY).min(1.0);
        state
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Books until a call would have to wait; how many calls went at once.
    fn at_once(budget: &Budget, purpose: Purpose) -> usize {
        (0..1_000)
            .take_while(|_| {
                budget.check(purpose).is_ok() && budget.book(purpose) == Ok(Duration::ZERO)
            })
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_three_seconds_at_once_and_then_its_rate() {
        let budget = Budget::new(10);
        assert_eq!(at_once(&budget, Purpose::Revoke), 30);
        advance(Duration::from_secs(2)).await;
        // The call that found the bucket empty has waited for its turn.
        assert_eq!(at_once(&budget, Purpose::Revoke), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn issuing_leaves_a_reserve_that_revocation_finds_untouched() {
        let budget = Budget::new(10);
        assert_eq!(at_once(&budget, Purpose::Issue), 20);
        let mut waiting = 1;
        while budget.book(Purpose::Issue).is_ok() {
            waiting += 1;
        }
        // As many as flow in during the second that an issue waits.
        assert_eq!(waiting, 10);
        let hint = budget.book(Purpose::Issue).unwrap_err();
        assert!(hint > Duration::from_secs(1), "{hint:?}");
        assert_eq!(budget.book(Purpose::Revoke), Ok(Duration::from_millis(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_books_nothing_and_its_hint_is_honest() {
        let budget = Budget::new(10);
        while budget.book(Purpose::Issue).is_ok() {}
        let hint = budget.book(Purpose::Issue).unwrap_err();
        for _ in 0..100 {
            assert_eq!(budget.book(Purpose::Issue), Err(hint));
        }
        advance(hint).await;
        assert_eq!(budget.book(Purpose::Issue), Ok(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_budget_slows_down_and_recovers_within_a_minute() {
        let budget = Budget::new(32);
        for _ in 0..10 {
            budget.throttled();
        }
        while budget.book(Purpose::Revoke) == Ok(Duration::ZERO) {}
        // One thirty-second of the rate, and a little of what comes back.
        advance(Duration::from_secs(2)).await;
        let calls = at_once(&budget, Purpose::Revoke);
        assert!((1..=4).contains(&calls), "{calls}");
        advance(Duration::from_secs(60)).await;
        at_once(&budget, Purpose::Revoke);
        advance(Duration::from_secs(4)).await;
        assert_eq!(at_once(&budget, Purpose::Revoke), 96);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_sdk_repeats_is_paid_for() {
        let budget = Budget::new(1);
        for _ in 0..5 {
            budget.spend();
        }
        let wait = budget.book(Purpose::Revoke).unwrap();
        assert_eq!(wait, Duration::from_secs(3));
    }
}
