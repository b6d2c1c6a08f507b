use async_trait::async_trait;

use super::{SqlStore, bindings, operators, row, tokens};
use crate::{
    broker::ports::{Identities, StoreError, TokenOwner},
    domain::{
        audit::AuditEvent,
        binding::{BindingId, KnownBy, ServiceBinding},
        name::Name,
        operator::{Operator, Role},
        service::Service,
        token::{StoredToken, TokenId},
    },
};

#[async_trait]
impl Identities for SqlStore {
    async fn create_token(
        &self,
        service: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (service, token) = (service.clone(), token.clone());
        self.change(audit, move |tx| {
            Box::pin(async move { tokens::insert_for_service(tx, &service, &token).await })
        })
        .await
    }

    async fn allow_enrollment(
        &self,
        service: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (service, token) = (service.clone(), token.clone());
        self.change(audit, move |tx| {
            Box::pin(async move { tokens::insert_for_enrollment(tx, &service, &token).await })
        })
        .await
    }

    async fn enroll(
        &self,
        token: &TokenId,
        binding: &ServiceBinding,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (token, binding) = (token.clone(), binding.clone());
        self.change(audit, move |tx| {
            Box::pin(async move {
                tokens::use_up(tx, &binding.service, &token).await?;
                bindings::insert_enrolled(tx, &binding).await
            })
        })
        .await
    }

    async fn prolong(&self, binding: &ServiceBinding, audit: AuditEvent) -> Result<(), StoreError> {
        let binding = binding.clone();
        self.change(audit, move |tx| {
            Box::pin(async move { bindings::prolong(tx, &binding).await })
        })
        .await
    }

    async fn tokens(&self, service: &Name) -> Result<Vec<StoredToken>, StoreError> {
        tokens::list(&self.readers, service).await
    }

    async fn delete_token(
        &self,
        service: &Name,
        id: &TokenId,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (service, id) = (service.clone(), id.clone());
        self.change(audit, move |tx| {
            Box::pin(async move { tokens::delete(tx, &service, &id).await })
        })
        .await
    }

    async fn token_owner(
        &self,
        id: &TokenId,
    ) -> Result<Option<(StoredToken, TokenOwner)>, StoreError> {
        let reading = tokens::owner(&self.readers, id);
        self.registry.owners.get(id, reading).await
    }

    async fn bind(&self, binding: &ServiceBinding, audit: AuditEvent) -> Result<(), StoreError> {
        let binding = binding.clone();
        self.change(audit, move |tx| {
            Box::pin(async move { bindings::insert(tx, &binding).await })
        })
        .await
    }

    async fn bindings(&self, service: &Name) -> Result<Vec<ServiceBinding>, StoreError> {
        bindings::list(&self.readers, service).await
    }

    async fn binding(
        &self,
        service: &Name,
        id: &BindingId,
    ) -> Result<Option<ServiceBinding>, StoreError> {
        bindings::get(&self.readers, service, id).await
    }

    async fn unbind(
        &self,
        service: &Name,
        id: &BindingId,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (service, id) = (service.clone(), id.clone());
        self.change(audit, move |tx| {
            Box::pin(async move { bindings::delete(tx, &service, &id).await })
        })
        .await
    }

    async fn bound(
        &self,
        known_by: &KnownBy,
    ) -> Result<Option<(ServiceBinding, Service)>, StoreError> {
        bindings::bound(&self.readers, known_by).await
    }

    async fn bound_by_issuer(
        &self,
        issuer: &str,
    ) -> Result<Vec<(ServiceBinding, Service)>, StoreError> {
        let mut reader = self.readers.acquire().await.map_err(row::store_error)?;
        bindings::of_issuer(&mut reader, issuer).await
    }

    async fn create_operator(
        &self,
        name: &Name,
        role: Role,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (name, token) = (name.clone(), token.clone());
        self.change(audit, move |tx| {
            Box::pin(async move {
                operators::insert(tx, &name, role, token.created_at).await?;
                tokens::insert_for_operator(tx, &name, &token).await
            })
        })
        .await
    }

    async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        operators::list(&self.readers).await
    }

    async fn delete_operator(&self, name: &Name, audit: AuditEvent) -> Result<(), StoreError> {
        let name = name.clone();
        self.change(audit, move |tx| {
            Box::pin(async move { operators::delete(tx, &name).await })
        })
        .await
    }

    async fn replace_operator_token(
        &self,
        name: &Name,
        token: &StoredToken,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let (name, token) = (name.clone(), token.clone());
        self.change(audit, move |tx| {
            Box::pin(async move {
                operators::ensure_admin(tx, &name, token.created_at).await?;
                tokens::insert_for_operator(tx, &name, &token).await
            })
        })
        .await
    }
}
