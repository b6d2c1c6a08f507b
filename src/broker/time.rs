//! The certainty of the broker's clock. While AWS's answers do not agree on the time, nothing is
//! issued that ends by it, and nothing is ended for good because its time is over; revocation goes
//! on.

use std::time::Duration;

use metrics::gauge;
use tokio::time::{MissedTickBehavior, interval};

use crate::broker::{Broker, Error, ports::AwsFailure};

/// Pause between two looks, and between two calls that ask AWS for the time.
const EVERY: Duration = Duration::from_millis(250);
/// Calls that a start waits for: more than settle a doubt, each over a connection of its own.
const CALLS_AT_START: u32 = 8;
/// Pause after which a refused request is worth repeating.
const REPEAT_AFTER: Duration = Duration::from_secs(1);

impl Broker {
    /// Returns true while AWS's answers agree on the time.
    pub(super) fn clock_is_certain(&self) -> bool {
        self.parts.clock.is_certain()
    }

    /// Refuses work that depends on the time while the clock is uncertain.
    ///
    /// # Errors
    /// `CLOCK_UNCERTAIN`.
    pub(super) fn certain_clock(&self) -> Result<(), Error> {
        if self.clock_is_certain() {
            return Ok(());
        }
        let message = "AWS's answers do not agree on the time, by which credentials end";
        let failure = AwsFailure {
            next: "the broker asks AWS again; if this lasts, compare the clocks of the broker's host and of what \
                   stands between it and AWS"
                .to_owned(),
            ..AwsFailure::held_back("CLOCK_UNCERTAIN", message.to_owned(), REPEAT_AFTER)
        };
        Err(failure.into())
    }

    /// Returns true while the broker may end something for good because its time is over: nothing
    /// contradicts the log or the clock.
    pub(super) fn may_end_by_time(&self) -> bool {
        self.log_is_whole().is_ok() && self.clock_is_certain()
    }

    /// Asks AWS until its answers agree on the time, or some have not settled it.
    pub async fn settle_clock(&self) {
        for _ in 0..CALLS_AT_START {
            if self.clock_is_certain() {
                return;
            }
            self.ask_for_time().await;
        }
    }

    /// Asks AWS whenever its answers do not agree on the time; to be cut off at the end.
    pub async fn keep_clock_certain(&self) {
        let uncertain = gauge!("credbroker_clock_uncertain");
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let is_certain = self.clock_is_certain();
            uncertain.set(if is_certain { 0.0 } else { 1.0 });
            if !is_certain {
                self.ask_for_time().await;
            }
        }
    }

    /// Makes a harmless call: each answer tells the time.
    async fn ask_for_time(&self) {
        if let Err(error) = self.parts.issuer.identity().await {
            tracing::debug!(%error, "AWS does not tell the time");
        }
    }
}
