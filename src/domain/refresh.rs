//! Time at which the holder of credentials should get the next ones.
//!
//! SDKs begin to look for new credentials 15 minutes before the end, and from then on ask for every
//! request. So the next credentials must be there 20 minutes before the end. Short-lived
//! credentials are used for half of their life.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::random::{Random, up_to};

/// Time before the end from which credentials should be replaced.
pub const NEAR_THE_END: SignedDuration = SignedDuration::from_mins(20);
/// Remaining lifetime up to which credentials count as expired.
const OVER: SignedDuration = SignedDuration::from_secs(1);
/// Divisor of the lifetime: renewals are spread over one tenth of it.
const SPREAD: u32 = 10;

/// Returns whether the credentials need no replacement yet at `now`.
#[must_use]
pub fn is_fresh(issued_at: Timestamp, expires_at: Timestamp, now: Timestamp) -> bool {
    let life = expires_at.duration_since(issued_at);
    expires_at.duration_since(now) > NEAR_THE_END.min(life / 2)
}

/// Returns whether the credentials can still be used at `now`.
#[must_use]
pub fn is_alive(expires_at: Timestamp, now: Timestamp) -> bool {
    expires_at.duration_since(now) > OVER
}

/// Returns the time to ask for the next credentials, so that they arrive while these are fresh. The
/// time is random, so that holders of credentials issued together do not ask together.
#[must_use]
pub fn renewal(issued_at: Timestamp, expires_at: Timestamp, random: &dyn Random) -> Timestamp {
    let life = expires_at.duration_since(issued_at);
    let spread = Duration::try_from(life).unwrap_or_default() / SPREAD;
    let early = SignedDuration::try_from(up_to(spread, random)).unwrap_or_default();
    expires_at - NEAR_THE_END.min(life / 2) - early
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::random::SystemRandom;

    #[test]
    fn the_next_are_asked_for_while_the_old_are_fresh() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (life, fresh_until) in [
            (3600, 3600 - 1200),
            (900, 450),
            (43_200, 43_200 - 1200),
            (10, 5),
        ] {
            assert!(is_fresh(at(0), at(life), at(fresh_until - 1)), "{life}");
            assert!(!is_fresh(at(0), at(life), at(fresh_until)), "{life}");
            for _ in 0..100 {
                let asked = renewal(at(0), at(life), &SystemRandom);
                assert!(asked <= at(fresh_until), "{life}");
                let earliest = at(fresh_until) - SignedDuration::from_millis(life * 100);
                assert!(asked >= earliest, "{life}");
            }
        }
    }

    #[test]
    fn what_ends_within_a_second_is_of_no_use() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(is_alive(at(10), at(8)) && !is_alive(at(10), at(9)));
    }
}
