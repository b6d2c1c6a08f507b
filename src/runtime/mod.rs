//! The composition root: builds the adapters, starts the tasks, ends them in order.

mod client_ca_reload;
pub mod dev;
mod error;
pub mod offline;
mod reload;
pub mod serve;
mod stores;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    client_ca_reload::TrustError,
    error::{StartError, StartProblem},
    stores::{copy, migrate},
};
use crate::{
    authn::Authenticator,
    aws::{AwsAccount, AwsSettings, Clients, SetupError},
    broker::{
        self, AdminKeyPolicy, Broker, Dependencies, PROOF_LIMIT,
        ports::{
            AwsFailure, CertificateAuthority, CheckpointFile, FailureClass, Issuer, Sink, Store,
            Witness,
        },
    },
    config::StoreAt,
    domain::{
        access::Surface,
        arn::Partition,
        audit::Event,
        clock::{SteadyClock, wall_time},
        denial::Placements,
        random::SystemRandom,
        sealing::{SealError, SealingKey},
        service::Limits,
    },
    grpc,
    http::{
        self,
        listener::{self, ListenerConfig},
    },
    store::checkpoint_file::FileAnchor,
};

/// Longest time that operations in progress may take to end.
const FINISH_LIMIT: Duration = Duration::from_secs(20);

/// Longest time that the upkeep may take to notice the end of the broker. The upkeep may have
/// caused the end.
const UPKEEP_LIMIT: Duration = Duration::from_secs(1);

/// Returns a function that turns the error of a file into a [`StartError`].
fn file_error(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::File { path, source }
}

/// The broker with its store, before it serves.
struct Assembled {
    broker: Arc<Broker>,
    store: Arc<dyn Store>,
    issuer: Arc<AwsAccount>,
    /// True if the store holds the admin key.
    keeps_key: bool,
    /// Task that sends heartbeats, follows other replicas, and checks the clock.
    in_step: JoinHandle<()>,
    stop: CancellationToken,
}

/// Clients of AWS, and a clock that follows AWS's time.
struct Aws {
    clients: Clients,
    clock: Arc<SteadyClock>,
    partition: Partition,
}

async fn aws(settings: &AwsSettings, partition: Partition) -> Aws {
    let clock = Arc::new(SteadyClock::starting_at(wall_time()));
    Aws {
        clients: Clients::new(settings, &clock).await,
        clock,
        partition,
    }
}

/// The broker's own key, CA and authentication.
struct BrokerSettings {
    /// Storage and rotation of the admin key.
    custody: AdminKeyPolicy,
    /// True if some changes need a second operator.
    two_person: bool,
    /// The broker's own CA for client certificates.
    authority: Option<Arc<dyn CertificateAuthority>>,
    /// Authentication of callers.
    authenticator: Arc<Authenticator>,
}

/// Settings of the audit log.
struct LogKeeping {
    /// Path of the checkpoint file.
    anchor: Option<PathBuf>,
    /// Shortest time that records are kept.
    keep: Duration,
    /// Witness that cosigns the log's checkpoints.
    witness: Option<Arc<dyn Witness>>,
}

async fn assemble(
    store: &StoreAt,
    aws: Aws,
    limits: Limits,
    own: BrokerSettings,
    placements: Placements,
    log: LogKeeping,
) -> Result<Assembled, StartError> {
    let (store, spool) = stores::open(store).await?;
    let deployment = store.deployment().await.map_err(broker::Error::from)?;
    let region = aws.clients.region().unwrap_or_default().to_owned();
    let revokers = placements.revokers.clone();
    let issuer = AwsAccount::new(aws.clients, aws.partition, &deployment, revokers);
    let issuer = Arc::new(issuer);
    let stop = CancellationToken::new();
    let broker = Broker::new(Dependencies {
        authentication: own.authenticator,
        store: store.clone(),
        issuer: issuer.clone(),
        inventory: issuer.clone(),
        denier: issuer.clone(),
        placements,
        keyring: issuer.clone(),
        clock: aws.clock,
        random: Arc::new(SystemRandom),
        partition: aws.partition,
        region,
        limits,
        custody: own.custody,
        authority: own.authority,
        spool,
        anchor: log
            .anchor
            .map(|path| Arc::new(FileAnchor::new(path)) as Arc<dyn CheckpointFile>),
        keep: log.keep,
        proof_limit: PROOF_LIMIT,
        witness: log.witness,
        two_person: own.two_person,
        stop: stop.clone(),
    });
    broker.join_cluster().await;
    broker.check_log().await?;
    broker.load_journal().await?;
    take_up_admin_key(&broker, &issuer).await?;
    match broker.account_is_ours().await {
        // AWS does not confirm the account now: it is verified later.
        Err(broker::Error::Aws(_)) => {}
        verified => verified?,
    }
    broker.settle_clock().await;
    let together = Arc::clone(&broker);
    let in_step = tokio::spawn(async move {
        tokio::join!(
            Arc::clone(&together).run_membership(),
            together.run_clock_checks()
        );
    });
    let kept = store.admin_key().await.map_err(broker::Error::from)?;
    Ok(Assembled {
        keeps_key: kept.is_some(),
        in_step,
        broker,
        store,
        issuer,
        stop,
    })
}

/// Starts to use the stored admin key. A key that cannot be opened fails the start, unless the
/// standard AWS chain has a working key: then an operator can recover from a lost sealing key by
/// importing another admin key.
async fn take_up_admin_key(broker: &Broker, issuer: &AwsAccount) -> Result<(), StartError> {
    let Err(error) = broker.load_admin_key().await else {
        return Ok(());
    };
    let closed = matches!(error, broker::Error::WrongState { .. });
    match issuer.identity().await {
        Ok(chain) if closed => {
            tracing::error!(%error, chain = chain.arn, "working with the key of the standard AWS chain; import another");
            Ok(())
        }
        _ => Err(error.into()),
    }
}

/// Reads the key that seals the admin key.
fn sealing_key(path: &Path) -> Result<SealingKey, StartError> {
    let text = fs::read_to_string(path).map_err(file_error(path))?;
    SealingKey::parse(&text.into()).map_err(not_sealing(path))
}

fn not_sealing(path: &Path) -> impl FnOnce(SealError) -> StartError {
    let path = path.to_owned();
    move |source| StartError::Sealing { path, source }
}

/// Accepts a failed check of AWS if AWS does not answer, since it may come back, or if the admin
/// key is missing or refused and another may yet be imported. Other refusals by AWS must be fixed
/// before the start.
fn tolerate_silence(
    checked: Result<(), SetupError>,
    may_be_imported: bool,
) -> Result<(), StartError> {
    match checked {
        Err(SetupError::Aws(failure)) if may_be_imported && lacks_key(&failure) => {
            tracing::error!(%failure, "no admin key at work; give one with `credbroker admin-key import`");
            Ok(())
        }
        Err(SetupError::Aws(failure)) if failure.class != FailureClass::Refused => {
            tracing::warn!(%failure, "AWS does not answer; the broker starts all the same");
            Ok(())
        }
        other => Ok(other?),
    }
}

fn lacks_key(failure: &AwsFailure) -> bool {
    ["ADMIN_KEY_MISSING", "ADMIN_KEY_REFUSED"].contains(&failure.reason)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address, source })
}

/// Addresses that the broker listens on.
struct Addresses {
    /// Address for all callers, or for services only if `operators` is set.
    all: ListenerConfig,
    /// Address for operators, who are then served only there.
    operators: Option<ListenerConfig>,
}

/// Serves until a signal in `ends`; a second one ends the process at once.
async fn run(
    assembled: Assembled,
    at: Addresses,
    sinks: Vec<Arc<dyn Sink>>,
    ends: &[SignalKind],
    ready: impl FnOnce(),
) -> Result<(), StartError> {
    let Assembled {
        broker,
        store,
        in_step,
        stop,
        ..
    } = assembled;
    let (reporter, health) = grpc::health();
    begin(&broker).await;
    let delay = at.all.bounds.shutdown_delay;
    let signals = stop_on_signal(Arc::clone(&broker), delay, stop.clone(), ends);
    signals.map_err(file_error(Path::new("signal handlers")))?;
    let mut feeding = feed(&broker, sinks).await?;
    let witnessed = Arc::clone(&broker);
    feeding.spawn(async move { witnessed.run_witness().await });
    let upkeep = tokio::spawn(Arc::clone(&broker).run_background());
    let signing = Arc::clone(&broker);
    let signing = tokio::spawn(async move { signing.run_signing().await });
    let told = Arc::clone(&broker);
    let telling = tokio::spawn(async move { grpc::run_health(reporter, &told).await });
    let aggregating = tokio::spawn(Arc::clone(&broker).run_aggregation());
    let counted = Arc::clone(&broker);
    let counting = tokio::spawn(async move { http::keep_metrics(&counted).await });
    ready();
    let serve = async |listening: Option<ListenerConfig>, surface| {
        if let Some(listening) = listening {
            let (health, most) = (health.clone(), listening.bounds.message_bytes);
            let router = http::router(&broker, health, surface, most);
            listener::serve(listening, router, broker.suspensions(), stop.clone()).await;
        }
    };
    let surface = match at.operators {
        Some(_) => Surface::Services,
        None => Surface::Whole,
    };
    // Each address has its own connections: a flood at one address leaves the other free.
    tokio::join!(
        serve(Some(at.all), surface),
        serve(at.operators, Surface::Whole)
    );
    // An interrupted clean-up is due again later; operations begun for a caller are finished.
    finish(&broker).await;
    let cut_off = upkeep.abort_handle();
    let kept_up = timeout(UPKEEP_LIMIT, upkeep).await;
    cut_off.abort();
    counting.abort();
    telling.abort();
    aggregating.abort();
    // The task finishes on its own: it may be writing the checkpoint file.
    let _ = signing.await;
    // Records written from now on are streamed and witnessed after the next start.
    while feeding.join_next().await.is_some() {}
    close(&broker, store.as_ref(), in_step).await?;
    match kept_up {
        Ok(Ok(ended)) => Ok(ended?),
        _ => Ok(()),
    }
}

/// Records in the log that the broker has started.
async fn begin(broker: &Broker) {
    if let Err(error) = broker.record_lifecycle(Event::BrokerStarted).await {
        // Operators must still be able to suspend and revoke: the broker serves all the same.
        tracing::error!(%error, "nothing can be recorded: nothing is issued, revocation works");
    }
}

async fn finish(broker: &Broker) {
    if timeout(FINISH_LIMIT, broker.wait_for_tasks())
        .await
        .is_err()
    {
        tracing::warn!("some operations did not end in time; the next start cleans up after them");
    }
}

/// Writes the last record, signs the log, and closes the store.
async fn close(
    broker: &Broker,
    store: &dyn Store,
    in_step: JoinHandle<()>,
) -> Result<(), StartError> {
    broker.record_counted().await;
    broker.record_lifecycle(Event::BrokerStopped).await?;
    if let Err(error) = broker.sign_log().await {
        tracing::warn!(%error, "the last records are not signed yet; the next start does it");
    }
    in_step.abort();
    // The task was aborted: its result means nothing.
    let _ = in_step.await;
    broker.leave_cluster().await;
    store.close().await;
    Ok(())
}

/// Streams the audit log to each sink, in a task of its own.
async fn feed(broker: &Arc<Broker>, sinks: Vec<Arc<dyn Sink>>) -> Result<JoinSet<()>, StartError> {
    let mut feeding = JoinSet::new();
    for sink in sinks {
        let taken = broker.store().sink_cursor(sink.name()).await;
        let taken = taken.map_err(broker::Error::from)?;
        feeding.spawn(Arc::clone(broker).feed(sink, taken));
    }
    Ok(feeding)
}

/// Listens for signals. At the first one the broker becomes unready, and `stop` is cancelled after
/// `delay`. A second one ends the process at once.
fn stop_on_signal(
    broker: Arc<Broker>,
    delay: Duration,
    stop: CancellationToken,
    ends: &[SignalKind],
) -> io::Result<()> {
    let (signals, mut signalled) = mpsc::channel(2);
    for kind in ends {
        let (mut ends, signals) = (signal(*kind)?, signals.clone());
        tokio::spawn(async move {
            while ends.recv().await.is_some() {
                // Further signals are dropped: only the first two have an effect.
                let _ = signals.try_send(());
            }
        });
    }
    tokio::spawn(async move {
        signalled.recv().await;
        tracing::info!("ending: unready from now on");
        broker.leave();
        let ending = async {
            sleep(delay).await;
            tracing::info!("ending: no new calls; running ones may finish");
            stop.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = ending => {}
            _ = signalled.recv() => {}
        }
        tracing::warn!("second signal: ending at once");
        std::process::exit(1);
    });
    Ok(())
}
