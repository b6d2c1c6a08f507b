//! Chance, handed in wherever it is needed.

/// A source of unpredictable bytes, fit for secrets.
pub trait Random: Send + Sync {
    /// Fills `bytes` from a cryptographically secure generator.
    fn fill(&self, bytes: &mut [u8]);
}

/// The operating system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    /// # Panics
    /// When the operating system has no randomness to give: nothing safe can follow.
    #[expect(
        clippy::disallowed_methods,
        clippy::expect_used,
        reason = "the one home of the system generator; without it no secret can be made"
    )]
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the operating system's random generator works");
    }
}
