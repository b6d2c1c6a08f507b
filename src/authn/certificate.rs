//! Client certificates: X.509-SVIDs
//! (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>) and certificates with one
//! DNS name (RFC 6125, without wildcards).
//!
//! The handshake proves that the caller has the key. The certificate is verified here, at each
//! call, so that a refusal is recorded like any other, and a new revocation list applies to open
//! connections.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use tokio_rustls::rustls::{
    self, CertificateError, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime},
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{Login, LoginError, of_service};
use crate::{
    broker::ports::Store,
    domain::{
        binding::{DnsName, KeyDigest, KnownBy, ServiceBinding, enrolled_id},
        principal::{Evidence, Origin, Proof},
        spiffe::{SpiffeId, TrustDomain},
    },
};

/// Names that an authority vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VouchesFor {
    /// SPIFFE IDs of a trust domain.
    TrustDomain(TrustDomain),
    /// DNS names.
    DnsNames,
    /// Hosts that have enrolled with this broker, under this domain.
    Enrolled(TrustDomain),
}

/// Reason why an authority cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A certificate of the bundle is not a CA's, or cannot be read.
    #[error("certificate {0} of the bundle is not a CA's, or cannot be read")]
    NotCa(usize),
    /// The bundle or its revocation lists are refused by rustls.
    #[error("the bundle or its revocation lists cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// Authority for client certificates.
#[derive(Clone)]
pub struct Authority {
    vouches_for: VouchesFor,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("vouches_for", &self.vouches_for)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Creates an authority from a bundle of CA certificates and revocation lists. If there is any
    /// list, each certificate of a chain needs a list of its issuer, and no list may be expired.
    ///
    /// # Errors
    /// A certificate of the bundle is not a CA's, or an input cannot be read.
    pub fn new(
        vouches_for: VouchesFor,
        bundle: &[CertificateDer<'static>],
        revoked: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, AuthorityError> {
        let mut roots = RootCertStore::empty();
        for (number, certificate) in (1..).zip(bundle) {
            let is_ca = parsed(certificate).is_some_and(|parsed| parsed.is_ca());
            if !is_ca || roots.add(certificate.clone()).is_err() {
                return Err(AuthorityError::NotCa(number));
            }
        }
        let provider = Arc::new(default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = builder
            .with_crls(revoked)
            .enforce_revocation_expiration()
            .build()?;
        Ok(Self {
            vouches_for,
            verifier,
        })
    }

    fn vouches(&self, known_by: &KnownBy) -> bool {
        match (&self.vouches_for, known_by) {
            (
                VouchesFor::TrustDomain(domain) | VouchesFor::Enrolled(domain),
                KnownBy::SpiffeId(id),
            ) => id.trust_domain() == domain,
            (VouchesFor::DnsNames, KnownBy::DnsName(_)) => true,
            _ => false,
        }
    }

    fn known_by(&self, named: &Named) -> KnownBy {
        match self.vouches_for {
            VouchesFor::Enrolled(_) => KnownBy::Enrolled(named.key.clone()),
            VouchesFor::TrustDomain(_) | VouchesFor::DnsNames => named.known_by.clone(),
        }
    }
}

/// All authorities in force.
#[derive(Debug, Default)]
pub struct Trust(RwLock<Arc<Vec<Authority>>>);

impl Trust {
    /// Replaces all authorities.
    pub fn replace(&self, authorities: Vec<Authority>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authorities);
    }

    fn authorities(&self) -> Arc<Vec<Authority>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Authenticates the caller that these certificates belong to.
    pub(super) async fn authenticate(
        &self,
        store: &dyn Store,
        now: Timestamp,
        origin: Origin,
        chain: &[CertificateDer<'_>],
    ) -> Login {
        let (own, others) = chain.split_first().ok_or(LoginError::Refused {
            reason: "CERTIFICATE_ABSENT",
            evidence: None,
        })?;
        let fingerprint = HEXLOWER.encode(digest(&SHA256, own).as_ref());
        let evidence = |name| Evidence::Certificate {
            fingerprint: fingerprint.clone(),
            name,
        };
        let refused = |evidence, reason| LoginError::Refused {
            reason,
            evidence: Some(evidence),
        };
        let named = named(own).map_err(|reason| refused(evidence(None), reason))?;
        let evidence = evidence(Some(named.known_by.name()));
        let wrong = |reason| refused(evidence.clone(), reason);
        let known_by = self.verify(&named, own, others, now).map_err(wrong)?;
        let bound = store.bound(&known_by).await?;
        let bound = bound.filter(|(binding, _)| is_for(binding, &named));
        let (binding, service) = bound.ok_or_else(|| wrong("IDENTITY_UNBOUND"))?;
        let proof = Proof {
            evidence,
            binding: Some(binding.id),
            expires_at: Some(named.expires_at),
        };
        of_service(service, proof, origin)
    }

    /// Returns the identity of a certificate's holder, if an authority for its name vouches for it
    /// at `now`: the key of an enrolled host, the name of any other holder. Otherwise returns the
    /// reason that an authority gave.
    fn verify(
        &self,
        named: &Named,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> Result<KnownBy, &'static str> {
        let authorities = self.authorities();
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let mut why = "AUTHORITY_UNKNOWN";
        for authority in authorities
            .iter()
            .filter(|authority| authority.vouches(&named.known_by))
        {
            match authority.verifier.verify_client_cert(own, others, now) {
                Ok(_) => return Ok(authority.known_by(named)),
                // With several authorities for DNS names, the one that knows the issuer decides.
                Err(error) if why == "AUTHORITY_UNKNOWN" || why == ISSUER_UNKNOWN => {
                    why = reason(&error);
                }
                Err(_) => {}
            }
        }
        Err(why)
    }
}

const ISSUER_UNKNOWN: &str = "CERTIFICATE_ISSUER_UNKNOWN";

fn reason(error: &rustls::Error) -> &'static str {
    let rustls::Error::InvalidCertificate(why) = error else {
        return "CERTIFICATE_INVALID";
    };
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "CERTIFICATE_EXPIRED"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "CERTIFICATE_NOT_VALID_YET"
        }
        CertificateError::Revoked => "CERTIFICATE_REVOKED",
        CertificateError::UnknownRevocationStatus => "REVOCATION_LIST_MISSING",
        CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => "REVOCATION_LIST_EXPIRED",
        CertificateError::UnknownIssuer => ISSUER_UNKNOWN,
        CertificateError::BadSignature => "CERTIFICATE_SIGNATURE_WRONG",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "CERTIFICATE_NOT_FOR_CLIENTS"
        }
        _ => "CERTIFICATE_INVALID",
    }
}

/// Returns whether the certificate of an enrolled host names the service that its key is bound to.
fn is_for(binding: &ServiceBinding, named: &Named) -> bool {
    match (&binding.known_by, &named.known_by) {
        (KnownBy::Enrolled(_), KnownBy::SpiffeId(id)) => {
            id.as_str() == enrolled_id(id.trust_domain(), &binding.service)
        }
        _ => true,
    }
}

/// Statements of a certificate about its holder.
struct Named {
    known_by: KnownBy,
    key: KeyDigest,
    expires_at: Timestamp,
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (rest, parsed) = X509Certificate::from_der(der).ok()?;
    rest.is_empty().then_some(parsed)
}

/// Reads a certificate that may be a caller's own and has one name.
fn named(der: &CertificateDer<'_>) -> Result<Named, &'static str> {
    let certificate = parsed(der).ok_or("CERTIFICATE_MALFORMED")?;
    if certificate.is_ca() {
        return Err("CERTIFICATE_IS_CA");
    }
    let usage = certificate
        .key_usage()
        .map_err(|_| "CERTIFICATE_MALFORMED")?;
    if usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()) {
        return Err("CERTIFICATE_SIGNS");
    }
    let expires_at = certificate.validity().not_after.timestamp();
    Ok(Named {
        known_by: only_name(&certificate)?,
        key: KeyDigest::of(certificate.public_key().raw),
        expires_at: Timestamp::from_second(expires_at).map_err(|_| "CERTIFICATE_MALFORMED")?,
    })
}

/// Returns the only name. A URI makes the certificate an X.509-SVID, whose DNS names are ignored.
fn only_name(certificate: &X509Certificate<'_>) -> Result<KnownBy, &'static str> {
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|_| "CERTIFICATE_MALFORMED")?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let mut uris = Vec::new();
    let mut dns_names = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(name) => dns_names.push(*name),
            GeneralName::Invalid(..) => return Err("CERTIFICATE_MALFORMED"),
            _ => {}
        }
    }
    match (uris.as_slice(), dns_names.as_slice()) {
        ([uri], _) => {
            let id: Result<SpiffeId, _> = uri.parse();
            id.map(KnownBy::SpiffeId).map_err(|_| "SPIFFE_ID_INVALID")
        }
        ([_, _, ..], _) => Err("CERTIFICATE_SEVERAL_URIS"),
        ([], [name]) => {
            let name: Result<DnsName, _> = name.parse();
            name.map(KnownBy::DnsName).map_err(|_| "DNS_NAME_INVALID")
        }
        ([], []) => Err("CERTIFICATE_WITHOUT_NAME"),
        ([], _) => Err("CERTIFICATE_SEVERAL_DNS_NAMES"),
    }
}
