//! Short random ids.

use std::{fmt, marker::PhantomData, str::FromStr};

use data_encoding::BASE32_NOPAD;

use crate::domain::random::Random;

const LENGTH: usize = 16;

/// Id of a `T`: 16 characters `[a-z2-7]`, 80 random bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id<T>(String, PhantomData<fn() -> T>);

impl<T> Id<T> {
    /// Creates a random id.
    #[must_use]
    pub fn new(random: &dyn Random) -> Self {
        let mut bytes = [0; 10];
        random.fill(&mut bytes);
        Self(
            BASE32_NOPAD.encode(&bytes).to_ascii_lowercase(),
            PhantomData,
        )
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T> fmt::Display for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T> FromStr for Id<T> {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let fits = |b: u8| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b);
        let is_one = text.len() == LENGTH && text.bytes().all(fits);
        is_one
            .then(|| Self(text.to_owned(), PhantomData))
            .ok_or("an id has 16 characters a-z and 2-7")
    }
}
