//! Secrets are shown to their owner and stored nowhere else.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::policy;
use crate::harness::{
    Account, Broker, Run,
    broker::{BINARY, aws_env, credbroker},
    emulator::emulator,
    eventually, free_address,
};

/// Secrets to search for, and the places to search.
#[derive(Default)]
struct Search {
    secrets: Vec<String>,
    places: Vec<(String, Vec<u8>)>,
}

impl Search {
    /// Adds the secret part of a token; its first 20 characters may be shown.
    fn token(&mut self, token: &str) {
        self.secrets.push(token[21..73].to_owned());
    }

    fn credentials(&mut self, issued: &Value) {
        for field in ["secret_access_key", "session_token"] {
            self.secrets
                .extend(issued[field].as_str().map(ToOwned::to_owned));
        }
    }

    fn file(&mut self, path: &Path) {
        let bytes = fs::read(path).unwrap();
        self.places.push((path.display().to_string(), bytes));
    }

    /// Returns every place that contains `text`.
    fn holding(&self, text: &str) -> Vec<&str> {
        let found = |bytes: &[u8]| {
            bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        let places = self.places.iter().filter(|(_, bytes)| found(bytes));
        places.map(|(place, _)| place.as_str()).collect()
    }

    #[track_caller]
    fn assert_found_nowhere(&self) {
        for secret in &self.secrets {
            assert!(secret.len() >= 30, "too short to look for");
            let places = self.holding(secret);
            assert!(places.is_empty(), "{}… is in {places:?}", &secret[..6]);
        }
    }
}

/// Runner of commands with any token, whichever broker it is.
trait Commands {
    async fn command(&self, token: Option<&str>, args: &[&str], input: &str) -> Run;

    async fn value(&self, token: Option<&str>, args: &[&str]) -> Value {
        let args = [args, &["-o", "json"]].concat();
        self.command(token, &args, "").await.ok().json()
    }

    async fn token(&self, args: &[&str]) -> String {
        self.value(None, args).await["token"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

impl Commands for Broker {
    async fn command(&self, token: Option<&str>, args: &[&str], input: &str) -> Run {
        self.run_in(token, args, input).await
    }
}

/// Issues all kinds, creates tokens of both sorts, and puts secrets where they do not belong.
async fn live(broker: &impl Commands, account: &Account) -> Search {
    let mut search = Search::default();
    let role = account.role("credbroker-app", &policy()).await;
    broker
        .command(None, &["service", "create", "pay"], "")
        .await
        .ok();
    let service = broker.token(&["service", "token", "create", "pay"]).await;
    let operator = broker
        .token(&["operator", "create", "ann", "--role", "viewer"])
        .await;
    let document = policy().to_string();
    let kinds: [(&str, &[&str]); 3] = [
        ("user", &["--kind", "iam_user"]),
        ("session", &["--role-arn", &role]),
        ("federated", &["--kind", "federation_token"]),
    ];
    for (grant, flags) in kinds {
        let name = format!("pay/{grant}");
        let put = [&["grant", "put", &name, "--policy-file", "-"], flags].concat();
        broker.command(None, &put, &document).await.ok();
        search.credentials(&broker.value(Some(&service), &["issue", grant]).await);
    }
    broker.command(Some(&operator), &["status"], "").await.ok();
    let secret = search.secrets[0].clone();
    for lost in [&service, &operator, &secret] {
        misplace(broker, &service, lost).await;
    }
    broker.command(None, &["service", "list"], "").await.ok();
    broker.command(None, &["revoke", "pay"], "").await.ok();
    search.token(&service);
    search.token(&operator);
    search
}

/// Passes a secret in wrong places: the broker must refuse it, and must not store it.
async fn misplace(broker: &impl Commands, service: &str, secret: &str) {
    let grant = format!("pay/{secret}");
    let wrong: [&[&str]; 7] = [
        &["service", "create", secret],
        &["service", "show", secret],
        &["lease", "show", secret],
        &["grant", "show", &grant],
        &[
            "grant", "put", "pay/x", "--kind", "iam_user", "--group", secret, "--path", secret,
        ],
        &["policy", "show", secret, "--param", "bucket=x"],
        &["service", "token", "delete", "pay", secret],
    ];
    for args in wrong {
        let run = broker.command(None, args, "").await;
        assert_ne!(run.code, 0, "{args:?}");
    }
    let put = [
        "grant",
        "put",
        "pay/x",
        "--kind",
        "iam_user",
        "--policy-file",
        "-",
    ];
    let mut document = policy();
    document["Statement"][secret] = json!("x");
    assert_ne!(
        broker.command(None, &put, &document.to_string()).await.code,
        0
    );
    for args in [["issue", secret], ["release", secret]] {
        assert_ne!(broker.command(Some(service), &args, "").await.code, 0);
    }
    // A checksum never ends like this: its last character has two bits.
    let altered = format!("{}b", &secret[..secret.len() - 1]);
    assert_eq!(
        broker.command(Some(&altered), &["status"], "").await.code,
        3
    );
}

/// Adds the output of `audit`, in both forms.
async fn told(broker: &impl Commands, search: &mut Search) {
    for args in [
        &["audit", "query"][..],
        &["audit", "query", "-o", "json"],
        &["audit", "tail", "-n", "1000"],
    ] {
        let told = broker.command(None, args, "").await.ok();
        let place = args.join(" ");
        search
            .places
            .push((place, (told.stdout + &told.stderr).into_bytes()));
    }
}

/// Adds every file of the store, its write-ahead log included.
fn store(search: &mut Search, directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("credbroker.db")
        {
            search.file(&path);
        }
    }
}

#[tokio::test]
async fn no_secret_is_in_the_store_the_audit_log_or_the_log() {
    if crate::harness::stored::skipped_over_postgres() {
        return;
    }
    let (account, home) = (Account::new().await, TempDir::new().unwrap());
    account.let_admin(&policy()).await;
    let log = home.path().join("log");
    let mut broker = Broker::start_by(|state| {
        let script = r#"exec "$0" dev --state-dir "$1" --aws-endpoint "$2" 2>"$3""#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, BINARY])
            .arg(state)
            .arg(&emulator().endpoint)
            .arg(&log);
        command
            .env_clear()
            .envs(aws_env(&account.admin))
            .kill_on_drop(true);
        command
    })
    .await;
    let mut search = live(&broker, &account).await;
    search.token(broker.admin_token());
    told(&broker, &mut search).await;
    store(&mut search, &broker.state);
    assert!(
        search
            .places
            .iter()
            .any(|(place, _)| place.ends_with("-wal"))
    );
    assert!(broker.stop().await);
    search.file(&log);
    store(&mut search, &broker.state);
    // Text that may be shown is found, so the search works.
    let ids = broker.admin_token()[4..20].to_owned();
    assert!(
        search
            .holding(&ids)
            .iter()
            .any(|place| place.ends_with("credbroker.db"))
    );
    assert_eq!(search.holding("serving"), [log.to_str().unwrap()]);
    search.assert_found_nowhere();
}

/// `serve` with the most verbose log.
struct Traced {
    home: TempDir,
    address: String,
    _child: Child,
}

impl Traced {
    async fn start(account: &Account, level: &str) -> Self {
        let home = TempDir::new().unwrap();
        let address = free_address().to_string();
        prepare(home.path(), &address, level);
        let config = home.path().join("config.toml");
        let mut command = credbroker(&["serve", "--config", config.to_str().unwrap()]);
        let log = fs::File::create(home.path().join("log")).unwrap();
        command
            .envs(aws_env(&account.admin))
            .stdin(Stdio::null())
            .stderr(log);
        let child = command.spawn().unwrap();
        let traced = Self {
            home,
            address,
            _child: child,
        };
        let answers =
            async || (traced.command(None, &["status"], "").await.code == 0).then_some(());
        eventually("it serves", answers).await;
        traced
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }
}

impl Commands for Traced {
    async fn command(&self, token: Option<&str>, args: &[&str], input: &str) -> Run {
        let mut command = credbroker(args);
        command.env("CREDBROKER_ADDR", format!("https://{}", self.address));
        command.env("CREDBROKER_CA_FILE", self.path("tls.pem"));
        match token {
            Some(token) => command.env("CREDBROKER_TOKEN", token),
            None => command.env("CREDBROKER_TOKEN_FILE", self.path("admin-token")),
        };
        Run::of(command, input).await
    }
}

fn prepare(home: &Path, address: &str, level: &str) {
    let names = ["localhost", "127.0.0.1"].map(ToOwned::to_owned);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    fs::write(home.join("tls.pem"), certificate.pem()).unwrap();
    fs::write(home.join("tls.key"), key.serialize_pem()).unwrap();
    let (dir, endpoint) = (home.display(), &emulator().endpoint);
    let config = format!(
        "store = \"{dir}/credbroker.db\"\n\
         [listen]\naddress = \"{address}\"\ntls_cert_file = \"{dir}/tls.pem\"\ntls_key_file = \"{dir}/tls.key\"\n\
         [aws]\nregion = \"us-east-1\"\nendpoint_url = \"{endpoint}\"\n\
         [operators]\nbootstrap_token_file = \"{dir}/admin-token\"\n\
         [log]\nlevel = \"{level}\"\n"
    );
    fs::write(home.join("config.toml"), config).unwrap();
}

/// Asserts that no log line at `level` contains a secret, while everything happens.
async fn assert_nothing_told_at(level: &str, talker: &str) {
    let account = Account::new().await;
    account.let_admin(&policy()).await;
    let broker = Traced::start(&account, level).await;
    let mut search = live(&broker, &account).await;
    let admin = fs::read_to_string(broker.path("admin-token")).unwrap();
    search.token(admin.trim());
    search.secrets.push(account.admin.secret.clone());
    search.file(&broker.path("log"));
    assert!(!search.holding(talker).is_empty(), "{talker} says nothing");
    search.assert_found_nowhere();
}

#[tokio::test]
async fn no_secret_is_in_the_log_at_level_trace() {
    assert_nothing_told_at("trace", "serving").await;
}

#[tokio::test]
async fn no_secret_is_in_the_log_when_every_library_traces() {
    assert_nothing_told_at("trace,credbroker=trace", "TRACE h2::").await;
}
