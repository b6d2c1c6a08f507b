//! `credbroker agent`: a loopback endpoint for the SDKs of one machine.

mod exec;
mod library;

use std::{
    fs::{self, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use crate::harness::{Key, Run, World, broker::credbroker, eventually, eventually_within};

/// An agent of `payments-api`, with its directory and AWS files of its own.
pub(crate) struct Agent {
    home: TempDir,
    child: Child,
    /// Lines that the agent has printed for each grant.
    told: Vec<Value>,
}

impl Agent {
    /// Starts an agent with these grants, and more flags.
    pub(crate) async fn start(world: &World, grants: &[&str], flags: &[&str]) -> Self {
        Self::start_in(TempDir::new().unwrap(), world, grants, flags).await
    }

    async fn start_in(home: TempDir, world: &World, grants: &[&str], flags: &[&str]) -> Self {
        let grants_flags = grants.iter().flat_map(|grant| ["--grant", grant]);
        let args: Vec<&str> = ["agent", "-o", "json"]
            .into_iter()
            .chain(grants_flags)
            .chain(flags.iter().copied())
            .collect();
        let mut command = command(world, &args);
        command
            .env("XDG_RUNTIME_DIR", home.path())
            .env("AWS_SHARED_CREDENTIALS_FILE", home.path().join("aws"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told = Vec::new();
        for _ in grants {
            let line = lines.next_line().await.unwrap().expect("it serves");
            told.push(serde_json::from_str(&line).unwrap());
        }
        Self { home, child, told }
    }

    fn env_file(&self, number: usize) -> PathBuf {
        self.told[number]["env_file"].as_str().unwrap().into()
    }

    /// URL of the credentials of the grant with this number.
    pub(crate) fn url(&self, number: usize) -> String {
        let line = fs::read_to_string(self.env_file(number)).unwrap();
        let url = line.strip_prefix("AWS_CONTAINER_CREDENTIALS_FULL_URI=");
        url.unwrap().trim_end().to_owned()
    }

    /// Answer for the agent's first grant: the document, or the error.
    pub(crate) async fn credentials(&self) -> Value {
        ask(&self.url(0)).await.1
    }

    /// Stops the agent gracefully.
    async fn stop(mut self) -> TempDir {
        let pid = self.child.id().unwrap().to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(kill.await.unwrap().success());
        assert!(self.child.wait().await.unwrap().success());
        self.home
    }
}

/// A command of the service, not yet started.
fn command(world: &World, args: &[&str]) -> Command {
    let mut command = credbroker(args);
    command
        .envs(world.broker.env.iter().cloned())
        .env("CREDBROKER_TOKEN", &world.token);
    command
}

/// Sends a GET. Returns the status and the document.
async fn ask(url: &str) -> (u16, Value) {
    ask_with(url, "GET", &[]).await
}

/// Sends these headers; a `Host` among them replaces the right one.
async fn ask_with(url: &str, method: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let (_, path) = url[7..].split_once('/').unwrap();
    ask_for(url, method, &format!("/{path}"), headers).await
}

/// Sends another target to the endpoint of this URL.
async fn ask_for(url: &str, method: &str, target: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let (host, _) = url[7..].split_once('/').unwrap();
    let mut request =
        format!("{method} {target} HTTP/1.1\r\nAccept: application/json\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        request.extend(["Host: ", host, "\r\n"]);
    }
    for (name, value) in headers {
        request.extend([*name, ": ", *value, "\r\n"]);
    }
    let mut stream = TcpStream::connect(host).await.unwrap();
    stream
        .write_all(format!("{request}\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn key(document: &Value) -> Key {
    let text = |name: &str| document[name].as_str().unwrap().to_owned();
    Key {
        id: text("AccessKeyId"),
        secret: text("SecretAccessKey"),
        token: Some(text("Token")),
    }
}

async fn served(url: &str) -> Key {
    let (status, document) = ask(url).await;
    assert_eq!(status, 200, "{document}");
    key(&document)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn sdks_of_the_machine_get_sessions_of_several_grants_and_one_each() {
    let world = World::new().await;
    let agent = Agent::start(&world, &["role", "payments-api/federation"], &[]).await;
    for number in [0, 1] {
        let url = agent.url(number);
        let first = served(&url).await;
        assert!(first.works().await);
        assert_eq!(served(&url).await.id, first.id, "asked again");
        assert_eq!(mode(&agent.env_file(number)), 0o600);
    }
    assert_eq!(mode(&agent.home.path().join("credbroker")), 0o700);
    assert_ne!(agent.url(0), agent.url(1));
    assert_eq!(world.leases().await.len(), 2);
    // A printed address stays valid for later starts.
    let url = agent.url(1);
    assert!(url.ends_with("/role"), "{url}");
    let listen = url[7..].split_once('/').unwrap().0.to_owned();
    let home = agent.stop().await;
    assert_eq!(
        fs::read_dir(home.path().join("credbroker"))
            .unwrap()
            .count(),
        1
    );
    let again = Agent::start_in(home, &world, &["role"], &["--listen", &listen]).await;
    assert_eq!(again.url(0), url);
    served(&url).await;
    // The secret changes with the address: another process may have the old address.
    let home = again.stop().await;
    let moved = Agent::start_in(home, &world, &["role"], &[]).await;
    let secret = |url: &str| url.rsplit('/').nth(1).unwrap().to_owned();
    assert_ne!(secret(&moved.url(0)), secret(&url));
}

#[tokio::test]
async fn an_agent_directory_open_to_others_is_refused() {
    let world = World::new().await;
    let home = TempDir::new().unwrap();
    let dir = home.path().join("credbroker");
    fs::create_dir(&dir).unwrap();
    let beside = home.path().to_owned();
    let run = async |runtime: &str| {
        let mut command = command(&world, &["agent", "--grant", "role"]);
        command.env("XDG_RUNTIME_DIR", runtime).current_dir(&beside);
        Run::of(command, "").await
    };
    let runtime = home.path().to_str().unwrap().to_owned();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    let open = run(&runtime).await;
    open.fails(2, &["others may look into it; chmod 700 it"]);
    for relative in ["", "here"] {
        let nowhere = run(relative).await;
        nowhere.fails(2, &["XDG_RUNTIME_DIR names no directory"]);
    }
    fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
    // An incomplete secret is ignored.
    fs::write(dir.join("secret"), "").unwrap();
    let mut agent = Agent::start_in(home, &world, &["role"], &[]).await;
    assert_eq!(agent.url(0).rsplit('/').nth(1).unwrap().len(), 43);
    let second = run(&runtime).await;
    second.fails(6, &["another agent has its files", "next: end it"]);
    let pid = agent.child.id().unwrap().to_string();
    let hang_up = Command::new("kill").args(["-HUP", &pid]).status();
    assert!(hang_up.await.unwrap().success());
    assert!(agent.child.wait().await.unwrap().success());
    assert!(!agent.env_file(0).exists());
}

/// Sends as many requests as the endpoint accepts, and reads nothing.
async fn unread(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    let asked = b"GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n".repeat(1000);
    // A short wait shows that the endpoint accepts no more.
    while timeout(Duration::from_millis(100), stream.writable())
        .await
        .is_ok()
    {
        match stream.try_write(&asked) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    stream
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_block_other_clients() {
    let world = World::new().await;
    let agent = Agent::start(&world, &["role"], &[]).await;
    let url = agent.url(0);
    served(&url).await;
    let address = url[7..].split_once('/').unwrap().0.to_owned();
    let mut unread = JoinSet::new();
    for _ in 0..256 {
        let address = address.clone();
        unread.spawn(async move { super::agent::unread(&address).await });
    }
    let held = unread.join_all().await;
    let served_again = async || {
        let url = url.clone();
        let asked = tokio::spawn(async move { ask(&url).await.0 });
        (asked.await.ok() == Some(200)).then_some(())
    };
    eventually_within(15, "there is room again", served_again).await;
    drop(held);
}

#[tokio::test]
async fn a_request_without_the_secret_gets_no_credentials() {
    let world = World::new().await;
    let agent = Agent::start(&world, &["role", "user"], &[]).await;
    let url = agent.url(0);
    served(&url).await;
    let port = url.split(['/', ':']).nth(4).unwrap();
    let named = format!("localhost:{port}");
    let (status, _) = ask_with(&url, "GET", &[("Host", &named)]).await;
    assert_eq!(status, 200);
    let elsewhere = format!("evil.example:{port}");
    let two = [("Host", named.as_str()), ("Host", named.as_str())];
    let strangers: [&[(&str, &str)]; 12] = [
        &[("Host", &elsewhere)],
        &[("Host", "127.0.0.1")],
        &two,
        &[("X-Forwarded-For", "192.0.2.1")],
        &[("Forwarded", "for=192.0.2.1")],
        &[("Via", "1.1 proxy")],
        &[("X-Forwarded-Host", "127.0.0.1")],
        &[("X-Real-IP", "192.0.2.1")],
        &[("User-Agent", "Mozilla/5.0 (X11; Linux x86_64)")],
        &[("Origin", "https://evil.example")],
        &[("Referer", "https://evil.example/")],
        &[("Sec-Fetch-Site", "cross-site")],
    ];
    for headers in strangers {
        let (status, document) = ask_with(&url, "GET", headers).await;
        assert_eq!(status, 403, "{headers:?}");
        assert!(document.get("AccessKeyId").is_none(), "{headers:?}");
    }
    let (base, grant) = url.rsplit_once('/').unwrap();
    let other = if base.ends_with('A') { 'E' } else { 'A' };
    let guessed = format!("{}{other}/{grant}", &base[..base.len() - 1]);
    let shorter = format!("{}/{grant}", &base[..base.len() - 1]);
    for (asked, status) in [
        (guessed.as_str(), 404),
        (&shorter, 404),
        (&format!("http://127.0.0.1:{port}/"), 404),
        (&format!("http://127.0.0.1:{port}/{grant}"), 404),
        (&format!("{base}/federation"), 404),
        (&format!("{base}/"), 404),
        // SDKs accept no credentials without a token.
        (&format!("{base}/user"), 403),
    ] {
        let (got, document) = ask(asked).await;
        assert_eq!(got, status, "{asked}: {document}");
        assert!(document.get("AccessKeyId").is_none(), "{asked}");
    }
    // Request in the form for a proxy.
    let (status, _) = ask_for(&url, "GET", &url, &[]).await;
    assert_eq!(status, 403);
    for method in ["HEAD", "POST", "PUT"] {
        let (status, _) = ask_with(&url, method, &[]).await;
        assert_eq!(status, 405, "{method}");
    }
    let home = TempDir::new().unwrap();
    let directory = home.path().join("agent");
    let listen = [
        "--listen",
        "0.0.0.0:0",
        "--dir",
        directory.to_str().unwrap(),
    ];
    let open = [&["agent", "--grant", "role"], &listen[..]].concat();
    let refused = Run::of(command(&world, &open), "").await;
    refused.fails(2, &["loopback address alone"]);
    assert!(!directory.exists());
    assert!(!agent.url(0).contains(&world.token));
}

#[tokio::test]
async fn the_last_session_serves_through_an_outage_and_a_revoked_one_is_dropped_at_once() {
    let mut world = World::new().await;
    let agent = Agent::start(&world, &["role"], &["--write-profile", "pay"]).await;
    let url = agent.url(0);
    let first = served(&url).await;
    let aws = agent.home.path().join("aws");
    let profile = async || {
        let text = fs::read_to_string(&aws).unwrap_or_default();
        (text.starts_with("[pay]\n") && text.contains(&first.id)).then_some(())
    };
    eventually("the profile is there", profile).await;
    assert_eq!(mode(&aws), 0o600);

    let (admin, endpoint) = (world.account.admin.clone(), world.proxy.endpoint.clone());
    world.broker.kill().await;
    assert_eq!(served(&url).await.id, first.id, "the broker is dead");
    world.broker = world.broker.start_again(&admin, &endpoint).await;
    assert_eq!(served(&url).await.id, first.id, "it is back");
    let watching = async || {
        let records = world.broker.audit().await;
        let watched = records.iter().filter(|r| r["event"] == "lease.watched");
        (watched.count() == 2).then_some(())
    };
    eventually("the agent is back, too", watching).await;
    assert_eq!(world.leases().await.len(), 1, "it needed no other");

    world.broker.run(&["revoke", "payments-api"]).await.ok();
    let (status, document) = ask(&url).await;
    assert_eq!(status, 403, "{document}");
    assert_eq!(document["Code"], "AccessDenied");
    let text = document["Message"].as_str().unwrap();
    assert!(text.contains("is suspended"), "{document}");
    let gone = async || (fs::read_to_string(&aws).unwrap().is_empty()).then_some(());
    eventually("the profile is gone", gone).await;

    let reinstate = ["service", "reinstate", "payments-api"];
    world.broker.run(&reinstate).await.ok();
    let back = async || (ask(&url).await.0 == 200).then_some(());
    eventually_within(30, "it is served again", back).await;
    assert_ne!(served(&url).await.id, first.id);
}

#[tokio::test]
async fn an_agent_profile_is_added_beside_others_and_removed_at_the_end() {
    let world = World::new().await;
    let home = TempDir::new().unwrap();
    let aws = home.path().join("aws");
    let theirs = "[default]\naws_access_key_id = AKIAOTHER\n";
    fs::write(&aws, theirs).unwrap();
    let agent = Agent::start_in(home, &world, &["user"], &["--write-profile", "pay"]).await;
    let written = async || {
        let text = fs::read_to_string(&aws).unwrap();
        text.starts_with(theirs).then_some(())?;
        text.contains("[pay]").then_some(text)
    };
    let text = eventually("the profile is there", written).await;
    let (_, ours) = text.split_once("[pay]\n").unwrap();
    let value = |name: &str| {
        let line = ours.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches([' ', '=']).to_owned()
    };
    let key = Key {
        id: value("aws_access_key_id"),
        secret: value("aws_secret_access_key"),
        token: None,
    };
    assert!(key.works().await);
    let home = agent.stop().await;
    assert_eq!(fs::read_to_string(&aws).unwrap(), theirs);
    drop(home);
}

#[tokio::test]
async fn a_foreign_profile_is_not_changed_and_a_profile_has_one_grant() {
    let world = World::new().await;
    let home = TempDir::new().unwrap();
    let aws = home.path().join("aws");
    let theirs = "[pay]\naws_access_key_id = AKIAOTHER\n";
    fs::write(&aws, theirs).unwrap();
    let run = async |more: &[&str]| {
        let args = [
            &["agent", "--write-profile", "pay", "--grant", "role"],
            more,
        ]
        .concat();
        let mut command = command(&world, &args);
        command
            .env("XDG_RUNTIME_DIR", home.path())
            .env("AWS_SHARED_CREDENTIALS_FILE", &aws);
        Run::of(command, "").await
    };
    run(&[]).await.fails(
        2,
        &["not the agent's", "next: give --write-profile another name"],
    );
    assert_eq!(fs::read_to_string(&aws).unwrap(), theirs);
    run(&["--grant", "federation"])
        .await
        .fails(2, &["one --grant"]);
    run(&["--grant", "payments-api/role"])
        .await
        .fails(2, &["given twice"]);
}
