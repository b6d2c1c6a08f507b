//! Other processes, so that what each of them costs can be told apart.

use std::{fs, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child as Process, ChildStdout, Command},
};

/// Of the times in `/proc`, a second.
const TICKS: f64 = 100.0;

/// This program once more, beside itself; ended with this process.
pub struct Child {
    _process: Process,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("beside").args(args).kill_on_drop(true);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = piped.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self {
            _process: process,
            lines,
        }
    }

    /// The next line that it prints.
    pub async fn line(&mut self) -> String {
        self.lines.next_line().await.unwrap().unwrap()
    }
}

/// Waits until the process is gone that has started this one.
pub async fn orphaned() {
    let reading = tokio::task::spawn_blocking(|| std::io::stdin().lines().count());
    let _ = reading.await;
}

/// The seconds that a process has worked for so far, in all its threads.
pub fn cpu(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name, in parentheses, may hold anything; user and system time are the 14th and 15th.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    ticks
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / TICKS
}

/// The memory of a process that is not elsewhere, MiB: now (`VmRSS`), or ever (`VmHWM`).
pub fn memory(process: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kilobytes = line.unwrap().trim_matches([':', ' ', '\t']);
    let kilobytes: u64 = kilobytes.split(' ').next().unwrap().parse().unwrap();
    kilobytes / 1024
}
