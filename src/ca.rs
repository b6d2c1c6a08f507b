//! The broker's own CA for client certificates, over rcgen.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    date_time_ymd,
};

use crate::{
    broker::ports::{CertificateAuthority, ClientCertificate, RequestError},
    domain::{
        binding::{KeyDigest, enrolled_id},
        name::Name,
        spiffe::TrustDomain,
    },
};

/// Time by which a host's clock may be behind; certificates are valid that much earlier.
const BEHIND: SignedDuration = SignedDuration::from_mins(5);
/// Longest certificate request that is accepted, bytes.
const REQUEST_MAX: usize = 8 * 1024;

/// An intermediate CA whose key the broker has.
pub struct OwnCa {
    issuer: Issuer<'static, KeyPair>,
    chain: String,
    trust_domain: TrustDomain,
    ttl: Duration,
}

impl OwnCa {
    /// Creates the CA from its key and its certificate, followed by the certificates above it, all
    /// PEM. Issued certificates name services in `trust_domain` and are valid for `ttl`.
    ///
    /// # Errors
    /// Certificate or key cannot be read.
    pub fn new(
        chain: String,
        key: &str,
        trust_domain: TrustDomain,
        ttl: Duration,
    ) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&chain, KeyPair::from_pem(key)?)?;
        Ok(Self {
            issuer,
            chain,
            trust_domain,
            ttl,
        })
    }

    fn params(&self, service: &Name, now: Timestamp) -> Result<CertificateParams, RequestError> {
        let id = enrolled_id(&self.trust_domain, service);
        let id = id.try_into().map_err(not_signed)?;
        let epoch = date_time_ymd(1970, 1, 1);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, service.as_str());
        params.subject_alt_names = vec![SanType::URI(id)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = epoch + since_epoch(now - BEHIND);
        params.not_after = epoch + since_epoch(self.end(now));
        Ok(params)
    }

    fn end(&self, now: Timestamp) -> Timestamp {
        // X.509 times have whole seconds.
        let end = now + SignedDuration::try_from(self.ttl).unwrap_or_default();
        Timestamp::from_second(end.as_second()).unwrap_or(end)
    }
}

fn since_epoch(time: Timestamp) -> Duration {
    Duration::from_secs(time.as_second().try_into().unwrap_or_default())
}

fn not_signed(error: impl std::fmt::Display) -> RequestError {
    RequestError::NotSigned(error.to_string())
}

impl CertificateAuthority for OwnCa {
    fn sign(
        &self,
        request: &[u8],
        service: &Name,
        now: Timestamp,
    ) -> Result<ClientCertificate, RequestError> {
        let invalid = |why: &str| RequestError::Invalid(format!("it is no PKCS#10 request: {why}"));
        if request.len() > REQUEST_MAX {
            return Err(invalid("it is too long"));
        }
        let asked = CertificateSigningRequestParams::from_der(&request.into());
        let asked = asked.map_err(|error| invalid(&error.to_string()))?;
        let signed = CertificateSigningRequestParams {
            params: self.params(service, now)?,
            public_key: asked.public_key,
        };
        let certificate = signed.signed_by(&self.issuer).map_err(not_signed)?;
        Ok(ClientCertificate {
            chain: format!("{}{}", certificate.pem(), self.chain),
            key: KeyDigest::of(&signed.public_key.subject_public_key_info()),
            expires_at: self.end(now),
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, IsCa};

    use super::*;

    fn ca() -> OwnCa {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let chain = params.self_signed(&key).unwrap().pem();
        let domain = "broker.example".parse().unwrap();
        OwnCa::new(
            chain,
            &key.serialize_pem(),
            domain,
            Duration::from_secs(3600),
        )
        .unwrap()
    }

    fn request() -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![SanType::URI("spiffe://other/x".try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn only_the_key_is_taken_from_a_request() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let made = ca().sign(&request(), &"pay".parse().unwrap(), now).unwrap();
        assert_eq!(
            made.expires_at,
            Timestamp::from_second(1_800_003_600).unwrap()
        );
        let (_, pem) = x509_parser::pem::parse_x509_pem(made.chain.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert!(!certificate.is_ca());
        assert_eq!(KeyDigest::of(certificate.public_key().raw), made.key);
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        let names = format!("{:?}", names.value.general_names);
        assert!(
            names.contains("spiffe://broker.example/service/pay"),
            "{names}"
        );
        assert!(!names.contains("other"), "{names}");
        assert_eq!(made.chain.matches("BEGIN CERTIFICATE").count(), 2);
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let (ca, pay, now) = (ca(), "pay".parse().unwrap(), Timestamp::UNIX_EPOCH);
        let mut forged = request();
        // The last byte belongs to the signature.
        *forged.last_mut().unwrap() ^= 1;
        for wrong in [forged, vec![], vec![0x30; 9000], b"rubbish".to_vec()] {
            let refused = ca.sign(&wrong, &pay, now);
            assert!(matches!(refused, Err(RequestError::Invalid(_))));
        }
    }
}
