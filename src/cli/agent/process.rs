//! The agent among other processes: what it ends with.

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

use crate::cli::failure::Failure;

/// How often it is looked whether another process is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Starts the same once more, so that it is no child of whoever started this, waits until it
/// has told where it is, and leaves it alone.
pub(super) async fn detach() -> Result<(), Failure> {
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
        .map_err(|error| Failure::unexpected(error.to_string()))?;
    match ended? {
        Some(0) => Ok(()),
        // It has told why.
        code => exit(code.unwrap_or(1)),
    }
}

/// Until somebody ends this process, in whatever way a process is told to.
pub(super) async fn told_to_end() -> Result<(), Failure> {
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

/// Until another process has ended, whatever program that runs by then.
pub(super) async fn end_of(process: Pid) {
    let mut looks = interval(LOOK_EVERY);
    // One that may not be asked is there all the same.
    while test_kill_process(process) != Err(Errno::SRCH) {
        looks.tick().await;
    }
}
