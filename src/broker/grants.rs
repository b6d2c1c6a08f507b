//! Grants: put, read, list, delete.

use std::sync::Arc;

use crate::{
    broker::{Broker, Error, approvals::operator, on_conflict, ports::PageRequest},
    domain::{
        access::Caller,
        approval::ApprovedChange,
        audit::{AuditEvent, Event, Subject},
        grant::{
            Grant, GrantSpec, KindSpec,
            validate::{Violation, violations},
        },
        name::{GrantName, Name},
    },
};

impl Broker {
    /// Creates a grant or adds a version to it. Returns the current version and whether anything
    /// changed.
    ///
    /// # Errors
    /// AWS would refuse the grant; the grant is broad without `allow_broad`; its service is
    /// unknown; or the grant may permit more than before and needs a second operator.
    pub async fn put_grant(
        &self,
        caller: &Caller,
        name: GrantName,
        spec: GrantSpec,
    ) -> Result<(Grant, bool), Error> {
        let mut wrong = violations(&spec, self.parts.partition);
        wrong.extend(self.gives_own_role(&spec));
        if !wrong.is_empty() {
            return Err(Error::Invalid(wrong));
        }
        self.require_service(&name.service).await?;
        // The version is read before the grant: a concurrent change then makes this one a conflict.
        let version = self.store().newest_grant_version(&name).await? + 1;
        let before = self.store().grant(&name).await?;
        if let Some(current) = before.as_ref().filter(|grant| grant.spec == spec) {
            self.store()
                .record(self.caller_event(caller, Event::GrantRead).grant(current))
                .await?;
            return Ok((Grant::clone(current), false));
        }
        if spec.may_widen(before.as_ref().map(|grant| &grant.spec)) {
            let change = ApprovedChange::PutGrant {
                grant: name.to_string(),
                version,
                spec: Box::new(spec.clone()),
            };
            self.approved(caller, change).await?;
        }
        let grant = Grant {
            name,
            version,
            spec,
            created_at: self.now(),
            created_by: operator(caller),
        };
        let audit = self
            .caller_event(caller, Event::GrantPut)
            .grant(&grant)
            .detail(&grant.spec.breadth().join("; "));
        on_conflict(self.store().put_grant(&grant, audit).await, || {
            Error::Conflict(Subject::Grant(grant.name.clone()))
        })?;
        Ok((grant, true))
    }

    /// Refuses a grant whose role is one of the roles with which the broker writes denials.
    fn gives_own_role(&self, spec: &GrantSpec) -> Option<Violation> {
        let KindSpec::AssumeRole { role_arn, .. } = &spec.kind else {
            return None;
        };
        let mut own = self.parts.placements.revokers.values();
        own.any(|own| own == role_arn).then(|| {
            let message = "by this role the broker denies sessions: name another";
            Violation::new("grant.assume_role.role_arn", message)
        })
    }

    /// Returns the current version of one grant.
    ///
    /// # Errors
    /// The grant is unknown.
    pub async fn grant(&self, caller: &Caller, name: &GrantName) -> Result<Arc<Grant>, Error> {
        let grant = self.store().grant(name).await?;
        let grant = grant.ok_or_else(|| Error::NotFound(Subject::Grant(name.clone())))?;
        self.store()
            .record(self.caller_event(caller, Event::GrantRead).grant(&grant))
            .await?;
        Ok(grant)
    }

    /// Returns a page of current grants, of one service or of all.
    ///
    /// # Errors
    /// The store's error.
    pub async fn grants(
        &self,
        caller: &Caller,
        service: Option<&Name>,
        page: &PageRequest,
    ) -> Result<Vec<Grant>, Error> {
        let grants = self.store().grants(service, page).await?;
        let audit = self.caller_event(caller, Event::GrantRead);
        self.store()
            .record(service.into_iter().fold(audit, AuditEvent::service))
            .await?;
        Ok(grants)
    }

    /// Deletes a grant.
    ///
    /// # Errors
    /// The grant is unknown.
    pub async fn delete_grant(&self, caller: &Caller, name: &GrantName) -> Result<(), Error> {
        let audit = self
            .caller_event(caller, Event::GrantDeleted)
            .grant_name(name);
        let deleted = self
            .store()
            .delete_grant(name, self.now(), &operator(caller), audit)
            .await;
        on_conflict(deleted, || Error::NotFound(Subject::Grant(name.clone())))
    }

    /// Records that a template of the policy catalogue was read.
    ///
    /// # Errors
    /// The store's error.
    pub async fn catalogue_read(&self, caller: &Caller, template: &str) -> Result<(), Error> {
        self.store()
            .record(
                self.caller_event(caller, Event::PolicyRead)
                    .detail(template),
            )
            .await?;
        Ok(())
    }
}
