//! Port to the broker's own CA for client certificates.

use jiff::Timestamp;

use crate::domain::{binding::KeyDigest, name::Name};

/// A newly issued client certificate.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// Certificate in PEM, followed by the CA's.
    pub chain: String,
    /// Digest of the certified public key.
    pub key: KeyDigest,
    /// End of the certificate's validity.
    pub expires_at: Timestamp,
}

/// Failure of a request for a certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request is invalid; the text is for the caller that made it.
    #[error("{0}")]
    Invalid(String),
    /// The CA does not sign.
    #[error("the broker's own CA does not sign: {0}")]
    NotSigned(String),
}

/// Issues client certificates to hosts of services.
pub trait CertificateAuthority: Send + Sync {
    /// Returns a certificate, issued at `now`, for the key of a PKCS#10 request (RFC 2986) in DER.
    /// The request's signature shows that the caller has the key. The rest of the request is
    /// ignored.
    ///
    /// # Errors
    /// The request is invalid, or the CA does not sign.
    fn sign(
        &self,
        request: &[u8],
        service: &Name,
        now: Timestamp,
    ) -> Result<ClientCertificate, RequestError>;
}
