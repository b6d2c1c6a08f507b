//! Registered workloads.

use jiff::Timestamp;

use crate::domain::{grant::Kind, name::Name};

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

/// What one service may have at most, so that one in a restart loop does not use up the
/// account for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Live leases of IAM users. AWS takes 5,000 users per account.
    pub live_users: u64,
    /// Live leases of sessions.
    pub live_sessions: u64,
    /// Calls of every kind per second; twice as many at once.
    pub calls_per_second: u32,
    /// Issues, renewals and releases per second; twice as many at once.
    pub issues_per_second: u32,
    /// Issues of IAM users per minute; a third as many at once. A user costs
    /// some twenty calls to IAM from its making to its end.
    pub users_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            live_users: 100,
            live_sessions: 10_000,
            calls_per_second: 200,
            issues_per_second: 100,
            users_per_minute: 30,
        }
    }
}

impl Limits {
    /// How many live leases of those that count together with this kind.
    #[must_use]
    pub const fn live(&self, kind: Kind) -> u64 {
        match kind {
            Kind::IamUser => self.live_users,
            Kind::AssumeRole | Kind::FederationToken => self.live_sessions,
        }
    }
}
