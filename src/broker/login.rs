//! Authentication of callers, at each call and repeatedly while a stream lasts.

use std::{net::Ipv6Addr, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    broker::{
        Broker, Error,
        aggregation::Source,
        ports::{LoginError, TokenOwner},
        wait::Wait,
    },
    domain::{
        access::{AccessError, Caller, Surface, admit},
        audit::{AuditEvent, Event},
        decide::own_service,
        name::Name,
        principal::{Evidence, Identity, Origin, PresentedCredentials, Principal},
    },
};

/// Longest time for which a stream continues before its caller is authenticated again.
const PROVEN_FOR: Wait = Wait::seconds(5);
/// Same limit before new credentials are issued over the stream.
const PROVEN_TO_ISSUE: Duration = Duration::from_secs(1);

/// Caller of a stream, who must keep the identity that it had when the stream began.
#[derive(Debug)]
pub struct Staying {
    caller: Caller,
    proven_at: Instant,
}

impl Staying {
    /// Wraps a caller that has just been authenticated.
    #[must_use]
    pub fn new(caller: Caller) -> Self {
        Self {
            caller,
            proven_at: Instant::now(),
        }
    }

    /// Returns the caller.
    #[must_use]
    pub const fn caller(&self) -> &Caller {
        &self.caller
    }
}

impl Broker {
    /// Authenticates a caller; records a failure.
    ///
    /// # Errors
    /// The evidence is invalid, or of a suspended service; the store's error.
    pub async fn login(
        &self,
        origin: Origin,
        shown: &Arc<PresentedCredentials>,
    ) -> Result<Principal, Error> {
        let authentication = &self.parts.authentication;
        let login = authentication.login(self.store(), self.now(), origin.clone(), shown);
        let principal = match login.await {
            Ok(principal) => principal,
            Err(LoginError::Refused { reason, evidence }) => {
                let evidence = evidence.as_ref();
                self.login_failed(&origin, reason, evidence, None).await?;
                return Err(Error::Unauthenticated);
            }
            Err(LoginError::Suspended { service, evidence }) => {
                self.suspended_login(&origin, &evidence, &service).await?;
                return Err(Error::Suspended(service));
            }
            Err(LoginError::Store(error)) => return Err(error.into()),
        };
        if let Identity::Service(service) = principal.identity()
            && self.is_suspended_in_journal(service)
        {
            return Err(Error::Suspended(service.clone()));
        }
        Ok(principal)
    }

    /// Consults the access table; records a refusal.
    ///
    /// # Errors
    /// The caller may not call this, or not at this address; the store's error.
    pub async fn admit(&self, principal: Principal, surface: Surface) -> Result<Caller, Error> {
        match admit(principal.clone(), surface) {
            Ok(caller) => Ok(caller),
            Err(error) => {
                self.call_denied(&principal, &error).await?;
                Err(error.into())
            }
        }
    }

    /// Records that a service was refused because it is suspended.
    ///
    /// # Errors
    /// The store's error.
    pub async fn suspended_login(
        &self,
        origin: &Origin,
        evidence: &Evidence,
        service: &Name,
    ) -> Result<(), Error> {
        let reason = "SERVICE_SUSPENDED";
        self.login_failed(origin, reason, Some(evidence), Some(service))
            .await
    }

    /// Checks that a stream may continue: the token or binding of its caller is still valid. Every
    /// few seconds the caller is also authenticated again, with the revocation lists, key sets and
    /// token reviews of that time.
    ///
    /// # Errors
    /// The caller is no longer admitted, or its service is suspended; the store's error.
    pub async fn look(&self, staying: &mut Staying) -> Result<(), Error> {
        self.look_at(staying, PROVEN_FOR.length()).await
    }

    /// Makes the same check before new credentials are issued, with a shorter interval.
    pub(super) async fn look_to_issue(&self, staying: &mut Staying) -> Result<(), Error> {
        self.look_at(staying, PROVEN_TO_ISSUE).await
    }

    async fn look_at(&self, staying: &mut Staying, good_for: Duration) -> Result<(), Error> {
        self.still_admits(&staying.caller).await?;
        if staying.proven_at.elapsed() < good_for {
            return Ok(());
        }
        let principal = staying.caller.principal();
        let again = self.login(principal.origin().clone(), principal.shown());
        if again.await?.identity() != principal.identity() {
            return Err(Error::Unauthenticated);
        }
        staying.proven_at = Instant::now();
        Ok(())
    }

    async fn still_admits(&self, caller: &Caller) -> Result<(), Error> {
        let service = own_service(caller);
        let is_shut_out = || service.is_some_and(|service| self.is_suspended_in_journal(service));
        if self.is_still_admitted(caller).await? && !is_shut_out() {
            return Ok(());
        }
        let Some(service) = service else {
            return Err(Error::Unauthenticated);
        };
        let known = self.store().service(service).await?;
        let suspended = known.is_some_and(|known| known.service.suspension.is_some());
        Err(if suspended || is_shut_out() {
            Error::Suspended(service.clone())
        } else {
            Error::Unauthenticated
        })
    }

    /// Returns whether the token or binding that proved the caller is still valid, and its service
    /// is not suspended.
    async fn is_still_admitted(&self, caller: &Caller) -> Result<bool, Error> {
        let principal = caller.principal();
        let proof = principal.proof();
        if proof.expires_at.is_some_and(|expiry| expiry <= self.now()) {
            return Ok(false);
        }
        let Evidence::Token(id) = &proof.evidence else {
            return self.is_still_bound(principal).await;
        };
        let owner = self.store().token_owner(id).await?;
        Ok(owner.is_some_and(|(token, owner)| {
            let live = token.expires_at.is_none_or(|expiry| expiry > self.now());
            live && match (owner, principal.identity()) {
                (TokenOwner::Operator(now), Identity::Operator(name, role)) => {
                    now.name == *name && now.role == *role
                }
                (TokenOwner::Service(now), Identity::Service(name)) => {
                    now.name == *name && now.suspension.is_none()
                }
                _ => false,
            }
        }))
    }

    async fn is_still_bound(&self, principal: &Principal) -> Result<bool, Error> {
        if let Identity::Operator(..) = principal.identity() {
            // An operator's OIDC token proves the role until it expires.
            return Ok(true);
        }
        let Some(binding) = self.binding_of(principal).await? else {
            return Ok(false);
        };
        let service = self.store().service(&binding.service).await?;
        Ok(service.is_some_and(|known| known.service.suspension.is_none()))
    }

    /// Records a failed login, with the service if it is known. Frequent failures are counted and
    /// recorded together.
    ///
    /// # Errors
    /// The store's error.
    pub async fn login_failed(
        &self,
        origin: &Origin,
        reason: &str,
        evidence: Option<&Evidence>,
        service: Option<&Name>,
    ) -> Result<(), Error> {
        let audit = AuditEvent::failed_login(origin, reason, evidence, self.now());
        let audit = audit.instance(&self.instance);
        let audit = service.into_iter().fold(audit, AuditEvent::service);
        let source = match (service, origin.peer) {
            (Some(service), _) => Source::Service(service.clone()),
            (None, Some(peer)) => Source::Stranger(peer.ip()),
            (None, None) => Source::Stranger(Ipv6Addr::UNSPECIFIED.into()),
        };
        self.record_of(source, audit).await
    }

    /// Records that an authenticated caller called a method that it may not call.
    ///
    /// # Errors
    /// The store's error.
    pub async fn call_denied(
        &self,
        principal: &Principal,
        error: &AccessError,
    ) -> Result<(), Error> {
        let audit = AuditEvent::by(principal, Event::RequestDenied, self.now());
        let audit = audit.instance(&self.instance);
        let audit = audit.denied("NOT_PERMITTED").detail(&error.to_string());
        self.record_by(principal, audit).await
    }
}
