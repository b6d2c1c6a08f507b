//! The composition root: builds the adapters, starts what runs, ends it in order.

pub mod dev;
pub mod serve;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    aws::{AwsIssuer, AwsSettings, Clients, SetupError},
    broker::{self, Broker, Parts, ports::FailureClass},
    config::ConfigError,
    domain::{arn::Partition, audit::Event, clock::SystemClock, random::SystemRandom},
    http::{self, listener, tls::TlsError},
    store::sqlite::{OpenError, SqliteStore},
};

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its store does not open.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is not to be had.
    #[error("cannot listen on {address}: {source}; is another program using it?")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The AWS account is not ready.
    #[error(transparent)]
    Account(#[from] SetupError),
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the state directory is damaged.
    #[error("{path} is damaged: {detail}; start with another --state-dir")]
    State {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The store does not take what must be in it first.
    #[error(transparent)]
    Broker(#[from] broker::Error),
}

/// A file could not be used.
fn file_error(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::File { path, source }
}

/// The broker with its store, before it serves.
struct Assembled {
    broker: Arc<Broker>,
    store: Arc<SqliteStore>,
    issuer: Arc<AwsIssuer>,
}

async fn assemble(
    store: &Path,
    clients: Clients,
    partition: Partition,
) -> Result<Assembled, StartError> {
    let store = Arc::new(SqliteStore::open(store).await?);
    let region = clients.region().unwrap_or_default().to_owned();
    let issuer = Arc::new(AwsIssuer::new(clients, partition));
    let broker = Broker::new(Parts {
        store: store.clone(),
        issuer: issuer.clone(),
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        partition,
        region,
    });
    Ok(Assembled {
        broker,
        store,
        issuer,
    })
}

async fn clients(region: Option<String>, endpoint_url: Option<String>) -> Clients {
    Clients::new(&AwsSettings {
        region,
        endpoint_url,
    })
    .await
}

/// What AWS refuses must be mended before the start; what it does not answer may come back.
fn tolerate_silence(checked: Result<(), SetupError>) -> Result<(), StartError> {
    match checked {
        Err(SetupError::Aws(failure)) if failure.class != FailureClass::Refused => {
            tracing::warn!(%failure, "AWS does not answer; the broker starts all the same");
            Ok(())
        }
        other => Ok(other?),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address, source })
}

/// Serves until SIGTERM or SIGINT; a second signal ends the process at once.
async fn run(
    assembled: Assembled,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    ready: impl FnOnce(),
) -> Result<(), StartError> {
    let Assembled { broker, store, .. } = assembled;
    broker.lifecycle(Event::BrokerStarted).await?;
    let stop = stop_on_signal().map_err(file_error(Path::new("signal handlers")))?;
    let background = TaskTracker::new();
    let (reaper, reaper_stop) = (Arc::clone(&broker), CancellationToken::new());
    let reap_until = reaper_stop.clone();
    background.spawn(async move { reaper.reap(reap_until).await });
    ready();
    listener::serve(listener, tls, http::router(&broker), stop).await;
    reaper_stop.cancel();
    background.close();
    background.wait().await;
    broker.lifecycle(Event::BrokerStopped).await?;
    store.close().await;
    Ok(())
}

fn stop_on_signal() -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let first = stop.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first.is_cancelled() {
                tracing::warn!("second signal: ending at once");
                std::process::exit(1);
            }
            tracing::info!("ending: no new calls; running ones may finish");
            first.cancel();
        }
    });
    Ok(stop)
}
