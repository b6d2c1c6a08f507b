//! Baselines: the SDK's own AssumeRole, and an empty gRPC call over TLS.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use aws_sdk_sts::types::Tag;
use credbroker::proto::{
    ClientCertificate, EnrollRequest, RenewCertificateRequest, WhoAmIRequest, WhoAmIResponse,
    identity_service_server::{IdentityService, IdentityServiceServer},
};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Request, Response, Status, async_trait,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use crate::{
    child::cpu,
    harness::Key,
    world::{ROLE, policy},
};

/// Client that requests sessions like those of `bench/fresh`, one after the other.
#[derive(Clone)]
pub struct Sdk(aws_sdk_sts::Client);

impl Sdk {
    pub fn new(endpoint: &str) -> Self {
        let key = Key {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "secret".to_owned(),
            token: None,
        };
        Self(aws_sdk_sts::Client::new(&key.config_at(endpoint)))
    }

    pub async fn assume_role(&self) {
        let tag = Tag::builder().key("credbroker:service").value("bench");
        let session = self.0.assume_role().role_arn(ROLE);
        let session = session
            .role_session_name("bare")
            .policy(policy().to_string());
        let answer = session.tags(tag.build().unwrap()).send().await.unwrap();
        assert!(answer.credentials.is_some());
    }
}

/// Runs callers of the SDK for a duration. Prints the number of sessions, and the microseconds of
/// CPU for each.
pub async fn sdk(endpoint: &str, callers: usize, duration: Duration) {
    let sdk = Sdk::new(endpoint);
    sdk.assume_role().await;
    let (began, before, mut asking) = (Instant::now(), cpu(std::process::id()), JoinSet::new());
    for _ in 0..callers {
        let sdk = sdk.clone();
        asking.spawn(async move {
            let mut count = 0;
            while began.elapsed() < duration {
                sdk.assume_role().await;
                count += 1;
            }
            count
        });
    }
    let count: u32 = asking.join_all().await.into_iter().sum();
    let worked = cpu(std::process::id()) - before;
    let each = worked * 1e6 / f64::from(count);
    println!("{count} {each}");
}

struct Empty;

#[async_trait]
impl IdentityService for Empty {
    async fn who_am_i(
        &self,
        _: Request<WhoAmIRequest>,
    ) -> Result<Response<WhoAmIResponse>, Status> {
        Ok(Response::new(WhoAmIResponse::default()))
    }

    async fn enroll(
        &self,
        _: Request<EnrollRequest>,
    ) -> Result<Response<ClientCertificate>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn renew_certificate(
        &self,
        _: Request<RenewCertificateRequest>,
    ) -> Result<Response<ClientCertificate>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Prints its address and answers every call with an empty message.
pub async fn empty(directory: &Path) {
    let read = |name| std::fs::read(directory.join(name)).unwrap();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(read("tls.pem"), read("tls.key")));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("https://{}", listener.local_addr().unwrap());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = Server::builder().tls_config(tls).unwrap();
    let serving = server.add_service(IdentityServiceServer::new(Empty));
    serving.serve_with_incoming(incoming).await.unwrap();
}
