//! Rules for the claims of a signed token.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest pattern or claim name, bytes.
const TEXT_MAX: usize = 1024;
/// Most wildcards in one pattern.
const WILDCARDS_MAX: usize = 8;
/// Most claims in one rule.
pub const CLAIMS_MAX: usize = 10;

/// A pattern that a claim's whole value must match. `*` stands for any number of any characters,
/// also zero. A pattern has 1 to 1,024 bytes, at most 8 `*`, something beside them, and no control
/// characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Returns the pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the pattern matches this whole value.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        // A value has no wildcards: a `*` in it stands for itself.
        let value: Vec<Step> = value.bytes().map(Step::Byte).collect();
        meet(&self.steps(), &value)
    }

    /// Returns whether some value matches both patterns.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        meet(&self.steps(), &other.steps())
    }

    fn steps(&self) -> Vec<Step> {
        let step = |byte| match byte {
            b'*' => Step::Any,
            byte => Step::Byte(byte),
        };
        self.0.bytes().map(step).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Byte(u8),
    /// Any number of any bytes.
    Any,
}

/// Returns whether some text matches both. For each prefix of `a` in turn, `row` records the
/// prefixes of `b` that can match the same text.
fn meet(a: &[Step], b: &[Step]) -> bool {
    let mut row = vec![false; b.len() + 1];
    row[0] = true;
    for (index, step) in b.iter().enumerate() {
        row[index + 1] = row[index] && *step == Step::Any;
    }
    for mine in a {
        let mut next = vec![false; b.len() + 1];
        next[0] = row[0] && *mine == Step::Any;
        for (index, theirs) in b.iter().enumerate() {
            next[index + 1] = match (mine, theirs) {
                (Step::Byte(mine), Step::Byte(theirs)) => row[index] && mine == theirs,
                // The wildcard ends here, or covers one more step of the other pattern.
                _ => row[index + 1] || next[index],
            };
        }
        row = next;
    }
    row[b.len()]
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let wildcards = text.bytes().filter(|byte| *byte == b'*').count();
        let is_one = text.len() <= TEXT_MAX
            && wildcards <= WILDCARDS_MAX
            && text.bytes().any(|byte| byte != b'*')
            && !text.chars().any(char::is_control);
        is_one.then(|| Self(text.to_owned())).ok_or(
            "write the value itself, or with `*` for any part of it: up to 1024 characters, 8 `*`, and something \
             beside them",
        )
    }
}

impl TryFrom<String> for Pattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

/// A rule: the issuer and the claims of the tokens that identify a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OidcIdentity {
    /// Exact value of the claim `iss`: `https://…`.
    pub issuer: String,
    /// Pattern for the claim `sub`.
    pub subject: Pattern,
    /// A value that the claim `aud` must contain in addition to the broker's own audience.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// Patterns for further claims, by name. Text is compared as it is, numbers and booleans as
    /// JSON.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Pattern>,
}

impl OidcIdentity {
    /// Returns whether a valid token of the rule's issuer with these claims matches the rule.
    #[must_use]
    pub fn matches(
        &self,
        subject: &str,
        audiences: &[String],
        claims: &Map<String, Value>,
    ) -> bool {
        let has = |(name, pattern): (&String, &Pattern)| {
            let value = claims.get(name).and_then(told);
            value.is_some_and(|value| pattern.matches(&value))
        };
        self.subject.matches(subject)
            && self
                .audience
                .iter()
                .all(|audience| audiences.contains(audience))
            && self.claims.iter().all(has)
    }

    /// Returns whether one token may match both rules.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let apart = |(name, pattern): (&String, &Pattern)| {
            let theirs = other.claims.get(name);
            theirs.is_some_and(|theirs| !pattern.intersects(theirs))
        };
        self.issuer == other.issuer
            && self.subject.intersects(&other.subject)
            && !self.claims.iter().any(apart)
    }

    /// Checks that the rule can be stored: it has at most [`CLAIMS_MAX`] claims, all with allowed
    /// names.
    ///
    /// # Errors
    /// The first problem found, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.claims.len() > CLAIMS_MAX {
            return Err(format!("a rule names up to {CLAIMS_MAX} claims"));
        }
        let reserved = ["iss", "sub", "aud", "exp", "iat", "nbf"];
        let is_wrong = |name: &&String| {
            name.is_empty() || name.len() > TEXT_MAX || reserved.contains(&name.as_str())
        };
        match self.claims.keys().find(is_wrong) {
            Some(name) => Err(format!("{name:?} is checked anyway, or is no claim's name")),
            None => Ok(()),
        }
    }
}

/// Returns a claim's value as text for the patterns; `None` for null, arrays and objects.
fn told(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

impl fmt::Display for OidcIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subject {} of {}", self.subject, self.issuer)?;
        let mut claims = self.claims.iter();
        claims.try_for_each(|(name, pattern)| write!(f, ", {name} {pattern}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    fn identity(subject: &str, claims: &[(&str, &str)]) -> OidcIdentity {
        let claims = claims
            .iter()
            .map(|(name, value)| ((*name).to_owned(), pattern(value)));
        OidcIdentity {
            issuer: "https://issuer.example".to_owned(),
            subject: pattern(subject),
            audience: None,
            claims: claims.collect(),
        }
    }

    #[test]
    fn a_pattern_is_of_the_whole_value() {
        for (text, matching, other) in [
            ("a", &["a"][..], &["", "aa", "ba", "ab"][..]),
            ("a*", &["a", "ab", "a*"], &["", "ba"]),
            ("*a", &["a", "ba"], &["ab"]),
            ("a*b*c", &["abc", "axbxc", "abcbc"], &["ab", "abcx", "xabc"]),
            (
                "repo:a/b:*",
                &["repo:a/b:ref:x"],
                &["repo:a/b", "repo:a/bb:x", "xrepo:a/b:x"],
            ),
        ] {
            for value in matching {
                assert!(pattern(text).matches(value), "{text} {value}");
            }
            for value in other {
                assert!(!pattern(text).matches(value), "{text} {value}");
            }
        }
        // A star in a value stands for itself.
        assert!(!pattern("abc").matches("a*c"));
        for wrong in ["", "*", "***", "a\nb", "*a*b*c*d*e*f*g*h*i"] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn patterns_meet_exactly_where_some_value_is_of_both(a in "[ab*]{1,5}", b in "[ab*]{1,5}") {
            let (Ok(a), Ok(b)) = (a.parse::<Pattern>(), b.parse::<Pattern>()) else {
                return Ok(());
            };
            // If two such patterns have a common value, they have one of at most this length.
            let mut values = vec![String::new()];
            let mut found = false;
            for _ in 0..=8 {
                found |= values.iter().any(|value| a.matches(value) && b.matches(value));
                values = values.iter().flat_map(|v| [format!("{v}a"), format!("{v}b")]).collect();
            }
            prop_assert_eq!(a.intersects(&b), found, "{} {}", a, b);
            prop_assert_eq!(a.intersects(&b), b.intersects(&a));
        }
    }

    #[test]
    fn every_rule_must_hold() {
        let rule = identity(
            "repo:acme/pay:*",
            &[("repository_id", "42"), ("private", "true")],
        );
        let claims = |json: Value| json.as_object().unwrap().clone();
        let good = claims(json!({"repository_id": "42", "private": true, "more": [1]}));
        assert!(rule.matches("repo:acme/pay:ref", &[], &good));
        assert!(!rule.matches("repo:acme/other:ref", &[], &good));
        for bad in [
            json!({"repository_id": "42"}),
            json!({"repository_id": 43, "private": true}),
            json!({"repository_id": ["42"], "private": true}),
            json!({"repository_id": null, "private": true}),
            json!({"Repository_id": "42", "private": true}),
        ] {
            assert!(!rule.matches("repo:acme/pay:ref", &[], &claims(bad)));
        }
        let narrower = OidcIdentity {
            audience: Some("x".to_owned()),
            ..rule
        };
        assert!(!narrower.matches("repo:acme/pay:ref", &["y".to_owned()], &good));
        assert!(narrower.matches(
            "repo:acme/pay:ref",
            &["y".to_owned(), "x".to_owned()],
            &good
        ));
    }

    #[test]
    fn rules_are_apart_by_subject_or_by_a_claim_that_both_name() {
        let one = identity("repo:acme/*", &[("repository_id", "1")]);
        assert!(one.overlaps(&identity("repo:*", &[])));
        assert!(one.overlaps(&identity("repo:acme/pay", &[("environment", "prod")])));
        assert!(!one.overlaps(&identity("repo:acme/pay", &[("repository_id", "2")])));
        assert!(!one.overlaps(&identity("repo:other/*", &[])));
        let elsewhere = OidcIdentity {
            issuer: "https://other.example".to_owned(),
            ..one.clone()
        };
        assert!(!one.overlaps(&elsewhere));
        assert!(identity("a", &[("iss", "x")]).check().is_err());
        assert!(one.check().is_ok());
    }
}
