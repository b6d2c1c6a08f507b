//! Renewal. An IAM user lives longer, up to its grant's maximum. A session is followed by a new
//! one, under a new lease that names the old lease.

use std::sync::Arc;

use crate::{
    broker::{
        Broker, Error, issue::revoked_meanwhile, on_conflict, ports::Receipt, removal::no_lease,
    },
    domain::{
        access::Caller,
        audit::{Event, Subject},
        credential::Credentials,
        decide::{Authorized, Issue, RenewRequest, Renewal, decide, decide_renewal, own_service},
        lease::Lease,
        name::GrantName,
    },
};

/// A renewed lease.
#[derive(Debug)]
pub struct RenewedLease {
    /// The lease: the same for a user, a new one for a session.
    pub lease: Lease,
    /// Credentials of the new session; `None` for a user, which keeps its key.
    pub credentials: Option<Credentials>,
    /// Proof that the renewal is in the log.
    pub receipt: Receipt,
}

impl Broker {
    /// Renews one of the caller's own leases.
    ///
    /// # Errors
    /// The lease is another service's or unknown (same text), has ended, or would exceed the
    /// grant's maximum; the grant has changed or is deleted. For a session also the errors of
    /// [`Broker::issue`].
    pub async fn renew(
        self: &Arc<Self>,
        caller: Caller,
        request: RenewRequest,
    ) -> Result<RenewedLease, Error> {
        let broker = Arc::clone(self);
        self.spawn_detached(async move { broker.renew_saga(&caller, &request).await })
            .await
    }

    async fn renew_saga(
        &self,
        caller: &Caller,
        request: &RenewRequest,
    ) -> Result<RenewedLease, Error> {
        let lease = self.require_lease(&request.lease_id).await?;
        let grant = &lease.binding.grant;
        if own_service(caller) != Some(&grant.service) {
            return Err(no_lease(&request.lease_id));
        }
        self.check_rate(caller, grant).await?;
        self.check_log_integrity()?;
        self.certain_clock()?;
        let current = self.store().grant(grant).await?;
        if self.is_known(grant, request).await? {
            // A repeated request is answered even if the lease that it renewed has ended.
            return match decide(caller, &request.as_issue(grant), current) {
                Err(denial) => self.refuse(caller, grant, denial.into()).await,
                Ok(issue) => self.new_session(caller, request, &issue).await,
            };
        }
        match decide_renewal(caller, request, &lease, current, self.now()) {
            Err(denial) => self.refuse(caller, grant, denial.into()).await,
            Ok(Renewal::LivesUntil(until)) => self.prolong(caller, lease, until).await,
            Ok(Renewal::NewSession(issue)) => self.new_session(caller, request, &issue).await,
        }
    }

    async fn is_known(&self, grant: &GrantName, request: &RenewRequest) -> Result<bool, Error> {
        let Some(named) = &request.named else {
            return Ok(false);
        };
        let known = self.store().lease_of_request(&grant.service, &named.id);
        Ok(known.await?.is_some())
    }

    async fn new_session(
        &self,
        caller: &Caller,
        request: &RenewRequest,
        issue: &Authorized<Issue>,
    ) -> Result<RenewedLease, Error> {
        let (named, renews) = (request.named.as_ref(), Some(request.lease_id.clone()));
        let work = Box::pin(self.issue_decided(caller, issue, named, renews));
        let issued = self
            .once(caller, &issue.get().grant.name, named, work)
            .await?;
        Ok(RenewedLease {
            lease: issued.lease,
            credentials: Some(issued.credentials),
            receipt: issued.receipt,
        })
    }

    async fn prolong(
        &self,
        caller: &Caller,
        lease: Lease,
        until: Option<jiff::Timestamp>,
    ) -> Result<RenewedLease, Error> {
        if self.is_withdrawn(&lease) {
            return Err(revoked_meanwhile(&lease.binding.lease_id));
        }
        let audit = self.caller_event(caller, Event::LeaseRenewed);
        let renewed = |lease, receipt| RenewedLease {
            lease,
            credentials: None,
            receipt,
        };
        let Some(until) = until else {
            let receipt = self.store().record(audit.lease(&lease)).await?;
            return Ok(renewed(lease, receipt));
        };
        let (id, from) = (lease.binding.lease_id.clone(), lease.revision);
        // The key of the lease is being replaced, which ends soon.
        let Ok(longer) = lease.extend(until, self.now()) else {
            return Err(Error::Conflict(Subject::Lease(id)));
        };
        let audit = audit.lease(&longer).detail(&format!("until {until:.0}"));
        let written = self.store().update_lease(from, &longer, audit).await;
        let receipt = on_conflict(written, || Error::Conflict(Subject::Lease(id)))?;
        Ok(renewed(longer, receipt))
    }
}
