//! The agent and other processes: signals, detaching, and the process that it ends with.

use std::{
    env,
    io::{BufRead, BufReader, Write, stdout},
    process::{Command, Stdio, exit},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::interval,
};

use crate::cli::error::CliError;

/// Interval between checks that another process still exists.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts this program again with `--detached`, waits until it has printed its URL, and leaves it
/// running. The new process is no child of the process that started this one.
pub(super) async fn detach() -> Result<(), CliError> {
    let mut agent = Command::new(env::current_exe()?);
    agent.args(env::args_os().skip(1)).arg("--detached");
    agent.stdout(Stdio::piped());
    let ended = spawn_blocking(move || {
        let mut agent = agent.spawn()?;
        let mut url = String::new();
        if let Some(told) = agent.stdout.take() {
            BufReader::new(told).read_line(&mut url)?;
        }
        if url.is_empty() {
            return agent.wait().map(|ended| ended.code());
        }
        stdout().write_all(url.as_bytes()).map(|()| Some(0))
    });
    let ended = ended
        .await
        .map_err(|error| CliError::unexpected(error.to_string()))?;
    match ended? {
        Some(0) => Ok(()),
        // The agent has printed the reason.
        code => exit(code.unwrap_or(1)),
    }
}

/// Waits for a signal that ends the process: SIGHUP, SIGINT, SIGQUIT or SIGTERM.
pub(super) async fn told_to_end() -> Result<(), CliError> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = hangup.recv() => {}
        _ = interrupt.recv() => {}
        _ = quit.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Waits until another process has ended. A process that replaces its program (`exec`) continues.
pub(super) async fn end_of(process: Pid) {
    let mut looks = interval(LOOK_EVERY);
    // A process that this user may not signal exists all the same.
    while test_kill_process(process) != Err(Errno::SRCH) {
        looks.tick().await;
    }
}
