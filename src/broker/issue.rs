//! Issue: decide, record the intent, call AWS, record the result, answer. A repeated request id
//! finds its lease again (`idempotency`).

use std::{pin::Pin, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use metrics::{counter, histogram};
use tokio::time::sleep;

use crate::{
    broker::{
        Actor, Broker, Error, on_conflict,
        ports::{
            AwsFailure, BeginOutcome, FailureClass, IssueFailure, Receipt, Residue, StoreError,
        },
        rate_limit::Rate,
    },
    domain::{
        access::Caller,
        arn::UserArn,
        audit::{AuditEvent, Event, Subject},
        credential::Credentials,
        decide::{Authorized, Issue, IssueRefusal, IssueRequest, decide, own_service},
        duration::humanize,
        grant::Kind,
        lease::{EndReason, Issuance, IssuedCredentials, Lease, LeaseState, PENDING_LIMIT},
        name::{GrantName, LeaseId, Name},
        request::IdempotencyKey,
    },
};

/// Longest time that AWS may take for one issue.
const AWS_LIMIT: Duration = Duration::from_secs(40);

/// Part of the pending time that is reserved for the issuer's own clean-up.
const RESERVE: SignedDuration = SignedDuration::from_secs(15);

/// A lease and its secrets, to be handed to the caller.
#[derive(Clone, Debug)]
pub struct IssuedLease {
    /// The lease, in state active.
    pub lease: Lease,
    /// Credentials of the lease.
    pub credentials: Credentials,
    /// True if the same request was answered before, or is answered by a concurrent call.
    pub redelivered: bool,
    /// Time at which the shared session is refreshed ahead of its end; `None` if it is not shared.
    pub renew_at: Option<Timestamp>,
    /// Proof that the issue is in the log.
    pub receipt: Receipt,
}

/// Retry hint for the caller where no better time is known.
pub(super) const SOON: Duration = Duration::from_secs(30);

impl Broker {
    /// Issues credentials to `caller`. A request with an id gets one lease, however often it is
    /// repeated.
    ///
    /// # Errors
    /// The decision or a limit refuses, AWS refuses, or the issue cannot be recorded. In each case
    /// no credentials are returned. Anything that AWS may have created is deleted, or used when the
    /// request is repeated.
    pub async fn issue(
        self: &Arc<Self>,
        caller: Caller,
        request: IssueRequest,
    ) -> Result<IssuedLease, Error> {
        self.check_rate(&caller, &request.grant).await?;
        let grant = self.store().grant(&request.grant).await?;
        let issue = match decide(&caller, &request, grant) {
            Ok(issue) => issue,
            Err(denial) => return self.refuse(&caller, &request.grant, denial.into()).await,
        };
        if issue.get().grant.spec.reuse.is_some() {
            return self.issue_cached(caller, issue, request).await;
        }
        let broker = Arc::clone(self);
        self.spawn_detached(async move {
            let named = request.named.as_ref();
            let work = Box::pin(broker.issue_decided(&caller, &issue, named, None));
            broker.once(&caller, &request.grant, named, work).await
        })
        .await
    }

    /// Runs `work`. If the same request is already in progress, waits and returns its result.
    pub(super) async fn once(
        &self,
        caller: &Caller,
        grant: &GrantName,
        named: Option<&IdempotencyKey>,
        work: Pin<Box<impl Future<Output = Result<IssuedLease, Error>>>>,
    ) -> Result<IssuedLease, Error> {
        let Some((named, service)) = named.zip(own_service(caller)) else {
            return work.await;
        };
        let joined = self.under_way.join(service, named, work).await?;
        if !joined.by_waiting {
            return joined.outcome;
        }
        let issued = match joined.outcome {
            Ok(issued) => issued,
            Err(error) => return self.refuse(caller, grant, error).await,
        };
        let audit = self
            .caller_event(caller, Event::LeaseRedelivered)
            .lease(&issued.lease);
        let receipt = self.store().record(audit).await?;
        Ok(IssuedLease {
            redelivered: true,
            receipt,
            ..issued
        })
    }

    /// Checks the rate limit of the calling service.
    pub(super) async fn check_rate(&self, caller: &Caller, grant: &GrantName) -> Result<(), Error> {
        let most = self.limits().issues_per_second;
        let admit = |service: &Name| self.paces.admit(service, Rate::per_second(most));
        let Some(Err(wait)) = own_service(caller).map(admit) else {
            return Ok(());
        };
        let what = format!("more than {most} times a second");
        let error = too_fast(&what, "limits.issues_per_second", wait);
        self.refuse(caller, grant, error).await
    }

    /// Checks the rate limit for IAM users, each of which takes many calls to IAM.
    async fn check_user_rate(&self, caller: &Caller, grant: &GrantName) -> Result<(), Error> {
        let most = self.limits().users_per_minute;
        let admit = |service: &Name| self.user_paces.admit(service, Rate::per_minute(most));
        let Some(Err(wait)) = own_service(caller).map(admit) else {
            return Ok(());
        };
        let what = format!("of kind iam_user more than {most} times a minute");
        let error = too_fast(&what, "limits.users_per_minute", wait);
        self.refuse(caller, grant, error).await
    }

    /// Records a refused or failed issue and its reason, and returns the error.
    pub(super) async fn refuse<T>(
        &self,
        caller: &Caller,
        grant: &GrantName,
        error: Error,
    ) -> Result<T, Error> {
        let audit = self
            .caller_event(caller, Event::LeaseDenied)
            .grant_name(grant);
        let audit = match &error {
            Error::Aws(failure) => audit.failed(failure.reason),
            _ => audit.denied(error.reason()),
        };
        let audit = audit.detail(&error.to_string());
        self.record_by(caller.principal(), audit).await?;
        Err(error)
    }

    pub(super) async fn issue_decided(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
        named: Option<&IdempotencyKey>,
        renews: Option<LeaseId>,
    ) -> Result<IssuedLease, Error> {
        let grant = &issue.get().grant;
        if grant.spec.kind() == Kind::IamUser {
            self.check_user_rate(caller, &grant.name).await?;
        }
        if let Some(named) = named
            && let Some(lease) = self
                .store()
                .lease_of_request(&grant.name.service, &named.id)
                .await?
        {
            return Box::pin(self.replay(caller, issue, named, lease)).await;
        }
        self.ready(caller, issue).await?;
        let now = self.now();
        let lease_id = LeaseId::new(now, self.parts.random.as_ref());
        let federated_by = match grant.spec.kind() {
            Kind::FederationToken => self.federates(caller, &grant.name).await?,
            Kind::AssumeRole | Kind::IamUser => None,
        };
        let binding = Issuance::new(lease_id, grant, federated_by, renews);
        let lease = Lease::request(binding, named.cloned(), now);
        let audit = self
            .caller_event(caller, Event::LeaseRequested)
            .lease(&lease)
            .permits(grant);
        let most = self.limits().live(lease.binding.kind);
        let begun = self.store().begin_lease(&lease, most, audit).await;
        match on_conflict(begun, || {
            Error::Conflict(Subject::Grant(grant.name.clone()))
        })? {
            BeginOutcome::Recorded => self.carry_out(caller, issue, lease).await,
            // Another replica received the same request a moment before.
            BeginOutcome::Known(lease) => match named {
                Some(named) => Box::pin(self.replay(caller, issue, named, *lease)).await,
                None => Err(Error::Conflict(Subject::Grant(grant.name.clone()))),
            },
            BeginOutcome::TooMany { next_end } => {
                let left = next_end.map(|end| end.duration_since(now));
                let error = too_many(grant.spec.kind(), grant.name.service.as_str(), most, left);
                self.refuse(caller, &grant.name, error).await
            }
        }
    }

    /// Checks that AWS may be called now. The check comes first: a recorded lease would have to be
    /// cleaned up.
    pub(super) async fn ready(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
    ) -> Result<(), Error> {
        let ready = async {
            self.check_log_integrity()?;
            self.account_is_ours().await?;
            self.certain_clock()?;
            self.parts.issuer.ready(issue).map_err(Error::from)
        };
        match ready.await {
            Ok(()) => Ok(()),
            // `Broker::record_result` records it, like every other refusal for a wrong state.
            Err(error @ Error::WrongState { .. }) => Err(error),
            Err(error) => self.refuse(caller, &issue.get().grant.name, error).await,
        }
    }

    /// Calls AWS for the credentials of a pending lease.
    pub(super) async fn carry_out(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
        lease: Lease,
    ) -> Result<IssuedLease, Error> {
        let asked = self.ask_for_session_or_user(issue, &lease.binding);
        match self.in_time(&lease, asked).await {
            Ok(credentials) => {
                self.hand_out(caller, issue, lease, Event::LeaseIssued, credentials)
                    .await
            }
            Err(failure) => Box::pin(self.give_up(caller, lease, failure)).await,
        }
    }

    /// Returns the user that federates the sessions of a federation grant.
    async fn federates(
        &self,
        caller: &Caller,
        grant: &GrantName,
    ) -> Result<Option<UserArn>, Error> {
        match self.parts.denier.federates().await {
            Ok(user) => Ok(user),
            Err(failure) => self.refuse(caller, grant, failure.into()).await,
        }
    }

    /// Calls AWS. Repeats the call while the session is so early, by AWS's clock, that a denial of
    /// the service's earlier sessions would also deny it.
    pub(super) async fn ask_for_session_or_user(
        &self,
        issue: &Authorized<Issue>,
        binding: &Issuance,
    ) -> Result<Credentials, IssueFailure> {
        if let Some(holder) = &binding.holder {
            self.wait_for_reinstatement(&binding.grant.service, holder)
                .await?;
        }
        loop {
            let credentials = self.parts.issuer.issue(issue, binding).await?;
            let Some(wait) = self.too_early(issue.get(), binding, &credentials).await else {
                return Ok(credentials);
            };
            sleep(wait).await;
        }
    }

    /// Limits the call to AWS, so that it ends well before the lease's deadline, after which the
    /// clean-up or another replica may take the lease over.
    pub(super) async fn in_time(
        &self,
        lease: &Lease,
        asked: impl Future<Output = Result<Credentials, IssueFailure>>,
    ) -> Result<Credentials, IssueFailure> {
        let deadline = lease.due_at().unwrap_or(lease.requested_at + PENDING_LIMIT);
        let left = (deadline - RESERVE).duration_since(self.now());
        let limit = Duration::try_from(left).unwrap_or_default().min(AWS_LIMIT);
        let answer = tokio::time::timeout(limit, asked).await;
        answer.unwrap_or_else(|_| {
            Err(IssueFailure {
                failure: AwsFailure::no_answer(limit),
                left: Residue::Something,
            })
        })
    }

    /// Records the credentials under their lease, then returns them to the caller.
    pub(super) async fn hand_out(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
        lease: Lease,
        event: Event,
        credentials: Credentials,
    ) -> Result<IssuedLease, Error> {
        let at = self.now();
        let before = lease.issued().map(|before| before.expires_at);
        let issued = IssuedCredentials {
            access_key_id: credentials.access_key_id.clone(),
            at,
            // An earlier session of this lease may expire later.
            expires_at: credentials
                .expires_at
                .max(before)
                .unwrap_or_else(|| at.saturating_add(issue.get().ttl).unwrap_or(at)),
        };
        let active = lease
            .clone()
            .activate(issued)
            .map_err(|e| Error::Internal(e.to_string()))?;
        let audit = self
            .caller_event(caller, event)
            .lease(&active)
            .permits(&issue.get().grant)
            .aws_request(credentials.aws_request_id.as_deref());
        let audit = record_acceptance(audit, &credentials);
        let written = if self.is_withdrawn(&active) {
            Err(StoreError::Conflict)
        } else {
            let update = self.store().update_lease(lease.revision, &active, audit);
            update.await
        };
        let receipt = match written {
            Ok(receipt) => receipt,
            Err(error) => return Err(Box::pin(self.withhold(lease, error)).await),
        };
        if self.is_withdrawn(&active) {
            // The lease was revoked during the write. The end of the lease is recorded soon.
            return Err(revoked_meanwhile(&active.binding.lease_id));
        }
        let kind = active.binding.kind.as_str();
        counter!("credbroker_leases_issued_total", "kind" => kind).increment(1);
        Ok(IssuedLease {
            lease: active,
            credentials,
            redelivered: event == Event::LeaseRedelivered,
            renew_at: None,
            receipt,
        })
    }

    /// Withholds credentials whose issue could not be recorded, and cleans up what AWS created for
    /// them: the lease was revoked meanwhile, or the store cannot be written.
    async fn withhold(&self, lease: Lease, error: StoreError) -> Error {
        let moved_on = matches!(error, StoreError::Conflict);
        let cleaned = if moved_on {
            self.clean_up_after_conflict(&lease).await
        } else if lease.issued().is_none() {
            self.delete_in_aws(&lease)
                .await
                .map(drop)
                .map_err(Error::from)
        } else {
            // A replaced key is repaired later by the clean-up.
            Ok(())
        };
        if let Err(error) = cleaned {
            tracing::warn!(lease = %lease.binding.lease_id, %error, "left to the background clean-up");
        }
        if moved_on {
            let service = &lease.binding.grant.service;
            if let Ok(Some(now)) = self.store().service(service).await
                && now.service.suspension.is_some()
            {
                return Error::Suspended(service.clone());
            }
            revoked_meanwhile(&lease.binding.lease_id)
        } else {
            error.into()
        }
    }

    /// Cleans up as the issuer of a lease that changed meanwhile: a revocation leaves that to the
    /// issuer, and a suspension alone does not change the lease.
    async fn clean_up_after_conflict(&self, lease: &Lease) -> Result<(), Error> {
        let now = self.require_lease(&lease.binding.lease_id).await?;
        if now.revision != lease.revision && now.is_in_progress(self.now()) {
            // Another replica took this one for dead and continues the issue.
            return Ok(());
        }
        match &now.state {
            LeaseState::Revoking(_) | LeaseState::Quarantined(_) => {
                self.remove_credentials(Actor::Broker, now).await?;
            }
            LeaseState::Revoked { .. } | LeaseState::Expired { .. } => {
                self.delete_in_aws(&now).await?;
            }
            LeaseState::Active { .. } => self.repair_replacement(now).await?,
            LeaseState::Pending { .. } => {
                let cause = EndReason::NotIssued("the service was suspended meanwhile".to_owned());
                let audit = self.event(Actor::Broker, Event::LeaseRevoking).lease(&now);
                self.abandon(Actor::Broker, now, cause, audit).await?;
            }
        }
        Ok(())
    }

    /// Ends an issue that failed: the lease ends, and anything left in AWS is deleted. The lease
    /// stays pending, for a repeated request or for the clean-up, if AWS gave no clear answer, or
    /// if AWS did not refuse and an earlier attempt may have left something.
    async fn give_up(
        &self,
        caller: &Caller,
        lease: Lease,
        failed: IssueFailure,
    ) -> Result<IssuedLease, Error> {
        let IssueFailure { failure, left } = failed;
        let (class, taken_over) = (failure.class, lease.is_resumed_attempt());
        let uncertain =
            class == FailureClass::Uncertain || taken_over && class != FailureClass::Refused;
        let left_something = match left {
            Residue::Nothing => taken_over,
            Residue::Something => true,
            Residue::NotOurs => false,
        };
        let event = if uncertain {
            Event::LeaseUncertain
        } else {
            Event::LeaseDenied
        };
        let audit = self.failed_event(caller, &lease, event, &failure);
        if uncertain {
            self.store().record(audit).await?;
            return Err(failure.into());
        }
        let ended = if left_something {
            let (by, cause) = (
                Actor::Caller(caller),
                EndReason::NotIssued(failure.reason.to_owned()),
            );
            self.abandon(by, lease.clone(), cause, audit.clone())
                .await
                .map(drop)
        } else {
            self.forget(lease.clone(), failure.reason, audit.clone())
                .await
        };
        match ended {
            Err(Error::Conflict(_)) => {
                self.store().record(audit).await?;
                self.clean_up_after_conflict(&lease).await?;
            }
            ended => ended?,
        }
        Err(failure.into())
    }

    /// Ends a lease for which AWS has created nothing.
    async fn forget(&self, lease: Lease, reason: &str, audit: AuditEvent) -> Result<(), Error> {
        let (id, from) = (lease.binding.lease_id.clone(), lease.revision);
        let ended = lease
            .abandon(reason.to_owned(), self.now())
            .map_err(|e| Error::Internal(e.to_string()))?;
        let written = self.store().update_lease(from, &ended, audit).await;
        on_conflict(written, || Error::Conflict(Subject::Lease(id))).map(drop)
    }

    /// Builds the audit event of a failed issue, with AWS's code, words and request id.
    pub(super) fn failed_event(
        &self,
        caller: &Caller,
        lease: &Lease,
        event: Event,
        failure: &AwsFailure,
    ) -> AuditEvent {
        let (id, said) = (&lease.binding.lease_id, &failure.aws_said);
        tracing::warn!(lease = %id, reason = failure.reason, aws = %said, "AWS did not issue");
        self.caller_event(caller, event)
            .lease(lease)
            .failed(failure.reason)
            .aws_request(failure.aws_request_id.as_deref())
            .detail(&failure.aws_said)
    }
}

/// Error of a lease that was revoked while it was handed out.
pub(super) fn revoked_meanwhile(id: &LeaseId) -> Error {
    Error::WrongState {
        subject: Subject::Lease(id.clone()),
        reason: "REVOKED_MEANWHILE",
        message: "the lease was revoked while it was being issued".to_owned(),
        next: "ask the operator who revoked it; `credbroker audit query` names them".to_owned(),
    }
}

fn record_acceptance(audit: AuditEvent, credentials: &Credentials) -> AuditEvent {
    let Some(wait) = credentials.usable_after else {
        return audit;
    };
    histogram!("credbroker_key_acceptance_seconds").record(wait);
    let seconds = wait.as_secs_f64();
    audit.detail(&format!("AWS accepted the key after {seconds:.1} s"))
}

fn too_fast(what: &str, setting: &str, wait: Duration) -> Error {
    Error::Limited {
        reason: "TOO_MANY_REQUESTS",
        message: format!("the service asks for credentials {what}"),
        next: format!(
            "keep credentials until they near their end; if the service is right to ask so often, \
             the broker's operator can raise {setting}"
        ),
        retry_after: Some(wait),
    }
}

fn too_many(kind: Kind, service: &str, most: u64, left: Option<SignedDuration>) -> Error {
    let (end, setting) = match kind {
        Kind::IamUser => ("release what is not needed", "limits.live_users"),
        Kind::AssumeRole | Kind::FederationToken => (
            "keep sessions until they near their end (one counts until then, released or not)",
            "limits.live_sessions",
        ),
    };
    let left = left.and_then(|left| Duration::try_from(left).ok());
    let ends = left
        .map(|left| {
            let left = Duration::from_secs(left.as_secs() + 1);
            format!("; the first of them ends in {}", humanize(left))
        })
        .unwrap_or_default();
    Error::Limited {
        reason: "TOO_MANY_LEASES",
        message: format!(
            "service {service} has {most} live leases of this kind, the most it may have{ends}"
        ),
        next: format!(
            "{end}, ask for shorter lives, or see `credbroker lease list --service {service}`; \
             the broker's operator can set {setting}"
        ),
        retry_after: Some(left.unwrap_or(SOON)),
    }
}

/// Refusal of a repeated request whose lease has ended.
pub(super) fn over(lease: &Lease, state: &'static str) -> IssueRefusal {
    IssueRefusal::LeaseOver {
        lease_id: lease.binding.lease_id.clone(),
        state,
    }
}
