//! Queries of the audit log and of leases, and audit records that belong to no use case.

use crate::{
    broker::{
        Actor, Broker, Error,
        ports::{AuditFilter, LeaseFilter, PageRequest},
    },
    domain::{
        access::Caller,
        audit::{AuditEvent, AuditRecord, Event},
        grant::validate::Violation,
        lease::Lease,
        name::LeaseId,
    },
};

impl Broker {
    /// Returns a page of audit records, oldest first.
    ///
    /// # Errors
    /// The store's error.
    pub async fn audit(
        &self,
        caller: &Caller,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Vec<AuditRecord>, Error> {
        let records = self.store().audit(filter, page).await?;
        self.store()
            .record(self.caller_event(caller, Event::AuditRead))
            .await?;
        Ok(records)
    }

    /// Begins to read the end of the log. Returns the number of the record before the newest
    /// `lines` records, and the number of the last record.
    ///
    /// # Errors
    /// The store's error.
    pub async fn audit_tail(&self, caller: &Caller, lines: u64) -> Result<(u64, u64), Error> {
        let size = self.store().audit_size().await?;
        self.store()
            .record(self.caller_event(caller, Event::AuditRead))
            .await?;
        Ok((size.saturating_sub(lines), size))
    }

    /// Begins to export the log, from `start` up to record `end`.
    ///
    /// # Errors
    /// The log has fewer records, `start` is after `end` or not a multiple of 256, or the store's
    /// error.
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

    /// Waits until the broker is to stop.
    pub async fn until_stopped(&self) {
        self.parts.stop.cancelled().await;
    }

    /// Records a refusal that no use case has recorded yet, and returns it. An issue records its
    /// own refusal. Nothing can be recorded while the store is down.
    ///
    /// # Errors
    /// The refusal itself, or the reason why it cannot be recorded.
    pub async fn record_result<T>(
        &self,
        caller: &Caller,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
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
            // A violation may repeat the input, perhaps a secret in the wrong field: record field
            // names only.
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
            // A doubt about the log explains why the log accepts no record.
            self.check_log_integrity()?;
            return Err(error);
        }
        result
    }

    /// Records an event of the broker itself, such as its start or stop, with its version.
    ///
    /// # Errors
    /// The store's error.
    pub async fn record_lifecycle(&self, event: Event) -> Result<(), Error> {
        self.store()
            .record(
                self.event(Actor::Broker, event)
                    .detail(env!("CARGO_PKG_VERSION")),
            )
            .await?;
        Ok(())
    }

    /// Returns one lease, for an operator.
    ///
    /// # Errors
    /// The lease is unknown.
    pub async fn lease(&self, caller: &Caller, id: &LeaseId) -> Result<Lease, Error> {
        let lease = self.require_lease(id).await?;
        self.store()
            .record(self.caller_event(caller, Event::LeaseRead).lease(&lease))
            .await?;
        Ok(lease)
    }

    /// Returns a page of leases, newest first, for an operator.
    ///
    /// # Errors
    /// The store's error.
    pub async fn leases(
        &self,
        caller: &Caller,
        filter: &LeaseFilter,
        page: &PageRequest,
    ) -> Result<Vec<Lease>, Error> {
        let leases = self.store().leases(filter, page).await?;
        let audit = self.caller_event(caller, Event::LeaseRead);
        self.store()
            .record(filter.service.iter().fold(audit, AuditEvent::service))
            .await?;
        Ok(leases)
    }
}
