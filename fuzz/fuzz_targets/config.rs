//! Configuration file: it is used, or every mistake is reported.
#![no_main]

use credbroker::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(mistakes) = Config::parse(text) {
        assert!(!mistakes.is_empty());
    }
});
