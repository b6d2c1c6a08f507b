//! Access to the broker's store, to read or change it behind the broker's back.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock, Once},
};

use credbroker::{
    broker::ports::Store,
    domain::clock::wall_time,
    store::{postgres::PostgresStore, sqlite::SqliteStore},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{AnyConnection, AssertSqlSafe, Connection, any::install_default_drivers};
use tokio::process::Command;

use super::postgres;

/// Variable that selects the store: `postgres` runs the tests that work with either store on
/// PostgreSQL; the default is `sqlite`.
pub const STORE: &str = "CREDBROKER_TEST_STORE";

/// A database engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// Engine that [`STORE`] names.
    pub fn chosen() -> Self {
        static CHOSEN: LazyLock<Engine> = LazyLock::new(|| match std::env::var(STORE).as_deref() {
            Ok("postgres") => Engine::Postgres,
            Ok("sqlite") | Err(_) => Engine::Sqlite,
            Ok(other) => panic!("{STORE} is sqlite or postgres, not {other:?}"),
        });
        *CHOSEN
    }
}

pub fn on_postgres() -> bool {
    Engine::chosen() == Engine::Postgres
}

/// Returns true on PostgreSQL, and prints that the test is skipped: it is for SQLite alone.
pub fn skipped_over_postgres() -> bool {
    if on_postgres() {
        println!("skipped over PostgreSQL: about what only SQLite has");
    }
    on_postgres()
}

/// Location of the store.
#[derive(Clone)]
pub enum Stored {
    File(PathBuf),
    Database(SecretString),
}

impl Stored {
    /// Creates an unused store: this file, or a new database.
    pub fn fresh(engine: Engine, file: PathBuf) -> Self {
        match engine {
            Engine::Sqlite => Self::File(file),
            Engine::Postgres => Self::Database(postgres::migrated_now()),
        }
    }

    /// Sets the store for a command that starts `dev`.
    pub fn given_to(&self, command: &mut Command) {
        if let Self::Database(url) = self {
            command.env("CREDBROKER_STORE", url.expose_secret());
        }
    }

    /// Returns all rows of a database; empty for a file.
    pub async fn rows(&self) -> Vec<u8> {
        if matches!(self, Self::File(_)) {
            return Vec::new();
        }
        let mut all = self.leaves().await.concat();
        for table in [
            "services",
            "tokens",
            "bindings",
            "approvals",
            "grant_versions",
            "leases",
            "denials",
            "audit",
            "admin_key",
        ] {
            let rows = format!("SELECT string_agg(t::TEXT, ' ') FROM {table} t");
            all.extend(self.text(&rows).await.unwrap_or_default().into_bytes());
        }
        all
    }

    /// Opens the store like a broker does.
    pub async fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::File(path) => Arc::new(SqliteStore::open(path).await.unwrap()),
            Self::Database(url) => Arc::new(PostgresStore::open(url).await.unwrap()),
        }
    }

    /// Copies the store, which must not be in use.
    pub async fn copy(&self) -> Self {
        match self {
            Self::File(path) => {
                let copy = path.with_extension("copy");
                std::fs::copy(path, &copy).unwrap();
                Self::File(copy)
            }
            Self::Database(url) => Self::Database(postgres::copy(url).await),
        }
    }

    /// Replaces the store with a copy.
    pub async fn restore(&self, copy: &Self) {
        match (self, copy) {
            (Self::File(path), Self::File(copy)) => drop(std::fs::copy(copy, path).unwrap()),
            (Self::Database(url), Self::Database(copy)) => postgres::restore(url, copy).await,
            _ => panic!("a copy of another kind"),
        }
    }

    /// Connects to the store; SQL is the same for both engines, with placeholders `$1`.
    pub async fn connect(&self) -> AnyConnection {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(install_default_drivers);
        let url = match self {
            Self::File(path) => format!("sqlite://{}?mode=rw", path.display()),
            Self::Database(url) => url.expose_secret().to_owned(),
        };
        AnyConnection::connect(&url).await.unwrap()
    }

    pub async fn write(&self, sql: &str) {
        let mut store = self.connect().await;
        sqlx::query(now(sql)).execute(&mut store).await.unwrap();
    }

    /// Returns the result of a query, as one number.
    pub async fn count(&self, sql: &str) -> i64 {
        let mut store = self.connect().await;
        let count = sqlx::query_scalar(now(sql)).fetch_one(&mut store);
        count.await.unwrap()
    }

    /// Returns the result of a query, as text.
    pub async fn text(&self, sql: &str) -> Option<String> {
        let mut store = self.connect().await;
        let text = sqlx::query_scalar(now(sql)).fetch_one(&mut store);
        text.await.unwrap()
    }

    /// Removes the guards that make the log append-only.
    pub async fn unguard(&self) {
        let guards: &[&str] = match self {
            Self::File(_) => &[
                "audit_is_append_only_update",
                "audit_is_append_only_delete",
                "audit_is_append_only_replace",
            ],
            Self::Database(_) => &["audit_is_append_only ON audit"],
        };
        for guard in guards {
            self.write(&format!("DROP TRIGGER {guard}")).await;
        }
    }

    /// Returns an SQL expression for N zero bytes.
    pub fn zeros(&self, length: &str) -> String {
        match self {
            Self::File(_) => format!("zeroblob({length})"),
            Self::Database(_) => format!("decode(repeat('00', {length}), 'hex')"),
        }
    }

    /// Returns an SQL expression: the column `leaf` with `instead_of` replaced by `words`.
    pub fn leaf_with(&self, words: &str, instead_of: &str) -> String {
        match self {
            Self::File(_) => format!("CAST(replace(leaf, '{instead_of}', '{words}') AS BLOB)"),
            Self::Database(_) => format!(
                "convert_to(replace(convert_from(leaf, 'UTF8'), '{instead_of}', '{words}'), 'UTF8')"
            ),
        }
    }

    /// Returns the records of the log, as bytes.
    pub async fn leaves(&self) -> Vec<Vec<u8>> {
        let leaves = sqlx::query_scalar("SELECT leaf FROM audit ORDER BY seq");
        leaves.fetch_all(&mut self.connect().await).await.unwrap()
    }
}

/// Replaces `{now}` with the time in microseconds.
fn now(sql: &str) -> AssertSqlSafe<String> {
    let now = wall_time().as_microsecond();
    AssertSqlSafe(sql.replace("{now}", &now.to_string()))
}
