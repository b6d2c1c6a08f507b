//! Notes on what a run of the tests left out. `tests/summary.rs`, which cargo starts after this
//! binary, prints them.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::process::parent_id,
    path::{Path, PathBuf},
};

use super::emulator::enforces;

/// The file that this binary and the summary of the same `cargo test` know.
fn file() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{}", parent_id()))
}

/// Adds a line. A control run, which another test has started, leaves nothing out.
pub fn note(kind: &str, text: &str) {
    if !enforces() {
        return;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file())
        .unwrap();
    file.write_all(format!("{kind}\t{text}\n").as_bytes())
        .unwrap();
}

/// The test that runs in this thread.
pub fn test_name() -> String {
    let thread = std::thread::current();
    thread.name().unwrap_or("a test").to_owned()
}
