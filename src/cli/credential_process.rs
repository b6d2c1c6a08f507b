//! `credbroker credential-process`: for `credential_process` in the AWS config file.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>

use std::time::Duration;

use clap::Args;
use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::{
    Connection,
    credential_cache::{Cache, Kept},
    error::CliError,
    issue::issue,
    output::Output,
};
use crate::{
    client::Evidence,
    domain::{clock::wall_time, duration},
};

/// Longest wait for credentials: SDKs themselves wait without a limit.
const LIMIT: Duration = Duration::from_secs(60);

/// Print credentials for `credential_process` in the AWS config file: the JSON that SDKs read. They
/// are cached for the next caller until they are near their end.
#[derive(Args, Debug)]
pub(super) struct CredentialProcess {
    /// GRANT of the service whose token is used, or SERVICE/GRANT.
    grant: String,
    /// Lifetime, e.g. 1h; the grant's default if not given.
    #[arg(long, value_parser = duration::parse)]
    ttl: Option<Duration>,
}

impl CredentialProcess {
    pub(super) async fn run(
        self,
        connection: &Connection,
        out: &mut Output,
    ) -> Result<(), CliError> {
        let evidence = connection.evidence()?;
        let cache = Cache::of(&self.asked(connection, &evidence)?);
        let late =
            |_| CliError::unavailable(format!("no credentials within {} s", LIMIT.as_secs()));
        let kept = timeout(LIMIT, self.get(connection, cache.as_ref())).await;
        let kept = kept.map_err(late)??;
        Ok(out.line(&kept.document.to_string())?)
    }

    /// Returns all inputs that determine the answer: a call with other inputs uses another cache.
    fn asked(&self, connection: &Connection, evidence: &Evidence) -> Result<[String; 4], CliError> {
        let shown = match evidence {
            Evidence::Certificate {
                cert_file,
                key_file,
            } => format!("{} {}", cert_file.display(), key_file.display()),
            token => {
                let token = token.token()?.unwrap_or_default();
                token.expose_secret().to_owned()
            }
        };
        Ok([
            connection.addr.clone().unwrap_or_default(),
            shown,
            self.grant.clone(),
            self.ttl.map(duration::humanize).unwrap_or_default(),
        ])
    }

    /// Returns fresh credentials. If several processes need them, one calls the broker, and the
    /// others read its result from the cache.
    async fn get(&self, connection: &Connection, cache: Option<&Cache>) -> Result<Kept, CliError> {
        let fresh = |cache: &Cache| cache.read().filter(|kept| kept.is_fresh(wall_time()));
        let Some(cache) = cache else {
            return self.issue(connection).await;
        };
        if let Some(kept) = fresh(cache) {
            return Ok(kept);
        }
        let _alone = cache.lock().await;
        if let Some(kept) = fresh(cache) {
            return Ok(kept);
        }
        match self.issue(connection).await {
            Ok(issued) => {
                cache.write(&issued);
                Ok(issued)
            }
            // Cached credentials that are no longer fresh are still good for a while.
            Err(failure) if failure.is_unavailable() => {
                let left = cache.read().filter(|kept| kept.is_alive(wall_time()));
                let left = left.ok_or(failure)?;
                eprintln!("warning: the broker has no others at the moment; these end soon");
                Ok(left)
            }
            Err(failure) => {
                cache.remove();
                Err(failure)
            }
        }
    }

    async fn issue(&self, connection: &Connection) -> Result<Kept, CliError> {
        let client = connection.connect().await?;
        let credentials = issue(&client, self.grant.clone(), self.ttl, None).await?;
        let expires = credentials.expiration.as_deref().unwrap_or_default();
        let no_end = |_| CliError::unexpected("the broker did not send the end of the credentials");
        Ok(Kept {
            document: credentials.for_process(),
            issued_at: wall_time(),
            expires_at: expires.parse().map_err(no_end)?,
        })
    }
}
