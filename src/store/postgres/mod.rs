//! The store in PostgreSQL, 13 or newer: <https://www.postgresql.org/docs/current/>.
//!
//! Every write transaction locks the row of the log's edge from its first statement on. Write
//! transactions of all replicas therefore follow one another, as in the embedded store.

mod dialect;
mod open;
mod peers;
#[allow(clippy::duplicate_mod, reason = "it is compiled for each database")]
#[path = "../sql/mod.rs"]
mod sql;

pub(super) use self::open::connect;
pub use self::{
    open::{OpenError, held, migrate},
    sql::SqlStore as PostgresStore,
};
