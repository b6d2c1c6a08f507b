//! Second check of a denial that AWS was seen to enforce: half a minute later the same canary makes
//! its calls again. One server of AWS may know the denial while another does not yet, so that a
//! call may still succeed after a refusal.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    broker::{
        Actor, Broker,
        canary::{Canary, proves},
        ports::ProbeOutcome,
    },
    domain::{audit::Event, denial::Denial},
};

/// Time from the first refusals to the second check.
const AFTER: Duration = Duration::from_secs(30);
/// Interval at which due checks are looked for.
const EVERY: Duration = Duration::from_secs(1);
/// Number of second checks that may wait; beyond it the oldest is dropped.
const KEPT: usize = 256;

/// Denials that AWS was seen to enforce and that are checked once more.
#[derive(Default)]
pub(super) struct SecondChecks(Mutex<VecDeque<SecondCheck>>);

struct SecondCheck {
    seen: Instant,
    denial: Denial,
    trial: Canary,
}

/// Outcome of a second check.
enum CheckOutcome {
    Refused,
    /// Description of the call that was not refused.
    Open(String),
    /// AWS does not answer, or refuses for another reason.
    Unknown,
    /// The canary is no longer valid.
    Over,
}

impl SecondChecks {
    fn looks(&self) -> MutexGuard<'_, VecDeque<SecondCheck>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a denial that AWS was just seen to enforce, with its canary.
    pub(super) fn keep(&self, denial: Denial, trial: Canary) {
        let mut looks = self.looks();
        if looks.len() == KEPT {
            looks.pop_front();
        }
        let seen = Instant::now();
        looks.push_back(SecondCheck {
            seen,
            denial,
            trial,
        });
    }

    /// Removes and returns the checks whose refusals were seen by that time.
    fn take(&self, by: Instant) -> Vec<SecondCheck> {
        let mut looks = self.looks();
        let due = looks.partition_point(|look| look.seen <= by);
        looks.drain(..due).collect()
    }
}

impl Broker {
    /// Makes each second check when it is due, until the broker stops.
    pub(super) async fn run_second_checks(&self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(by) = Instant::now().checked_sub(AFTER) {
                self.make_second_checks(by).await;
            }
        }
    }

    /// Makes the second check of each denial that AWS was seen to enforce by that time, and records
    /// its outcome. If AWS did not refuse, another check follows.
    pub async fn make_second_checks(&self, by: Instant) {
        for look in self.denying.settling.take(by) {
            let (denial, trial) = (&look.denial, &look.trial);
            // The canary's expiry bounds the retries when AWS never answers.
            if !trial.is_valid_at(self.now()) {
                continue;
            }
            let audit = self
                .event(Actor::Broker, Event::DenialSettled)
                .denial(denial);
            let after = self.now().duration_since(denial.asked_at);
            let (audit, is_over) = match self.check_again(trial).await {
                CheckOutcome::Refused => {
                    let told = self.describe_calls(trial);
                    (audit.refused_after(after).detail(&told), true)
                }
                CheckOutcome::Open(told) => {
                    tracing::warn!(against = %denial.against, "{told}, after it was refused");
                    (audit.failed("NOT_REFUSED").detail(&told), false)
                }
                CheckOutcome::Unknown => {
                    self.denying.settling.keep(look.denial, look.trial);
                    continue;
                }
                CheckOutcome::Over => continue,
            };
            if let Err(error) = self.store().record(audit).await {
                tracing::error!(%error, "a second look at a denial is not recorded");
            }
            if !is_over {
                self.denying.settling.keep(look.denial, look.trial);
            }
        }
    }

    async fn check_again(&self, trial: &Canary) -> CheckOutcome {
        let mut outcome = CheckOutcome::Refused;
        for call in &trial.calls {
            match self.try_call(trial, call).await {
                Ok(ProbeOutcome::Refused { cause, .. }) if proves(cause, call) => {}
                Ok(ProbeOutcome::Dead) => return CheckOutcome::Over,
                Ok(ProbeOutcome::Allowed) => {
                    let call = self.describe_call(call);
                    return CheckOutcome::Open(format!("AWS lets such a session call {call}"));
                }
                // A later call may still be open.
                Ok(ProbeOutcome::Refused { .. }) | Err(_) => outcome = CheckOutcome::Unknown,
            }
        }
        outcome
    }
}
