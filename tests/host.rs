//! Prints one line for each program that this host lacks for the integration tests, with the way to
//! install it. Runs before the tests.

use std::{env, path::Path, process::Command};

/// A program that the tests start.
struct Program {
    name: &'static str,
    /// Prints something like `Python 3.11.7`.
    version: &'static [&'static str],
    oldest: (u32, u32),
    install: &'static str,
}

const PROGRAMS: [Program; 4] = [
    Program {
        name: "Python 3.10 or newer",
        version: &["python3", "--version"],
        oldest: (3, 10),
        install: "apt-get install python3 python3-venv",
    },
    Program {
        name: "the Python module venv",
        version: &["python3", "-c", "import ensurepip, venv; print('1.0')"],
        oldest: (1, 0),
        install: "apt-get install python3-venv",
    },
    Program {
        name: "Node.js 20 or newer",
        version: &["node", "--version"],
        oldest: (20, 0),
        install: "apt-get install nodejs, or a package of nodejs.org where that is older",
    },
    Program {
        name: "npm",
        version: &["npm", "--version"],
        oldest: (1, 0),
        install: "apt-get install npm",
    },
];

fn main() {
    // With a filter only some programs may be needed.
    if env::args().len() > 1 {
        return;
    }
    let mut missing: Vec<_> = PROGRAMS.iter().filter_map(Program::missing).collect();
    missing.extend(postgres_missing());
    for line in &missing {
        eprintln!("missing: {line}");
    }
    std::process::exit(i32::from(!missing.is_empty()));
}

impl Program {
    /// Returns the name and the way to install it, unless the program exists and is new enough.
    fn missing(&self) -> Option<String> {
        let found = found(self.version);
        if found.is_some_and(|version| version >= self.oldest) {
            return None;
        }
        let Self { name, install, .. } = self;
        Some(format!("{name}. Debian and Ubuntu: {install}"))
    }
}

/// The first two numbers that the command prints.
fn found(command: &[&str]) -> Option<(u32, u32)> {
    let (program, args) = command.split_first()?;
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let numbers = text
        .trim()
        .trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut numbers = numbers.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `tests/postgres.py` installs PostgreSQL itself if it may.
fn postgres_missing() -> Option<String> {
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres.py");
    let output = Command::new("python3")
        .arg(check)
        .arg("--check")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (!output.status.success()).then_some(text)
}
