//! Durable state: adapters of [`crate::broker::ports::Store`],
//! [`crate::broker::ports::CheckpointFile`] and [`crate::broker::ports::EmergencyJournal`].

pub mod checkpoint_file;
pub mod emergency_journal;
mod locked_file;
pub mod migrate_to_postgres;
mod migrations;
pub mod postgres;
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
