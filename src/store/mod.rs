//! Where the broker remembers: adapters of [`crate::broker::ports::Store`],
//! [`crate::broker::ports::Anchor`] and [`crate::broker::ports::Spool`].

pub mod anchor;
pub mod spool;
pub mod sqlite;
