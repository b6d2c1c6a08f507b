//! Times of many calls in a line of a table.

use std::time::Duration;

/// Median and 99th percentile of sorted times, after a name of this width.
pub fn row(name: &str, width: usize, times: &[Duration]) {
    let millis = |at| quantile(times, at).as_secs_f64() * 1000.0;
    println!(
        "{name:width$}  {:6.2} ms  {:6.2} ms",
        millis(0.5),
        millis(0.99)
    );
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers"
)]
pub fn quantile(sorted: &[Duration], at: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * at) as usize]
}
