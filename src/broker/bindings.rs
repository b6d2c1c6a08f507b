//! Bindings: identities other than tokens by which the broker knows a service.

use crate::{
    broker::{Broker, Error, on_conflict, ports::StoreError},
    domain::{
        access::Caller,
        audit::{Event, Subject},
        binding::{BINDINGS_MAX, BindingId, KnownBy, ServiceBinding},
        name::Name,
        principal::{Identity, Principal},
    },
};

impl Broker {
    /// Binds an identity to a service.
    ///
    /// # Errors
    /// The service is unknown or has twenty bindings already, or the identity is bound already, or
    /// another service is bound to an identity that may match the same caller.
    pub async fn bind(
        &self,
        caller: &Caller,
        service: Name,
        known_by: KnownBy,
    ) -> Result<ServiceBinding, Error> {
        let binding = ServiceBinding {
            id: BindingId::new(self.parts.random.as_ref()),
            service,
            known_by,
            created_at: self.now(),
            expires_at: None,
        };
        let audit = self.caller_event(caller, Event::BindingCreated);
        let audit = audit.service(&binding.service);
        let audit = audit.detail(&format!("binding {}: {}", binding.id, binding.known_by));
        let written = self.store().bind(&binding, audit).await;
        if written.is_err() {
            self.require_service(&binding.service).await?;
            let taken = self.meeting(&binding).await?;
            on_conflict(written, || not_bound(&binding, taken))?;
        }
        Ok(binding)
    }

    /// Returns the binding that conflicts with a new one: a binding of the same identity, or one of
    /// another service that may match the same caller.
    async fn meeting(&self, binding: &ServiceBinding) -> Result<Option<ServiceBinding>, Error> {
        let known_by = &binding.known_by;
        if let Some((taken, _)) = self.store().bound(known_by).await? {
            return Ok(Some(taken));
        }
        let Some(issuer) = known_by.issuer() else {
            return Ok(None);
        };
        let others = self.store().bound_by_issuer(issuer).await?;
        let mut others = others.into_iter().map(|(other, _)| other);
        Ok(others
            .find(|other| other.service != binding.service && other.known_by.may_meet(known_by)))
    }

    /// Returns the bindings of a service.
    ///
    /// # Errors
    /// The service is unknown.
    pub async fn bindings(
        &self,
        caller: &Caller,
        service: &Name,
    ) -> Result<Vec<ServiceBinding>, Error> {
        self.require_service(service).await?;
        let bindings = self.store().bindings(service).await?;
        let audit = self.caller_event(caller, Event::BindingRead);
        self.store().record(audit.service(service)).await?;
        Ok(bindings)
    }

    /// Deletes a binding, with immediate effect.
    ///
    /// # Errors
    /// The service has no binding of this id.
    pub async fn unbind(
        &self,
        caller: &Caller,
        service: &Name,
        id: &BindingId,
    ) -> Result<(), Error> {
        let audit = self.caller_event(caller, Event::BindingDeleted);
        let audit = audit.service(service).detail(&format!("binding {id}"));
        on_conflict(self.store().unbind(service, id, audit).await, || {
            Error::NotFound(Subject::Binding(service.clone(), id.clone()))
        })
    }

    /// Returns the binding that authenticated the caller, if there is one.
    ///
    /// # Errors
    /// The store's error.
    pub async fn who_am_i(&self, caller: &Caller) -> Result<Option<ServiceBinding>, Error> {
        let principal = caller.principal();
        let mut audit = self.caller_event(caller, Event::IdentityRead);
        if let Identity::Service(name) = principal.identity() {
            audit = audit.service(name);
        }
        let binding = self.binding_of(principal).await?;
        self.record_by(principal, audit).await?;
        Ok(binding)
    }

    /// Returns the binding that authenticated a service, while the binding exists.
    pub(super) async fn binding_of(
        &self,
        principal: &Principal,
    ) -> Result<Option<ServiceBinding>, StoreError> {
        match (principal.identity(), &principal.proof().binding) {
            (Identity::Service(service), Some(id)) => self.store().binding(service, id).await,
            _ => Ok(None),
        }
    }
}

fn not_bound(binding: &ServiceBinding, taken: Option<ServiceBinding>) -> Error {
    let subject = Subject::Service(binding.service.clone());
    let service = &binding.service;
    match taken {
        Some(taken) => Error::WrongState {
            subject,
            reason: "IDENTITY_TAKEN",
            message: format!(
                "service {} is known by {} already",
                taken.service, taken.known_by
            ),
            next: format!(
                "one caller is of one service: make them differ, or end the other with `credbroker service binding delete {} {}`",
                taken.service, taken.id
            ),
        },
        None => Error::WrongState {
            subject,
            reason: "TOO_MANY_BINDINGS",
            message: format!("service {service} has {BINDINGS_MAX} bindings already"),
            next: format!("end one: `credbroker service binding list {service}`"),
        },
    }
}
