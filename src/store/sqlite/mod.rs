//! The embedded store: one SQLite file, one broker.
//!
//! WAL with `synchronous = FULL`, so that a commit is on disk when it returns
//! (<https://sqlite.org/pragma.html#pragma_synchronous>).

mod dialect;
mod held;
mod open;
#[allow(clippy::duplicate_mod, reason = "it is compiled for each database")]
#[path = "../sql/mod.rs"]
mod sql;
mod wal;

/// Version of the tables.
pub const VERSION: u64 = super::migrations::SQLITE.len() as u64;

pub use self::{held::held, open::OpenError, sql::SqlStore as SqliteStore};
