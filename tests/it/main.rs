//! The specification, over the real binary, the real SDK and an AWS emulator that
//! enforces IAM. See `tests/README.md` for the switches.

mod enforcement;
mod harness;
