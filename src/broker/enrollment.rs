//! Enrolment: a host with a single-use token gets a client certificate for a key that never leaves
//! the host, and another certificate while the current one is valid.

use std::time::Duration;

use jiff::SignedDuration;

use crate::{
    broker::{
        Broker, Error, NewToken, on_conflict,
        ports::{CertificateAuthority, ClientCertificate, RequestError},
    },
    domain::{
        access::Caller,
        audit::{Event, Subject},
        binding::{BindingId, ENROLLED_MAX, KnownBy, ServiceBinding},
        grant::validate::Violation,
        name::Name,
        principal::{Evidence, Identity},
        token::{StoredToken, Token, TokenKind},
    },
};

/// Longest lifetime of an enrolment token, and the default.
const ENROLLMENT_TTL_MAX: Duration = Duration::from_mins(10);

impl Broker {
    /// Creates a token by which one host of a service may enrol.
    ///
    /// # Errors
    /// The lifetime is out of bounds, the service is unknown, or this broker makes no certificates.
    pub async fn create_enrollment_token(
        &self,
        caller: &Caller,
        service: &Name,
        ttl: Option<Duration>,
    ) -> Result<NewToken, Error> {
        self.authority()?;
        let ttl = ttl.unwrap_or(ENROLLMENT_TTL_MAX);
        if ttl > ENROLLMENT_TTL_MAX {
            let message = "an enrolment token lives for ten minutes at most";
            return Err(Error::Invalid(vec![Violation::new("ttl", message)]));
        }
        let created_at = self.now();
        let token = Token::new(TokenKind::Enrollment, self.parts.random.as_ref());
        let stored = StoredToken {
            id: token.id().clone(),
            digest: token.digest(),
            created_at,
            expires_at: Some(created_at + SignedDuration::try_from(ttl).unwrap_or_default()),
        };
        let audit = self.caller_event(caller, Event::EnrollmentAllowed);
        let audit = audit
            .service(service)
            .detail(&format!("token {}", stored.id));
        let written = self.store().allow_enrollment(service, &stored, audit).await;
        on_conflict(written, || {
            Error::NotFound(Subject::Service(service.clone()))
        })?;
        Ok(NewToken { token, stored })
    }

    /// Uses up the caller's token, and returns a certificate for the key of `request`, PKCS#10 in
    /// DER.
    ///
    /// # Errors
    /// The request is invalid, the token is used up, the key is known already, the service has too
    /// many hosts, or the enrolment cannot be recorded.
    pub async fn enroll(
        &self,
        caller: &Caller,
        request: &[u8],
    ) -> Result<ClientCertificate, Error> {
        let principal = caller.principal();
        let (Identity::Enrollee(service), Evidence::Token(token)) =
            (principal.identity(), &principal.proof().evidence)
        else {
            return Err(Error::Unauthenticated);
        };
        let made = self.sign_for(service, request)?;
        let binding = ServiceBinding {
            id: BindingId::new(self.parts.random.as_ref()),
            service: service.clone(),
            known_by: KnownBy::Enrolled(made.key.clone()),
            created_at: self.now(),
            expires_at: Some(made.expires_at),
        };
        let audit = self.caller_event(caller, Event::EnrollmentMade);
        let audit = audit.service(service);
        let audit = audit.detail(&format!("binding {}: {}", binding.id, binding.known_by));
        let written = self.store().enroll(token, &binding, audit).await;
        on_conflict(written, || not_enrolled(service))?;
        Ok(made)
    }

    /// Returns another certificate for the key by which the broker knows the caller, to replace the
    /// certificate that the caller presents.
    ///
    /// # Errors
    /// The caller has not enrolled, the request is for another key, or the renewal cannot be
    /// recorded.
    pub async fn renew_certificate(
        &self,
        caller: &Caller,
        request: &[u8],
    ) -> Result<ClientCertificate, Error> {
        let principal = caller.principal();
        let Identity::Service(service) = principal.identity() else {
            return Err(Error::Unauthenticated);
        };
        let binding = self.binding_of(principal).await?;
        let made = self.sign_for(service, request)?;
        let binding = binding.filter(|known| known.known_by == KnownBy::Enrolled(made.key.clone()));
        let binding = binding.ok_or_else(|| not_renewed(service))?;
        let later = ServiceBinding {
            expires_at: Some(made.expires_at),
            ..binding
        };
        let audit = self.caller_event(caller, Event::CertificateRenewed);
        let audit = audit
            .service(service)
            .detail(&format!("binding {}", later.id));
        let written = self.store().prolong(&later, audit).await;
        on_conflict(written, || not_renewed(service))?;
        Ok(made)
    }

    fn sign_for(&self, service: &Name, request: &[u8]) -> Result<ClientCertificate, Error> {
        let made = self.authority()?.sign(request, service, self.now());
        made.map_err(|error| match error {
            RequestError::Invalid(message) => {
                Error::Invalid(vec![Violation::new("certificate_request", message)])
            }
            error @ RequestError::NotSigned(_) => Error::Internal(error.to_string()),
        })
    }

    fn authority(&self) -> Result<&dyn CertificateAuthority, Error> {
        let message = "this broker makes no client certificates";
        self.parts
            .authority
            .as_deref()
            .ok_or_else(|| Error::WrongState {
                subject: Subject::Enrollment,
                reason: "ENROLLMENT_OFF",
                message: message.to_owned(),
                next: "the broker's operator names a CA in [enrollment] of its configuration"
                    .to_owned(),
            })
    }
}

fn not_enrolled(service: &Name) -> Error {
    Error::WrongState {
        subject: Subject::Enrollment,
        reason: "NOT_ENROLLED",
        message: format!(
            "the token is used up, the key is known already, or {service} has {ENROLLED_MAX} hosts"
        ),
        next: format!(
            "have an operator make another with `credbroker service enroll-token create {service}`, and enrol \
             with a new key"
        ),
    }
}

fn not_renewed(service: &Name) -> Error {
    Error::WrongState {
        subject: Subject::Enrollment,
        reason: "NOT_ENROLLED",
        message: "only the certificate of a host that has enrolled is renewed, for the same key"
            .to_owned(),
        next: format!("enrol the host: `credbroker service enroll-token create {service}`"),
    }
}
