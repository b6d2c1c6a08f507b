//! What the broker is about, with no I/O: names, services, grants, leases, tokens,
//! policies, audit events, and the decisions over them.

pub mod access;
pub mod arn;
pub mod audit;
pub mod catalogue;
pub mod clock;
pub mod credential;
pub mod decide;
pub mod duration;
pub mod grant;
pub mod lease;
pub mod name;
pub mod operator;
pub mod policy;
pub mod principal;
pub mod random;
pub mod service;
pub mod token;
