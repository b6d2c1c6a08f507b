//! AWS emulator, started once per test process and stopped with it: the launcher exits when its
//! standard input closes.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use super::{report, stored::Engine};

/// `off` starts the emulator without enforcement: the negative control.
pub const ENFORCEMENT: &str = "CREDBROKER_TEST_ENFORCEMENT";

/// Variable that marks the processes that this one starts. The launcher kills them if this process
/// was killed before it could.
pub const TEST_RUN: &str = "CREDBROKER_TEST_RUN";

pub fn enforces() -> bool {
    std::env::var_os(ENFORCEMENT).is_none_or(|value| value != "off")
}

pub struct Emulator {
    pub endpoint: String,
    /// Directory of `aws` and `parliament`.
    pub bin: PathBuf,
    _launcher: Child,
}

pub fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(start)
}

fn start() -> Emulator {
    report::note(
        "binary",
        &std::env::current_exe().unwrap().to_string_lossy(),
    );
    report::note("store", &format!("{:?}", Engine::chosen()));
    let auth = std::env::var(ENFORCEMENT).unwrap_or_else(|_| "on".to_owned());
    let mut launcher = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator.py"))
        .args(["run", "--auth", &auth])
        .env(TEST_RUN, std::process::id().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    let mut line = String::new();
    let stdout = launcher.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).expect("the emulator starts");
    Emulator {
        endpoint: told["endpoint"].as_str().unwrap().to_owned(),
        bin: told["bin"].as_str().unwrap().into(),
        _launcher: launcher,
    }
}
