//! Services and their tokens.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::{
    broker::{
        Broker, Error, on_conflict,
        ports::{PageRequest, StoreError},
    },
    domain::{
        access::Caller,
        audit::{Event, Subject},
        duration::humanize,
        grant::validate::Violation,
        lease::{federated_alike, federated_head},
        name::Name,
        service::{Service, ServiceOverview, Suspension, TOKENS_MAX},
        token::{StoredToken, Token, TokenId, TokenKind},
    },
};

/// Shortest lifetime of a token that expires.
const TOKEN_TTL_MIN: Duration = Duration::from_mins(1);
/// Longest lifetime of a token that expires.
const TOKEN_TTL_MAX: Duration = Duration::from_hours(87600);

/// A new token. It is shown only once.
#[derive(Debug)]
pub struct NewToken {
    /// The token, with its secret.
    pub token: Token,
    /// Stored part of the token.
    pub stored: StoredToken,
}

impl Broker {
    /// Registers a service.
    ///
    /// # Errors
    /// The name is taken, or federated users of the service would look like another service's.
    pub async fn create_service(
        &self,
        caller: &Caller,
        name: Name,
    ) -> Result<ServiceOverview, Error> {
        let service = Service {
            name,
            created_at: self.now(),
            suspension: None,
        };
        self.check_name_is_distinct(&service.name).await?;
        let audit = self
            .caller_event(caller, Event::ServiceCreated)
            .service(&service.name);
        on_conflict(self.store().create_service(&service, audit).await, || {
            Error::AlreadyExists(Subject::Service(service.name.clone()))
        })?;
        Ok(ServiceOverview {
            service,
            live_leases: 0,
            last_issued_at: None,
        })
    }

    /// Refuses a name whose federated users AWS could not distinguish from another service's.
    async fn check_name_is_distinct(&self, name: &Name) -> Result<(), Error> {
        let Some(head) = federated_head(name) else {
            return Ok(());
        };
        let alike = self.store().names_like(head).await?;
        let Some(other) = alike.iter().find(|other| federated_alike(name, other)) else {
            return Ok(());
        };
        Err(Error::WrongState {
            subject: Subject::Service(name.clone()),
            reason: "NAME_NOT_TOLD_APART",
            message: format!(
                "AWS could not distinguish federated users of service {name} from those of {other}, whose \
                 name is cut to the same 32 characters: a revocation of one would meet the other"
            ),
            next: "choose another name, or one of 18 characters or fewer".to_owned(),
        })
    }

    /// Returns one service.
    ///
    /// # Errors
    /// The service is unknown.
    pub async fn service(&self, caller: &Caller, name: &Name) -> Result<ServiceOverview, Error> {
        let service = self.require_service(name).await?;
        self.store()
            .record(self.caller_event(caller, Event::ServiceRead).service(name))
            .await?;
        Ok(service)
    }

    /// Returns a page of services.
    ///
    /// # Errors
    /// The store's error.
    pub async fn services(
        &self,
        caller: &Caller,
        page: &PageRequest,
    ) -> Result<Vec<ServiceOverview>, Error> {
        let services = self.store().services(page).await?;
        self.store()
            .record(self.caller_event(caller, Event::ServiceRead))
            .await?;
        Ok(services)
    }

    /// Suspends a service. Credentials that it holds continue to work.
    ///
    /// # Errors
    /// The service is unknown, or suspended already.
    pub async fn suspend_service(
        &self,
        caller: &Caller,
        name: &Name,
        words: &str,
    ) -> Result<ServiceOverview, Error> {
        let suspension = Suspension {
            at: self.now(),
            reason: (!words.is_empty()).then(|| words.to_owned()),
        };
        let audit = self
            .caller_event(caller, Event::ServiceSuspended)
            .service(name)
            .detail(words);
        let written = self.store().suspend_service(name, &suspension, audit).await;
        if written.is_ok() {
            self.notify_suspended(name);
        }
        self.after_change(name, written, "ALREADY_SUSPENDED", "is suspended already")
            .await
    }

    /// Reinstates a service.
    ///
    /// # Errors
    /// The service is unknown, or not suspended.
    pub async fn reinstate_service(
        self: &Arc<Self>,
        caller: &Caller,
        name: &Name,
    ) -> Result<ServiceOverview, Error> {
        let audit = self
            .caller_event(caller, Event::ServiceReinstated)
            .service(name);
        let written = self.store().reinstate_service(name, audit).await;
        if written.is_ok() {
            self.rewrite_for_service(name);
        }
        self.after_change(name, written, "NOT_SUSPENDED", "is not suspended")
            .await
    }

    /// Deletes a service with its tokens and grants.
    ///
    /// # Errors
    /// The service is unknown, or holds leases that have not ended.
    pub async fn delete_service(&self, caller: &Caller, name: &Name) -> Result<(), Error> {
        let audit = self
            .caller_event(caller, Event::ServiceDeleted)
            .service(name);
        let written = self.store().delete_service(name, audit).await;
        if written.is_err() {
            let live = self.require_service(name).await?.live_leases;
            on_conflict(written, || Error::WrongState {
                subject: Subject::Service(name.clone()),
                reason: "LIVE_LEASES",
                message: format!("service {name} holds leases that have not ended: {live}"),
                next: format!(
                    "end them with `credbroker revoke {name}`, or wait until they expire"
                ),
            })?;
        }
        self.notify_suspended(name);
        Ok(())
    }

    /// Creates a token of a service.
    ///
    /// # Errors
    /// The lifetime is out of bounds, the service is unknown, or the service has ten tokens
    /// already.
    pub async fn create_token(
        &self,
        caller: &Caller,
        service: &Name,
        ttl: Option<Duration>,
    ) -> Result<NewToken, Error> {
        let new = self.new_token(TokenKind::Service, ttl)?;
        let audit = self
            .caller_event(caller, Event::TokenCreated)
            .service(service)
            .detail(&format!("token {}", new.stored.id));
        let written = self.store().create_token(service, &new.stored, audit).await;
        if written.is_err() {
            self.require_service(service).await?;
            on_conflict(written, || Error::WrongState {
                subject: Subject::Service(service.clone()),
                reason: "TOO_MANY_TOKENS",
                message: format!("service {service} has {TOKENS_MAX} tokens already"),
                next: format!("delete one: `credbroker service token list {service}`"),
            })?;
        }
        Ok(new)
    }

    /// Returns the tokens of a service, without their secrets.
    ///
    /// # Errors
    /// The service is unknown.
    pub async fn tokens(&self, caller: &Caller, service: &Name) -> Result<Vec<StoredToken>, Error> {
        self.require_service(service).await?;
        let tokens = self.store().tokens(service).await?;
        self.store()
            .record(self.caller_event(caller, Event::TokenRead).service(service))
            .await?;
        Ok(tokens)
    }

    /// Deletes a token; it is refused at once.
    ///
    /// # Errors
    /// The service has no token with this id.
    pub async fn delete_token(
        &self,
        caller: &Caller,
        service: &Name,
        id: &TokenId,
    ) -> Result<(), Error> {
        let audit = self
            .caller_event(caller, Event::TokenDeleted)
            .service(service)
            .detail(&format!("token {id}"));
        on_conflict(self.store().delete_token(service, id, audit).await, || {
            Error::NotFound(Subject::Token(service.clone(), id.clone()))
        })
    }

    pub(super) fn new_token(
        &self,
        kind: TokenKind,
        ttl: Option<Duration>,
    ) -> Result<NewToken, Error> {
        let created_at = self.now();
        let token = Token::new(kind, self.parts.random.as_ref());
        let expires_at = ttl.map(|ttl| token_expiry(created_at, ttl)).transpose()?;
        let stored = StoredToken {
            id: token.id().clone(),
            digest: token.digest(),
            created_at,
            expires_at,
        };
        Ok(NewToken { token, stored })
    }

    pub(super) async fn require_service(&self, name: &Name) -> Result<ServiceOverview, Error> {
        self.store()
            .service(name)
            .await?
            .ok_or_else(|| Error::NotFound(Subject::Service(name.clone())))
    }

    /// Checks that a service that was authenticated a moment ago is not suspended.
    ///
    /// # Errors
    /// The service is suspended or unknown; the store's error.
    pub async fn check_admitted(&self, name: &Name) -> Result<(), Error> {
        let known = self.require_service(name).await?;
        if known.service.suspension.is_some() || self.is_suspended_in_journal(name) {
            return Err(Error::Suspended(name.clone()));
        }
        Ok(())
    }

    async fn after_change(
        &self,
        name: &Name,
        written: Result<(), StoreError>,
        reason: &'static str,
        state: &str,
    ) -> Result<ServiceOverview, Error> {
        if let Err(StoreError::Conflict) = written {
            self.require_service(name).await?;
            return Err(Error::WrongState {
                subject: Subject::Service(name.clone()),
                reason,
                message: format!("service {name} {state}"),
                next: format!("see `credbroker service show {name}`"),
            });
        }
        written?;
        self.require_service(name).await
    }
}

fn token_expiry(now: Timestamp, ttl: Duration) -> Result<Timestamp, Error> {
    let in_bounds = (TOKEN_TTL_MIN..=TOKEN_TTL_MAX).contains(&ttl);
    let expiry = SignedDuration::try_from(ttl)
        .ok()
        .and_then(|ttl| now.checked_add(ttl).ok());
    expiry.filter(|_| in_bounds).ok_or_else(|| {
        let bounds = format!("{} to {}", humanize(TOKEN_TTL_MIN), humanize(TOKEN_TTL_MAX));
        Error::Invalid(vec![Violation::new(
            "ttl",
            format!("{} is outside {bounds}", humanize(ttl)),
        )])
    })
}
