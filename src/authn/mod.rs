//! Authentication: from evidence to a [`Principal`], which only this module creates.

pub mod certificate;
pub mod oidc;
pub mod token;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use tokio_rustls::rustls::pki_types::CertificateDer;

use self::{certificate::Trust, oidc::Issuers};
use crate::{
    broker::ports::Store,
    domain::{
        principal::{Identity, Origin, Principal, Proof},
        service::Service,
    },
};
pub use crate::{
    broker::ports::{Authentication, LoginError},
    domain::principal::PresentedCredentials,
};

/// Result of authentication.
pub type Login = Result<Principal, LoginError>;

/// Returns the principal of a proven service, unless the service is suspended.
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

/// Authenticator of callers.
#[derive(Debug, Default)]
pub struct Authenticator {
    /// Authorities for client certificates.
    pub trust: Trust,
    /// Issuers whose signed tokens are accepted.
    pub issuers: Issuers,
}

#[async_trait]
impl Authentication for Authenticator {
    async fn login(
        &self,
        store: &dyn Store,
        now: Timestamp,
        origin: Origin,
        shown: &Arc<PresentedCredentials>,
    ) -> Login {
        let authorization = shown
            .authorization
            .as_ref()
            .map(ExposeSecret::expose_secret);
        let proven = if authorization.is_none() && !shown.certificates.is_empty() {
            let chain = shown.certificates.iter();
            let chain: Vec<_> = chain
                .map(|der| CertificateDer::from(der.as_slice()))
                .collect();
            self.trust.authenticate(store, now, origin, &chain).await
        } else if let Ok(text) = token::bearer(authorization)
            // The broker's own tokens have no dot.
            && text.contains('.')
        {
            self.issuers.authenticate(store, now, origin, text).await
        } else {
            token::authenticate(store, now, origin, authorization).await
        };
        Ok(proven?.showing(Arc::clone(shown)))
    }
}
