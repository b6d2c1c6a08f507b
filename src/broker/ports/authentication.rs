use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Store, StoreError};
use crate::domain::{
    name::Name,
    principal::{Evidence, Origin, PresentedCredentials, Principal},
};

/// Refusal of a login.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The evidence is invalid; the reason is for the audit log only.
    #[error("the evidence was refused: {reason}")]
    Refused {
        /// Machine-readable reason.
        reason: &'static str,
        /// Evidence, if it could be read.
        evidence: Option<Evidence>,
    },
    /// The evidence is good, and its service is suspended.
    #[error("service {service} is suspended")]
    Suspended {
        /// The service.
        service: Name,
        /// Evidence that proves the service.
        evidence: Evidence,
    },
    /// The store is unavailable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Proves the identity of callers.
#[async_trait]
pub trait Authentication: Send + Sync {
    /// Authenticates a caller, by the header if there is one, else by the certificate.
    ///
    /// # Errors
    /// The evidence is invalid, or is of a suspended service; the store's error.
    async fn login(
        &self,
        store: &dyn Store,
        now: Timestamp,
        origin: Origin,
        shown: &Arc<PresentedCredentials>,
    ) -> Result<Principal, LoginError>;
}
