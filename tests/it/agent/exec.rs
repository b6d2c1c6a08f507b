//! `credbroker exec`: a command with credentials, and with no others.

use std::{
    fs, io::ErrorKind, os::unix::process::ExitStatusExt, path::PathBuf, process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
};

use super::{command, served};
use crate::harness::{Key, Run, World, eventually};

/// Command that prints its whole environment as JSON.
const SHOW: [&str; 3] = [
    "python3",
    "-c",
    "import json, os; print(json.dumps(dict(os.environ)))",
];

async fn shown(world: &World, grant: &str) -> Value {
    let args = [&["exec", grant, "--"], &SHOW[..]].concat();
    let mut command = command(world, &args);
    for variable in [
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "CREDBROKER_TOKEN_FILE",
    ] {
        command.env(variable, "of the parent's");
    }
    command
        .env_remove("CREDBROKER_TOKEN_FILE")
        .env("AWS_REGION", "eu-central-1");
    Run::of(command, "").await.ok().json()
}

#[tokio::test]
async fn a_command_has_these_credentials_and_no_others() {
    let world = World::new().await;
    for grant in ["role", "user"] {
        let env = shown(&world, grant).await;
        let text = |name: &str| env[name].as_str().map(ToOwned::to_owned);
        let key = Key {
            id: text("AWS_ACCESS_KEY_ID").unwrap(),
            secret: text("AWS_SECRET_ACCESS_KEY").unwrap(),
            token: text("AWS_SESSION_TOKEN"),
        };
        assert!(key.works().await);
        assert_eq!(key.token.is_some(), grant == "role");
        assert!(text("AWS_CREDENTIAL_EXPIRATION").is_some());
        assert_eq!(text("AWS_REGION").unwrap(), "eu-central-1");
        let all = env.to_string();
        assert!(!all.contains("of the parent's"), "{all}");
        assert!(!all.contains(&world.token), "{all}");
        let lease = text("CREDBROKER_LEASE_ID").unwrap();
        let shown = world.broker.json(&["lease", "show", &lease]).await;
        assert_eq!(shown["state"], "active");
    }
}

#[tokio::test]
async fn exit_status_and_signals_are_the_commands_own() {
    let world = World::new().await;
    for refresh in [&[][..], &["--refresh"]] {
        let run = async |script: &str| {
            let args = [&["exec", "role"], refresh, &["--", "sh", "-c", script]].concat();
            command(&world, &args).status().await.unwrap()
        };
        assert_eq!(run("exit 7").await.code(), Some(7));
        assert_eq!(run("kill -TERM $$").await.signal(), Some(15));
        let args = [&["exec", "role"], refresh, &["--", "/no/such/program"]].concat();
        let missing = Run::of(command(&world, &args), "").await;
        missing.fails(2, &["cannot run /no/such/program"]);
        let args = [&["exec", "nothing"], refresh, &["--", "true"]].concat();
        let refused = Run::of(command(&world, &args), "").await;
        refused.fails(5, &["there is no grant"]);
    }
    let args = ["exec", "user", "--refresh", "--", "true"];
    let refused = Run::of(command(&world, &args), "").await;
    refused.fails(6, &["iam_user", "without --refresh"]);
}

/// Directory in `/proc` of the agent of a process.
fn agent_of(pid: u32) -> PathBuf {
    let of_pid = format!("--for-process\0{pid}\0");
    let processes = fs::read_dir("/proc").unwrap();
    let is_agent = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&of_pid)
    };
    let mut processes = processes.map(|process| process.unwrap().path());
    processes.find(is_agent).unwrap()
}

#[tokio::test]
async fn the_agent_is_no_child_of_the_command() {
    let world = World::new().await;
    let script = "import os\ntry:\n    os.wait()\nexcept ChildProcessError:\n    print('alone')";
    let args = ["exec", "role", "--refresh", "--", "python3", "-c", script];
    let run = Run::of(command(&world, &args), "");
    let run = tokio::time::timeout(Duration::from_secs(20), run).await;
    assert_eq!(run.unwrap().ok().stdout.trim(), "alone");
}

#[tokio::test]
async fn a_long_command_has_an_endpoint_of_its_own_that_ends_with_it() {
    let world = World::new().await;
    let script =
        "echo $AWS_CONTAINER_CREDENTIALS_FULL_URI; echo \"key: $AWS_ACCESS_KEY_ID\"; read line";
    let args = ["exec", "role", "--refresh", "--", "sh", "-c", script];
    let mut command = command(&world, &args);
    command
        .env("AWS_ACCESS_KEY_ID", "AKIAOFTHEPARENT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next_line().await.unwrap().unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "key: ");
    assert!(served(&url).await.works().await);
    // Root alone may read the agent's environment, which has no token of the broker.
    let agent = agent_of(child.id().unwrap());
    match fs::read(agent.join("environ")) {
        Ok(environment) => {
            assert!(!String::from_utf8_lossy(&environment).contains(&world.token));
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
    }
    drop(child.stdin.take());
    assert!(!child.wait().await.unwrap().success());
    let address = url[7..].split_once('/').unwrap().0.to_owned();
    let gone = async || TcpStream::connect(&address).await.is_err().then_some(());
    eventually("the endpoint ends", gone).await;
}
