//! Credentials cached on disk for the next process: in the user's cache directory, for the user
//! alone, as other AWS tools do. Without such a directory nothing is cached, and each process calls
//! the broker.

use std::{
    env,
    fs::{self, File},
    io,
    path::PathBuf,
};

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::file_permissions;
use crate::domain::refresh;

/// Cached credentials, with the times of their issue and end.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) document: Value,
    pub(super) issued_at: Timestamp,
    pub(super) expires_at: Timestamp,
}

impl Kept {
    pub(super) fn is_fresh(&self, now: Timestamp) -> bool {
        refresh::is_fresh(self.issued_at, self.expires_at, now)
    }

    pub(super) fn is_alive(&self, now: Timestamp) -> bool {
        refresh::is_alive(self.expires_at, now)
    }
}

/// Files for one set of credentials.
pub(super) struct Cache {
    file: PathBuf,
    lock: PathBuf,
}

impl Cache {
    /// Returns the cache for these inputs, which together determine the credentials. Its file name
    /// is a hash of the inputs, so it does not reveal them.
    pub(super) fn of(asked: &[String]) -> Option<Self> {
        let mut sum = Context::new(&SHA256);
        for part in asked {
            sum.update(&part.len().to_be_bytes());
            sum.update(part.as_bytes());
        }
        let name = HEXLOWER.encode(sum.finish().as_ref());
        let directory = directory()?;
        if let Err(error) = file_permissions::directory(&directory) {
            eprintln!(
                "warning: nothing is kept in {}: {error}",
                directory.display()
            );
            return None;
        }
        Some(Self {
            file: directory.join(format!("{name}.json")),
            lock: directory.join(format!("{name}.lock")),
        })
    }

    /// Returns the cached credentials, or `None` if they cannot be read.
    pub(super) fn read(&self) -> Option<Kept> {
        let text = fs::read(&self.file).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Waits until no other process calls the broker, and holds the lock while the result is held.
    /// `None`: the file cannot be locked, and every process calls the broker.
    pub(super) async fn lock(&self) -> Option<File> {
        let path = self.lock.clone();
        let locked = spawn_blocking(move || {
            let file = file_permissions::lock_file(&path)?;
            file.lock().map(|()| file)
        });
        match locked.await.ok()? {
            Ok(file) => Some(file),
            Err(error) => {
                eprintln!("warning: cannot lock {}: {error}", self.lock.display());
                None
            }
        }
    }

    /// Replaces the file atomically: a reader sees the old content or the new, complete.
    pub(super) fn write(&self, kept: &Kept) {
        let text = serde_json::to_string(kept).map_err(io::Error::from);
        let written = text.and_then(|text| file_permissions::replace(&self.file, &text.into()));
        if let Err(error) = written {
            eprintln!("warning: cannot keep {}: {error}", self.file.display());
        }
    }

    pub(super) fn remove(&self) {
        // The file may not exist.
        let _ = fs::remove_file(&self.file);
    }
}

/// Returns the directory for cached credentials: that of the XDG base directory specification.
fn directory() -> Option<PathBuf> {
    let home = || env::home_dir().map(|home| home.join(".cache"));
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    base.or_else(home)
        .map(|base| base.join("credbroker/credentials"))
}
