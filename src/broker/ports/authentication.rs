use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Store, StoreError};
use crate::domain::{
    name::Name,
    principal::{Evidence, Origin, Principal, Shown},
};

/// Why a caller is not who it says, or may not come in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The evidence is not good; why, and what it was, is for the audit log alone.
    #[error("the evidence was refused: {reason}")]
    Refused {
        /// Machine reason.
        reason: &'static str,
        /// What was shown, if it could be read.
        evidence: Option<Evidence>,
    },
    /// The evidence is good, and its service is shut out.
    #[error("service {service} is suspended")]
    Suspended {
        /// Which service.
        service: Name,
        /// What proved it.
        evidence: Evidence,
    },
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Proves who callers are.
#[async_trait]
pub trait Authentication: Send + Sync {
    /// Proves who shows this: by the header if there is one, else by the certificate.
    ///
    /// # Errors
    /// What is shown is not good, or of a suspended service; the store's.
    async fn login(
        &self,
        store: &dyn Store,
        now: Timestamp,
        origin: Origin,
        shown: &Arc<Shown>,
    ) -> Result<Principal, LoginError>;
}
