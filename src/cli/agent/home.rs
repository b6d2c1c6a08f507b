//! The agent's files: for its owner alone, and nobody else's doing.

use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use data_encoding::BASE64URL_NOPAD;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    cli::{failure::Failure, private},
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
        let alone = private::directory(&directory).map_err(|error| unusable(&directory, &error))?;
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

fn write(path: &Path, text: &SecretString) -> Result<(), Failure> {
    private::replace(path, text).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot use {}: {error}", path.display()))
}
