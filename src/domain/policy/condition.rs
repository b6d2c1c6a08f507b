//! Condition operators of IAM, and the values that each can compare.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html>

use std::net::IpAddr;

/// Type that an operator compares, and so the form of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Text,
    Number,
    Date,
    Bool,
    Binary,
    Address,
    Arn,
}

const SETS: [&str; 2] = ["ForAllValues:", "ForAnyValue:"];

const OPERATORS: [(&str, Family); 26] = [
    ("StringEquals", Family::Text),
    ("StringNotEquals", Family::Text),
    ("StringEqualsIgnoreCase", Family::Text),
    ("StringNotEqualsIgnoreCase", Family::Text),
    ("StringLike", Family::Text),
    ("StringNotLike", Family::Text),
    ("NumericEquals", Family::Number),
    ("NumericNotEquals", Family::Number),
    ("NumericLessThan", Family::Number),
    ("NumericLessThanEquals", Family::Number),
    ("NumericGreaterThan", Family::Number),
    ("NumericGreaterThanEquals", Family::Number),
    ("DateEquals", Family::Date),
    ("DateNotEquals", Family::Date),
    ("DateLessThan", Family::Date),
    ("DateLessThanEquals", Family::Date),
    ("DateGreaterThan", Family::Date),
    ("DateGreaterThanEquals", Family::Date),
    ("Bool", Family::Bool),
    ("BinaryEquals", Family::Binary),
    ("IpAddress", Family::Address),
    ("NotIpAddress", Family::Address),
    ("ArnEquals", Family::Arn),
    ("ArnLike", Family::Arn),
    ("ArnNotEquals", Family::Arn),
    ("ArnNotLike", Family::Arn),
];

/// Returns the family of an operator with or without set prefix and `IfExists`; `None` if AWS has
/// no such operator.
pub(super) fn family(operator: &str) -> Option<Family> {
    let bare = SETS
        .iter()
        .find_map(|set| operator.strip_prefix(set))
        .unwrap_or(operator);
    // `Null` itself tests whether the key exists, so AWS has no NullIfExists.
    if bare == "Null" {
        return Some(Family::Bool);
    }
    let bare = bare.strip_suffix("IfExists").unwrap_or(bare);
    OPERATORS
        .iter()
        .find(|(name, _)| *name == bare)
        .map(|(_, family)| *family)
}

impl Family {
    /// Returns whether AWS can compare by this value.
    pub(super) fn takes(self, value: &str) -> bool {
        match self {
            Self::Text => true,
            Self::Number => is_number(value),
            Self::Date => is_date(value),
            Self::Bool => is_bool(value) || value.starts_with("${"),
            Self::Binary => is_base64(value),
            Self::Address => is_address(value),
            Self::Arn => value.starts_with(['*', '?', '$']) || value.split(':').count() >= 6,
        }
    }

    /// Returns whether a `${…}` inside a value is a variable, and not plain text.
    pub(super) const fn has_variables(self) -> bool {
        matches!(self, Self::Text | Self::Arn | Self::Bool)
    }

    /// Returns the form of a value, for errors.
    pub(super) const fn expects(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Number => "a number such as 10 or 0.5",
            Self::Date => "a date such as 2030-01-31T12:00:00Z, or seconds since 1970",
            Self::Bool => "true or false",
            Self::Binary => "base64 such as QUJD",
            Self::Address => "an address or CIDR block such as 203.0.113.0/24",
            Self::Arn => "an ARN of six parts such as arn:aws:sns:*:123456789012:orders",
        }
    }
}

fn is_bool(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false")
}

fn is_number(value: &str) -> bool {
    let starts = value.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    starts && value.parse::<f64>().is_ok_and(f64::is_finite)
}

fn is_base64(value: &str) -> bool {
    let body = value.trim_end_matches('=');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    !body.is_empty()
        && value.len().is_multiple_of(4)
        && value.len() - body.len() <= 2
        && body.bytes().all(allowed)
}

fn is_address(value: &str) -> bool {
    let (address, prefix) = value
        .split_once('/')
        .map_or((value, None), |(a, p)| (a, Some(p)));
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    prefix.is_none_or(|prefix| digits(prefix, 1..=3).is_some_and(|bits| bits <= longest))
}

fn is_date(value: &str) -> bool {
    let epoch = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_digit())
        && value.parse::<i64>().is_ok();
    epoch || is_iso_8601(value)
}

/// Returns whether a value has a form of <https://www.w3.org/TR/NOTE-datetime>, the profile that
/// AWS's documentation names. AWS also accepts a time without its zone.
fn is_iso_8601(value: &str) -> bool {
    let (day, time) = value
        .split_once(['T', 't'])
        .map_or((value, None), |(day, time)| (day, Some(time)));
    let parts: Vec<&str> = day.split('-').collect();
    let day_is_right = match parts[..] {
        [year] => digits(year, 4..=4).is_some(),
        [year, month] => is_day(year, month, "01"),
        [year, month, day] => is_day(year, month, day),
        _ => false,
    };
    day_is_right && time.is_none_or(|time| parts.len() == 3 && is_time_with_zone(time))
}

fn is_day(year: &str, month: &str, day: &str) -> bool {
    let (Some(year), Some(month), Some(day)) = (
        digits(year, 4..=4),
        digits(month, 2..=2),
        digits(day, 2..=2),
    ) else {
        return false;
    };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let longest = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=longest).contains(&day)
}

fn is_time_with_zone(text: &str) -> bool {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return is_time(time);
    }
    match text.split_once(['+', '-']) {
        Some((time, zone)) => is_time(time) && is_hour_and_minute(zone),
        None => is_time(text),
    }
}

fn is_time(text: &str) -> bool {
    let (whole, fraction) = text
        .split_once('.')
        .map_or((text, None), |(whole, rest)| (whole, Some(rest)));
    let with_seconds = whole.rsplit_once(':').is_some_and(|(minutes, seconds)| {
        is_hour_and_minute(minutes) && digits(seconds, 2..=2).is_some_and(|seconds| seconds < 60)
    });
    match fraction {
        Some(fraction) => with_seconds && digits(fraction, 1..=9).is_some(),
        None => with_seconds || is_hour_and_minute(whole),
    }
}

fn is_hour_and_minute(text: &str) -> bool {
    text.split_once(':').is_some_and(|(hour, minute)| {
        digits(hour, 2..=2).is_some_and(|hour| hour < 24)
            && digits(minute, 2..=2).is_some_and(|minute| minute < 60)
    })
}

fn digits(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let right = length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(family: Family, values: &[&str], expected: bool) {
        for value in values {
            assert_eq!(family.takes(value), expected, "{family:?} {value}");
        }
    }

    #[test]
    fn an_operator_is_known_with_set_prefix_and_if_exists() {
        assert_eq!(family("StringLike"), Some(Family::Text));
        assert_eq!(family("ForAnyValue:StringLikeIfExists"), Some(Family::Text));
        assert_eq!(family("DateLessThanIfExists"), Some(Family::Date));
        assert_eq!(family("Null"), Some(Family::Bool));
        for wrong in [
            "",
            "stringLike",
            "NullIfExists",
            "IfExists",
            "StringLikeIfExistsIfExists",
            "ForAllValues:",
        ] {
            assert_eq!(family(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_date_is_iso_8601_or_seconds_since_1970() {
        let right = [
            "2030-01-31T12:00:00Z",
            "2030-01-31t12:00:00.123z",
            "2030-01-31T12:00+02:00",
            "2030-01-31T12:00:00-05:30",
            "2030-01-31T12:00:00",
            "2030-01-31",
            "2030-01",
            "2030",
            "1700000000",
            "0",
            "2028-02-29",
        ];
        all(Family::Date, &right, true);
        let wrong = [
            "",
            "tomorrow",
            "2030-13-01",
            "2030-02-30",
            "2029-02-29",
            "2030-01-31T",
            "2030-01-31T24:00:00Z",
            "2030-01T12:00Z",
            "2030-01-31T12:00:60Z",
            "2030-01-31T12:00:00.Z",
            "2030-01-31 12:00:00Z",
            "-5",
            "99999999999999999999",
            "2030-*",
        ];
        all(Family::Date, &wrong, false);
    }

    #[test]
    fn an_address_is_v4_or_v6_with_an_optional_prefix() {
        all(
            Family::Address,
            &[
                "203.0.113.7",
                "203.0.113.0/24",
                "0.0.0.0/0",
                "2001:db8::/64",
                "::1",
            ],
            true,
        );
        all(
            Family::Address,
            &[
                "",
                "203.0.113",
                "203.0.113.0/33",
                "2001:db8::/129",
                "203.0.113.0/",
                "1.2.3.4/+8",
                "*",
            ],
            false,
        );
    }

    #[test]
    fn numbers_booleans_binaries_and_arns_are_told_from_other_text() {
        all(Family::Number, &["10", "-0.5", "1e3"], true);
        all(
            Family::Number,
            &["", "ten", "NaN", "inf", "0x10", "1,000"],
            false,
        );
        all(
            Family::Bool,
            &["true", "False", "${aws:SecureTransport}"],
            true,
        );
        all(Family::Bool, &["", "yes", "1"], false);
        all(Family::Binary, &["QUJD", "QUI=", "QQ=="], true);
        all(Family::Binary, &["", "QUJ", "Q===", "QU JD", "===="], false);
        all(
            Family::Arn,
            &[
                "arn:aws:sns:*:123456789012:orders",
                "*",
                "${aws:PrincipalArn}",
            ],
            true,
        );
        all(Family::Arn, &["", "orders", "arn:aws:s3::x"], false);
    }
}
