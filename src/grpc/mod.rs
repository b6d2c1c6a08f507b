//! The gRPC surface: one file per service, conversion between proto and domain in [`convert`],
//! errors in [`status`], admission in [`auth_layer`].

pub mod addresses;
mod admin;
mod audit;
mod audit_convert;
pub mod auth_layer;
pub mod concurrency_limit;
pub mod convert;
pub mod counts;
mod credentials;
mod grants;
mod identity;
pub mod in_process;
mod leases;
mod pagination;
mod registry;
mod revocation;
pub mod status;
mod watch;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{Request, Response, Status, service::Routes};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::{HealthReporter, health_reporter},
};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use crate::{
    broker::{Broker, Error},
    domain::access::Caller,
    proto::{
        self,
        admin_service_server::AdminServiceServer,
        audit_service_server::AuditServiceServer,
        credential_service_server::{self, CredentialServiceServer},
        grant_service_server::GrantServiceServer,
        identity_service_server::IdentityServiceServer,
        lease_service_server::LeaseServiceServer,
        revocation_service_server::RevocationServiceServer,
        service_registry_server::ServiceRegistryServer,
    },
};

/// Interval at which readiness is checked.
const HEALTH_EVERY: Duration = Duration::from_secs(1);

/// Methods of all gRPC services, over the use cases.
#[derive(Clone)]
pub(super) struct Api {
    broker: Arc<Broker>,
}

/// Returns all services of the broker, without the gate in front of them. A request message may
/// have at most `message_bytes` bytes.
#[must_use]
pub fn routes(broker: &Arc<Broker>, message_bytes: usize) -> Routes {
    let api = Api {
        broker: Arc::clone(broker),
    };
    Routes::new(CredentialServiceServer::new(api.clone()).max_decoding_message_size(message_bytes))
        .add_service(
            ServiceRegistryServer::new(api.clone()).max_decoding_message_size(message_bytes),
        )
        .add_service(GrantServiceServer::new(api.clone()).max_decoding_message_size(message_bytes))
        .add_service(
            IdentityServiceServer::new(api.clone()).max_decoding_message_size(message_bytes),
        )
        .add_service(LeaseServiceServer::new(api.clone()).max_decoding_message_size(message_bytes))
        .add_service(
            RevocationServiceServer::new(api.clone()).max_decoding_message_size(message_bytes),
        )
        .add_service(AuditServiceServer::new(api.clone()).max_decoding_message_size(message_bytes))
        .add_service(AdminServiceServer::new(api).max_decoding_message_size(message_bytes))
        .add_service(reflection().max_decoding_message_size(message_bytes))
}

/// Returns `grpc.reflection.v1`, for operators: the proto files of everything the broker serves.
#[expect(
    clippy::expect_used,
    reason = "the descriptors were compiled with the broker"
)]
fn reflection() -> ServerReflectionServer<impl ServerReflection> {
    let built = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .build_v1();
    built.expect("the compiled proto files are whole")
}

/// Returns `grpc.health.v1`, which needs no login, and the reporter that sets its state.
#[must_use]
pub fn health() -> (HealthReporter, HealthServer<impl Health>) {
    health_reporter()
}

/// Reports whether the broker is ready and, under the name of `CredentialService`, whether it can
/// issue. Runs until the broker ends, and then reports that it does not serve. Without AWS the
/// broker is still ready: it can revoke, and callers that are routed by readiness must reach it.
pub async fn run_health(reporter: HealthReporter, broker: &Broker) {
    let issuing = credential_service_server::SERVICE_NAME;
    let tell = async |ready: bool, issues: bool| {
        for (service, serves) in [("", ready), (issuing, issues)] {
            let status = if serves {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            reporter.set_service_status(service, status).await;
        }
    };
    loop {
        tell(broker.readiness().await.is_ok(), broker.issues().await).await;
        if timeout(HEALTH_EVERY, broker.until_stopped()).await.is_ok() {
            return tell(false, false).await;
        }
    }
}

impl Api {
    /// Runs one call: gets the caller that the gate has admitted, does `work`, has a refusal
    /// recorded, and returns the answer.
    async fn call<M, T, F>(
        &self,
        request: Request<M>,
        work: impl FnOnce(Arc<Broker>, Caller, M) -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (_, extensions, message) = request.into_parts();
        let caller = extensions.get::<Caller>().cloned().ok_or_else(|| {
            status::status(&Error::Internal("a call came past the gate".to_owned()))
        })?;
        let result = work(Arc::clone(&self.broker), caller.clone(), message).await;
        let settled = self.broker.record_result(&caller, result).await;
        settled
            .map(Response::new)
            .map_err(|error| status::status(&error))
    }
}
