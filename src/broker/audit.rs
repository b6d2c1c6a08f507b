//! Reading the audit log, and what is recorded without a use case of its own.

use crate::{
    broker::{
        Broker, By, Error,
        ports::{AuditFilter, LeaseFilter, Page},
    },
    domain::{
        access::Caller,
        audit::{AuditEvent, AuditRecord, Event},
        grant::check::Violation,
        lease::Lease,
        name::LeaseId,
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

    /// Begins to read the end of the log: after which record the newest `lines` start,
    /// and which is the last.
    ///
    /// # Errors
    /// The store's.
    pub async fn audit_tail(&self, caller: &Caller, lines: u64) -> Result<(u64, u64), Error> {
        let size = self.store().audit_size().await?;
        self.store()
            .record(self.caller_event(caller, Event::AuditRead))
            .await?;
        Ok((size.saturating_sub(lines), size))
    }

    /// Begins to export the log up to record `end`.
    ///
    /// # Errors
    /// The log has fewer records; the store's.
    pub async fn audit_export(&self, caller: &Caller, start: u64, end: u64) -> Result<(), Error> {
        let size = self.store().audit_size().await?;
        self.store()
            .record(self.caller_event(caller, Event::AuditRead))
            .await?;
        if !start.is_multiple_of(256) {
            let wrong = "a multiple of 256 records".to_owned();
            return Err(Error::Invalid(vec![Violation::new("start", wrong)]));
        }
        if end > size || start > end {
            let wrong = format!("the log has {size} records");
            return Err(Error::Invalid(vec![Violation::new("end", wrong)]));
        }
        Ok(())
    }

    /// Resolves when the broker is to end.
    pub async fn stopped(&self) {
        self.parts.stop.cancelled().await;
    }

    /// Records a refusal that no use case has recorded yet, and passes it on. An
    /// issue records its own; when the store is down nothing can be recorded.
    ///
    /// # Errors
    /// The refusal itself, or the store's.
    pub async fn settle<T>(&self, caller: &Caller, result: Result<T, Error>) -> Result<T, Error> {
        let detail = match &result {
            Ok(_)
            | Err(
                Error::Denied(_)
                | Error::Aws(_)
                | Error::Limited { .. }
                | Error::Late
                | Error::Suspended(_)
                | Error::Store(_)
                | Error::Internal(_),
            ) => return result,
            // A violation may repeat what was sent: perhaps a secret in the wrong place.
            Err(Error::Invalid(violations)) => {
                let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
                fields.join(", ")
            }
            Err(error) => error.to_string(),
        };
        let reason = result.as_ref().err().map_or("", Error::reason);
        let audit = self.caller_event(caller, Event::RequestDenied);
        let subject = result.as_ref().err().and_then(Error::subject);
        let audit = subject.into_iter().fold(audit, AuditEvent::about);
        let audit = audit.denied(reason).detail(&detail);
        if let Err(error) = self.record_by(caller.principal(), audit).await {
            // What speaks against the log is why it takes no record.
            self.log_is_whole()?;
            return Err(error);
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
