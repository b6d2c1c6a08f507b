//! Wall-clock time, handed in wherever it is needed.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use jiff::{SignedDuration, Timestamp};

/// Tells what time it is. The one way to learn it: `clippy.toml` forbids the others.
pub trait Clock: Send + Sync {
    /// The current time.
    fn now(&self) -> Timestamp;
}

/// The wall clock of the machine at this moment.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one home of the system clock"
)]
pub fn wall_time() -> Timestamp {
    Timestamp::now()
}

/// How far AWS's time may differ from ours before ours gives way. AWS tells whole
/// seconds (RFC 9110, section 6.6.1), and an answer takes its time on the way.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

/// A clock that no step of the wall clock moves: it starts from a given time, goes on
/// with the machine's monotonic clock, and follows AWS's own time where the two part.
/// AWS ends sessions by its clock, so the broker counts by the same one.
#[derive(Debug)]
pub struct SteadyClock {
    anchor: Mutex<Anchor>,
}

#[derive(Clone, Copy, Debug)]
struct Anchor {
    time: Timestamp,
    at: Instant,
}

impl Anchor {
    fn now(self) -> Timestamp {
        let passed = SignedDuration::try_from(self.at.elapsed()).unwrap_or_default();
        self.time.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }
}

impl SteadyClock {
    /// A clock that shows `time` now.
    #[must_use]
    pub fn starting_at(time: Timestamp) -> Self {
        let at = Instant::now();
        Self {
            anchor: Mutex::new(Anchor { time, at }),
        }
    }

    /// AWS has just told its time. Returns by how much this clock was wrong, if it was
    /// and has been set.
    pub fn follow(&self, aws: Timestamp) -> Option<SignedDuration> {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong_by = aws.duration_since(anchor.now());
        if wrong_by.abs() <= TOLERANCE {
            return None;
        }
        *anchor = Anchor {
            time: aws,
            at: Instant::now(),
        };
        Some(wrong_by)
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> Timestamp {
        let anchor = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        anchor.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    #[track_caller]
    fn assert_near(clock: &SteadyClock, expected: Timestamp) {
        let apart = clock.now().duration_since(expected);
        assert!(apart.abs() < SignedDuration::from_secs(2), "{apart:?}");
    }

    #[test]
    fn a_clock_that_started_an_hour_wrong_follows_aws() {
        let truth = Timestamp::from_second(1_800_000_000).unwrap();
        for wrong in [truth - HOUR, truth + HOUR] {
            let clock = SteadyClock::starting_at(wrong);
            let corrected = clock.follow(truth).unwrap();
            assert!(corrected.abs() > HOUR - TOLERANCE, "{corrected:?}");
            assert_near(&clock, truth);
            assert_eq!(clock.follow(truth), None);
        }
    }

    #[test]
    fn the_whole_seconds_of_an_answer_do_not_move_the_clock() {
        let truth = Timestamp::from_second(1_800_000_000).unwrap();
        let clock = SteadyClock::starting_at(truth);
        for seconds in [-4, 4] {
            let told = truth + SignedDuration::from_secs(seconds);
            assert_eq!(clock.follow(told), None);
            assert_near(&clock, truth);
        }
    }
}
