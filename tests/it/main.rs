//! The specification, over the real binary, the real SDK and an AWS emulator that
//! enforces IAM. See `tests/README.md` for the switches.

mod access;
mod audit;
mod enforcement;
mod errors;
mod grants;
mod harness;
mod lifecycle;
mod reaping;
mod store;
