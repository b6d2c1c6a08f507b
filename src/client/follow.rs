//! Following the credentials of a grant: one stream to the broker, begun anew whenever it
//! ends.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    Client, ConnectError, Settings,
    credentials::{Issued, Missing, State},
};
use crate::{
    domain::random::{SystemRandom, back_off, up_to},
    proto::{WatchCredentialsRequest, watch_credentials_response::What},
};

/// After a broker's end all its followers come again, spread over so long.
const SPREAD: Duration = Duration::from_secs(5);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why a stream did not begin or go on.
enum Failed {
    Connect(ConnectError),
    Told(Status),
}

impl From<ConnectError> for Failed {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Told(status)
    }
}

/// What is followed, and who is told.
struct Follower {
    settings: Settings,
    grant: String,
    ttl: Option<Duration>,
    state: watch::Sender<State>,
    /// Attempts since the broker last said something good.
    failures: u32,
}

/// For ever.
pub(super) async fn follow(
    settings: Settings,
    grant: String,
    ttl: Option<Duration>,
    state: watch::Sender<State>,
) {
    let mut follower = Follower {
        settings,
        grant,
        ttl,
        state,
        failures: 0,
    };
    loop {
        let ended = follower.follow_once().await;
        sleep(follower.pause_after(ended)).await;
    }
}

impl Follower {
    /// Until the stream ends.
    async fn follow_once(&mut self) -> Result<(), Failed> {
        let client = Client::connect(&self.settings).await?;
        let request = WatchCredentialsRequest {
            grant: self.grant.clone(),
            ttl: self.ttl.map(|ttl| prost_types::Duration {
                seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
                nanos: 0,
            }),
            lease_id: self.held(),
        };
        let watching = client.credentials().watch_credentials(request).await?;
        let mut told = watching.into_inner();
        while let Some(message) = told.message().await? {
            self.failures = 0;
            match message.what {
                Some(What::Issued(issued)) => {
                    let issued = Issued::of(issued);
                    let issued = issued.ok_or_else(|| Status::internal("half an answer"))?;
                    self.state.send_replace(State::Held(issued.into()));
                }
                Some(What::Revoked(_)) => {
                    self.lose(Missing::Unavailable("they are revoked".to_owned()));
                }
                // Of a later version of the protocol.
                None => {}
            }
        }
        Ok(())
    }

    fn held(&self) -> String {
        match &*self.state.borrow() {
            State::Held(issued) => issued.lease_id.clone(),
            _ => String::new(),
        }
    }

    fn lose(&self, missing: Missing) {
        self.state.send_replace(State::Without(missing));
    }

    /// Tells what came of it, and how long to wait before the next attempt.
    fn pause_after(&mut self, ended: Result<(), Failed>) -> Duration {
        let Err(failed) = ended else {
            return up_to(SPREAD, &SystemRandom);
        };
        let was_good = self.failures == 0;
        self.failures = self.failures.saturating_add(1);
        let passing = failed.is_passing();
        let holds = matches!(&*self.state.borrow(), State::Held(issued) if issued.is_alive());
        match passing {
            true if holds => {}
            true => self.lose(Missing::Unavailable(failed.told())),
            false => self.lose(Missing::Refused(failed.told())),
        }
        if passing && was_good && holds {
            return up_to(SPREAD, &SystemRandom);
        }
        let asked = failed.retry_after().unwrap_or_default();
        asked.min(LONGEST_PAUSE) + back_off(self.failures, LONGEST_PAUSE, &SystemRandom)
    }
}

impl Failed {
    /// Whether it may be otherwise in a while, without anybody's decision.
    fn is_passing(&self) -> bool {
        match self {
            Self::Connect(error) => matches!(error, ConnectError::Unreachable { .. }),
            Self::Told(status) => !matches!(
                status.code(),
                Code::PermissionDenied
                    | Code::Unauthenticated
                    | Code::NotFound
                    | Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::Unimplemented
            ),
        }
    }

    /// In the broker's words, with what to do next.
    fn told(&self) -> String {
        match self {
            Self::Connect(error) => error.to_string(),
            Self::Told(status) => {
                let info = status.get_details_error_info();
                let next = info.and_then(|info| info.metadata.get("next").cloned());
                next.map_or_else(
                    || status.message().to_owned(),
                    |next| format!("{}; {next}", status.message()),
                )
            }
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Connect(_) => None,
            Self::Told(status) => status.get_details_retry_info()?.retry_delay,
        }
    }
}
