//! credbroker: one broker holds the only AWS admin key. Every service gets its own narrow,
//! short-lived credentials from the broker, and one command revokes a service.
//!
//! `docs/ARCHITECTURE.md` lists the modules and their permitted imports; a test enforces them.

#![forbid(unsafe_code)]

pub mod audit;
pub mod domain;
pub mod process_hardening;
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
