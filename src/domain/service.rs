//! Registered services.

use jiff::Timestamp;

use crate::domain::{grant::Kind, name::Name};

/// Most tokens that a service may have at a time, enough to rotate them.
pub const TOKENS_MAX: usize = 10;

/// A backend program that is registered with the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name of the service, also part of every session name and tag in AWS.
    pub name: Name,
    /// Time of registration.
    pub created_at: Timestamp,
    /// Suspension; `None`: the service is not suspended.
    pub suspension: Option<Suspension>,
}

/// Time and reason of a suspension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    /// Time of the suspension.
    pub at: Timestamp,
    /// Reason, as the operator gave it.
    pub reason: Option<String>,
}

/// Summary of a service and its leases, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOverview {
    /// The service.
    pub service: Service,
    /// Number of leases that have not ended.
    pub live_leases: u64,
    /// Time of the newest issue to the service.
    pub last_issued_at: Option<Timestamp>,
}

/// Limits of one service, so that a service in a restart loop does not exhaust the account for the
/// others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Live leases of IAM users. AWS allows 5,000 users per account.
    pub live_users: u64,
    /// Live leases of sessions.
    pub live_sessions: u64,
    /// Calls of every kind per second. The burst is twice as many.
    pub calls_per_second: u32,
    /// Issues, renewals and releases per second. The burst is twice as many.
    pub issues_per_second: u32,
    /// Issues of IAM users per minute. The burst is a third as many. A user costs some twenty calls
    /// to IAM from its creation to its deletion.
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
    /// Returns the limit of live leases that this kind counts towards.
    #[must_use]
    pub const fn live(&self, kind: Kind) -> u64 {
        match kind {
            Kind::IamUser => self.live_users,
            Kind::AssumeRole | Kind::FederationToken => self.live_sessions,
        }
    }
}
