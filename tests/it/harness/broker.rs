//! A broker process and its command line.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

use super::{
    Account, Key,
    aws::REGION,
    emulator::{TEST_RUN, emulator},
    eventually, free_address,
    stored::{Engine, Stored},
};

pub const BINARY: &str = env!("CARGO_BIN_EXE_credbroker");

type Log = Arc<Mutex<String>>;

/// `credbroker dev` in a directory of its own; killed when dropped.
pub struct Broker {
    pub state: PathBuf,
    pub env: Vec<(String, String)>,
    pub store: Stored,
    /// Lines that the process has logged on standard error, over all its starts.
    pub log: Log,
    child: Mutex<Child>,
    directory: Option<TempDir>,
}

impl Broker {
    /// Starts a broker with the admin key of `account`.
    pub async fn start(account: &Account) -> Self {
        Self::start_with(&account.admin, &emulator().endpoint).await
    }

    /// Starts a broker with this admin key that reaches AWS at `endpoint`.
    pub async fn start_with(admin: &Key, endpoint: &str) -> Self {
        Self::start_by(|state| dev(state, admin, endpoint)).await
    }

    /// Starts a broker in a directory of its own by a command of the test, which gets the state
    /// directory.
    pub async fn start_by(command: impl FnOnce(&Path) -> Command) -> Self {
        let fresh = |state: &Path| Stored::fresh(Engine::chosen(), state.join("credbroker.db"));
        Self::start_on(fresh, command).await
    }

    /// Starts such a broker on a store of the test.
    pub async fn start_on(
        store: impl FnOnce(&Path) -> Stored,
        command: impl FnOnce(&Path) -> Command,
    ) -> Self {
        let directory = TempDir::new().unwrap();
        let state = directory.path().join("state");
        let (log, store) = (Log::default(), store(&state));
        // Address like after an earlier start: it stays free for each later start.
        std::fs::create_dir(&state).unwrap();
        let address = free_address();
        let env = format!(
            "export CREDBROKER_ADDR='https://{address}'\nexport CREDBROKER_TOKEN='unknown'\n"
        );
        std::fs::write(state.join("env"), env).unwrap();
        let child = ready(command(&state), &store, Arc::clone(&log)).await;
        Self {
            env: read_env(&state),
            store,
            state,
            log,
            child: Mutex::new(child),
            directory: Some(directory),
        }
    }

    /// Starts the same broker again, after it has ended.
    pub async fn start_again(self, admin: &Key, endpoint: &str) -> Self {
        self.start_again_by(|state| dev(state, admin, endpoint))
            .await
    }

    /// Starts it again by a command of the test, which gets the state directory.
    pub async fn start_again_by(mut self, command: impl FnOnce(&Path) -> Command) -> Self {
        let (state, directory) = (self.state.clone(), self.directory.take());
        let (log, store) = (Arc::clone(&self.log), self.store.clone());
        // The process may have ended already. Its locks are free once it has exited.
        let child = self.child.get_mut().unwrap();
        let _ = child.start_kill();
        child.wait().await.unwrap();
        let child = ready(command(&state), &store, Arc::clone(&log)).await;
        Self {
            env: read_env(&state),
            store,
            state,
            log,
            child: Mutex::new(child),
            directory,
        }
    }

    pub fn pid(&self) -> String {
        self.child.lock().unwrap().id().unwrap().to_string()
    }

    /// Sends SIGTERM to the broker.
    pub async fn terminate(&self) {
        let pid = self.pid();
        let kill = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(kill.await.unwrap().success());
    }

    /// Stops the broker gracefully. Returns true if it exits with success.
    pub async fn stop(&mut self) -> bool {
        self.terminate().await;
        self.ended().await
    }

    /// Waits for the broker's end. Returns true if it exits with success.
    pub async fn ended(&mut self) -> bool {
        let child = self.child.get_mut().unwrap();
        child.wait().await.unwrap().success()
    }

    pub fn is_dead(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_some()
    }

    /// Kills the broker in the middle of any work.
    pub async fn kill(&mut self) {
        self.child.get_mut().unwrap().kill().await.unwrap();
    }

    /// Function that kills the broker, for use from any thread.
    pub fn killer(&self) -> impl Fn() + Send + Sync + use<> {
        let pid = self.pid();
        move || {
            let mut kill = std::process::Command::new("kill");
            kill.args(["-KILL", &pid]).status().unwrap();
        }
    }

    pub fn database(&self) -> PathBuf {
        self.state.join("credbroker.db")
    }

    /// Changes the store behind the broker's back.
    pub async fn write_store(&self, sql: &str) {
        self.store.write(sql).await;
    }

    /// Moves open work an hour into the past, behind the broker's back: deadlines and the
    /// consistency window have passed.
    pub async fn let_time_pass(&self) {
        self.write_store(
            "UPDATE leases SET requested_at = requested_at - 3600000000, due_at = due_at - 3600000000,
                               made_by = made_by - 3600000000
             WHERE state IN ('pending', 'revoking', 'quarantined')",
        )
        .await;
        self.write_store(
            "UPDATE leases SET due_at = replacing_until - 3600000000, replacing_until = replacing_until - 3600000000
             WHERE replacing_until IS NOT NULL",
        )
        .await;
        self.write_store("UPDATE admin_key SET due_at = due_at - 3600000000")
            .await;
    }

    /// Returns the result of a query on the store, as one number.
    pub async fn count(&self, sql: &str) -> i64 {
        self.store.count(sql).await
    }

    /// Returns the result of a query on the store, as text.
    pub async fn text(&self, sql: &str) -> Option<String> {
        self.store.text(sql).await
    }

    /// Runs `credbroker ARGS` as the admin operator.
    pub async fn run(&self, args: &[&str]) -> Run {
        self.run_as(None, args).await
    }

    /// Runs `credbroker ARGS` with another token.
    pub async fn run_as(&self, token: Option<&str>, args: &[&str]) -> Run {
        self.run_in(token, args, "").await
    }

    /// Runs `credbroker ARGS` with this standard input.
    pub async fn run_in(&self, token: Option<&str>, args: &[&str], input: &str) -> Run {
        let mut command = self.command(args);
        if let Some(token) = token {
            command.env("CREDBROKER_TOKEN", token);
        }
        Run::of(command, input).await
    }

    /// Command `credbroker ARGS` as the broker's operator, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = credbroker(args);
        command.envs(self.env.iter().cloned());
        command
    }

    /// Returns the JSON that `credbroker ARGS -o json` prints; the command must succeed.
    pub async fn json(&self, args: &[&str]) -> Value {
        self.json_as(None, args).await
    }

    pub async fn json_as(&self, token: Option<&str>, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        self.run_as(token, &args).await.ok().json()
    }

    /// Runs `revoke` with these arguments, and returns its JSON.
    pub async fn revoked(&self, args: &[&str]) -> Value {
        let args = [&["revoke"], args, &["-o", "json"]].concat();
        self.run(&args).await.revoked()
    }

    /// Registers a service and returns its token.
    pub async fn service(&self, name: &str) -> String {
        self.run(&["service", "create", name]).await.ok();
        let token = self.json(&["service", "token", "create", name]).await;
        token["token"].as_str().unwrap().to_owned()
    }

    /// Puts a grant with an inline policy.
    pub async fn grant(&self, name: &str, flags: &[&str], policy: &Value) {
        let args: Vec<&str> = ["grant", "put", name, "--policy-file", "-"]
            .into_iter()
            .chain(flags.iter().copied())
            .collect();
        self.run_in(None, &args, &policy.to_string()).await.ok();
    }

    /// Issues under a grant, as the service with this token.
    pub async fn issue(&self, token: &str, grant: &str) -> Value {
        self.json_as(Some(token), &["issue", grant]).await
    }

    /// Returns the audit log from its beginning.
    pub async fn audit(&self) -> Vec<Value> {
        let records = self.json(&["audit", "query"]).await;
        records.as_array().unwrap().clone()
    }
}

impl Broker {
    /// Starts another replica on the same database, with the same keys and operators, by a command
    /// of the test.
    pub async fn beside_by(&self, command: impl FnOnce(&Path) -> Command) -> Self {
        self.beside_on(self.store.clone(), command).await
    }

    /// Starts such a replica that reaches the database by another way.
    pub async fn beside_on(&self, store: Stored, command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = TempDir::new().unwrap();
        let state = directory.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let signed = async || self.state.join("checkpoint").exists().then_some(());
        eventually("the first checkpoint", signed).await;
        for file in ["ca.pem", "ca-key.pem", "seal.key", "checkpoint"] {
            std::fs::copy(self.state.join(file), state.join(file)).unwrap();
        }
        let address = format!("https://{}", free_address());
        let env = std::fs::read_to_string(self.state.join("env")).unwrap();
        let mine = self.setting("CREDBROKER_ADDR");
        std::fs::write(state.join("env"), env.replace(mine, &address)).unwrap();
        let log = Log::default();
        let child = ready(command(&state), &store, Arc::clone(&log)).await;
        Self {
            env: read_env(&state),
            store,
            state,
            log,
            child: Mutex::new(child),
            directory: Some(directory),
        }
    }

    /// Sends the broker a signal: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let mut kill = std::process::Command::new("kill");
        let sent = kill.args([&format!("-{name}"), &self.pid()]).status();
        assert!(sent.unwrap().success());
    }
}

/// Divisor of the broker's waits for other parties.
pub const HASTE: u32 = 4;

/// Command `credbroker ARGS` with nothing of this process's environment but `PATH`.
pub fn credbroker(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env(TEST_RUN, std::process::id().to_string())
        .env("CREDBROKER_TEST_HASTE", HASTE.to_string());
    command.kill_on_drop(true);
    command
}

/// Command `credbroker dev`, not yet started.
pub fn dev(state: &Path, admin: &Key, endpoint: &str) -> Command {
    let mut command = credbroker(&[
        "dev",
        "--state-dir",
        state.to_str().unwrap(),
        "--aws-endpoint",
        endpoint,
    ]);
    command.envs(aws_env(admin));
    command
}

pub fn aws_env(key: &Key) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ACCESS_KEY_ID", key.id.clone()),
        ("AWS_SECRET_ACCESS_KEY", key.secret.clone()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
}

/// Starts the broker and waits until it reports that it is ready.
async fn ready(mut command: Command, store: &Stored, kept: Log) -> Child {
    store.given_to(&mut command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    match lines.next_line().await.unwrap().as_deref() {
        Some("ready") => {}
        other => {
            let mut told = Vec::new();
            while let Some(line) = log.next_line().await.unwrap() {
                told.push(line);
            }
            panic!("not ready but {other:?}: {}", told.join("\n"));
        }
    }
    // The test continues to read the log, so that the broker never waits for a reader.
    tokio::spawn(async move {
        while let Ok(Some(line)) = log.next_line().await {
            let mut kept = kept.lock().unwrap();
            kept.push_str(&line);
            kept.push('\n');
        }
    });
    child
}

fn read_env(state: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(state.join("env")).unwrap();
    let pair = |line: &str| {
        let (name, value) = line
            .strip_prefix("export ")
            .unwrap()
            .split_once('=')
            .unwrap();
        (name.to_owned(), value.trim_matches('\'').to_owned())
    };
    text.lines().map(pair).collect()
}

/// Longest time that a command may take: a script starts the AWS CLI fifty times.
const LONGEST_RUN: Duration = Duration::from_mins(3);

/// Result of a command.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub async fn of(mut command: Command, input: &str) -> Self {
        let mut child = Self::spawn(command.stdin(Stdio::piped()));
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing may have ended before this write.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        Self::ended(child).await
    }

    /// Runs the command with a terminal as standard input, at which the test types a line.
    pub async fn at_terminal(mut command: Command, typed: &str) -> Self {
        let mut keyboard = File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let path = ptsname(&keyboard, Vec::new()).unwrap();
        let terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path.to_str().unwrap());
        writeln!(keyboard, "{typed}").unwrap();
        Self::ended(Self::spawn(command.stdin(terminal.unwrap()))).await
    }

    fn spawn(command: &mut Command) -> Child {
        let outputs = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        outputs.spawn().unwrap()
    }

    async fn ended(child: Child) -> Self {
        let output = tokio::time::timeout(LONGEST_RUN, child.wait_with_output()).await;
        let output = output.expect("the command ends").unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Asserts this exit status, and that standard error contains all of `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} in {self:#?}");
        }
        self
    }

    /// Returns the JSON of `revoke`; asserts success if AWS was seen to refuse everything.
    #[track_caller]
    pub fn revoked(self) -> Value {
        let told = self.json();
        let expected = if told["confirmed"] == true { 0 } else { 7 };
        assert_eq!(self.code, expected, "{self:#?}");
        told
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}
