//! The store of a broker, whichever it is.

use std::{path::PathBuf, sync::Arc};

use jiff::Timestamp;

use super::{StartError, file_error};
use crate::{
    broker::{
        Error,
        ports::{Held, Spool, Store, Target},
    },
    config::StoreAt,
    store::{
        postgres::{self, PostgresStore},
        spool::FileSpool,
        sqlite::{self, SqliteStore},
    },
};

/// Brings the tables of a broker's store to this version, and returns its number.
///
/// # Errors
/// It cannot be reached, or has tables of a later version; a file may be in use.
pub async fn migrate(at: &StoreAt) -> Result<u64, StartError> {
    match at {
        StoreAt::File(path) => {
            SqliteStore::open(path).await?.close().await;
            Ok(sqlite::VERSION)
        }
        StoreAt::Database { url, .. } => Ok(postgres::migrate(url).await?),
    }
}

pub(super) async fn open(at: &StoreAt) -> Result<(Arc<dyn Store>, Arc<dyn Spool>), StartError> {
    let store: Arc<dyn Store> = match at {
        StoreAt::File(path) => Arc::new(SqliteStore::open(path).await?),
        StoreAt::Database { url, .. } => Arc::new(PostgresStore::open(url).await?),
    };
    let spool = emergency_file(at);
    let spool = FileSpool::open(spool.clone()).map_err(file_error(&spool))?;
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

/// What the store holds of `target`; it is only read, so that a broker may be using it.
pub(super) async fn held(
    at: &StoreAt,
    target: &Target,
    now: Timestamp,
) -> Result<Option<Held>, StartError> {
    match at {
        StoreAt::File(path) => {
            let held = sqlite::held(path, target, now).await;
            Ok(held.map_err(Error::from)?)
        }
        StoreAt::Database { url, .. } => Ok(postgres::held(url, target, now).await?),
    }
}

/// A file must be there before it is opened by who does not make one.
pub(super) fn existing(at: &StoreAt) -> Result<(), StartError> {
    match at {
        StoreAt::File(path) if !path.exists() => Err(StartError::NoStore(path.clone())),
        StoreAt::File(_) | StoreAt::Database { .. } => Ok(()),
    }
}
