//! What depends on what is stored, once more: with a database for each broker. See
//! `tests/README.md`.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot go on stops; the harness is its public part"
)]

#[allow(
    dead_code,
    reason = "some of it serves what is tried with the file alone"
)]
#[path = "../it"]
mod all {
    pub mod access;
    pub mod admin_key;
    pub mod approvals;
    pub mod audit;
    pub mod enforcement;
    pub mod errors;
    pub mod faults;
    pub mod follow;
    pub mod grants;
    pub mod harness;
    pub mod identities;
    pub mod lifecycle;
    pub mod limits;
    pub mod lookup;
    pub mod reaping;
    pub mod reconciliation;
    pub mod removal;
    pub mod renewal;
    pub mod repeats;
    pub mod revocation;
    pub mod several;
    pub mod sharing;
}

use all::{audit, enforcement, faults, harness, identities, lifecycle};
