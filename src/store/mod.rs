//! Where the broker remembers: adapters of [`crate::broker::ports::Store`] and
//! [`crate::broker::ports::Anchor`].

pub mod anchor;
pub mod sqlite;
