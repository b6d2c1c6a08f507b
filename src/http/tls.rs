//! TLS of the listener: rustls on aws-lc-rs, TLS 1.3 only, without resumption and early data.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use metrics::gauge;
use tokio::{sync::watch, time::sleep};
use tokio_rustls::rustls::{
    self, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Maximum number of certificates in a client's chain.
const CHAIN_MAX: usize = 5;
/// Maximum size of a client's chain, bytes.
const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// Reasons why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("cannot read {what} from {path}: {source}")]
    Pem {
        /// Content of the file: certificate or private key.
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the PEM parser.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not work together.
    #[error("the TLS certificate and key cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Request for a client certificate in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// The broker requests a certificate; the client may send none.
    Asked,
    /// The broker requests no certificate, as no authority is configured to verify one.
    NotAsked,
}

/// Interval at which the files are checked for changes.
const EVERY: Duration = Duration::from_secs(2);

/// Publishes the content of these PEM files whenever they change, forever. An unusable certificate
/// or key is logged, and the last usable one stays.
pub async fn run_reload(
    cert: &Path,
    key: &Path,
    clients: ClientCertificates,
    shown: watch::Sender<Arc<ServerConfig>>,
) {
    let state = |path: &Path| {
        let found = fs::metadata(path).ok();
        found.map(|found| (found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
    };
    let mut last = (state(cert), state(key));
    loop {
        sleep(EVERY).await;
        let now = (state(cert), state(key));
        if last == now {
            continue;
        }
        last = now;
        match from_files(cert, key, clients) {
            Ok(config) => {
                tracing::info!("the TLS certificate has changed");
                shown.send_replace(config);
            }
            Err(error) => tracing::error!(%error, "the TLS certificate stays as it was"),
        }
    }
}

/// Reads certificate and key from PEM files.
///
/// # Errors
/// The files cannot be read, or certificate and key do not match.
pub fn from_files(
    cert: &Path,
    key: &Path,
    clients: ClientCertificates,
) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { what, path, source }
    };
    let chain = CertificateDer::pem_file_iter(cert).map_err(pem("the TLS certificate", cert))?;
    let chain = chain
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem("the TLS certificate", cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(pem("the TLS private key", key))?;
    let expires = chain.first().and_then(expiry);
    let config = server_config(chain, key, clients)?;
    if let Some(expires) = expires {
        gauge!("credbroker_tls_certificate_expires_at_seconds").set(expires);
    }
    Ok(config)
}

/// Returns the expiry of a certificate, Unix seconds.
fn expiry(certificate: &CertificateDer<'_>) -> Option<f64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let at = parsed.validity().not_after.timestamp();
    // The value is exact until the year 9999.
    u64::try_from(at)
        .ok()
        .map(|at| Duration::from_secs(at).as_secs_f64())
}

/// Returns the TLS configuration for a certificate chain and its key.
///
/// # Errors
/// Certificate and key do not match.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: ClientCertificates,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let builder = match clients {
        ClientCertificates::Asked => {
            builder.with_client_cert_verifier(Arc::new(PossessionVerifier(algorithms)))
        }
        ClientCertificates::NotAsked => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would skip the checks of a full handshake.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Verifier that accepts any certificate whose key the client has. `authn` verifies identity and
/// issuer at each call, since it can record the exact fault.
#[derive(Debug)]
struct PossessionVerifier(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for PossessionVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let bytes = own.len() + others.iter().map(|other| other.len()).sum::<usize>();
        if others.len() < CHAIN_MAX && bytes <= CHAIN_BYTES_MAX {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(rustls::Error::General(
                "the client's chain is too long".to_owned(),
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _own: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, own, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
