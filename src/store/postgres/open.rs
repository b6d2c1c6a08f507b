//! Connections to the database, and the version of its tables.

use std::{fmt::Display, net::IpAddr, time::Duration};

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool,
    migrate::{Migrate, MigrateError},
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

use super::{super::migrations, PostgresStore, dialect::Guard, sql};
use crate::broker::ports::{DEAD_AFTER, RevokeTarget, ServiceHoldings, StoreError};

/// Number of connections that read.
const READERS: u32 = 8;
/// Number of other connections: one for write transactions, one for statements that must not wait
/// for them.
const WRITERS: u32 = 2;
/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Settings of every connection. A broker that stalls in the middle of a transaction blocks other
/// writers for as long as the third setting says.
const SETTINGS: [(&str, &str); 4] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "8s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("synchronous_commit", "on"),
];
/// Table that records the version of the tables.
const VERSIONS: &str = "_sqlx_migrations";
const NO_SUCH_TABLE: &str = "42P01";

/// Reason why the store cannot be opened. No error contains the password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is invalid, or the connection to another host would not be protected.
    #[error("the store's URL cannot be used: {0}")]
    Url(String),
    /// The database cannot be reached, or reports an error.
    #[error("cannot use {place}: {source}")]
    Database {
        /// Database name and address.
        place: String,
        /// Cause, from the store.
        source: StoreError,
    },
    /// A broker is working on the database.
    #[error(
        "a broker is using {0}: stop it first; one that has died is forgotten after ten seconds"
    )]
    InUse(String),
    /// The tables are missing, or of an earlier version.
    #[error("{0} does not have the tables of this version: run `credbroker migrate`")]
    NotMigrated(String),
    /// The tables are of a later version.
    #[error("{place} has tables of version {version}, which is newer than this broker: update it")]
    Newer {
        /// Database name and address.
        place: String,
        /// Version of the tables.
        version: i64,
    },
    /// The store holds data that no broker writes.
    #[error("{place} is damaged: {detail}; restore a good copy")]
    Damaged {
        /// Database name and address.
        place: String,
        /// Description of the damage.
        detail: String,
    },
    /// The tables cannot be brought to this version.
    #[error("cannot bring {place} to this version: {source}")]
    Migrate {
        /// Database name and address.
        place: String,
        /// Cause, from the migration.
        source: MigrateError,
    },
}

impl PostgresStore {
    /// Opens the database of this URL, whose tables must be of this version.
    ///
    /// # Errors
    /// The database cannot be reached, or `migrate` has not been run.
    pub async fn open(url: &SecretString) -> Result<Self, OpenError> {
        let at = At::parse(url)?;
        at.check_version().await?;
        let writing = PgPoolOptions::new()
            .max_connections(WRITERS)
            .acquire_timeout(CONNECT_LIMIT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(at.options.clone())
            .await
            .map_err(|error| at.unusable(error))?;
        let readers = at.options.clone();
        let readers = readers.options([("default_transaction_read_only", "on")]);
        let readers = PgPoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(CONNECT_LIMIT)
            .connect_with(readers)
            .await
            .map_err(|error| at.unusable(error))?;
        let store = Self::over(writing, readers, Guard).await;
        store.map_err(|error| at.damaged(&error))
    }
}

/// Brings the tables of the database of this URL to this version, and returns the version's number.
///
/// # Errors
/// The database cannot be reached, or has tables of a later version.
pub async fn migrate(url: &SecretString) -> Result<u64, OpenError> {
    let at = At::parse(url)?;
    let mut connection = at.connect().await?;
    let migrated = migrations::postgres().run(&mut connection).await;
    let _ = connection.close().await;
    migrated.map_err(|source| match source {
        MigrateError::VersionMissing(version) => at.newer(version),
        source => OpenError::Migrate {
            place: at.place(),
            source,
        },
    })?;
    Ok(migrations::postgres().iter().count() as u64)
}

/// Connects to the database of this URL. Its tables must be of this version, and no broker may be
/// using it.
pub(in super::super) async fn connect(url: &SecretString) -> Result<PgConnection, OpenError> {
    let at = At::parse(url)?;
    at.check_version().await?;
    let mut connection = at.connect().await?;
    let used = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM brokers WHERE seen >= clock_timestamp() - $1 * INTERVAL '1 second')",
    );
    let used = used
        .bind(DEAD_AFTER.length().as_secs_f64())
        .fetch_one(&mut connection);
    if used.await.map_err(|error| at.unusable(error))? {
        return Err(OpenError::InUse(at.place()));
    }
    Ok(connection)
}

/// Reads the leases of `target` that have not ended, and the denials that its sessions would get. A
/// broker may be using the database. `None`: the store does not know `target`. Writes nothing.
///
/// # Errors
/// The database cannot be reached, or is not a store of this version.
pub async fn held(
    url: &SecretString,
    target: &RevokeTarget,
    now: Timestamp,
) -> Result<Option<ServiceHoldings>, OpenError> {
    let at = At::parse(url)?;
    at.check_version().await?;
    let options = at.options.clone();
    let options = options.options([("default_transaction_read_only", "on")]);
    let one: PgPool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(CONNECT_LIMIT)
        .connect_with(options)
        .await
        .map_err(|error| at.unusable(error))?;
    let held = sql::held(&one, target, now).await;
    held.map_err(|source| at.database(source))
}

/// Connection options of a database.
struct At {
    options: PgConnectOptions,
}

impl At {
    fn parse(url: &SecretString) -> Result<Self, OpenError> {
        let options: PgConnectOptions = url.expose_secret().parse().map_err(|error| {
            OpenError::Url(format!("{error}; write postgres://USER@HOST/DATABASE"))
        })?;
        let verified = matches!(
            options.get_ssl_mode(),
            PgSslMode::VerifyCa | PgSslMode::VerifyFull
        );
        let is_near = options.get_socket().is_some() || is_loopback(options.get_host());
        if !verified && !is_near {
            return Err(OpenError::Url(
                "the way to another host must be kept from others: add ?sslmode=verify-full, and sslrootcert=FILE for an authority of your own".to_owned(),
            ));
        }
        let options = options
            .application_name("credbroker")
            .options(SETTINGS)
            .disable_statement_logging();
        Ok(Self { options })
    }

    async fn connect(&self) -> Result<PgConnection, OpenError> {
        let connecting = tokio::time::timeout(CONNECT_LIMIT, self.options.connect());
        let connected = connecting.await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        connected.map_err(|error| self.unusable(error))
    }

    /// Checks that the tables are of the version that this broker works with.
    async fn check_version(&self) -> Result<(), OpenError> {
        let mut connection = self.connect().await?;
        let applied = connection.list_applied_migrations(VERSIONS).await;
        let _ = connection.close().await;
        let applied = match applied {
            Ok(applied) => applied,
            Err(MigrateError::Execute(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some(NO_SUCH_TABLE) =>
            {
                Vec::new()
            }
            Err(source) => {
                return Err(OpenError::Migrate {
                    place: self.place(),
                    source,
                });
            }
        };
        let known = migrations::postgres();
        for one in &applied {
            match known.iter().find(|known| known.version == one.version) {
                None => return Err(self.newer(one.version)),
                Some(known) if known.checksum != one.checksum => {
                    let source = MigrateError::VersionMismatch(one.version);
                    let place = self.place();
                    return Err(OpenError::Migrate { place, source });
                }
                Some(_) => {}
            }
        }
        if applied.len() < known.iter().count() {
            return Err(OpenError::NotMigrated(self.place()));
        }
        Ok(())
    }

    /// Returns the database name and its address, without secrets.
    fn place(&self) -> String {
        let options = &self.options;
        let database = options.get_database().unwrap_or(options.get_username());
        match options.get_socket() {
            Some(socket) => format!("the database {database} at {}", socket.display()),
            None => format!(
                "the database {database} at {}:{}",
                options.get_host(),
                options.get_port()
            ),
        }
    }

    fn unusable(&self, error: sqlx::Error) -> OpenError {
        self.database(sql::store_error(error))
    }

    fn database(&self, source: StoreError) -> OpenError {
        OpenError::Database {
            place: self.place(),
            source,
        }
    }

    fn newer(&self, version: i64) -> OpenError {
        OpenError::Newer {
            place: self.place(),
            version,
        }
    }

    fn damaged(&self, detail: &impl Display) -> OpenError {
        OpenError::Damaged {
            place: self.place(),
            detail: detail.to_string(),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address: Result<IpAddr, _> = host.parse();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
