//! Connection check step by step (address, name, port, TLS), which shows the step that fails.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, CertificateError, ClientConfig, RootCertStore,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use tonic::codegen::http::Uri;

use super::CONNECT_LIMIT;

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The text is not an address.
    #[error("it is not written like https://host:8443")]
    Address,
    /// The name does not resolve.
    #[error("the name {host} does not resolve: {why}")]
    Name {
        /// Name of the host.
        host: String,
        /// Reason, for people.
        why: String,
    },
    /// The host is reachable, but its port is closed.
    #[error("no process listens at {0}")]
    Refused(SocketAddr),
    /// The connection failed for another reason.
    #[error("no connection to {address}: {why}")]
    Unconnected {
        /// Address of the attempt.
        address: SocketAddr,
        /// Reason, for people.
        why: String,
    },
    /// The file has no readable CA certificate.
    #[error("there is no certificate to be read in {0}")]
    Roots(PathBuf),
    /// The certificate is of another CA.
    #[error("the certificate of {host} is not of a CA in {roots}")]
    OtherCa {
        /// Host that presented the certificate.
        host: String,
        /// File of the trusted CAs.
        roots: PathBuf,
    },
    /// The certificate is for other names.
    #[error("the certificate is for another name than {0}")]
    OtherName(String),
    /// The certificate has expired.
    #[error("the certificate of {0} has expired")]
    Expired(String),
    /// The certificate is not valid yet.
    #[error("the certificate of {0} is not valid yet")]
    NotYet(String),
    /// The TLS handshake failed: e.g. the peer does not speak TLS, or not as the broker does.
    #[error("no TLS with {host}: {why}")]
    Tls {
        /// Name of the host.
        host: String,
        /// Reason, for people.
        why: String,
    },
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress {
    /// Name or IP address, without brackets.
    pub host: String,
    /// TCP port; 443 if the URL has none.
    pub port: u16,
}

impl BrokerAddress {
    /// Parses an https URL. URLs with a user name or password are refused.
    ///
    /// # Errors
    /// [`ReachError::Address`].
    pub fn of(url: &str) -> Result<Self, ReachError> {
        let uri: Uri = url.parse().map_err(|_| ReachError::Address)?;
        let authority = uri.authority().ok_or(ReachError::Address)?;
        if uri.scheme_str() != Some("https") || authority.as_str().contains('@') {
            return Err(ReachError::Address);
        }
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(443),
        })
    }

    /// Returns `https://host:port`, without path and query.
    #[must_use]
    pub fn url(&self) -> String {
        if self.host.contains(':') {
            format!("https://[{}]:{}", self.host, self.port)
        } else {
            format!("https://{}:{}", self.host, self.port)
        }
    }

    /// Resolves the host to its IP addresses, at least one.
    ///
    /// # Errors
    /// [`ReachError::Name`].
    pub async fn resolve(&self) -> Result<Vec<SocketAddr>, ReachError> {
        let failed = |why: String| ReachError::Name {
            host: self.host.clone(),
            why,
        };
        let asked = timeout(CONNECT_LIMIT, lookup_host((self.host.as_str(), self.port)));
        let found = asked.await.map_err(|_| failed("no answer".to_owned()))?;
        let found: Vec<_> = found.map_err(|error| failed(error.to_string()))?.collect();
        if found.is_empty() {
            Err(failed("it has no address".to_owned()))
        } else {
            Ok(found)
        }
    }

    /// Makes a TLS handshake. The broker's certificate must be of a CA in `roots`, a PEM file.
    ///
    /// # Errors
    /// The certificate is not trusted, or the handshake fails.
    pub async fn trust(&self, stream: TcpStream, roots: &Path) -> Result<(), ReachError> {
        let failed = |why: String| ReachError::Tls {
            host: self.host.clone(),
            why,
        };
        let config = trusting(roots)?.ok_or_else(|| failed("it cannot be set up".to_owned()))?;
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|_| ReachError::Address)?;
        let connector = TlsConnector::from(Arc::new(config));
        match timeout(CONNECT_LIMIT, connector.connect(name, stream)).await {
            Err(_) => Err(failed("no answer".to_owned())),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.untrusted(&error, roots)),
        }
    }

    fn untrusted(&self, error: &io::Error, roots: &Path) -> ReachError {
        let host = self.host.clone();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(rustls::Error::InvalidCertificate(wrong)) => match wrong {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    let roots = roots.to_owned();
                    ReachError::OtherCa { host, roots }
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => ReachError::OtherName(host),
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    ReachError::Expired(host)
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    ReachError::NotYet(host)
                }
                other => ReachError::Tls {
                    host,
                    why: other.to_string(),
                },
            },
            Some(rustls::Error::InvalidMessage(_)) => ReachError::Tls {
                host,
                why: "the server there does not speak TLS".to_owned(),
            },
            _ => ReachError::Tls {
                host,
                why: error.to_string(),
            },
        }
    }
}

/// Connects to the first of these addresses that accepts.
///
/// # Errors
/// The error of the last attempt.
pub async fn dial(addresses: &[SocketAddr]) -> Result<TcpStream, ReachError> {
    let mut last = ReachError::Address;
    for &address in addresses {
        let failed = |why: String| ReachError::Unconnected { address, why };
        last = match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                ReachError::Refused(address)
            }
            Ok(Err(error)) => failed(error.to_string()),
            Err(_) => failed(format!("no answer within {} s", CONNECT_LIMIT.as_secs())),
        };
    }
    Err(last)
}

/// Checks that a PEM file has a readable certificate.
///
/// # Errors
/// [`ReachError::Roots`].
pub fn readable(path: &Path) -> Result<(), ReachError> {
    roots(path).map(drop)
}

fn roots(path: &Path) -> Result<RootCertStore, ReachError> {
    let unread = || ReachError::Roots(path.to_owned());
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(path).map_err(|_| unread())?;
    // A system's trust store may contain certificates that cannot be parsed.
    roots.add_parsable_certificates(found.flatten());
    if roots.is_empty() {
        return Err(unread());
    }
    Ok(roots)
}

fn trusting(path: &Path) -> Result<Option<ClientConfig>, ReachError> {
    let roots = roots(path)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions();
    Ok(builder.ok().map(|builder| {
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_from_an_https_url_alone() {
        assert_eq!(
            BrokerAddress::of("https://b/?x").unwrap().url(),
            "https://b:443"
        );
        assert_eq!(
            BrokerAddress::of("https://[::1]:1").unwrap().url(),
            "https://[::1]:1"
        );
        for (url, host, port) in [
            ("https://broker.example:8443", "broker.example", 8443),
            (
                "https://broker.example/v1/credentials/x",
                "broker.example",
                443,
            ),
            ("https://[::1]:1", "::1", 1),
        ] {
            let place = BrokerAddress::of(url).unwrap();
            assert_eq!((place.host.as_str(), place.port), (host, port), "{url}");
        }
        for url in [
            "http://broker.example",
            "broker.example:8443",
            "https://u:p@broker",
            "",
        ] {
            assert!(BrokerAddress::of(url).is_err(), "{url}");
        }
    }
}
