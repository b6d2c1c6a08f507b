//! Time for which the broker waits for another party: a replica, a witness, a sink, a client.

use std::time::Duration;

/// A constant time. In builds with debug assertions, as the tests use, `CREDBROKER_TEST_HASTE=4`
/// makes it four times shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(Duration);

impl Wait {
    /// Creates a wait of this many seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns the length of the wait in this process.
    #[must_use]
    pub fn length(self) -> Duration {
        self.0 / haste()
    }
}

#[cfg(debug_assertions)]
fn haste() -> u32 {
    static HASTE: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| {
        let told = std::env::var("CREDBROKER_TEST_HASTE").ok();
        told.and_then(|told| told.parse().ok()).unwrap_or(1)
    });
    *HASTE
}

#[cfg(not(debug_assertions))]
const fn haste() -> u32 {
    1
}
