//! An HTTPS server that accepts or refuses records.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    routing::post,
};
use credbroker::{
    domain::connection_limits::ConnectionLimits,
    http::{
        listener::{ListenerConfig, serve},
        tls,
    },
};
use tokio::{
    net::TcpListener,
    sync::{broadcast::Sender, watch},
};
use tokio_util::sync::CancellationToken;

use crate::harness::site::Site;

/// Response to the records.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    /// Acknowledges the records.
    #[default]
    Taking,
    /// Refuses the records.
    Refusing,
    /// Does not answer.
    Silent,
}

#[derive(Clone, Default)]
pub struct Collector {
    mood: watch::Sender<Mood>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    pub async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    /// Serves with the certificate of `site`.
    pub fn start(listener: TcpListener, site: &Site) -> Self {
        let tls = tls::from_files(
            &site.path("tls.pem"),
            &site.path("tls.key"),
            tls::ClientCertificates::NotAsked,
        )
        .unwrap();
        let collector = Self::default();
        let router = Router::new()
            .route("/audit", post(take))
            .with_state(collector.clone());
        let listening = ListenerConfig {
            listener,
            tls: watch::channel(tls).1,
            bounds: ConnectionLimits::default(),
        };
        tokio::spawn(serve(
            listening,
            router,
            Sender::new(1),
            CancellationToken::new(),
        ));
        collector
    }

    pub fn be(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Lines of all acknowledged records.
    pub fn taken(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

async fn take(
    State(collector): State<Collector>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    assert_eq!(uri.query(), Some("from=here"));
    assert_eq!(headers["content-type"], "application/x-ndjson");
    assert_eq!(
        headers["authorization"],
        "Bearer a-token-that-nobody-may-see"
    );
    let mut mood = collector.mood.subscribe();
    let answering = mood.wait_for(|mood| *mood != Mood::Silent).await;
    if *answering.unwrap() == Mood::Refusing {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    assert!(body.ends_with('\n'));
    let lines = body.lines().map(ToOwned::to_owned);
    collector.lines.lock().unwrap().extend(lines);
    StatusCode::NO_CONTENT
}
