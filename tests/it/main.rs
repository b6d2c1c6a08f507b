//! The specification, over the real binary, the real SDK and an AWS emulator that
//! enforces IAM. See `tests/README.md` for the switches.

mod access;
mod enforcement;
mod errors;
mod harness;
mod lifecycle;
mod reaping;
mod store;
