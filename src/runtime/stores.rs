//! The store of a broker: a SQLite file or a PostgreSQL database.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use secrecy::SecretString;

use super::{StartError, file_error};
use crate::{
    broker::{
        Error,
        ports::{EmergencyJournal, LogHead, RevokeTarget, ServiceHoldings, Store},
    },
    config::StoreAt,
    domain::{
        audit::{AuditEvent, Event},
        clock::wall_time,
    },
    store::{
        emergency_journal::FileSpool,
        migrate_to_postgres,
        postgres::{self, PostgresStore},
        sqlite::{self, SqliteStore},
    },
};

/// Migrates the tables of a broker's store to this version, and returns the version number.
///
/// # Errors
/// The store cannot be reached, or has tables of a later version; a file may be in use.
pub async fn migrate(at: &StoreAt) -> Result<u64, StartError> {
    match at {
        StoreAt::File(path) => {
            SqliteStore::open(path).await?.close().await;
            Ok(sqlite::VERSION)
        }
        StoreAt::Database { url, .. } => Ok(postgres::migrate(url).await?),
    }
}

/// Moves a store from a file to an empty database, and renames the file so that no broker continues
/// with it. The broker of the file must not run. Returns the log's head, which the database had
/// unchanged after the copy. The database then records the move itself.
///
/// # Errors
/// One of the two cannot be used, or is not in the required state; then the file is unchanged.
pub async fn copy(from: &Path, to: &SecretString) -> Result<LogHead, StartError> {
    let file = StoreAt::File(from.to_owned());
    existing(&file)?;
    let (source, spool) = open(&file).await?;
    if !spool.entries().await.map_err(Error::from)?.is_empty() {
        return Err(StartError::Unrecorded(emergency_file(&file)));
    }
    let head = source.log_head().await.map_err(Error::from)?;
    whole(source.as_ref(), head).await?;
    migrate_to_postgres::copy(from, to).await?;
    let target = PostgresStore::open(to).await?;
    whole(&target, head).await?;
    let words = format!("{} records from {}", head.size, from.display());
    let audit = AuditEvent::by_broker(Event::StoreMoved, wall_time()).detail(&words);
    target.record(audit).await.map_err(Error::from)?;
    target.close().await;
    source.close().await;
    let mut aside = from.as_os_str().to_owned();
    aside.push(".moved");
    fs::rename(from, &aside).map_err(file_error(from))?;
    Ok(head)
}

/// Checks that a store's log is consistent and has this root at this size.
async fn whole(store: &dyn Store, head: LogHead) -> Result<(), StartError> {
    let check = store.check_log(&[head.size]).await.map_err(Error::from)?;
    match check.fault {
        Some(fault) => Err(StartError::NotWhole(fault)),
        None if check.roots.get(&head.size) == Some(&head.root) => Ok(()),
        None => Err(StartError::NotWhole("its root is another".to_owned())),
    }
}

pub(super) async fn open(
    at: &StoreAt,
) -> Result<(Arc<dyn Store>, Arc<dyn EmergencyJournal>), StartError> {
    let store: Arc<dyn Store> = match at {
        StoreAt::File(path) => Arc::new(SqliteStore::open(path).await?),
        StoreAt::Database { url, .. } => Arc::new(PostgresStore::open(url).await?),
    };
    let spool = emergency_file(at);
    let spool = FileSpool::open(&spool).map_err(file_error(&spool))?;
    Ok((store, Arc::new(spool)))
}

fn emergency_file(at: &StoreAt) -> PathBuf {
    match at {
        StoreAt::File(path) => {
            let mut path = path.as_os_str().to_owned();
            path.push(".emergency");
            path.into()
        }
        StoreAt::Database { emergency_file, .. } => emergency_file.clone(),
    }
}

/// Returns the holdings of `target`. Only reads the store, so a broker may be using it.
pub(super) async fn held(
    at: &StoreAt,
    target: &RevokeTarget,
    now: Timestamp,
) -> Result<Option<ServiceHoldings>, StartError> {
    match at {
        StoreAt::File(path) => {
            let held = sqlite::held(path, target, now).await;
            Ok(held.map_err(Error::from)?)
        }
        StoreAt::Database { url, .. } => Ok(postgres::held(url, target, now).await?),
    }
}

/// Checks that a store's file exists, for a caller that must not create one.
pub(super) fn existing(at: &StoreAt) -> Result<(), StartError> {
    match at {
        StoreAt::File(path) if !path.exists() => Err(StartError::NoStore(path.clone())),
        StoreAt::File(_) | StoreAt::Database { .. } => Ok(()),
    }
}
