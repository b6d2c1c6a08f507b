//! Follower of a grant's credentials: one stream to the broker, opened again whenever it ends.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    Client, ConnectError, Settings,
    issued::{Issued, Missing, State},
};
use crate::{
    domain::random::{SystemRandom, back_off, up_to},
    proto::{WatchCredentialsRequest, watch_credentials_response::What},
};

/// Period over which the followers of a broker spread their reconnects after the broker's end.
const SPREAD: Duration = Duration::from_secs(5);
/// Time limit for the broker to open the stream; the first credentials may come later.
const BEGIN_LIMIT: Duration = Duration::from_secs(30);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Reasons why a stream was not opened or ended.
enum StreamError {
    Connect(ConnectError),
    Told(Status),
}

impl From<ConnectError> for StreamError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

impl From<Status> for StreamError {
    fn from(status: Status) -> Self {
        Self::Told(status)
    }
}

/// State of a follower, with the channel to its readers.
struct Follower {
    settings: Settings,
    grant: String,
    ttl: Option<Duration>,
    state: watch::Sender<State>,
    /// Failed attempts since the last message of the broker.
    failures: u32,
}

/// Follows the credentials of a grant forever.
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
    /// Opens a stream and follows it until it ends.
    async fn follow_once(&mut self) -> Result<(), StreamError> {
        let client = Client::connect(&self.settings).await?;
        let request = WatchCredentialsRequest {
            grant: self.grant.clone(),
            ttl: self.ttl.map(|ttl| prost_types::Duration {
                seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
                nanos: 0,
            }),
            lease_id: self.held(),
        };
        let mut client = client.credentials();
        let watching = timeout(BEGIN_LIMIT, client.watch_credentials(request)).await;
        let late = |_| Status::deadline_exceeded("the broker does not begin to answer");
        let mut told = watching.map_err(late)??.into_inner();
        while let Some(message) = told.message().await? {
            self.failures = 0;
            match message.what {
                Some(What::Issued(issued)) => {
                    let issued = Issued::of(issued);
                    let issued = issued.ok_or_else(|| Status::internal("half an answer"))?;
                    self.state.send_replace(State::Held(issued.into()));
                }
                Some(What::Revoked(_)) => {
                    self.drop_credentials(Missing::Unavailable("they are revoked".to_owned()));
                }
                // The message is of a later version of the protocol.
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

    fn drop_credentials(&self, missing: Missing) {
        self.state.send_replace(State::Without(missing));
    }

    /// Publishes the result of an attempt, and returns the pause before the next one.
    fn pause_after(&mut self, ended: Result<(), StreamError>) -> Duration {
        let Err(failed) = ended else {
            return up_to(SPREAD, &SystemRandom);
        };
        let was_good = self.failures == 0;
        self.failures = self.failures.saturating_add(1);
        let passing = failed.is_transient();
        let holds = matches!(&*self.state.borrow(), State::Held(issued) if issued.is_alive());
        // Current credentials stay valid after a local error, e.g. while a file is being replaced.
        let is_refused = !passing && matches!(failed, StreamError::Told(_));
        match passing {
            _ if holds && !is_refused => {}
            true => self.drop_credentials(Missing::Unavailable(failed.told())),
            false => self.drop_credentials(Missing::Refused {
                code: failed.code(),
                why: failed.told(),
            }),
        }
        if passing && was_good && holds {
            return up_to(SPREAD, &SystemRandom);
        }
        let asked = failed.retry_after().unwrap_or_default();
        asked.min(LONGEST_PAUSE) + back_off(self.failures, LONGEST_PAUSE, &SystemRandom)
    }
}

impl StreamError {
    /// Returns whether the error may pass by itself, without a decision of an operator.
    fn is_transient(&self) -> bool {
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

    fn code(&self) -> Code {
        match self {
            Self::Connect(_) => Code::InvalidArgument,
            Self::Told(status) => status.code(),
        }
    }

    /// Returns the broker's message, with what to do next.
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

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::{client::Evidence, domain::clock::wall_time};

    fn follower(lives: Option<SignedDuration>) -> Follower {
        let held = lives.map(|lives| {
            State::Held(std::sync::Arc::new(Issued {
                lease_id: "lease".to_owned(),
                access_key_id: "AKIA1".to_owned(),
                secret_access_key: "secret".into(),
                session_token: None,
                expires_at: wall_time() + lives,
            }))
        });
        let (state, _) = watch::channel(held.unwrap_or(State::Asked));
        Follower {
            settings: Settings {
                address: "https://localhost:1".to_owned(),
                ca_file: "none".into(),
                evidence: Evidence::Token("token".into()),
            },
            grant: "uploads".to_owned(),
            ttl: None,
            state,
            failures: 0,
        }
    }

    fn told(code: Code, hint: Option<Duration>) -> Result<(), StreamError> {
        let mut details = ErrorDetails::new();
        if let Some(hint) = hint {
            details.set_retry_info(Some(hint));
        }
        let status = Status::with_error_details(code, "why", details);
        Err(StreamError::Told(status))
    }

    #[test]
    fn after_a_brokers_end_its_followers_come_again_spread_over_five_seconds() {
        for ended in [|| Ok(()), || told(Code::Unavailable, None)] {
            let pauses: Vec<Duration> = (0..1000)
                .map(|_| follower(Some(SignedDuration::from_hours(1))).pause_after(ended()))
                .collect();
            for second in 0..5 {
                let within = |pause: &&Duration| pause.as_secs() == second;
                assert!(pauses.iter().filter(within).count() > 100, "{second}");
            }
            assert!(pauses.iter().all(|pause| *pause <= SPREAD));
        }
    }

    #[test]
    fn the_brokers_hint_is_waited_for_and_no_pause_is_for_ever() {
        let mut follower = follower(None);
        for _ in 0..50 {
            let pause = follower.pause_after(told(Code::ResourceExhausted, Some(SPREAD)));
            assert!(pause >= SPREAD && pause <= SPREAD + LONGEST_PAUSE);
        }
        let year = Duration::from_secs(365 * 86_400);
        let pause = follower.pause_after(told(Code::Unavailable, Some(year)));
        assert!(pause <= 2 * LONGEST_PAUSE);
    }

    #[test]
    fn what_is_held_goes_with_a_refusal_and_stays_through_an_outage_until_it_ends() {
        let hour = SignedDuration::from_hours(1);
        for (code, lives, stays) in [
            (Code::Unavailable, hour, true),
            (Code::Aborted, hour, true),
            (Code::Unavailable, SignedDuration::ZERO, false),
            (Code::PermissionDenied, hour, false),
            (Code::Unauthenticated, hour, false),
            (Code::NotFound, hour, false),
            (Code::FailedPrecondition, hour, false),
        ] {
            let mut follower = follower(Some(lives));
            follower.pause_after(told(code, None));
            let holds = matches!(&*follower.state.borrow(), State::Held(_));
            assert_eq!(holds, stays, "{code:?}");
        }
        let file = || Err(ConnectError::Token.into());
        for lives in [Some(hour), None] {
            let mut follower = follower(lives);
            follower.pause_after(file());
            let refused = matches!(
                &*follower.state.borrow(),
                State::Without(Missing::Refused { .. })
            );
            assert_eq!(refused, lives.is_none());
        }
    }
}
