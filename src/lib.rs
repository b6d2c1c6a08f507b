//! credbroker: one broker holds the only AWS admin key; every service gets its own
//! narrow, short-lived credentials from it, and one command shuts a service out.
//!
//! The rooms of the house and who may import whom stand in `docs/ARCHITECTURE.md`; a
//! test holds the code to it.

#![forbid(unsafe_code)]

pub mod audit;
pub mod domain;
pub mod memory;
pub mod proto;

#[cfg(feature = "client")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;

#[cfg(feature = "server")]
pub mod authn;
#[cfg(feature = "server")]
pub mod aws;
#[cfg(feature = "server")]
pub mod broker;
#[cfg(feature = "server")]
pub mod ca;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod grpc;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod runtime;
#[cfg(feature = "server")]
pub mod sink;
#[cfg(feature = "server")]
pub mod store;
