//! The specification, over the real binary, the real SDK and an AWS emulator that
//! enforces IAM. See `tests/README.md` for the switches.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot go on stops; the harness is its public part"
)]

mod access;
mod admin_key;
mod agent;
mod approvals;
mod architecture;
mod audit;
mod bootstrap;
mod clock;
mod container;
mod contract;
mod doctor;
mod edge;
mod enforcement;
mod errors;
mod faults;
mod follow;
mod grants;
mod harness;
mod identities;
mod language;
mod lifecycle;
mod limits;
mod lookup;
mod memory;
mod oracle;
mod probes;
mod process;
mod reaping;
mod reconciliation;
mod removal;
mod renewal;
mod repeats;
mod revocation;
mod sdks;
mod several;
mod sharing;
mod store;
