//! HTTPS beside gRPC on the same port: liveness, readiness, metrics, and the listener
//! itself.

mod answer;
mod connection;
mod credentials;
pub mod listener;
mod metered;
mod metrics;
pub mod tls;

use std::sync::Arc;

pub use self::metrics::{install as install_metrics, keep as keep_metrics};
use axum::{Router, http::StatusCode, routing::get};
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::layer::layer_fn;

use crate::{
    authn::Authenticator,
    broker::Broker,
    domain::access::Surface,
    grpc::{
        self,
        gate::{Door, Gate},
    },
};

/// What is served at an address: gRPC behind the gate, `grpc.health.v1`, `/livez` and
/// `/readyz` in front of it, credentials for SDKs, and `/metrics` where operators are served.
pub fn router(
    broker: &Arc<Broker>,
    authenticator: &Arc<Authenticator>,
    health: HealthServer<impl Health>,
    surface: Surface,
    message_bytes: usize,
) -> Router {
    let door = Door::new(Arc::clone(broker), Arc::clone(authenticator), surface);
    let gated = door.clone();
    let grpc = grpc::routes(broker, message_bytes)
        .prepare()
        .into_axum_router()
        .layer(layer_fn(move |inner| Gate::new(inner, gated.clone())));
    let credentials =
        get(async move |grant, request| credentials::serve(&door, grant, request).await);
    let ready = Arc::clone(broker);
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || readiness(&ready).await))
        .route("/v1/credentials/{grant}", credentials)
        .route_service("/grpc.health.v1.Health/{method}", health)
        .merge(grpc);
    match surface {
        Surface::Whole => router.route("/metrics", get(metrics::render)),
        Surface::Services => router,
    }
}

/// In words why not.
async fn readiness(broker: &Broker) -> (StatusCode, String) {
    match broker.readiness().await {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
