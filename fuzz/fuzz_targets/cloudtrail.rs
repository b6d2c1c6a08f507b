//! CloudTrail's files.
#![no_main]

use credbroker::audit::cloudtrail::Trail;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let mut trail = Trail::default();
    let _ = trail.read(file);
});
