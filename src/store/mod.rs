//! Durable state: adapters of [`crate::broker::ports::Store`], [`crate::broker::ports::Anchor`] and
//! [`crate::broker::ports::Spool`].

pub mod anchor;
pub mod copy;
mod locked_file;
mod migrations;
pub mod postgres;
pub mod spool;
pub mod sqlite;

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Opens a file that only its owner may read and write; creates it if it is missing.
fn private_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}
