//! Wall-clock time, handed in wherever it is needed.

use jiff::Timestamp;

/// Tells what time it is. The one way to learn it: `clippy.toml` forbids the others.
pub trait Clock: Send + Sync {
    /// The current time.
    fn now(&self) -> Timestamp;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one home of the system clock"
    )]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
