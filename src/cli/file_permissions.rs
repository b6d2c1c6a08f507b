//! Files that only their owner can read, in directories that only their owner can enter.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use secrecy::{ExposeSecret, SecretString};

/// Creates a directory for its owner alone, or checks that it is one, and opens it. Only the owner
/// can have written the files in such a directory.
pub(super) fn directory(path: &Path) -> io::Result<File> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)?;
    let opened = File::open(path)?;
    let found = opened.metadata()?;
    if found.uid() != geteuid().as_raw() {
        return Err(io::Error::other("it belongs to another user"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(io::Error::other("others may look into it; chmod 700 it"));
    }
    Ok(opened)
}

/// Replaces a file atomically: a reader sees the old content or the new, complete. Only the owner
/// can read the file.
pub(super) fn replace(path: &Path, text: &SecretString) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".credbroker-new");
    let new = PathBuf::from(new);
    // A file that is left over may be readable by other users.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.expose_secret().as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Opens a file by which processes of one user wait for each other. Only its owner may open it, so
/// no other user can lock it.
pub(super) fn lock_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}
