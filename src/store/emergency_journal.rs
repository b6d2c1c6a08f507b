//! The journal: a file whose room is allocated in advance, so that a full disk does not refuse an
//! entry.

use std::{
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::{checkpoint_file::replace_file, locked_file::LockedFile, private_file};
use crate::{
    broker::ports::{EmergencyJournal, StoreError},
    domain::random::{Random, SystemRandom},
};

/// Room that is allocated, bytes: some 500 entries.
const ROOM: usize = 256 * 1024;

/// Journal with one entry per line and zeros after the entries. Entries overwrite the zeros in
/// place. The file grows only when its room is used up.
#[derive(Clone, Debug)]
pub struct FileSpool {
    path: PathBuf,
    file: Arc<Mutex<Entries>>,
}

#[derive(Debug)]
struct Entries {
    file: LockedFile,
    /// Offset of the next entry.
    end: u64,
}

impl FileSpool {
    /// Opens the file and locks it against other brokers. Creates it with mode 0600 and its room if
    /// it is missing.
    ///
    /// # Errors
    /// The file system's error; [`ErrorKind::ResourceBusy`] if another broker has the lock.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = LockedFile::open(path).map_err(|error| match error.kind() {
            busy @ ErrorKind::ResourceBusy => io::Error::new(
                busy,
                "another broker is using it; each has an emergency file of its own",
            ),
            _ => error,
        })?;
        let path = path.canonicalize()?;
        let length = file.metadata()?.len();
        if let Some(missing) = (ROOM as u64).checked_sub(length) {
            let zeros = vec![0; usize::try_from(missing).unwrap_or(ROOM)];
            file.write_all_at(&zeros, length)?;
            file.sync_all()?;
        }
        let mut entries = Entries { file, end: 0 };
        entries.end = entries.read()?.len() as u64;
        Ok(Self {
            path,
            file: Arc::new(Mutex::new(entries)),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Entries) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        let done = spawn_blocking(move || {
            let mut entries = file.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut entries)
        });
        let done = done.await.map_err(io::Error::other).flatten();
        done.map_err(|error| unavailable(&self.path, &error))
    }
}

/// Returns the id in the file. Draws it at random and writes it the first time.
fn own_id(path: &Path) -> io::Result<String> {
    let known = private_file(path).and_then(io::read_to_string)?;
    if !known.is_empty() {
        return Ok(known);
    }
    let mut id = [0; 16];
    SystemRandom.fill(&mut id);
    let id = format!("{:032x}", u128::from_be_bytes(id));
    replace_file(path, id.as_bytes())?;
    Ok(id)
}

fn unavailable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

impl Entries {
    /// Returns the whole lines. A line that a crash cut off was never acknowledged.
    fn read(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.file.metadata()?.len());
        let mut bytes = vec![0; length.map_err(|_| ErrorKind::FileTooLarge)?];
        self.file.read_exact_at(&mut bytes, 0)?;
        let written = bytes.iter().position(|byte| *byte == 0);
        bytes.truncate(written.unwrap_or(bytes.len()));
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        bytes.truncate(whole.map_or(0, |last| last + 1));
        Ok(bytes)
    }

    fn add(&mut self, entry: &[u8]) -> io::Result<()> {
        let line = [entry, b"\n"].concat();
        self.file.write_all_at(&line, self.end)?;
        self.file.sync_data()?;
        self.end += line.len() as u64;
        Ok(())
    }

    fn keep_only(&mut self, kept: &[Vec<u8>]) -> io::Result<()> {
        let lines = kept.iter().flat_map(|entry| [&entry[..], b"\n"]);
        let mut bytes = lines.collect::<Vec<_>>().concat();
        let end = bytes.len() as u64;
        bytes.resize(bytes.len().max(self.read()?.len()), 0);
        self.file.write_all_at(&bytes, 0)?;
        self.file.sync_data()?;
        self.end = end;
        Ok(())
    }
}

#[async_trait]
impl EmergencyJournal for FileSpool {
    async fn id(&self) -> Result<String, StoreError> {
        let path = self.path.with_added_extension("id");
        let told = path.clone();
        let id = spawn_blocking(move || own_id(&path)).await;
        let id = id.map_err(io::Error::other).flatten();
        id.map_err(|error| unavailable(&told, &error))
    }

    async fn add(&self, entry: &[u8]) -> Result<(), StoreError> {
        let entry = entry.to_vec();
        self.run(move |entries| entries.add(&entry)).await
    }

    async fn entries(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let bytes = self.run(|entries| entries.read()).await?;
        let lines = bytes.split(|byte| *byte == b'\n');
        Ok(lines
            .filter(|line| !line.is_empty())
            .map(<[u8]>::to_vec)
            .collect())
    }

    async fn keep_only(&self, kept: &[Vec<u8>]) -> Result<(), StoreError> {
        let kept = kept.to_vec();
        self.run(move |entries| entries.keep_only(&kept)).await
    }
}
