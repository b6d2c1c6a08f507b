//! A file that only one process at a time may have open.

use std::{
    fs::{File, TryLockError},
    io,
    ops::Deref,
    path::Path,
};

use super::private_file;

/// A locked file. Dropping it releases the lock explicitly, since closing is not enough: a child
/// process that was forked and has not called `exec` yet has the same open file description, and
/// with it the lock (flock(2)).
#[derive(Debug)]
pub(super) struct LockedFile(File);

impl LockedFile {
    /// Opens and locks the file; creates it with mode 0600 if it is missing.
    ///
    /// # Errors
    /// The file system's error; [`io::ErrorKind::ResourceBusy`] if another process has the lock.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = private_file(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // Otherwise the end of the process releases the lock.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_when_it_is_dropped_even_if_a_child_process_has_the_file_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let locked = LockedFile::open(&path).unwrap();
        let in_use = LockedFile::open(&path).unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::ResourceBusy);
        // A duplicate shares the open file description, as a forked process does.
        let _in_a_child = locked.try_clone().unwrap();
        drop(locked);
        LockedFile::open(&path).unwrap();
    }
}
