//! Port to the store for callers: operators, and how services and operators prove who they are.

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

/// Owner of a token, as currently stored.
#[derive(Clone, Debug)]
pub enum TokenOwner {
    /// A service.
    Service(Service),
    /// An operator.
    Operator(Operator),
    /// Service of a host that may enrol with the token.
    Enrollee(Service),
}

/// The part of the store that knows the callers.
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
    /// Uses up an enrolment token to add this binding, which replaces an earlier one of the same
    /// key and service. Conflict when the token is used up, the service has
    /// [`crate::domain::binding::ENROLLED_MAX`] hosts, or another service is bound to that key.
    async fn enroll(
        &self,
        token: &TokenId,
        binding: &ServiceBinding,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Extends the binding of an enrolled host. Conflict when the host is not enrolled.
    async fn prolong(&self, binding: &ServiceBinding, audit: AuditEvent) -> Result<(), StoreError>;
    /// Returns the tokens of a service, oldest first.
    async fn tokens(&self, service: &Name) -> Result<Vec<StoredToken>, StoreError>;
    /// Deletes a token. Conflict when the service has no token of this id.
    async fn delete_token(
        &self,
        service: &Name,
        id: &TokenId,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Returns a token by its visible part, with its owner as currently stored.
    async fn token_owner(
        &self,
        id: &TokenId,
    ) -> Result<Option<(StoredToken, TokenOwner)>, StoreError>;

    /// Binds an identity to a service. Conflict when the service is unknown or has
    /// [`crate::domain::binding::BINDINGS_MAX`] bindings already, when any service has the same
    /// binding, or when another service has one that may match the same caller.
    async fn bind(&self, binding: &ServiceBinding, audit: AuditEvent) -> Result<(), StoreError>;
    /// Returns the bindings of a service, oldest first.
    async fn bindings(&self, service: &Name) -> Result<Vec<ServiceBinding>, StoreError>;
    /// Returns one binding of a service.
    async fn binding(
        &self,
        service: &Name,
        id: &BindingId,
    ) -> Result<Option<ServiceBinding>, StoreError>;
    /// Deletes a binding. Conflict when the service has no binding of this id.
    async fn unbind(
        &self,
        service: &Name,
        id: &BindingId,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
    /// Returns the services bound to tokens of this issuer, as currently stored, oldest binding
    /// first.
    async fn bound_by_issuer(
        &self,
        issuer: &str,
    ) -> Result<Vec<(ServiceBinding, Service)>, StoreError>;
    /// Returns the service bound to this identity, as currently stored.
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
    /// Returns all operators, by name.
    async fn operators(&self) -> Result<Vec<Operator>, StoreError>;
    /// Deletes an operator and its token. Conflict when the operator is unknown or the last admin.
    async fn delete_operator(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError>;
    /// Replaces an operator's token and makes the operator an admin. An unknown operator is
    /// created.
    async fn replace_operator_token(
        &self,
        name: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError>;
}
