//! Child processes, so that the cost of each can be measured alone.

use std::{fs, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child as Process, ChildStdout, Command},
};

/// Ticks per second of the times in `/proc`.
const TICKS: f64 = 100.0;

/// Second process of this program; ends with this process.
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

    /// Reads the next line that the child prints.
    pub async fn line(&mut self) -> String {
        self.lines.next_line().await.unwrap().unwrap()
    }
}

/// Waits until the process that has started this one has ended.
pub async fn orphaned() {
    let reading = tokio::task::spawn_blocking(|| std::io::stdin().lines().count());
    let _ = reading.await;
}

/// CPU seconds of a process so far, in all its threads.
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

/// Resident memory of a process, MiB: now (`VmRSS`), or its peak (`VmHWM`).
pub fn memory(process: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kilobytes = line.unwrap().trim_matches([':', ' ', '\t']);
    let kilobytes: u64 = kilobytes.split(' ').next().unwrap().parse().unwrap();
    kilobytes / 1024
}
