//! Credentials that are kept on disk for the next process that asks: in the user's cache
//! directory, for the user alone, as other tools of AWS keep theirs. Without such a place
//! nothing is kept, and each process asks the broker.

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

use super::private;
use crate::domain::refresh;

/// Credentials, and when they were got and end.
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

/// The place of one sort of credentials.
pub(super) struct Cache {
    file: PathBuf,
    lock: PathBuf,
}

impl Cache {
    /// Named by all that decides what they are, in a way that does not tell it.
    pub(super) fn of(asked: &[String]) -> Option<Self> {
        let mut sum = Context::new(&SHA256);
        for part in asked {
            sum.update(&part.len().to_be_bytes());
            sum.update(part.as_bytes());
        }
        let name = HEXLOWER.encode(sum.finish().as_ref());
        let directory = directory()?;
        if let Err(error) = private::directory(&directory) {
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

    /// What is there, if it can be read.
    pub(super) fn read(&self) -> Option<Kept> {
        let text = fs::read(&self.file).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Waits until nobody else asks the broker, as long as the result is held. Where that
    /// cannot be known, everybody asks.
    pub(super) async fn lock(&self) -> Option<File> {
        let path = self.lock.clone();
        let locked = spawn_blocking(move || {
            let file = private::lock_file(&path)?;
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

    /// Whoever reads sees the old or the new, whole.
    pub(super) fn write(&self, kept: &Kept) {
        let text = serde_json::to_string(kept).map_err(io::Error::from);
        let written = text.and_then(|text| private::replace(&self.file, &text.into()));
        if let Err(error) = written {
            eprintln!("warning: cannot keep {}: {error}", self.file.display());
        }
    }

    pub(super) fn remove(&self) {
        // It may never have been there.
        let _ = fs::remove_file(&self.file);
    }
}

/// The XDG base directory specification's place for what can be had again.
fn directory() -> Option<PathBuf> {
    let home = || env::home_dir().map(|home| home.join(".cache"));
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    base.or_else(home)
        .map(|base| base.join("credbroker/credentials"))
}
