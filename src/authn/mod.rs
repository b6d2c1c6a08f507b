//! Evidence to [`Principal`]: the only room that makes one.

pub mod certificate;
pub mod oidc;
pub mod token;

use jiff::Timestamp;
use tokio_rustls::rustls::pki_types::CertificateDer;

use self::{certificate::Trust, oidc::Issuers};
use crate::{
    broker::ports::{Store, StoreError},
    domain::{
        name::Name,
        principal::{Evidence, Identity, Origin, Principal, Proof},
        service::Service,
    },
};

/// Why a caller is not who it says, or may not come in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The evidence is not good; why, and what it was, is for the audit log alone.
    #[error("the evidence was refused: {reason}")]
    Refused {
        /// Machine reason.
        reason: &'static str,
        /// What was shown, if it could be read.
        evidence: Option<Evidence>,
    },
    /// The evidence is good, and its service is shut out.
    #[error("service {service} is suspended")]
    Suspended {
        /// Which service.
        service: Name,
        /// What proved it.
        evidence: Evidence,
    },
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What authentication yields.
pub type Login = Result<Principal, LoginError>;

/// What a caller shows of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown<'a> {
    /// The header `authorization`.
    pub authorization: Option<&'a str>,
    /// The client certificates of the connection, the caller's own first.
    pub certificates: &'a [CertificateDer<'static>],
}

/// A service that was proven, unless it is shut out.
fn of_service(service: Service, proof: Proof, origin: Origin) -> Login {
    if service.suspension.is_some() {
        return Err(LoginError::Suspended {
            service: service.name,
            evidence: proof.evidence,
        });
    }
    let identity = Identity::Service(service.name);
    Ok(Principal::proven(identity, proof, origin))
}

/// Finds out who calls.
#[derive(Debug, Default)]
pub struct Authenticator {
    /// Who vouches for client certificates.
    pub trust: Trust,
    /// Whose signed tokens are taken.
    pub issuers: Issuers,
}

impl Authenticator {
    /// Proves who shows this: by the header if there is one, else by the certificate.
    ///
    /// # Errors
    /// What is shown is not good, or of a suspended service; the store's.
    pub async fn login(
        &self,
        store: &dyn Store,
        now: Timestamp,
        origin: Origin,
        shown: Shown<'_>,
    ) -> Login {
        if shown.authorization.is_none() && !shown.certificates.is_empty() {
            return self
                .trust
                .authenticate(store, now, origin, shown.certificates)
                .await;
        }
        if let Ok(text) = token::bearer(shown.authorization)
            // Tokens of the broker's own have none.
            && text.contains('.')
        {
            return self.issuers.authenticate(store, now, origin, text).await;
        }
        token::authenticate(store, now, origin, shown.authorization).await
    }
}
