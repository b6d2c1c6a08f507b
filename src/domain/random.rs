//! Randomness, passed in wherever it is needed.

use std::time::Duration;

/// A source of unpredictable bytes, fit for secrets.
pub trait Random: Send + Sync {
    /// Fills `bytes` from a cryptographically secure generator.
    fn fill(&self, bytes: &mut [u8]);
}

/// Returns a random duration of up to `most`, uniformly distributed ("full jitter"), so that
/// callers that failed together do not retry together.
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
#[must_use]
pub fn up_to(most: Duration, random: &dyn Random) -> Duration {
    let mut bytes = [0; 4];
    random.fill(&mut bytes);
    let share = f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX);
    most.mul_f64(share)
}

/// The operating system's random generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    /// # Panics
    /// The operating system cannot provide randomness, so the broker cannot continue safely.
    #[expect(
        clippy::disallowed_methods,
        clippy::expect_used,
        reason = "the one home of the system generator; without it no secret can be made"
    )]
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the operating system's random generator works");
    }
}

/// Returns the pause after `failures` failures: 1 s, doubled with each failure, at most `longest`,
/// with full jitter.
/// <https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/>
pub fn back_off(failures: u32, longest: Duration, random: &dyn Random) -> Duration {
    up_to(
        Duration::from_secs(1 << failures.min(20)).min(longest),
        random,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FixedRandom(u8);

    impl Random for FixedRandom {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn jitter_reaches_from_nothing_to_the_most() {
        let most = Duration::from_secs(8);
        assert_eq!(up_to(most, &FixedRandom(0)), Duration::ZERO);
        assert_eq!(up_to(most, &FixedRandom(0xff)), most);
        let half = up_to(most, &FixedRandom(0x80)).as_secs_f64();
        assert!((4.0..4.1).contains(&half), "{half}");
    }
}
