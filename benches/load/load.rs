//! Load on a broker. Closed: each caller sends the next request when it has the answer. Open:
//! requests come at a fixed rate, and the latency of each counts from the time when it was due.

use std::{sync::Arc, time::Duration};

use clap::{Args, ValueEnum};
use credbroker::{
    client::{Client, Settings},
    proto::{IssueCredentialsRequest, WhoAmIRequest},
};
use hdrhistogram::Histogram;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tonic::Status;

/// Number of connections that are opened at the same time.
const CONNECTING: usize = 64;

/// Load on a broker.
#[derive(Args, Clone, Debug)]
pub struct Load {
    /// Grant of the service under which credentials are requested; without it: WhoAmI.
    #[arg(long)]
    pub grant: Option<String>,
    /// Number of callers.
    #[arg(long, default_value_t = 64)]
    pub callers: usize,
    /// Requests per second, by all callers together. Without it each caller sends the next request
    /// as soon as it has the answer.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Connection kept, or opened for each request.
    #[arg(long, value_enum, default_value_t = Connections::Kept)]
    pub connections: Connections,
    /// Duration in seconds.
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Connections {
    /// One for each caller.
    Kept,
    /// One for each request.
    Each,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Result of a load.
pub struct Outcome {
    /// Microseconds from a request, or from the time when it was due, to its answer.
    pub latency: Histogram<u64>,
    /// Refusals and failures, which are in no other figure.
    pub errors: Vec<Status>,
    pub elapsed: Duration,
}

impl Outcome {
    fn new() -> Self {
        Self {
            latency: Histogram::new(3).unwrap(),
            errors: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// Answers per second.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    pub fn rate(&self) -> f64 {
        self.latency.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Latency at a quantile, milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    pub fn at(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn add(&mut self, answered: Result<Duration, Status>) {
        match answered {
            Ok(took) => {
                let micros = u64::try_from(took.as_micros()).unwrap();
                self.latency.record(micros).unwrap();
            }
            Err(status) => self.errors.push(status),
        }
    }
}

/// A caller.
pub struct Caller {
    settings: Arc<Settings>,
    kept: Option<Client>,
    grant: Option<String>,
}

impl Caller {
    /// Sends one request.
    pub async fn ask(&self) -> Result<(), Status> {
        let client = match &self.kept {
            Some(client) => client.clone(),
            None => connect(&self.settings).await?,
        };
        if let Some(grant) = self.grant.clone() {
            let request = IssueCredentialsRequest {
                grant,
                ttl: None,
                request_id: String::new(),
            };
            client.credentials().issue_credentials(request).await?;
        } else {
            client.identity().who_am_i(WhoAmIRequest {}).await?;
        }
        Ok(())
    }

    async fn closed(self, until: Instant) -> Outcome {
        let mut outcome = Outcome::new();
        while Instant::now() < until {
            let began = Instant::now();
            let answered = self.ask().await;
            outcome.add(answered.map(|()| began.elapsed()));
        }
        outcome
    }

    /// Sends a request when it is due, first at `due`, then after each `every`.
    async fn open(self, mut due: Instant, every: Duration, until: Instant) -> Outcome {
        let mut outcome = Outcome::new();
        while due < until {
            sleep_until(due).await;
            let answered = self.ask().await;
            outcome.add(answered.map(|()| due.elapsed()));
            due += every;
        }
        outcome
    }
}

async fn connect(settings: &Settings) -> Result<Client, Status> {
    let connected = Client::connect(settings).await;
    connected.map_err(|error| Status::unavailable(error.to_string()))
}

/// Opens `count` connections.
pub async fn connected(settings: &Arc<Settings>, count: usize) -> Result<Vec<Client>, Status> {
    let (mut making, mut made) = (JoinSet::new(), Vec::with_capacity(count));
    for number in 0..count {
        if number >= CONNECTING {
            made.push(making.join_next().await.unwrap().unwrap()?);
        }
        let settings = Arc::clone(settings);
        making.spawn(async move {
            let client = connect(&settings).await?;
            // The broker closes a connection that never calls.
            client.identity().who_am_i(WhoAmIRequest {}).await?;
            Ok::<_, Status>(client)
        });
    }
    for client in making.join_all().await {
        made.push(client?);
    }
    Ok(made)
}

impl Caller {
    /// Connects a caller with a connection of its own.
    pub async fn connected(settings: &Settings, grant: &str) -> Result<Self, Status> {
        Ok(Self {
            settings: Arc::new(settings.clone()),
            kept: Some(connect(settings).await?),
            grant: Some(grant.to_owned()),
        })
    }
}

impl Load {
    /// Puts the load on the broker of these settings.
    pub async fn put(&self, settings: &Settings) -> Result<Outcome, Status> {
        let settings = Arc::new(settings.clone());
        let mut kept = match self.connections {
            Connections::Kept => connected(&settings, self.callers).await?,
            Connections::Each => Vec::new(),
        };
        let (began, mut asking) = (Instant::now(), JoinSet::new());
        let until = began + self.duration;
        let callers = u32::try_from(self.callers).unwrap();
        for number in 0..callers {
            let caller = Caller {
                settings: Arc::clone(&settings),
                kept: kept.pop(),
                grant: self.grant.clone(),
            };
            match self.rate {
                None => drop(asking.spawn(caller.closed(until))),
                Some(rate) => {
                    let every = Duration::from_secs_f64(f64::from(callers) / rate);
                    let first = began + every * number / callers;
                    drop(asking.spawn(caller.open(first, every, until)));
                }
            }
        }
        let mut all = Outcome::new();
        while let Some(outcome) = asking.join_next().await {
            let outcome = outcome.unwrap();
            all.latency.add(outcome.latency).unwrap();
            all.errors.extend(outcome.errors);
        }
        all.elapsed = began.elapsed();
        Ok(all)
    }
}
