//! The agent's files: for its owner alone, and nobody else's doing.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use data_encoding::BASE64URL_NOPAD;
use rustix::process::geteuid;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    cli::failure::Failure,
    client::{endpoint::secret, read_secret},
};

/// Where the agent's files are. One agent has them at a time.
pub(super) struct Home {
    directory: PathBuf,
    /// Locked.
    _alone: File,
}

impl Home {
    pub(super) fn of(directory: Option<&Path>) -> Result<Self, Failure> {
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime.filter(|directory| directory.is_absolute());
        let unset =
            || Failure::usage("XDG_RUNTIME_DIR names no directory").next("set it, or give --dir");
        let directory = match directory {
            Some(given) => given.to_owned(),
            None => runtime.ok_or_else(unset)?.join("credbroker"),
        };
        let alone = private(&directory).map_err(|error| unusable(&directory, &error))?;
        match alone.try_lock() {
            Ok(()) => Ok(Self {
                directory,
                _alone: alone,
            }),
            Err(TryLockError::WouldBlock) => {
                let directory = directory.display();
                Err(
                    Failure::conflict(format!("another agent has its files in {directory}"))
                        .next("end it, or give each a --dir of its own"),
                )
            }
            Err(TryLockError::Error(error)) => Err(unusable(&directory, &error)),
        }
    }

    /// Part of the paths. At an address that stays the same it is that of the agent before,
    /// so that what was told then stays true.
    pub(super) fn secret(&self, stays: bool) -> Result<SecretString, Failure> {
        let path = self.directory.join("secret");
        let earlier = stays.then(|| read_secret(&path).ok()).flatten();
        if let Some(earlier) = earlier.filter(is_whole) {
            return Ok(earlier);
        }
        let secret = secret();
        write(&path, &secret)?;
        Ok(secret)
    }

    /// Writes the file of a grant.
    pub(super) fn tell(&self, grant: &str, url: &SecretString) -> Result<PathBuf, Failure> {
        let path = self.directory.join(format!("{grant}.env"));
        let url = url.expose_secret();
        let line = format!("AWS_CONTAINER_CREDENTIALS_FULL_URI={url}\n");
        write(&path, &SecretString::from(line))?;
        Ok(path)
    }

    pub(super) fn forget(&self, grant: &str) {
        // Somebody may have removed it.
        let _ = fs::remove_file(self.directory.join(format!("{grant}.env")));
    }
}

/// As an agent writes it, to its last character.
fn is_whole(secret: &SecretString) -> bool {
    let bytes = BASE64URL_NOPAD.decode(secret.expose_secret().as_bytes());
    bytes.is_ok_and(|bytes| bytes.len() == 32)
}

/// Makes a directory for its owner alone, or sees that it is one, and opens it. In such a
/// directory every file is its owner's doing.
fn private(directory: &Path) -> io::Result<File> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory)?;
    let opened = File::open(directory)?;
    let found = opened.metadata()?;
    if found.uid() != geteuid().as_raw() {
        return Err(io::Error::other("it belongs to another user"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(io::Error::other("others may look into it; chmod 700 it"));
    }
    Ok(opened)
}

/// A file for its owner alone; whoever reads sees the old or the new, whole.
fn write(path: &Path, text: &SecretString) -> Result<(), Failure> {
    let new = path.with_extension("new");
    // One that is left over.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&new);
    file.and_then(|mut file| {
        file.write_all(text.expose_secret().as_bytes())?;
        file.sync_all()
    })
    .and_then(|()| fs::rename(&new, path))
    .map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot use {}: {error}", path.display()))
}
