//! Credentials of one grant, as a provider for AWS SDKs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials as AwsCredentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use jiff::SignedDuration;
use secrecy::ExposeSecret;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    Settings,
    credential_stream::follow,
    issued::{Issued, Missing, State},
};
use crate::domain::clock::wall_time;

/// Time an SDK waits for credentials that are not there yet. SDKs themselves give up after five
/// seconds.
const PATIENCE: Duration = Duration::from_secs(4);
/// Time for which an SDK caches the credentials. The SDK asks again early, so that it does not use
/// a revoked session for long. Each such request is only a look into memory.
const KEPT_FOR: SignedDuration = SignedDuration::from_mins(5);

/// Credentials of one grant, refreshed in the background as long as a clone of this value lives.
/// The broker sends the next credentials before the old ones end, and notifies of their revocation.
/// All clones share one stream to the broker. During an outage the last credentials remain in use
/// until they end.
///
/// ```no_run
/// use credbroker::client::{Credentials, Evidence, Settings};
///
/// # async fn example() {
/// let credentials = Credentials::under(
///     Settings {
///         address: "https://broker.example:8443".to_owned(),
///         ca_file: "/etc/credbroker/ca.pem".into(),
///         evidence: Evidence::TokenFile("/run/secrets/credbroker-token".into()),
///     },
///     "uploads",
/// );
/// let config = aws_config::from_env()
///     .credentials_provider(credentials)
///     .load()
///     .await;
/// let sts = aws_sdk_sts::Client::new(&config);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Credentials {
    state: watch::Receiver<State>,
    _following: Arc<Following>,
}

/// Background task that follows the credentials; it ends with its last owner.
#[derive(Debug)]
struct Following(JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Credentials {
    /// Begins to follow the credentials of a grant: `GRANT` of the caller's service, or
    /// `SERVICE/GRANT`.
    ///
    /// Every error, even of the settings, is returned to the callers that ask for credentials. The
    /// task then tries again.
    ///
    /// # Panics
    /// The caller is outside of a tokio runtime.
    #[must_use]
    pub fn under(settings: Settings, grant: &str) -> Self {
        Self::living(settings, grant, None)
    }

    /// Begins to follow the credentials of a grant, each with a lifetime of `ttl` (by default the
    /// grant's).
    ///
    /// # Panics
    /// The caller is outside of a tokio runtime.
    #[must_use]
    pub fn living(settings: Settings, grant: &str, ttl: Option<Duration>) -> Self {
        let (sender, state) = watch::channel(State::Asked);
        let following = tokio::spawn(follow(settings, grant.to_owned(), ttl, sender));
        Self {
            state,
            _following: Arc::new(Following(following)),
        }
    }

    /// Returns the current credentials. Waits up to `patience` for the first ones, or for new ones
    /// after an outage or a revocation.
    ///
    /// # Errors
    /// The broker refuses, or no credentials have come in time.
    pub async fn current(&self, patience: Duration) -> Result<Arc<Issued>, Missing> {
        let mut state = self.state.clone();
        let limit = Instant::now() + patience;
        loop {
            let now = state.borrow_and_update().clone();
            let why = match now {
                State::Held(issued) if issued.is_alive() => return Ok(issued),
                State::Without(refused @ Missing::Refused { .. }) => return Err(refused),
                State::Without(Missing::Unavailable(why)) => why,
                State::Held(_) => "the last ones are over".to_owned(),
                State::Asked => "the broker has not answered yet".to_owned(),
            };
            if !matches!(timeout_at(limit, state.changed()).await, Ok(Ok(()))) {
                return Err(Missing::Unavailable(why));
            }
        }
    }

    /// Waits until the credentials change or are lost.
    pub async fn changed(&mut self) {
        // The sender lives as long as `self`.
        let _ = self.state.changed().await;
    }

    async fn provide(&self) -> Result<AwsCredentials, CredentialsError> {
        let issued = self.current(PATIENCE).await;
        let issued = issued.map_err(CredentialsError::provider_error)?;
        let token = issued.session_token.as_ref();
        let until = issued.expires_at.min(wall_time() + KEPT_FOR);
        let until = SystemTime::try_from(until).map_err(CredentialsError::unhandled)?;
        Ok(AwsCredentials::new(
            &issued.access_key_id,
            issued.secret_access_key.expose_secret(),
            token.map(|token| token.expose_secret().to_owned()),
            Some(until),
            "credbroker",
        ))
    }
}

impl ProvideCredentials for Credentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.provide())
    }
}
