//! A policy document: an accepted document is printed as it was read.
#![no_main]

use credbroker::domain::policy::{Document, strength};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(policy) = Document::parse(text) else {
        return;
    };
    policy.breadth();
    let _ = strength(&policy);
    let written = policy.to_json();
    let again = Document::parse(&written).expect("what it writes");
    assert_eq!(again, policy);
    assert_eq!(again.to_json(), written);
});
