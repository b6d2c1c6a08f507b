//! What the broker is about, with no I/O: names, services, grants, leases, tokens,
//! policies, audit events, and the decisions over them.

#[cfg(feature = "server")]
pub mod access;
#[cfg(feature = "server")]
pub mod admin_key;
pub mod approval;
pub mod arn;
pub mod audit;
pub mod binding;
#[cfg(feature = "server")]
pub mod bucket;
pub mod catalogue;
pub mod claims;
pub mod clock;
pub mod credential;
#[cfg(feature = "server")]
pub mod decide;
pub mod denial;
pub mod duration;
pub mod edge;
pub mod grant;
pub mod id;
pub mod lease;
pub mod name;
pub mod operator;
pub mod policy;
pub mod principal;
pub mod probe;
pub mod random;
pub mod refresh;
pub mod request;
#[cfg(feature = "server")]
pub mod seal;
pub mod service;
pub mod spiffe;
pub mod token;
