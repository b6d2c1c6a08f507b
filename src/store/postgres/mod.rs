//! The store in PostgreSQL, 13 or newer: <https://www.postgresql.org/docs/current/>.
//!
//! Every write transaction holds the row of the log's edge from its first statement on, so
//! that they follow one another as in the embedded store, whichever broker makes them.

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
