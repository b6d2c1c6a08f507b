//! Registered workloads.

use jiff::Timestamp;

use crate::domain::name::Name;

/// Most tokens a service may have at a time: enough to roll them.
pub const TOKENS_MAX: usize = 10;

/// A registered workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, also in every session name and tag in AWS.
    pub name: Name,
    /// When it was registered.
    pub created_at: Timestamp,
    /// Set while the service is shut out.
    pub suspension: Option<Suspension>,
}

/// Since when, and why, a service is shut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    /// When it was suspended.
    pub at: Timestamp,
    /// As the operator said.
    pub reason: Option<String>,
}

/// What a service holds, for people who look after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOverview {
    /// The service.
    pub service: Service,
    /// Leases that have not ended.
    pub live_leases: u64,
    /// When credentials were last issued to it.
    pub last_issued_at: Option<Timestamp>,
}
