//! The broker's own authority for client certificates.

use jiff::Timestamp;

use crate::domain::{binding::KeyDigest, name::Name};

/// A client certificate that was just made.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// In PEM, with the authority's behind it.
    pub chain: String,
    /// Of the key that it is for.
    pub key: KeyDigest,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// Why a request for a certificate comes to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is none that can be answered, in words for whoever made it.
    #[error("{0}")]
    Invalid(String),
    /// The authority does not sign.
    #[error("the broker's own CA does not sign: {0}")]
    NotSigned(String),
}

/// Makes client certificates for hosts of services.
pub trait CertificateAuthority: Send + Sync {
    /// A certificate from `now` on for the key of a PKCS#10 request (RFC 2986) in DER, whose
    /// signature shows that the caller has it. Nothing else is taken from the request.
    ///
    /// # Errors
    /// The request is none, or the authority does not sign.
    fn sign(
        &self,
        request: &[u8],
        service: &Name,
        now: Timestamp,
    ) -> Result<ClientCertificate, RequestError>;
}
