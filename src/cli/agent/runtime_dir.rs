//! Files of the agent. Only their owner can read them, and only their owner can have written them.

use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use data_encoding::BASE64URL_NOPAD;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    cli::{error::CliError, file_permissions},
    client::{endpoint::secret, read_secret},
};

/// Directory of the agent's files, used by one agent at a time.
pub(super) struct Home {
    directory: PathBuf,
    /// Lock on the directory.
    _alone: File,
}

impl Home {
    pub(super) fn of(directory: Option<&Path>) -> Result<Self, CliError> {
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime.filter(|directory| directory.is_absolute());
        let unset =
            || CliError::usage("XDG_RUNTIME_DIR names no directory").next("set it, or give --dir");
        let directory = match directory {
            Some(given) => given.to_owned(),
            None => runtime.ok_or_else(unset)?.join("credbroker"),
        };
        let alone = file_permissions::directory(&directory)
            .map_err(|error| unusable(&directory, &error))?;
        match alone.try_lock() {
            Ok(()) => Ok(Self {
                directory,
                _alone: alone,
            }),
            Err(TryLockError::WouldBlock) => {
                let directory = directory.display();
                Err(
                    CliError::conflict(format!("another agent has its files in {directory}"))
                        .next("end it, or give each a --dir of its own"),
                )
            }
            Err(TryLockError::Error(error)) => Err(unusable(&directory, &error)),
        }
    }

    /// Returns the secret part of the URLs' paths. `stays`: the address stays the same, so the
    /// secret of the previous agent is used again, and the URLs that it handed out stay valid.
    pub(super) fn secret(&self, stays: bool) -> Result<SecretString, CliError> {
        let path = self.directory.join("secret");
        let earlier = stays.then(|| read_secret(&path).ok()).flatten();
        if let Some(earlier) = earlier.filter(is_whole) {
            return Ok(earlier);
        }
        let secret = secret();
        write(&path, &secret)?;
        Ok(secret)
    }

    /// Writes the environment file of a grant, and returns its path.
    pub(super) fn tell(&self, grant: &str, url: &SecretString) -> Result<PathBuf, CliError> {
        let path = self.directory.join(format!("{grant}.env"));
        let url = url.expose_secret();
        let line = format!("AWS_CONTAINER_CREDENTIALS_FULL_URI={url}\n");
        write(&path, &SecretString::from(line))?;
        Ok(path)
    }

    pub(super) fn forget(&self, grant: &str) {
        // The file may have been removed already.
        let _ = fs::remove_file(self.directory.join(format!("{grant}.env")));
    }
}

/// Returns whether the secret has the full length that an agent writes.
fn is_whole(secret: &SecretString) -> bool {
    let bytes = BASE64URL_NOPAD.decode(secret.expose_secret().as_bytes());
    bytes.is_ok_and(|bytes| bytes.len() == 32)
}

fn write(path: &Path, text: &SecretString) -> Result<(), CliError> {
    file_permissions::replace(path, text).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &io::Error) -> CliError {
    CliError::usage(format!("cannot use {}: {error}", path.display()))
}
