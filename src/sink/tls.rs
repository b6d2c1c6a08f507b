//! TLS to a sink's server: rustls on aws-lc-rs, TLS 1.3 and 1.2.

use std::{net::IpAddr, path::Path, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::SetupError;
use crate::broker::ports::SinkError;

/// A server, and the certificates that vouch for it.
pub struct Server {
    host: String,
    port: u16,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Server {
    /// Creates a server for which only the certificates of `ca_file` vouch; without a file, those
    /// that the machine trusts.
    ///
    /// # Errors
    /// The certificates are missing or cannot be read, or the host is invalid.
    pub fn new(host: &str, port: u16, ca_file: Option<&Path>) -> Result<Self, SetupError> {
        let name = ServerName::try_from(host.to_owned());
        let roots = match ca_file {
            Some(path) => roots_in(path)?,
            None => roots_of_machine(),
        };
        if roots.is_empty() {
            return Err(SetupError::NoRoots);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            host: host.to_owned(),
            port,
            name: name.map_err(|_| SetupError::Host(host.to_owned()))?,
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>, SinkError> {
        let failed = |error| SinkError(format!("cannot connect to {}: {error}", self.authority()));
        let stream = TcpStream::connect((self.host.as_str(), self.port));
        let stream = stream.await.map_err(failed)?;
        // The end of a batch must not wait for more data.
        stream.set_nodelay(true).map_err(failed)?;
        let connecting = self.connector.connect(self.name.clone(), stream);
        connecting.await.map_err(failed)
    }

    /// Returns `host:port`, with an IPv6 address in brackets.
    pub(super) fn authority(&self) -> String {
        match self.host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

fn roots_in(path: &Path) -> Result<RootCertStore, SetupError> {
    let unreadable = |source| SetupError::Pem {
        path: path.to_owned(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots.add(certificate.map_err(unreadable)?)?;
    }
    Ok(roots)
}

fn roots_of_machine() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
