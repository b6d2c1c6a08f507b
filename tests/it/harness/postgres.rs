//! PostgreSQL, started once per test process and stopped with it, and databases in it.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::OnceLock,
    sync::atomic::{AtomicUsize, Ordering},
};

use credbroker::store::postgres;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::OnceCell;

pub struct Server {
    pub address: String,
    pub password: String,
    /// Directory of the server's programs.
    programs: String,
    launcher: Child,
    told: BufReader<ChildStdout>,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(None))
}

impl Server {
    /// Starts a server of the test's own; with `tls`, a directory that has `cert.pem` and
    /// `key.pem`.
    pub fn start(tls: Option<&Path>) -> Self {
        let mut launcher = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres.py"))
            .args(tls)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut line = String::new();
        let mut stdout = BufReader::new(launcher.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let told: serde_json::Value = serde_json::from_str(&line).expect("PostgreSQL starts");
        let told = |what: &str| told[what].as_str().unwrap().to_owned();
        Self {
            address: told("address"),
            password: told("password"),
            programs: told("programs"),
            launcher,
            told: stdout,
        }
    }

    /// Sends SIGTERM to the launcher, and waits for the launcher's end.
    pub fn terminate(&mut self) {
        let pid = self.launcher.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.unwrap().success());
        self.launcher.wait().unwrap();
    }

    /// Kills the server, and waits until it answers again.
    pub fn die_and_start(&mut self) {
        let stdin = self.launcher.stdin.as_mut().unwrap();
        stdin.write_all(b"die\n").unwrap();
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }
}

/// Runs a program of PostgreSQL on a database.
pub async fn run(program: &str, args: &[&str], database: &SecretString) {
    let program = format!("{}/{program}", server().programs);
    let mut run = tokio::process::Command::new(program);
    let run = run.args(args).arg("--dbname").arg(database.expose_secret());
    assert!(run.status().await.unwrap().success());
}

/// URL of a database with this name; the database may not exist.
pub fn url(database: &str) -> SecretString {
    let server = server();
    let (password, address) = (&server.password, &server.address);
    format!("postgres://credbroker:{password}@{address}/{database}").into()
}

pub async fn connection(url: &SecretString) -> PgConnection {
    PgConnection::connect(url.expose_secret()).await.unwrap()
}

/// Creates a database without tables.
pub async fn empty() -> SecretString {
    made("").await
}

/// Creates a database with the tables of this version and no rows.
pub async fn migrated() -> SecretString {
    static TEMPLATE: OnceCell<()> = OnceCell::const_new();
    let template = async || {
        let create = "CREATE DATABASE migrated";
        let server = url("postgres");
        connection(&server).await.execute(create).await.unwrap();
        postgres::migrate(&url("migrated")).await.unwrap();
    };
    TEMPLATE.get_or_init(template).await;
    of_its_own(made("TEMPLATE migrated").await).await
}

/// Creates such a database from code that is not async.
pub fn migrated_now() -> SecretString {
    let making = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(migrated())
    });
    making.join().unwrap()
}

async fn made(from: &str) -> SecretString {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("test_{number}");
    let create = AssertSqlSafe(format!("CREATE DATABASE {name} {from}"));
    let server = url("postgres");
    connection(&server).await.execute(create).await.unwrap();
    url(&name)
}

/// Copies a database that is not in use.
pub async fn copy(of: &SecretString) -> SecretString {
    made(&format!("TEMPLATE {}", name(of))).await
}

/// Replaces a database with a copy.
pub async fn restore(database: &SecretString, copy: &SecretString) {
    let (database, copy) = (name(database), name(copy));
    let mut server = connection(&url("postgres")).await;
    for statement in [
        format!("DROP DATABASE {database}"),
        format!("CREATE DATABASE {database} TEMPLATE {copy}"),
    ] {
        server.execute(AssertSqlSafe(statement)).await.unwrap();
    }
}

fn name(url: &SecretString) -> &str {
    url.expose_secret().rsplit('/').next().unwrap()
}

/// Gives the copied tables a deployment id of their own.
async fn of_its_own(url: SecretString) -> SecretString {
    let another =
        "UPDATE deployment SET id = substr(replace(gen_random_uuid()::TEXT, '-', ''), 1, 10)";
    connection(&url).await.execute(another).await.unwrap();
    url
}
