//! Where the broker remembers: adapters of [`crate::broker::ports::Store`].

pub mod sqlite;
