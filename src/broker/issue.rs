//! Issue: decide, record the intent, ask AWS, record the result, answer.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;

use crate::{
    broker::{
        Broker, By, Error, on_conflict,
        ports::{AwsFailure, FailureClass, StoreError},
    },
    domain::{
        access::Caller,
        audit::{Event, Subject},
        credential::Credentials,
        decide::{Authorized, Issue, IssueRequest, decide},
        lease::{Binding, Cause, Issued, Lease, LeaseState, PENDING_LIMIT},
        name::LeaseId,
    },
};

/// Longest time that AWS may take over one issue.
const AWS_LIMIT: Duration = Duration::from_secs(40);

/// What the issuer keeps of the pending time to clean up after itself.
const RESERVE: SignedDuration = SignedDuration::from_secs(15);

/// A lease and its secrets, on the way to their owner.
#[derive(Debug)]
pub struct IssuedLease {
    /// The lease, active.
    pub lease: Lease,
    /// Its credentials.
    pub credentials: Credentials,
}

impl Broker {
    /// Issues credentials to `caller`.
    ///
    /// # Errors
    /// Denied by the decision, refused by AWS, or not recordable. In each case no
    /// credential leaves, and what AWS may have made is taken away again.
    pub async fn issue(
        self: &Arc<Self>,
        caller: Caller,
        request: IssueRequest,
    ) -> Result<IssuedLease, Error> {
        let broker = Arc::clone(self);
        self.detached(async move { broker.issue_saga(&caller, &request).await })
            .await
    }

    async fn issue_saga(
        &self,
        caller: &Caller,
        request: &IssueRequest,
    ) -> Result<IssuedLease, Error> {
        let grant = self.store().grant(&request.grant).await?;
        let issue = match decide(caller, request, grant) {
            Ok(issue) => issue,
            Err(denial) => {
                let audit = self
                    .caller_event(caller, Event::LeaseDenied)
                    .grant_name(&request.grant);
                self.store()
                    .record(audit.denied(denial.reason()).detail(&denial.to_string()))
                    .await?;
                return Err(denial.into());
            }
        };
        let lease = self.begin(caller, &issue).await?;
        let asked = self.parts.issuer.issue(&issue, &lease.binding);
        let answer = tokio::time::timeout(self.aws_limit(&lease), asked);
        match answer.await.unwrap_or_else(|_| Err(no_answer(AWS_LIMIT))) {
            Ok(credentials) => {
                self.activate(caller, lease, issue.get().ttl, credentials)
                    .await
            }
            Err(failure) => self.give_up(caller, lease, failure).await,
        }
    }

    /// AWS's time must be over well before the lease's deadline, when others take over.
    fn aws_limit(&self, lease: &Lease) -> Duration {
        let until = lease.requested_at + PENDING_LIMIT - RESERVE;
        let left = Duration::try_from(until.duration_since(self.now()));
        left.unwrap_or_default().min(AWS_LIMIT)
    }

    async fn begin(&self, caller: &Caller, issue: &Authorized<Issue>) -> Result<Lease, Error> {
        let now = self.now();
        let grant = &issue.get().grant;
        let lease_id = LeaseId::new(now, self.parts.random.as_ref());
        let lease = Lease::request(Binding::new(lease_id, grant), now);
        let audit = self
            .caller_event(caller, Event::LeaseRequested)
            .lease(&lease);
        on_conflict(self.store().begin_lease(&lease, audit).await, || {
            Error::Conflict(Subject::Grant(grant.name.clone()))
        })?;
        Ok(lease)
    }

    async fn activate(
        &self,
        caller: &Caller,
        lease: Lease,
        ttl: Duration,
        credentials: Credentials,
    ) -> Result<IssuedLease, Error> {
        let at = self.now();
        let issued = Issued {
            access_key_id: credentials.access_key_id.clone(),
            at,
            expires_at: credentials
                .expires_at
                .unwrap_or_else(|| at.saturating_add(ttl).unwrap_or(at)),
        };
        let active = lease
            .clone()
            .activate(issued)
            .map_err(|e| Error::Internal(e.to_string()))?;
        let audit = self
            .caller_event(caller, Event::LeaseIssued)
            .lease(&active)
            .aws_request(credentials.aws_request_id.as_deref());
        match self
            .store()
            .update_lease(lease.revision, &active, audit)
            .await
        {
            Ok(()) => Ok(IssuedLease {
                lease: active,
                credentials,
            }),
            Err(error) => Err(self.withhold(lease, error).await),
        }
    }

    /// The result could not be recorded, so the credentials do not leave, and what was
    /// made for them is taken away: the lease was revoked meanwhile, or the store cannot
    /// be written.
    async fn withhold(&self, lease: Lease, error: StoreError) -> Error {
        let revoked_meanwhile = matches!(error, StoreError::Conflict);
        let cleaned = if revoked_meanwhile {
            self.clean_up_after_revocation(&lease).await
        } else {
            self.withdraw(&lease.binding).await.map_err(Error::from)
        };
        if let Err(error) = cleaned {
            tracing::warn!(lease = %lease.binding.lease_id, %error, "left to the background clean-up");
        }
        if revoked_meanwhile {
            let service = &lease.binding.grant.service;
            if let Ok(Some(now)) = self.store().service(service).await
                && now.service.suspension.is_some()
            {
                return Error::Suspended(service.clone());
            }
            Error::WrongState {
                subject: Subject::Lease(lease.binding.lease_id.clone()),
                reason: "REVOKED_MEANWHILE",
                message: "the lease was revoked while it was being issued".to_owned(),
                next: "ask whoever revoked it".to_owned(),
            }
        } else {
            error.into()
        }
    }

    /// Whoever revoked the lease has left it to its issuer to take away. A suspension
    /// alone has not touched it.
    async fn clean_up_after_revocation(&self, lease: &Lease) -> Result<(), Error> {
        let now = self.known_lease(&lease.binding.lease_id).await?;
        if let LeaseState::Revoking { .. } = now.state {
            self.take_away(By::Broker, now).await?;
        } else if now.ended_at().is_some() {
            self.withdraw(&now.binding).await?;
        } else {
            let cause = Cause::NotIssued("the service was suspended meanwhile".to_owned());
            let audit = self.event(By::Broker, Event::LeaseRevoking).lease(&now);
            self.abandon(By::Broker, now, cause, audit).await?;
        }
        Ok(())
    }

    /// AWS did not issue. After a clear refusal nothing may be left behind; without a
    /// clear answer the lease stays pending and the clean-up finds out.
    async fn give_up(
        &self,
        caller: &Caller,
        lease: Lease,
        failure: AwsFailure,
    ) -> Result<IssuedLease, Error> {
        let (id, said) = (&lease.binding.lease_id, &failure.aws_said);
        tracing::warn!(lease = %id, reason = failure.reason, aws = %said, "AWS did not issue");
        let event = if failure.class == FailureClass::Uncertain {
            Event::LeaseUncertain
        } else {
            Event::LeaseDenied
        };
        let audit = self
            .caller_event(caller, event)
            .lease(&lease)
            .failed(failure.reason)
            .aws_request(failure.aws_request_id.as_deref())
            .detail(&failure.aws_said);
        if failure.class == FailureClass::Uncertain {
            self.store().record(audit).await?;
        } else {
            let cause = Cause::NotIssued(failure.reason.to_owned());
            let by = By::Caller(caller);
            match self.abandon(by, lease.clone(), cause, audit.clone()).await {
                Err(Error::Conflict(_)) => {
                    self.store().record(audit).await?;
                    self.clean_up_after_revocation(&lease).await?;
                }
                abandoned => drop(abandoned?),
            }
        }
        Err(failure.into())
    }
}

/// AWS took more than `limit`.
pub(super) fn no_answer(limit: Duration) -> AwsFailure {
    AwsFailure {
        class: FailureClass::Uncertain,
        reason: "AWS_NO_ANSWER",
        message: format!("AWS did not answer within {} s", limit.as_secs()),
        next: "try again in a minute; what AWS may have made is found and removed by the broker"
            .to_owned(),
        aws_said: String::new(),
        aws_request_id: None,
    }
}
