//! Port to the store for changes that need a second operator.

use async_trait::async_trait;
use jiff::Timestamp;

use super::StoreError;
use crate::domain::{
    approval::{Approval, ApprovalId, Person},
    audit::AuditEvent,
};

/// The part of the store that holds approvals.
#[async_trait]
pub trait Approvals: Send + Sync {
    /// Returns the approvals that have not expired at `now`, oldest first.
    async fn approvals(&self, now: Timestamp) -> Result<Vec<Approval>, StoreError>;
    /// Adds a requested approval, and deletes those that have expired when it is requested.
    /// Conflict when the operator has [`crate::domain::approval::OPEN_MAX`] open.
    async fn request_approval(
        &self,
        approval: &Approval,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Approves a request. Conflict when it has expired at `now`, is approved already, is gone, or
    /// is the operator's own.
    async fn give_approval(
        &self,
        id: &ApprovalId,
        by: &Person,
        now: Timestamp,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Deletes an approval, approved or not. Conflict when it is gone.
    async fn reject_approval(&self, id: &ApprovalId, audit: AuditEvent) -> Result<(), StoreError>;
    /// Uses up an approval. Conflict when it is not approved, has expired at `now`, or is gone.
    async fn use_approval(
        &self,
        id: &ApprovalId,
        now: Timestamp,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
}
