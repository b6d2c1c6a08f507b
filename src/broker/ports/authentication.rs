use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Store, StoreError};
use crate::domain::{
    name::Name,
    principal::{Evidence, Origin, Principal, Shown},
};

/// Refusal of a login.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The evidence is not good; the reason is for the audit log alone.
    #[error("the evidence was refused: {reason}")]
    Refused {
        /// Machine reason.
        reason: &'static str,
        /// Evidence, if it could be read.
        evidence: Option<Evidence>,
    },
    /// The evidence is good, and its service is suspended.
    #[error("service {service} is suspended")]
    Suspended {
        /// The service.
        service: Name,
        /// Evidence that proved it.
        evidence: Evidence,
    },
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Proves who callers are.
#[async_trait]
pub trait Authentication: Send + Sync {
    /// Proves the caller that shows this: by the header if there is one, else by the certificate.
    ///
    /// # Errors
    /// The evidence is not good, or of a suspended service; the store's.
    async fn login(
        &self,
        store: &dyn Store,
        now: Timestamp,
        origin: Origin,
        shown: &Arc<Shown>,
    ) -> Result<Principal, LoginError>;
}
