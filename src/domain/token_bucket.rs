//! A token bucket: a burst at once, then a rate. The caller passes time and rate.

use std::time::{Duration, Instant};

/// A bucket of tokens. A negative count is a debt.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    capacity: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// Returns a full bucket.
    #[must_use]
    pub const fn full(capacity: f64, now: Instant) -> Self {
        Self {
            capacity,
            tokens: capacity,
            at: now,
        }
    }

    /// Sets the capacity, and discards tokens above it.
    pub const fn bound(&mut self, capacity: f64) {
        self.capacity = capacity;
        self.tokens = self.tokens.min(capacity);
    }

    /// Adds the tokens that `per_second` has produced up to `now`. Returns the seconds since the
    /// last call.
    pub fn refill(&mut self, now: Instant, per_second: f64) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * per_second).min(self.capacity);
        self.at = now;
        passed
    }

    /// Returns whether the bucket is full.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.tokens >= self.capacity
    }

    /// Returns the time until a token is available, at this rate.
    #[must_use]
    pub fn wait(&self, per_second: f64) -> Duration {
        let missing = 1.0 - self.tokens;
        if missing > 0.0 {
            Duration::from_secs_f64(missing / per_second)
        } else {
            Duration::ZERO
        }
    }

    /// Takes one token, even if the bucket is empty.
    pub fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// Removes half of the tokens; a debt stays as it is.
    pub fn halve(&mut self) {
        self.tokens = self.tokens.min(self.tokens / 2.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_it_holds_and_then_what_flows_in() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(2.0, start);
        for _ in 0..2 {
            assert_eq!(bucket.wait(10.0), Duration::ZERO);
            bucket.take();
        }
        assert_eq!(bucket.wait(10.0), Duration::from_millis(100));
        bucket.refill(start + Duration::from_secs(1), 1.0);
        assert_eq!(bucket.wait(1.0), Duration::ZERO);
        bucket.refill(start + Duration::from_secs(100), 1.0);
        bucket.halve();
        bucket.take();
        assert_eq!(bucket.wait(1.0), Duration::from_secs(1));
    }
}
