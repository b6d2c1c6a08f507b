//! How far one gets on the way to a broker, a step at a time: for whoever wants to know
//! which step fails.

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
    /// It is not an address at all.
    #[error("it is not written like https://host:8443")]
    Address,
    /// Nobody knows the name.
    #[error("the name {host} does not resolve: {why}")]
    Name {
        /// Which name.
        host: String,
        /// Why.
        why: String,
    },
    /// The machine is there, the port is closed.
    #[error("nobody listens at {0}")]
    Refused(SocketAddr),
    /// No connection, for another reason.
    #[error("no connection to {address}: {why}")]
    Unconnected {
        /// Where.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// No certificate to trust can be read.
    #[error("there is no certificate to be read in {0}")]
    Roots(PathBuf),
    /// Another CA's certificate.
    #[error("the certificate of {host} is not of a CA in {roots}")]
    OtherCa {
        /// Who showed it.
        host: String,
        /// What is trusted.
        roots: PathBuf,
    },
    /// The certificate is for other names.
    #[error("the certificate is for another name than {0}")]
    OtherName(String),
    /// Its time is over.
    #[error("the certificate of {0} has expired")]
    Expired(String),
    /// Its time has not begun.
    #[error("the certificate of {0} is not valid yet")]
    NotYet(String),
    /// Whoever answers does not speak TLS, or not as the broker does.
    #[error("no TLS with {host}: {why}")]
    Tls {
        /// Who.
        host: String,
        /// Why.
        why: String,
    },
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name or IP address, without brackets.
    pub host: String,
    /// TCP port; 443 where none is written.
    pub port: u16,
}

impl Place {
    /// Of an https URL; one that carries a password is none.
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

    /// `https://host:port`, and nothing that may have stood behind it.
    #[must_use]
    pub fn url(&self) -> String {
        if self.host.contains(':') {
            format!("https://[{}]:{}", self.host, self.port)
        } else {
            format!("https://{}:{}", self.host, self.port)
        }
    }

    /// Its IP addresses, one at least.
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

    /// A TLS handshake, in which the broker's certificate must be of a CA in `roots`, PEM.
    ///
    /// # Errors
    /// What is wrong with the certificate, or with the one who shows it.
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
                why: "whoever listens there does not speak TLS".to_owned(),
            },
            _ => ReachError::Tls {
                host,
                why: error.to_string(),
            },
        }
    }
}

/// A connection to the first of these that takes one.
///
/// # Errors
/// What the last one came to.
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

/// Whether there is a certificate in a file, PEM.
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
    // What a machine trusts may hold one that nobody can read.
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
        assert_eq!(Place::of("https://b/?x").unwrap().url(), "https://b:443");
        assert_eq!(
            Place::of("https://[::1]:1").unwrap().url(),
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
            let place = Place::of(url).unwrap();
            assert_eq!((place.host.as_str(), place.port), (host, port), "{url}");
        }
        for url in [
            "http://broker.example",
            "broker.example:8443",
            "https://u:p@broker",
            "",
        ] {
            assert!(Place::of(url).is_err(), "{url}");
        }
    }
}
