//! Access to the broker over gRPC, by the generated clients or by the bare method name.

use std::{path::Path, sync::Arc};

use credbroker::client::{Client, ConnectError, Evidence, Settings};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{Broker, eventually, eventually_within};

impl Broker {
    /// A setting of `DIR/env`, e.g. `CREDBROKER_TOKEN`.
    pub fn setting(&self, name: &str) -> &str {
        let found = self.env.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("{name} in env")).1
    }

    /// Token of the operator `admin`.
    pub fn admin_token(&self) -> &str {
        self.setting("CREDBROKER_TOKEN")
    }

    /// Connects the clients that `credbroker` ships, with this token.
    pub async fn client(&self, token: &str) -> Client {
        Client::connect(&self.settings(token)).await.unwrap()
    }

    pub fn settings(&self, token: &str) -> Settings {
        Settings {
            address: self.setting("CREDBROKER_ADDR").to_owned(),
            ca_file: self.setting("CREDBROKER_CA_FILE").into(),
            evidence: Evidence::Token(token.into()),
        }
    }

    /// Connects like [`Self::client`], if the broker is alive.
    pub async fn try_client(&self, token: &str) -> Result<Client, ConnectError> {
        Client::connect(&self.settings(token)).await
    }

    /// Response to a GET of this path over HTTPS, with its head.
    pub async fn https_get(&self, path: &str) -> String {
        let url = self.setting("CREDBROKER_ADDR");
        let address = url.strip_prefix("https://").unwrap();
        let ca = self.setting("CREDBROKER_CA_FILE");
        tls_get(address, Path::new(ca), path).await
    }

    /// Returns `status` once the broker has reconciled with AWS.
    pub async fn reconciled(&self) -> Value {
        let status = async || {
            let status = self.json(&["status"]).await;
            (!status["reconciled_at"].is_null()).then_some(status)
        };
        // A replica that was killed may still hold the lock, for ten seconds.
        eventually_within(30, "a reconciliation", status).await
    }

    /// Waits until the metrics have this line.
    pub async fn counts(&self, line: &str) {
        let counted = async || {
            let metrics = self.https_get("/metrics").await;
            metrics.contains(line).then_some(())
        };
        eventually(line, counted).await;
    }

    /// Opens a connection without any proof of identity.
    pub async fn wire(&self) -> Wire {
        let pem = std::fs::read(self.setting("CREDBROKER_CA_FILE")).unwrap();
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        let address = self.setting("CREDBROKER_ADDR").to_owned();
        let endpoint = Endpoint::from_shared(address).unwrap();
        Wire(endpoint.tls_config(tls).unwrap().connect().await.unwrap())
    }
}

/// A bare connection: any method, any header.
#[derive(Clone)]
pub struct Wire(Channel);

impl Wire {
    /// Channel for clients of any service.
    pub fn channel(&self) -> Channel {
        self.0.clone()
    }

    /// Calls `PACKAGE.Service/Method` with an empty message and this `authorization`.
    pub async fn call(&self, method: &str, authorization: Option<&str>) -> Result<(), Status> {
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.unwrap();
        let mut request = Request::new(());
        if let Some(header) = authorization {
            let header = header.parse().unwrap();
            request.metadata_mut().insert("authorization", header);
        }
        let path: PathAndQuery = format!("/{method}").parse().unwrap();
        let codec = ProstCodec::<(), ()>::default();
        // On the wire a single answer is a stream of one.
        let answer = grpc.server_streaming(request, path, codec).await?;
        if method.contains("/Watch") {
            // The stream stays open while the caller reads it.
            return Ok(());
        }
        let mut messages = answer.into_inner();
        while messages.message().await?.is_some() {}
        Ok(())
    }

    /// Calls the method with this bearer token.
    pub async fn call_as(&self, token: &str, method: &str) -> Result<(), Status> {
        self.call(method, Some(&format!("Bearer {token}"))).await
    }
}

/// GETs a path over TLS; `ca` vouches for the server. Returns the response.
pub async fn tls_get(address: &str, ca: &Path, path: &str) -> String {
    tls_ask(address, ca, &get(path)).await
}

/// Sends a whole HTTP/1.1 request over TLS. Returns the response.
pub async fn tls_ask(address: &str, ca: &Path, request: &str) -> String {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    asked(connector.connect(name, stream).await.unwrap(), request).await
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

pub async fn exchange(stream: impl AsyncReadExt + AsyncWriteExt + Unpin, path: &str) -> String {
    asked(stream, &get(path)).await
}

async fn asked(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A broken connection is a valid answer.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
