//! Budgets of calls to AWS: two token buckets per API family, one for all purposes and one, a third
//! of the whole, for revocation alone.
//!
//! AWS publishes no rates for IAM, and 600 calls a second for STS per account and region
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>). The rate
//! therefore follows AWS's answers: it is halved when AWS throttles, and recovers within a minute.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::token_bucket::TokenBucket;

/// Purpose of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Begins to create credentials.
    Begin,
    /// Completes what was begun, which would cost more if it were given up half-way; deletes what
    /// has expired; and does the broker's own upkeep.
    Complete,
    /// Ends access that was revoked; does not wait for calls of other purposes.
    Revoke,
}

impl Purpose {
    /// Returns the longest time that a call of this purpose waits for its turn.
    const fn patience(self) -> Duration {
        match self {
            Self::Begin => Duration::from_secs(1),
            Self::Complete | Self::Revoke => Duration::from_secs(30),
        }
    }
}

/// Time in which a bucket fills, seconds.
const BURST: f64 = 3.0;
/// Fraction of the rate that is reserved for revocation.
const KEPT: f64 = 1.0 / 3.0;
/// Time in which the rate recovers after AWS has throttled, seconds.
const RECOVERY: f64 = 60.0;
/// Smallest fraction of the rate, however often AWS throttles.
const SLOWEST: f64 = 1.0 / 32.0;

/// Number of replicas that share the budgets.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplicaCount(Arc<AtomicU32>);

impl ReplicaCount {
    /// Sets the number of replicas.
    pub(super) fn set(&self, brokers: u32) {
        self.0.store(brokers, Ordering::Relaxed);
    }

    fn count(&self) -> f64 {
        f64::from(self.0.load(Ordering::Relaxed).max(1))
    }
}

/// The budget of one API family.
#[derive(Debug)]
pub(super) struct RateBudget {
    /// Calls per second, of all replicas together.
    rate: f64,
    sharers: ReplicaCount,
    state: Mutex<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    /// Bucket for every purpose.
    common: TokenBucket,
    /// Bucket for revocation alone.
    kept: TokenBucket,
    /// Fraction of the rate in force now, 1 for all of it.
    share: f64,
}

impl RateBudget {
    /// Creates a budget of `per_second` calls, and three times as many at once. Each replica that
    /// shares the budget gets an equal part of both.
    pub(super) fn new(per_second: u32, sharers: ReplicaCount) -> Self {
        let (rate, now) = (f64::from(per_second.max(1)), Instant::now().into_std());
        let state = BudgetState {
            common: TokenBucket::full(BURST * rate * (1.0 - KEPT), now),
            kept: TokenBucket::full(BURST * rate * KEPT, now),
            share: 1.0,
        };
        Self {
            rate,
            sharers,
            state: Mutex::new(state),
        }
    }

    /// Returns the calls per second of this replica, without the part reserved for revocation.
    pub(super) fn common_rate(&self) -> f64 {
        self.rate() * (1.0 - KEPT)
    }

    /// Returns the rate of this replica.
    fn rate(&self) -> f64 {
        self.rate / self.sharers.count()
    }

    /// Books one call, and returns the time to wait before it.
    ///
    /// # Errors
    /// Too many calls are waiting: nothing is booked, and the error is the time after which to try
    /// again.
    pub(super) fn reserve(&self, purpose: Purpose) -> Result<Duration, Duration> {
        let mut state = self.refilled();
        let (wait, bucket) = self.turn(&mut state, purpose);
        if wait > purpose.patience() {
            return Err(wait);
        }
        bucket.take();
        Ok(wait)
    }

    /// Checks whether a call could be booked.
    ///
    /// # Errors
    /// The same as those of [`Self::reserve`].
    pub(super) fn check(&self, purpose: Purpose) -> Result<(), Duration> {
        let (wait, _) = self.turn(&mut self.refilled(), purpose);
        if wait > purpose.patience() {
            Err(wait)
        } else {
            Ok(())
        }
    }

    /// Pays for a call that was not booked: the SDK repeats some calls by itself.
    pub(super) fn spend(&self) {
        self.refilled().common.take();
    }

    /// Halves the rate, since AWS has throttled a call.
    pub(super) fn throttled(&self) {
        let mut state = self.refilled();
        state.common.halve();
        state.kept.halve();
        state.share = (state.share / 2.0).max(SLOWEST);
    }

    /// Returns the time until a call's turn, and the bucket that pays for the call.
    fn turn<'a>(
        &self,
        state: &'a mut BudgetState,
        purpose: Purpose,
    ) -> (Duration, &'a mut TokenBucket) {
        let rate = self.rate() * state.share;
        let common = state.common.wait(rate * (1.0 - KEPT));
        let kept = state.kept.wait(rate * KEPT);
        if purpose == Purpose::Revoke && kept < common {
            (kept, &mut state.kept)
        } else {
            (common, &mut state.common)
        }
    }

    fn refilled(&self) -> MutexGuard<'_, BudgetState> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, whole) = (Instant::now().into_std(), self.rate());
        // At least one whole call, however many replicas share the budget.
        state.common.bound((BURST * whole * (1.0 - KEPT)).max(1.0));
        state.kept.bound((BURST * whole * KEPT).max(1.0));
        let rate = whole * state.share;
        state.kept.refill(now, rate * KEPT);
        let passed = state.common.refill(now, rate * (1.0 - KEPT));
        state.share = (state.share + passed / RECOVERY).min(1.0);
        state
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn budget(per_second: u32) -> RateBudget {
        RateBudget::new(per_second, ReplicaCount::default())
    }

    #[tokio::test(start_paused = true)]
    async fn what_several_brokers_share_is_no_more_than_what_one_has() {
        let sharers = ReplicaCount::default();
        let budget = RateBudget::new(30, sharers.clone());
        sharers.set(3);
        assert_eq!(at_once(&budget, Purpose::Revoke), 30);
        advance(Duration::from_secs(10)).await;
        assert_eq!(at_once(&budget, Purpose::Begin), 20);
        assert!((budget.common_rate() - 20.0 / 3.0).abs() < 1e-9);
        sharers.set(1);
        advance(Duration::from_secs(10)).await;
        assert_eq!(at_once(&budget, Purpose::Revoke), 90);
    }

    /// Books until a call would have to wait; returns the number of calls before that.
    fn at_once(budget: &RateBudget, purpose: Purpose) -> usize {
        (0..1_000)
            .take_while(|_| budget.reserve(purpose) == Ok(Duration::ZERO))
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_gives_three_seconds_at_once_and_then_its_rate() {
        let budget = budget(30);
        assert_eq!(at_once(&budget, Purpose::Revoke), 90);
        advance(Duration::from_secs(2)).await;
        // The call that found both buckets empty has waited for its turn.
        assert_eq!(at_once(&budget, Purpose::Revoke), 59);
    }

    #[tokio::test(start_paused = true)]
    async fn issuing_leaves_a_third_that_revocation_finds_untouched() {
        let budget = budget(30);
        assert_eq!(at_once(&budget, Purpose::Begin), 60);
        let waiting = (0..100).filter(|_| budget.reserve(Purpose::Begin).is_ok());
        // As many as flow in during the second that an issue waits.
        assert_eq!(waiting.count() + 1, 20);
        let hint = budget.reserve(Purpose::Begin).unwrap_err();
        assert!(hint > Duration::from_secs(1), "{hint:?}");
        assert_eq!(at_once(&budget, Purpose::Revoke), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_is_brought_to_its_end_and_keeps_others_from_beginning() {
        let budget = budget(30);
        while budget.reserve(Purpose::Begin).is_ok() {}
        for _ in 0..100 {
            assert!(budget.reserve(Purpose::Complete).is_ok());
        }
        let hint = budget.reserve(Purpose::Begin).unwrap_err();
        assert!(hint > Duration::from_secs(6), "{hint:?}");
        assert_eq!(budget.reserve(Purpose::Revoke), Ok(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_books_nothing_and_its_hint_is_honest() {
        let budget = budget(10);
        while budget.reserve(Purpose::Begin).is_ok() {}
        let hint = budget.reserve(Purpose::Begin).unwrap_err();
        for _ in 0..100 {
            assert_eq!(budget.reserve(Purpose::Begin), Err(hint));
            assert_eq!(budget.check(Purpose::Begin), Err(hint));
        }
        advance(hint).await;
        assert_eq!(budget.check(Purpose::Begin), Ok(()));
        let wait = budget.reserve(Purpose::Begin).unwrap();
        assert!(wait < Duration::from_millis(2), "{wait:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_budget_slows_down_and_recovers_within_a_minute() {
        let budget = budget(32);
        for _ in 0..10 {
            budget.throttled();
        }
        while budget.reserve(Purpose::Revoke) == Ok(Duration::ZERO) {}
        // One thirty-second of the rate, and a little of what comes back.
        advance(Duration::from_secs(4)).await;
        let calls = at_once(&budget, Purpose::Revoke);
        assert!((1..=4).contains(&calls), "{calls}");
        advance(Duration::from_secs(60)).await;
        at_once(&budget, Purpose::Revoke);
        advance(Duration::from_secs(4)).await;
        assert_eq!(at_once(&budget, Purpose::Revoke), 96);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_sdk_repeats_is_paid_for() {
        let budget = budget(3);
        for _ in 0..8 {
            budget.spend();
        }
        let wait = budget.reserve(Purpose::Complete).unwrap();
        assert!(wait > Duration::from_millis(1400), "{wait:?}");
    }
}
