//! Grants: put, look at, delete.

use std::sync::Arc;

use crate::{
    broker::{Broker, Error, approvals::operator, on_conflict, ports::Page},
    domain::{
        access::Caller,
        approval::Change,
        audit::{AuditEvent, Event, Subject},
        grant::{
            Grant, GrantSpec, KindSpec,
            check::{Violation, violations},
        },
        name::{GrantName, Name},
    },
};

impl Broker {
    /// Creates a grant or adds a version to it. Returns the current version and
    /// whether anything changed.
    ///
    /// # Errors
    /// AWS would refuse it, it is broad without leave, its service is unknown, or it may
    /// permit more than before and takes a second operator.
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
        self.known_service(&name.service).await?;
        // In this order: whoever changes it in between makes this one a conflict.
        let version = self.store().newest_grant_version(&name).await? + 1;
        let before = self.store().grant(&name).await?;
        if let Some(current) = before.as_ref().filter(|grant| grant.spec == spec) {
            self.store()
                .record(self.caller_event(caller, Event::GrantRead).grant(current))
                .await?;
            return Ok((Grant::clone(current), false));
        }
        if spec.may_widen(before.as_ref().map(|grant| &grant.spec)) {
            let change = Change::PutGrant {
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

    /// A role by which the broker denies sessions is no role of a service's.
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

    /// The current version of one grant.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn grant(&self, caller: &Caller, name: &GrantName) -> Result<Arc<Grant>, Error> {
        let grant = self.store().grant(name).await?;
        let grant = grant.ok_or_else(|| Error::NotFound(Subject::Grant(name.clone())))?;
        self.store()
            .record(self.caller_event(caller, Event::GrantRead).grant(&grant))
            .await?;
        Ok(grant)
    }

    /// A page of current grants, of one service or all.
    ///
    /// # Errors
    /// The store's.
    pub async fn grants(
        &self,
        caller: &Caller,
        service: Option<&Name>,
        page: &Page,
    ) -> Result<Vec<Grant>, Error> {
        let grants = self.store().grants(service, page).await?;
        let audit = self.caller_event(caller, Event::GrantRead);
        self.store()
            .record(service.into_iter().fold(audit, AuditEvent::service))
            .await?;
        Ok(grants)
    }

    /// Ends a grant.
    ///
    /// # Errors
    /// There is none of this name.
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

    /// Records that the policy catalogue was looked at.
    ///
    /// # Errors
    /// The store's.
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
