//! Modules that npm installs for the tests: the JavaScript SDK, and AWS's list of its actions.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Directory of the modules that `tests/sdks/package-lock.json` pins, installed once.
pub fn node_modules() -> &'static Path {
    static MODULES: OnceLock<PathBuf> = OnceLock::new();
    MODULES.get_or_init(|| {
        let setup = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdks/setup.py"))
            .stderr(Stdio::inherit())
            .output()
            .expect("python3 is installed");
        assert!(setup.status.success(), "the modules of npm are missing");
        String::from_utf8(setup.stdout).unwrap().trim().into()
    })
}
