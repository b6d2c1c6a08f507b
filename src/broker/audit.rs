//! Reading the audit log, and what is recorded without a use case of its own.

use crate::{
    broker::{
        Broker, By, Error,
        ports::{AuditFilter, LeaseFilter, Page},
    },
    domain::{
        access::{AccessError, Caller},
        audit::{AuditEvent, AuditRecord, Event},
        lease::Lease,
        name::{LeaseId, Name},
        principal::{Origin, Principal},
    },
};

impl Broker {
    /// A page of audit records, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn audit(
        &self,
        caller: &Caller,
        filter: &AuditFilter,
        page: &Page,
    ) -> Result<Vec<AuditRecord>, Error> {
        let records = self.store().audit(filter, page).await?;
        self.store()
            .record(self.caller_event(caller, Event::AuditRead))
            .await?;
        Ok(records)
    }

    /// Begins to follow the log: where the newest `lines` records start.
    ///
    /// # Errors
    /// The store's.
    pub async fn audit_tail(&self, caller: &Caller, lines: u64) -> Result<u64, Error> {
        let size = self.store().audit_size().await?;
        self.store()
            .record(self.caller_event(caller, Event::AuditRead))
            .await?;
        Ok(size.saturating_sub(lines))
    }

    /// Records a login that failed; `service` when it was a known one, shut out.
    ///
    /// # Errors
    /// The store's.
    pub async fn login_failed(
        &self,
        origin: &Origin,
        reason: &str,
        service: Option<&Name>,
    ) -> Result<(), Error> {
        let audit = AuditEvent::failed_login(origin, reason, self.now());
        self.store()
            .record(service.into_iter().fold(audit, AuditEvent::service))
            .await?;
        Ok(())
    }

    /// Records a proven caller that called what it may not.
    ///
    /// # Errors
    /// The store's.
    pub async fn call_denied(
        &self,
        principal: &Principal,
        error: &AccessError,
    ) -> Result<(), Error> {
        let audit = AuditEvent::by(principal, Event::RequestDenied, self.now());
        self.store()
            .record(audit.denied("NOT_PERMITTED").detail(&error.to_string()))
            .await?;
        Ok(())
    }

    /// Records a refusal that no use case has recorded yet, and passes it on. An
    /// issue records its own; when the store is down nothing can be recorded.
    ///
    /// # Errors
    /// The refusal itself, or the store's.
    pub async fn settle<T>(&self, caller: &Caller, result: Result<T, Error>) -> Result<T, Error> {
        match &result {
            Ok(_)
            | Err(
                Error::Denied(_)
                | Error::Aws(_)
                | Error::Suspended(_)
                | Error::Store(_)
                | Error::Internal(_),
            ) => {}
            Err(error) => {
                let audit = self.caller_event(caller, Event::RequestDenied);
                self.store()
                    .record(audit.denied(error.reason()).detail(&error.to_string()))
                    .await?;
            }
        }
        result
    }

    /// Records that the broker begins or ends to serve.
    ///
    /// # Errors
    /// The store's.
    pub async fn lifecycle(&self, event: Event) -> Result<(), Error> {
        self.store()
            .record(
                self.event(By::Broker, event)
                    .detail(env!("CARGO_PKG_VERSION")),
            )
            .await?;
        Ok(())
    }

    /// One lease, for an operator.
    ///
    /// # Errors
    /// There is none of this id.
    pub async fn lease(&self, caller: &Caller, id: &LeaseId) -> Result<Lease, Error> {
        let lease = self.known_lease(id).await?;
        self.store()
            .record(self.caller_event(caller, Event::LeaseRead).lease(&lease))
            .await?;
        Ok(lease)
    }

    /// A page of leases, newest first, for an operator.
    ///
    /// # Errors
    /// The store's.
    pub async fn leases(
        &self,
        caller: &Caller,
        filter: &LeaseFilter,
        page: &Page,
    ) -> Result<Vec<Lease>, Error> {
        let leases = self.store().leases(filter, page).await?;
        let audit = self.caller_event(caller, Event::LeaseRead);
        self.store()
            .record(filter.service.iter().fold(audit, AuditEvent::service))
            .await?;
        Ok(leases)
    }
}
