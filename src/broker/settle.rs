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
        Broker, By,
        ports::Verdict,
        trial::{Trial, proves},
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
pub(super) struct Settling(Mutex<VecDeque<Look>>);

struct Look {
    seen: Instant,
    denial: Denial,
    trial: Trial,
}

/// Outcome of a second check.
enum Second {
    Refused,
    /// Description of the call that was not refused.
    Open(String),
    /// AWS does not answer, or refuses for another reason.
    Unknown,
    /// The canary is no longer valid.
    Over,
}

impl Settling {
    fn looks(&self) -> MutexGuard<'_, VecDeque<Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a denial that AWS was just seen to enforce, with its canary.
    pub(super) fn keep(&self, denial: Denial, trial: Trial) {
        let mut looks = self.looks();
        if looks.len() == KEPT {
            looks.pop_front();
        }
        let seen = Instant::now();
        looks.push_back(Look {
            seen,
            denial,
            trial,
        });
    }

    /// Removes and returns the checks whose refusals were seen by that time.
    fn take(&self, by: Instant) -> Vec<Look> {
        let mut looks = self.looks();
        let due = looks.partition_point(|look| look.seen <= by);
        looks.drain(..due).collect()
    }
}

impl Broker {
    /// Makes each second check when it is due, until the broker stops.
    pub(super) async fn keep_settling(&self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(by) = Instant::now().checked_sub(AFTER) {
                self.second_looks(by).await;
            }
        }
    }

    /// Makes the second check of each denial that AWS was seen to enforce by that time, and records
    /// its outcome. If AWS did not refuse, another check follows.
    pub async fn second_looks(&self, by: Instant) {
        for look in self.denying.settling.take(by) {
            let (denial, trial) = (&look.denial, &look.trial);
            // The canary's expiry bounds the retries when AWS never answers.
            if !trial.lives_at(self.now()) {
                continue;
            }
            let audit = self.event(By::Broker, Event::DenialSettled).denial(denial);
            let after = self.now().duration_since(denial.asked_at);
            let (audit, is_over) = match self.second_look(trial).await {
                Second::Refused => {
                    let told = self.told_calls(trial);
                    (audit.refused_after(after).detail(&told), true)
                }
                Second::Open(told) => {
                    tracing::warn!(against = %denial.against, "{told}, after it was refused");
                    (audit.failed("NOT_REFUSED").detail(&told), false)
                }
                Second::Unknown => {
                    self.denying.settling.keep(look.denial, look.trial);
                    continue;
                }
                Second::Over => continue,
            };
            if let Err(error) = self.store().record(audit).await {
                tracing::error!(%error, "a second look at a denial is not recorded");
            }
            if !is_over {
                self.denying.settling.keep(look.denial, look.trial);
            }
        }
    }

    async fn second_look(&self, trial: &Trial) -> Second {
        for call in &trial.calls {
            match self.try_call(trial, call).await {
                Ok(Verdict::Refused { cause, .. }) if proves(cause, call) => {}
                Ok(Verdict::Dead) => return Second::Over,
                Ok(Verdict::Allowed) => {
                    let call = self.told_call(call);
                    return Second::Open(format!("AWS lets such a session call {call}"));
                }
                Ok(Verdict::Refused { .. }) | Err(_) => return Second::Unknown,
            }
        }
        Second::Refused
    }
}
