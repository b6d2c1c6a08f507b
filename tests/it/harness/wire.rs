//! The broker over gRPC, by the generated clients or by the bare method name.

use credbroker::client::{Client, Settings};
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_prost::ProstCodec;

use super::Broker;

impl Broker {
    /// A setting of `DIR/env`, e.g. `CREDBROKER_TOKEN`.
    pub fn setting(&self, name: &str) -> &str {
        let found = self.env.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("{name} in env")).1
    }

    /// The token of the operator `admin`.
    pub fn admin_token(&self) -> &str {
        self.setting("CREDBROKER_TOKEN")
    }

    /// The clients that `credbroker` ships, with this token.
    pub async fn client(&self, token: &str) -> Client {
        let settings = Settings {
            address: self.setting("CREDBROKER_ADDR").to_owned(),
            ca_file: self.setting("CREDBROKER_CA_FILE").into(),
            token: token.into(),
        };
        Client::connect(&settings).await.unwrap()
    }

    /// A connection without any proof of identity.
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
        let mut messages = answer.into_inner();
        while messages.message().await?.is_some() {}
        Ok(())
    }

    /// The same, as the bearer of a token.
    pub async fn call_as(&self, token: &str, method: &str) -> Result<(), Status> {
        self.call(method, Some(&format!("Bearer {token}"))).await
    }
}
