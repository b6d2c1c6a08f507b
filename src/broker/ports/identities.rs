//! Who may call: operators, and how services and operators prove who they are.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::{
    audit::AuditEvent,
    binding::{BindingId, KnownBy, ServiceBinding},
    name::Name,
    operator::{Operator, Role},
    service::Service,
    token::{StoredToken, TokenId},
};

/// Whose token it is, as it stands now.
#[derive(Clone, Debug)]
pub enum TokenOwner {
    /// A service.
    Service(Service),
    /// An operator.
    Operator(Operator),
    /// Whoever may enrol a host of this service.
    Enrollee(Service),
}

/// The part of the store that knows who may call.
#[async_trait]
pub trait Identities: Send + Sync {
    /// Adds a service token. Conflict when the service is unknown or has
    /// [`crate::domain::service::TOKENS_MAX`] already.
    async fn create_token(
        &self,
        service: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Adds a token for one enrolment. Conflict when the service is unknown.
    async fn allow_enrollment(
        &self,
        service: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Uses up an enrolment token for this binding, which takes the place of an earlier one
    /// of the same key and service. Conflict when the token is used up, the service has
    /// [`crate::domain::binding::ENROLLED_MAX`] hosts, or another is known by that key.
    async fn enroll(
        &self,
        token: &TokenId,
        binding: &ServiceBinding,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Lets an enrolled host be known until later. Conflict when it is not enrolled.
    async fn prolong(&self, binding: &ServiceBinding, audit: AuditEvent) -> Result<(), StoreError>;
    /// The tokens of a service, oldest first.
    async fn tokens(&self, service: &Name) -> Result<Vec<StoredToken>, StoreError>;
    /// Ends a token. Conflict when the service has none of this id.
    async fn delete_token(
        &self,
        service: &Name,
        id: &TokenId,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// A token by its visible part, with its owner as it stands now.
    async fn token_owner(
        &self,
        id: &TokenId,
    ) -> Result<Option<(StoredToken, TokenOwner)>, StoreError>;

    /// Lets a service be known by something. Conflict when the service is unknown, has
    /// [`crate::domain::binding::BINDINGS_MAX`] already, when any is known by the same, or
    /// another by what may be the same caller.
    async fn bind(&self, binding: &ServiceBinding, audit: AuditEvent) -> Result<(), StoreError>;
    /// What a service is known by, oldest first.
    async fn bindings(&self, service: &Name) -> Result<Vec<ServiceBinding>, StoreError>;
    /// One binding of a service.
    async fn binding(
        &self,
        service: &Name,
        id: &BindingId,
    ) -> Result<Option<ServiceBinding>, StoreError>;
    /// Ends a binding. Conflict when the service has none of this id.
    async fn unbind(
        &self,
        service: &Name,
        id: &BindingId,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Who is known by tokens of this issuer, as it stands now, oldest binding first.
    async fn bound_by_issuer(
        &self,
        issuer: &str,
    ) -> Result<Vec<(ServiceBinding, Service)>, StoreError>;
    /// Who is known by this, as it stands now.
    async fn bound(
        &self,
        known_by: &KnownBy,
    ) -> Result<Option<(ServiceBinding, Service)>, StoreError>;

    /// Adds an operator with its token. Conflict when the name is taken.
    async fn create_operator(
        &self,
        name: &Name,
        role: Role,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// All operators, by name.
    async fn operators(&self) -> Result<Vec<Operator>, StoreError>;
    /// Removes an operator and its token. Conflict when it is unknown or the last admin.
    async fn delete_operator(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError>;
    /// Gives an operator, made as admin if unknown, another token.
    async fn replace_operator_token(
        &self,
        name: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
}
