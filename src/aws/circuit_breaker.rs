//! Circuit breaker on issue: while AWS does not answer, callers do not wait for AWS, and one call
//! at a time finds out whether AWS is back.
//! <https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker>

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Calls in a row without an answer that open the breaker.
const FAILURES: u32 = 5;
/// First pause of an open breaker; each test call that fails doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Time that a test call has to find out whether AWS is back, before another call may try.
const TRIAL: Duration = Duration::from_secs(15);

/// The breaker of one API family.
#[derive(Debug)]
pub(super) struct CircuitBreaker(Mutex<State>);

#[derive(Clone, Copy, Debug)]
enum State {
    /// Calls are admitted; the last `failures` of them had no answer.
    Closed { failures: u32 },
    /// Calls are refused.
    Open { until: Instant, pause: Duration },
    /// One test call is in progress.
    Trying { until: Instant, pause: Duration },
}

impl State {
    fn check(self, now: Instant) -> Result<(), Duration> {
        match self {
            Self::Open { until, .. } | Self::Trying { until, .. } if until > now => {
                Err(until - now)
            }
            _ => Ok(()),
        }
    }
}

impl CircuitBreaker {
    /// Creates a closed breaker.
    pub(super) const fn new() -> Self {
        Self(Mutex::new(State::Closed { failures: 0 }))
    }

    /// Checks whether a call would be admitted.
    ///
    /// # Errors
    /// The same as those of [`Self::admit`].
    pub(super) fn check(&self) -> Result<(), Duration> {
        self.state().check(Instant::now())
    }

    /// Admits a call, which the caller then makes.
    ///
    /// # Errors
    /// The breaker is open; the error is the time after which to try again.
    pub(super) fn admit(&self) -> Result<(), Duration> {
        let (mut state, now) = (self.state(), Instant::now());
        state.check(now)?;
        if let State::Open { pause, .. } | State::Trying { pause, .. } = *state {
            let until = now + TRIAL;
            *state = State::Trying { until, pause };
        }
        Ok(())
    }

    /// Records that AWS has answered, with success or failure.
    pub(super) fn answered(&self) {
        *self.state() = State::Closed { failures: 0 };
    }

    /// Records that AWS has not answered. Returns whether this opened the breaker.
    pub(super) fn failed(&self) -> bool {
        let mut state = self.state();
        let pause = match *state {
            State::Closed { failures } if failures + 1 < FAILURES => {
                *state = State::Closed {
                    failures: failures + 1,
                };
                return false;
            }
            State::Closed { .. } => FIRST_PAUSE,
            State::Trying { pause, .. } => (pause * 2).min(LONGEST_PAUSE),
            // This call was in progress when the breaker opened.
            State::Open { .. } => return false,
        };
        let until = Instant::now() + pause;
        *state = State::Open { until, pause };
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn opened() -> CircuitBreaker {
        let breaker = CircuitBreaker::new();
        let opened: Vec<bool> = (0..6).map(|_| breaker.failed()).collect();
        assert_eq!(opened, [false, false, false, false, true, false]);
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn five_calls_in_a_row_without_an_answer_open_it() {
        let breaker = CircuitBreaker::new();
        for _ in 0..4 {
            breaker.failed();
        }
        breaker.answered();
        for _ in 0..4 {
            breaker.failed();
        }
        assert_eq!(breaker.admit(), Ok(()));
        assert_eq!(opened().admit(), Err(seconds(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn to_look_is_not_to_try() {
        let breaker = opened();
        assert_eq!(breaker.check(), Err(seconds(5)));
        advance(seconds(5)).await;
        assert_eq!((breaker.check(), breaker.check()), (Ok(()), Ok(())));
        assert_eq!(breaker.admit(), Ok(()));
        assert_eq!(breaker.check(), Err(seconds(15)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_at_a_time_tries_and_an_answer_closes_it() {
        let breaker = opened();
        advance(seconds(5)).await;
        assert_eq!(breaker.admit(), Ok(()));
        assert_eq!(breaker.admit(), Err(seconds(15)));
        breaker.answered();
        assert_eq!(breaker.admit(), Ok(()));
        assert_eq!(breaker.admit(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_fails_doubles_the_pause_up_to_a_minute() {
        let breaker = opened();
        for pause in [10, 20, 40, 60, 60] {
            advance(seconds(60)).await;
            assert_eq!(breaker.admit(), Ok(()));
            assert!(breaker.failed());
            assert_eq!(breaker.admit(), Err(seconds(pause)));
        }
        // A test call whose outcome was never recorded is followed by another.
        advance(seconds(60)).await;
        assert_eq!(breaker.admit(), Ok(()));
        advance(seconds(15)).await;
        assert_eq!(breaker.admit(), Ok(()));
    }
}
