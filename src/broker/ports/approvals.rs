//! What the store knows of changes that take a second operator.

use async_trait::async_trait;
use jiff::Timestamp;

use super::StoreError;
use crate::domain::{
    approval::{Approval, ApprovalId, Person},
    audit::AuditEvent,
};

/// The part of the store that keeps approvals.
#[async_trait]
pub trait Approvals: Send + Sync {
    /// Those that are not over by then, oldest first.
    async fn approvals(&self, now: Timestamp) -> Result<Vec<Approval>, StoreError>;
    /// Asks for one, and forgets those that are over when it is. Conflict when the operator has
    /// [`crate::domain::approval::OPEN_MAX`] open.
    async fn request_approval(
        &self,
        approval: &Approval,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Gives one. Conflict when it is over by then, given, gone, or the operator's own.
    async fn give_approval(
        &self,
        id: &ApprovalId,
        by: &Person,
        now: Timestamp,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Forgets one, given or not. Conflict when it is gone.
    async fn reject_approval(&self, id: &ApprovalId, audit: AuditEvent) -> Result<(), StoreError>;
    /// Uses one up. Conflict when it was not given, is over by then, or gone.
    async fn use_approval(
        &self,
        id: &ApprovalId,
        now: Timestamp,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
}
