//! HTTPS beside gRPC on the same port: liveness, readiness, metrics, and the listener
//! itself.

mod connection;
pub mod listener;
mod metrics;
pub mod tls;

use std::sync::Arc;

pub use self::metrics::keep as keep_metrics;
use axum::{Router, http::StatusCode, routing::get};
use tower::layer::layer_fn;

use crate::{
    authn::Authenticator,
    broker::Broker,
    grpc::{self, gate::Gate},
};

/// Everything that is served: gRPC behind the gate, `grpc.health.v1`, `/livez` and
/// `/readyz` and `/metrics` in front of it.
pub fn router(broker: &Arc<Broker>, authenticator: &Arc<Authenticator>) -> Router {
    metrics::install();
    let (gated, authenticator) = (Arc::clone(broker), Arc::clone(authenticator));
    let grpc = grpc::routes(broker)
        .prepare()
        .into_axum_router()
        .layer(layer_fn(move |inner| {
            Gate::new(inner, Arc::clone(&gated), Arc::clone(&authenticator))
        }));
    let ready = Arc::clone(broker);
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || readiness(&ready).await))
        .route("/metrics", get(metrics::render))
        .route_service("/grpc.health.v1.Health/{method}", grpc::health())
        .merge(grpc)
}

/// Ready when the store answers and nothing speaks against the log; in words why not.
async fn readiness(broker: &Broker) -> (StatusCode, &'static str) {
    let not_ready = |why| (StatusCode::SERVICE_UNAVAILABLE, why);
    if broker.store().log_start().await.is_err() {
        return not_ready("the store does not answer\n");
    }
    match broker.log_is_whole() {
        Ok(()) => (StatusCode::OK, "ok\n"),
        Err(_) => not_ready("the audit log is in doubt: nothing is issued, revocation works\n"),
    }
}
