//! Connection to a broker: TLS against a given CA, with a client certificate or with a bearer token
//! on every call. On top, [`Credentials`] are a provider for AWS SDKs, refreshed over the
//! connection. The generated clients alone are in [`crate::proto`].

mod credential_stream;
mod credentials;
pub mod diagnose;
pub mod endpoint;
mod issued;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretSlice, SecretString};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

pub use self::{
    credentials::Credentials,
    issued::{Issued, Missing},
};
use crate::proto::{
    admin_service_client::AdminServiceClient, audit_service_client::AuditServiceClient,
    credential_service_client::CredentialServiceClient, grant_service_client::GrantServiceClient,
    identity_service_client::IdentityServiceClient, lease_service_client::LeaseServiceClient,
    revocation_service_client::RevocationServiceClient,
    service_registry_client::ServiceRegistryClient,
};

const PEM_START: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// Maximum length of a token file that is read, bytes; no token is that long.
const SECRET_MAX: u64 = 16 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Time without traffic after which the client checks that the broker is still there.
const SILENT_LIMIT: Duration = Duration::from_secs(10);

/// Address of the broker, and the caller's proof of identity.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address: `https://host:port`.
    pub address: String,
    /// PEM file of the CA that signed the broker's certificate.
    pub ca_file: PathBuf,
    /// Proof of the caller's identity.
    pub evidence: Evidence,
}

/// Proof of a caller's identity.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// A bearer token.
    Token(SecretString),
    /// A file with a bearer token, read again for each connection.
    TokenFile(PathBuf),
    /// A client certificate.
    Certificate {
        /// Certificate chain, PEM, the caller's own certificate first.
        cert_file: PathBuf,
        /// Private key of the certificate, PEM.
        key_file: PathBuf,
    },
}

impl Evidence {
    /// Returns the bearer token; `None` for a certificate. A token file is read again each time.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn token(&self) -> Result<Option<SecretString>, ConnectError> {
        match self {
            Self::Token(token) => Ok(Some(token.clone())),
            Self::TokenFile(path) => read_secret(path).map(Some),
            Self::Certificate { .. } => Ok(None),
        }
    }
}

/// Reasons why no connection can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file of the settings cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The client certificate and its key cannot be used.
    #[error("the client certificate {cert_file} and its key cannot be used: {source}")]
    Certificate {
        /// Path of the certificate.
        cert_file: PathBuf,
        /// Error of the TLS setup.
        source: tonic::transport::Error,
    },
    /// The CA file has no certificate.
    #[error("there is no certificate in {0}: it must hold the broker's CA in PEM")]
    NoCertificate(PathBuf),
    /// The address is invalid.
    #[error("{0:?} is not a broker's address: write it like https://host:8443")]
    Address(String),
    /// The token has characters that a header cannot carry.
    #[error("the token has characters that no token has")]
    Token,
    /// TLS cannot be set up.
    #[error("the CA file cannot be used: {0}")]
    Tls(tonic::transport::Error),
    /// The broker does not answer, or its certificate is not trusted.
    #[error("cannot reach the broker at {address}: {why}")]
    Unreachable {
        /// Address of the broker.
        address: String,
        /// Innermost error.
        why: String,
    },
}

/// Reads a secret from a file, without line breaks at its end.
///
/// # Errors
/// The file cannot be read.
pub fn read_secret(path: &Path) -> Result<SecretString, ConnectError> {
    let mut text = String::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(SECRET_MAX).read_to_string(&mut text));
    read.map_err(|source| ConnectError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(SecretString::from(text.trim_end_matches(['\r', '\n'])))
}

/// A connection to a broker; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: InterceptedService<Channel, Bearer>,
}

/// Interceptor that adds the bearer token, if any, to every call.
#[derive(Clone, Debug)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", header.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// Connects to the broker.
    ///
    /// # Errors
    /// The settings are wrong, or no trusted broker answers within five seconds.
    pub async fn connect(settings: &Settings) -> Result<Self, ConnectError> {
        let address = &settings.address;
        let pem = fs::read(&settings.ca_file).map_err(|source| ConnectError::File {
            path: settings.ca_file.clone(),
            source,
        })?;
        if !pem.windows(PEM_START.len()).any(|text| text == PEM_START) {
            return Err(ConnectError::NoCertificate(settings.ca_file.clone()));
        }
        if !address.starts_with("https://") {
            return Err(ConnectError::Address(address.clone()));
        }
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(|_| ConnectError::Address(address.clone()))?
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(SILENT_LIMIT)
            .keep_alive_timeout(CONNECT_LIMIT)
            .keep_alive_while_idle(true);
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        let endpoint = with_tls(endpoint, tls, &settings.evidence)?;
        let bearer = Bearer(header(&settings.evidence)?);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| ConnectError::Unreachable {
                address: address.clone(),
                why: root_cause(&error),
            })?;
        Ok(Self {
            channel: InterceptedService::new(channel, bearer),
        })
    }

    /// Returns the client that issues, renews, releases and watches credentials.
    #[must_use]
    pub fn credentials(
        &self,
    ) -> CredentialServiceClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        CredentialServiceClient::new(self.channel.clone())
    }

    /// Returns the client for services and their tokens.
    #[must_use]
    pub fn services(
        &self,
    ) -> ServiceRegistryClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        ServiceRegistryClient::new(self.channel.clone())
    }

    /// Returns the client for grants and the policy catalogue.
    #[must_use]
    pub fn grants(
        &self,
    ) -> GrantServiceClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        GrantServiceClient::new(self.channel.clone())
    }

    /// Returns the client for the caller's own identity and certificates.
    #[must_use]
    pub fn identity(
        &self,
    ) -> IdentityServiceClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        IdentityServiceClient::new(self.channel.clone())
    }

    /// Returns the client for leases.
    #[must_use]
    pub fn leases(
        &self,
    ) -> LeaseServiceClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        LeaseServiceClient::new(self.channel.clone())
    }

    /// Returns the client for revocation.
    #[must_use]
    pub fn revocation(
        &self,
    ) -> RevocationServiceClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        RevocationServiceClient::new(self.channel.clone())
    }

    /// Returns the client for the audit log.
    #[must_use]
    pub fn audit(
        &self,
    ) -> AuditServiceClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        AuditServiceClient::new(self.channel.clone())
    }

    /// Returns the client for operators, the admin key, approvals and status.
    #[must_use]
    pub fn admin(
        &self,
    ) -> AdminServiceClient<InterceptedService<Channel, impl Interceptor + use<>>> {
        AdminServiceClient::new(self.channel.clone())
    }
}

fn with_tls(
    endpoint: Endpoint,
    tls: ClientTlsConfig,
    evidence: &Evidence,
) -> Result<Endpoint, ConnectError> {
    let Evidence::Certificate {
        cert_file,
        key_file,
    } = evidence
    else {
        return endpoint.tls_config(tls).map_err(ConnectError::Tls);
    };
    let read = |path: &PathBuf| {
        fs::read(path).map_err(|source| ConnectError::File {
            path: path.clone(),
            source,
        })
    };
    let (cert, key) = (read(cert_file)?, SecretSlice::from(read(key_file)?));
    let tls = tls.identity(Identity::from_pem(cert, key.expose_secret()));
    endpoint
        .tls_config(tls)
        .map_err(|source| ConnectError::Certificate {
            cert_file: cert_file.clone(),
            source,
        })
}

fn header(evidence: &Evidence) -> Result<Option<MetadataValue<Ascii>>, ConnectError> {
    let Some(token) = evidence.token()? else {
        return Ok(None);
    };
    let header = format!("Bearer {}", token.expose_secret());
    let mut header: MetadataValue<Ascii> = header.parse().map_err(|_| ConnectError::Token)?;
    header.set_sensitive(true);
    Ok(Some(header))
}

/// Returns the innermost error, which is the most useful one for a person.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
