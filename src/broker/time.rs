//! Certainty of the broker's clock. While AWS's answers disagree on the time, nothing that expires
//! is issued, and nothing is ended for good because it has expired. Revocation continues.

use std::time::Duration;

use metrics::gauge;
use tokio::time::{MissedTickBehavior, interval};

use crate::broker::{Broker, Error, ports::AwsFailure};

/// Interval of the checks, and pause between two calls that ask AWS for the time.
const EVERY: Duration = Duration::from_millis(250);
/// Largest number of calls at the start, each over its own connection: more than settle a doubt.
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
            ..AwsFailure::deferred("CLOCK_UNCERTAIN", message.to_owned(), REPEAT_AFTER)
        };
        Err(failure.into())
    }

    /// Returns true if the broker may end something for good because it has expired: nothing
    /// contradicts the log or the clock.
    pub(super) fn may_end_by_time(&self) -> bool {
        self.check_log_integrity().is_ok() && self.clock_is_certain()
    }

    /// Calls AWS until its answers agree on the time, `CALLS_AT_START` times at most.
    pub async fn settle_clock(&self) {
        for _ in 0..CALLS_AT_START {
            if self.clock_is_certain() {
                return;
            }
            self.ask_for_time().await;
        }
    }

    /// Calls AWS while its answers disagree on the time. To be aborted at the end.
    pub async fn run_clock_checks(&self) {
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

    /// Makes a harmless call: each answer contains AWS's time.
    async fn ask_for_time(&self) {
        if let Err(error) = self.parts.issuer.identity().await {
            tracing::debug!(%error, "AWS does not answer with its time");
        }
    }
}
