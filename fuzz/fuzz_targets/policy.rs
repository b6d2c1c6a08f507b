//! A policy document: what is taken is written as it is read.
#![no_main]

use credbroker::domain::policy::Document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(policy) = Document::parse(text) else {
        return;
    };
    policy.breadth();
    policy.denies_minting();
    let written = policy.to_json();
    let again = Document::parse(&written).expect("what it writes");
    assert_eq!(again, policy);
    assert_eq!(again.to_json(), written);
});
