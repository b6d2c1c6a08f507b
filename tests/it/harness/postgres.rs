//! PostgreSQL, started once per test process and ended with it, and databases in it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    sync::atomic::{AtomicUsize, Ordering},
};

use credbroker::store::postgres;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::OnceCell;

struct Server {
    address: String,
    password: String,
    _launcher: Child,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let mut launcher = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut line = String::new();
        let stdout = launcher.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let told: serde_json::Value = serde_json::from_str(&line).expect("PostgreSQL starts");
        let told = |what: &str| told[what].as_str().unwrap().to_owned();
        Server {
            address: told("address"),
            password: told("password"),
            _launcher: launcher,
        }
    })
}

/// The URL of a database of this name, which need not be there.
pub fn url(database: &str) -> SecretString {
    let server = server();
    let (password, address) = (&server.password, &server.address);
    format!("postgres://credbroker:{password}@{address}/{database}").into()
}

pub async fn connection(url: &SecretString) -> PgConnection {
    PgConnection::connect(url.expose_secret()).await.unwrap()
}

/// A database without tables.
pub async fn empty() -> SecretString {
    made("").await
}

/// A database with the tables of this version and nothing in them.
pub async fn migrated() -> SecretString {
    static TEMPLATE: OnceCell<()> = OnceCell::const_new();
    let template = async || {
        let create = "CREATE DATABASE migrated";
        let server = url("postgres");
        connection(&server).await.execute(create).await.unwrap();
        postgres::migrate(&url("migrated")).await.unwrap();
    };
    TEMPLATE.get_or_init(template).await;
    made("TEMPLATE migrated").await
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
