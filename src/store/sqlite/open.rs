//! Opening of the file: its lock, its mode, its tables.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::{
    super::{locked_file::LockedFile, migrations, private_file},
    SqliteStore,
    dialect::Guard,
    wal::{COMMITS_HELP_FROM, CarryingOver},
};

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;

/// Reason why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another broker has the lock.
    #[error(
        "another broker is using {0}; one file serves one broker: stop the other, or give this one its own store"
    )]
    InUse(PathBuf),
    /// The file system reports an error.
    #[error(
        "cannot open the store {path}: {source}; check that the directory exists and may be written"
    )]
    Io {
        /// Path of the store.
        path: PathBuf,
        /// Cause, from the file system.
        source: io::Error,
    },
    /// The store holds data that no broker writes.
    #[error("the store {path} is damaged: {detail}; put a good copy in its place")]
    Damaged {
        /// Path of the store.
        path: PathBuf,
        /// Description of the damage.
        detail: String,
    },
    /// SQLite reports an error.
    #[error("cannot open the store {path}: {source}")]
    Database {
        /// Path of the store.
        path: PathBuf,
        /// Cause, from SQLite.
        source: sqlx::Error,
    },
    /// The tables cannot be brought to this version.
    #[error(
        "cannot bring the store {path} to this version: {source}; was it written by another version?"
    )]
    Migrate {
        /// Path of the store.
        path: PathBuf,
        /// Cause, from the migration.
        source: sqlx::migrate::MigrateError,
    },
}

impl SqliteStore {
    /// Opens the store at `path`, and brings its tables to this version. Creates the file with mode
    /// 0600 if it is missing.
    ///
    /// # Errors
    /// Another broker has the store open, or the file cannot be read or written.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        private_file(path).map_err(io)?;
        // One lock per file, whatever path leads to it.
        let path = &path.canonicalize().map_err(io)?;
        let lock = lock(path)?;
        let database = |source| OpenError::Database {
            path: path.to_owned(),
            source,
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("wal_autocheckpoint", COMMITS_HELP_FROM);
        let writing = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .map_err(database)?;
        migrations::sqlite()
            .run(&writing)
            .await
            .map_err(|source| OpenError::Migrate {
                path: path.to_owned(),
                source,
            })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_with(options.clone().read_only(true))
            .await
            .map_err(database)?;
        let carrying_over = CarryingOver::start(options).await.map_err(database)?;
        let guard = Guard::new(carrying_over, lock);
        let store = Self::over(writing, readers, guard).await;
        store.map_err(|error| OpenError::Damaged {
            path: path.to_owned(),
            detail: error.to_string(),
        })
    }
}

fn lock(path: &Path) -> Result<LockedFile, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    LockedFile::open(Path::new(&name)).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => OpenError::InUse(path.to_owned()),
        _ => OpenError::Io {
            path: path.to_owned(),
            source: error,
        },
    })
}
