//! HTTPS beside gRPC on the same port: liveness, readiness, metrics, credentials for SDKs, and the
//! listener itself.

mod byte_budget;
mod connection;
mod credentials;
pub mod listener;
mod metrics;
mod response_timeout;
pub mod tls;

use std::sync::Arc;

pub use self::metrics::{install as install_metrics, run_store_metrics as keep_metrics};
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::StatusCode,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::BodyExt;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::layer::layer_fn;

use crate::{
    broker::Broker,
    domain::access::Surface,
    grpc::{
        self,
        auth_layer::{AuthLayer, Authorizer, PeerConnection},
    },
};

/// Returns everything that is served on a surface: gRPC behind the gate, `grpc.health.v1`, `/livez`
/// and `/readyz` in front of it, credentials for SDKs, and `/metrics` if the surface serves
/// operators.
pub fn router(
    broker: &Arc<Broker>,
    health: HealthServer<impl Health>,
    surface: Surface,
    message_bytes: usize,
) -> Router {
    let door = Authorizer::new(Arc::clone(broker), surface);
    let gated = door.clone();
    let grpc = grpc::routes(broker, message_bytes)
        .prepare()
        .into_axum_router()
        .layer(layer_fn(move |inner| AuthLayer::new(inner, gated.clone())));
    let credentials =
        get(async move |grant, request| credentials::serve(&door, grant, request).await);
    let ready = Arc::clone(broker);
    let health = Router::new()
        .route_service("/grpc.health.v1.Health/{method}", health)
        .layer(from_fn(bounded));
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async move || readiness(&ready).await))
        .route("/v1/credentials/{grant}", credentials)
        .merge(health)
        .merge(grpc);
    match surface {
        Surface::Whole => router.route("/metrics", get(metrics::render)),
        Surface::Services => router,
    }
}

/// Answers a health check, which needs no login, if its address has a free slot.
async fn bounded(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<PeerConnection>();
    let Some(room) = peer.and_then(|peer| peer.limits.health_stream()) else {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    };
    let answer = next.run(request).await;
    // The slot stays taken until the answer, which may be a stream, has ended.
    answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &room;
            frame
        }))
    })
}

/// Returns the readiness, with the reason as text if the broker is not ready.
async fn readiness(broker: &Broker) -> (StatusCode, String) {
    match broker.readiness().await {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
