//! Files for their owner alone, in directories of the same kind.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use secrecy::{ExposeSecret, SecretString};

/// Makes a directory for its owner alone, or sees that it is one, and opens it. In such a
/// directory every file is its owner's doing.
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

/// Whoever reads sees the old or the new, whole; never another user than its owner.
pub(super) fn replace(path: &Path, text: &SecretString) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".credbroker-new");
    let new = PathBuf::from(new);
    // One that is left over may be open to others.
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

/// A file by which processes of one user wait for each other: nobody else can lock what only
/// its owner may open.
pub(super) fn lock_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}
