//! Lifetimes in a form that people read.

use std::time::Duration;

/// One hour, the lifetime that suits SDK refresh best.
pub const HOUR: Duration = Duration::from_hours(1);

/// Longest lifetime, in seconds: 100 years.
const LONGEST: u64 = 100 * 365 * 86_400;

/// Writes `5400 s` as `1h30m`, `172800 s` as `2d`.
///
/// ```
/// use std::time::Duration;
/// use credbroker::domain::duration::humanize;
/// assert_eq!(humanize(Duration::from_secs(5400)), "1h30m");
/// ```
#[must_use]
pub fn humanize(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut text = String::new();
    for (unit, seconds) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if rest >= seconds {
            text += &(rest / seconds).to_string();
            text += unit;
            rest %= seconds;
        }
    }
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

/// Reason why a text is not a lifetime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a lifetime: write it like 900s, 15m, 1h30m or 7d")]
pub struct DurationError(String);

/// Reads what [`humanize`] writes, and plain seconds: `1h30m`, `7d`, `3600`.
///
/// # Errors
/// The text is anything else, or more than 100 years.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let wrong = || DurationError(text.chars().take(40).collect());
    let (mut total, mut rest) = match text.parse::<u32>() {
        Ok(seconds) => (u64::from(seconds), ""),
        Err(_) => (0, text),
    };
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = match rest.as_bytes()[digits] {
            b'd' => 86_400,
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return Err(wrong()),
        };
        total = total.saturating_add(u64::from(count) * unit);
        rest = &rest[digits + 1..];
    }
    if text.is_empty() || total > LONGEST {
        return Err(wrong());
    }
    Ok(Duration::from_secs(total))
}

/// Serde form of a lifetime: whole seconds.
pub mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes whole seconds.
    ///
    /// # Errors
    /// The serializer's error.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(duration.as_secs())
    }

    /// Reads whole seconds.
    ///
    /// # Errors
    /// The value is not a whole number.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_reads_back_as_it_was_written() {
        for text in ["1s", "15m", "1h", "1h30m", "7d", "1d2h3m4s"] {
            assert_eq!(humanize(parse(text).unwrap()), text);
        }
        assert_eq!(parse("3600"), Ok(HOUR));
    }

    #[test]
    fn what_is_not_a_lifetime_is_refused() {
        for text in [
            "",
            "h",
            "1x",
            "-1h",
            "1h30",
            "1.5h",
            "99999999999h",
            "4000000000d",
            "3333333330",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
