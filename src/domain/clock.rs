//! Wall-clock time, passed in wherever it is needed.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use jiff::{SignedDuration, Timestamp};

/// Source of the current time, and the only one: `clippy.toml` forbids the others.
pub trait Clock: Send + Sync {
    /// Returns the current time.
    fn now(&self) -> Timestamp;

    /// Returns false while evidence contradicts the current time. The broker then ends nothing
    /// permanently because it has expired, and issues nothing that ends by this clock.
    fn is_certain(&self) -> bool {
        true
    }
}

/// Returns the time of the machine's wall clock.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one home of the system clock"
)]
pub fn wall_time() -> Timestamp {
    Timestamp::now()
}

/// Largest difference from AWS's time that counts as agreement. AWS reports whole seconds (RFC
/// 9110, section 6.6.1), and an answer needs time to arrive.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

/// Number of agreeing answers, each over another connection, that set the clock or dismiss a time
/// that contradicts it.
pub const AGREEING: usize = 3;

/// A clock that ignores steps of the machine's wall clock. It starts at a given time, advances with
/// the machine's monotonic clock, and follows AWS's time if the two differ. AWS ends sessions by
/// its own clock, so the broker uses the same time.
///
/// A single answer does not move the clock: a front end or a proxy may have a wrong clock. An
/// answer that contradicts the clock makes it uncertain until several other answers decide.
#[derive(Debug)]
pub struct SteadyClock(Mutex<ClockState>);

#[derive(Debug)]
struct ClockState {
    anchor: ClockAnchor,
    doubt: Option<Doubt>,
}

#[derive(Clone, Copy, Debug)]
struct ClockAnchor {
    time: Timestamp,
    at: Instant,
}

impl ClockAnchor {
    fn at_this_moment(time: Timestamp) -> Self {
        let at = Instant::now();
        Self { time, at }
    }

    fn now(self) -> Timestamp {
        let passed = SignedDuration::try_from(self.at.elapsed()).unwrap_or_default();
        self.time.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }

    fn agrees_with(self, time: Timestamp) -> bool {
        time.duration_since(self.now()).abs() <= TOLERANCE
    }
}

/// A time that contradicts the clock, and the connections whose answers support either of the two.
#[derive(Debug)]
struct Doubt {
    told: ClockAnchor,
    telling: HashSet<SocketAddr>,
    denying: HashSet<SocketAddr>,
}

/// Effect of an answer on the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The answer agrees with the clock, which is certain.
    Agrees,
    /// The answer contradicts the clock, or does not yet settle an earlier contradiction.
    Uncertain,
    /// The contradicting time was dismissed.
    Dismissed,
    /// The clock was set. The value is its previous error.
    Set(SignedDuration),
}

impl SteadyClock {
    /// Creates a clock that shows `time` now.
    #[must_use]
    pub fn starting_at(time: Timestamp) -> Self {
        Self(Mutex::new(ClockState {
            anchor: ClockAnchor::at_this_moment(time),
            doubt: None,
        }))
    }

    /// Compares the clock with the time that AWS has just reported, in a successful answer to a
    /// signed request. `connection` is the local address of the connection.
    pub fn observe(&self, aws: Timestamp, connection: SocketAddr) -> Observation {
        self.state().observe(aws, connection)
    }

    fn state(&self) -> MutexGuard<'_, ClockState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClockState {
    fn observe(&mut self, aws: Timestamp, connection: SocketAddr) -> Observation {
        if self.anchor.agrees_with(aws) {
            return match &mut self.doubt {
                None => Observation::Agrees,
                Some(doubt) => {
                    doubt.denying.insert(connection);
                    // Only unanimous answers move the clock.
                    doubt.telling.clear();
                    self.settle()
                }
            };
        }
        let doubt = self.doubt.take();
        let mut doubt = doubt
            .filter(|doubt| doubt.told.agrees_with(aws))
            .unwrap_or_else(|| Doubt {
                told: ClockAnchor::at_this_moment(aws),
                telling: HashSet::new(),
                denying: HashSet::new(),
            });
        doubt.telling.insert(connection);
        self.doubt = Some(doubt);
        self.settle()
    }

    /// Decides once enough answers support one of the two times.
    fn settle(&mut self) -> Observation {
        let Some(doubt) = &self.doubt else {
            return Observation::Agrees;
        };
        if doubt.telling.len() >= AGREEING {
            let wrong_by = doubt.told.now().duration_since(self.anchor.now());
            self.anchor = doubt.told;
            self.doubt = None;
            return Observation::Set(wrong_by);
        }
        if doubt.denying.len() >= AGREEING {
            self.doubt = None;
            return Observation::Dismissed;
        }
        Observation::Uncertain
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> Timestamp {
        self.state().anchor.now()
    }

    fn is_certain(&self) -> bool {
        self.state().doubt.is_none()
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

    fn truth() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn connection(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn a_clock_that_started_an_hour_wrong_follows_three_answers_that_agree() {
        for wrong in [truth() - HOUR, truth() + HOUR] {
            let clock = SteadyClock::starting_at(wrong);
            for port in [1, 2] {
                let observed = clock.observe(truth(), connection(port));
                assert_eq!(observed, Observation::Uncertain);
                assert_near(&clock, wrong);
                assert!(!clock.is_certain());
            }
            let Observation::Set(wrong_by) = clock.observe(truth(), connection(3)) else {
                panic!("three agree");
            };
            assert!(wrong_by.abs() > HOUR - TOLERANCE, "{wrong_by:?}");
            assert_near(&clock, truth());
            assert!(clock.is_certain());
            assert_eq!(clock.observe(truth(), connection(3)), Observation::Agrees);
        }
    }

    #[test]
    fn one_connection_does_not_move_the_clock_however_often_it_tells_another_time() {
        let clock = SteadyClock::starting_at(truth());
        for _ in 0..100 {
            let observed = clock.observe(truth() + HOUR, connection(1));
            assert_eq!(observed, Observation::Uncertain);
        }
        assert_near(&clock, truth());
    }

    #[test]
    fn a_wrong_answer_is_dismissed_by_three_that_agree_with_the_clock() {
        let clock = SteadyClock::starting_at(truth());
        clock.observe(truth() + HOUR, connection(1));
        let denied = [2, 2, 3].map(|port| clock.observe(truth(), connection(port)));
        assert_eq!(denied, [Observation::Uncertain; 3]);
        assert!(!clock.is_certain());
        let observed = clock.observe(truth(), connection(4));
        assert_eq!(observed, Observation::Dismissed);
        assert_near(&clock, truth());
        assert!(clock.is_certain());
    }

    #[test]
    fn an_answer_that_agrees_begins_the_count_of_the_others_again() {
        let clock = SteadyClock::starting_at(truth());
        for port in [1, 2] {
            clock.observe(truth() + HOUR, connection(port));
        }
        clock.observe(truth(), connection(3));
        for port in [4, 5] {
            let observed = clock.observe(truth() + HOUR, connection(port));
            assert_eq!(observed, Observation::Uncertain);
        }
        assert_near(&clock, truth());
        let observed = clock.observe(truth() + HOUR, connection(6));
        assert!(matches!(observed, Observation::Set(_)), "{observed:?}");
    }

    #[test]
    fn wrong_answers_that_contradict_each_other_do_not_move_the_clock() {
        let clock = SteadyClock::starting_at(truth());
        for (port, hours) in [(1, 1), (2, 2), (3, 1), (4, 3)] {
            let observed = clock.observe(truth() + HOUR * hours, connection(port));
            assert_eq!(observed, Observation::Uncertain);
        }
        assert_near(&clock, truth());
    }

    #[test]
    fn the_whole_seconds_of_an_answer_do_not_move_the_clock() {
        let clock = SteadyClock::starting_at(truth());
        for seconds in [-4, 4] {
            let told = truth() + SignedDuration::from_secs(seconds);
            assert_eq!(clock.observe(told, connection(1)), Observation::Agrees);
            assert_near(&clock, truth());
        }
    }
}
