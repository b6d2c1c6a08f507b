//! Sample of cases and random trials that a run tries. `tests/exhaustive.sh` tries all.

use std::{env, str::FromStr};

use fastrand::Rng;

use super::report;

/// Variable that makes the tests try every case; otherwise they try a sample, which [`SEED`]
/// chooses.
const WHOLE: &str = "CREDBROKER_TEST_WHOLE";
/// Variable with the seed of all random choices; 3 unless set.
const SEED: &str = "CREDBROKER_TEST_SEED";
/// Number of cases of which a sample has one.
const STEP: usize = 10;

fn whole() -> bool {
    env::var_os(WHOLE).is_some()
}

pub fn seed() -> u64 {
    number(SEED).unwrap_or(3)
}

/// Reads a number from the environment.
pub fn number<T: FromStr>(variable: &str) -> Option<T> {
    env::var(variable).ok()?.parse().ok()
}

/// Returns the cases that this run tries.
pub fn cases<T>(all: Vec<T>) -> Vec<T> {
    let count = all.len();
    let (first, step) = if whole() {
        (0, 1)
    } else {
        (Rng::with_seed(seed()).usize(0..STEP), STEP)
    };
    let sampled: Vec<T> = all.into_iter().skip(first).step_by(step).collect();
    report::note("faults", &format!("{} of {count}", sampled.len()));
    sampled
}

/// Returns the number of random trials of this run: as many as `variable` says, all of `whole` in an
/// exhaustive run, or `few`.
pub fn trials(what: &str, variable: &str, few: u32, whole_run: u32) -> u32 {
    let usual = if whole() { whole_run } else { few };
    let trials = number(variable).unwrap_or(usual);
    let left = whole_run.saturating_sub(trials);
    report::note(
        "left",
        &format!("{what}: {left} of {whole_run} ({trials} ran)"),
    );
    trials
}
