//! The checkpoint file: the newest checkpoint, which can lie on another volume than the store.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use crate::broker::ports::{CheckpointFile, StoreError};

/// A file that holds the newest checkpoint and nothing else.
#[derive(Clone, Debug)]
pub struct FileAnchor {
    path: PathBuf,
    /// Held during each read and write, even after the caller has gone.
    writing: Arc<Mutex<()>>,
}

impl FileAnchor {
    /// Uses this file, which need not exist yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            writing: Arc::default(),
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (path, writing) = (self.path.clone(), Arc::clone(&self.writing));
        let unavailable =
            |error| StoreError::Unavailable(format!("{}: {error}", self.path.display()));
        let done = spawn_blocking(move || {
            let _alone = writing.lock().unwrap_or_else(PoisonError::into_inner);
            work(&path)
        });
        let done = done.await;
        done.map_err(io::Error::other)
            .flatten()
            .map_err(unavailable)
    }
}

#[async_trait]
impl CheckpointFile for FileAnchor {
    async fn read(&self) -> Result<Option<String>, StoreError> {
        self.run(|path| match fs::read_to_string(path) {
            Ok(note) => Ok(Some(note)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn write(&self, note: &str) -> Result<(), StoreError> {
        let note = note.to_owned();
        self.run(move |path| replace_file(path, note.as_bytes()))
            .await
    }
}

/// Replaces `path` by a file of mode 0600, durably and in one step.
///
/// # Errors
/// The file system's error; the file is unchanged then.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
