//! `credbroker exec`: runs a command with credentials, and with no others.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use clap::Args;
use secrecy::ExposeSecret;
use tokio::task::spawn_blocking;

use super::{Connection, error::CliError, issue::issue};
use crate::domain::duration;

/// Variables removed from the command's environment: those through which AWS SDKs could find other
/// credentials, and those through which the caller proves itself to a broker.
const CLEARED: [&str; 27] = [
    "AMAZON_ACCESS_KEY_ID",
    "AMAZON_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_CREDENTIAL_FILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "CREDBROKER_CLIENT_CERT_FILE",
    "CREDBROKER_CLIENT_KEY_FILE",
    "CREDBROKER_LEASE_ID",
    "CREDBROKER_TOKEN",
    "CREDBROKER_TOKEN_FILE",
    "SECRET_ACCESS_KEY",
];
/// Variables of files that SDKs read before they call an endpoint.
const FILES_BEFORE_ENDPOINTS: [&str; 3] = [
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "BOTO_CONFIG",
];

/// Run a command with credentials in its environment, and with no others.
///
/// The command replaces credbroker: signals reach the command, and the exit status is the
/// command's.
#[derive(Args, Debug)]
pub(super) struct Exec {
    /// GRANT of the service whose token is used, or SERVICE/GRANT.
    grant: String,
    /// Lifetime, e.g. 1h; the grant's default if not given.
    #[arg(long, value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Give the command an endpoint where its SDK finds the next credentials, for a command that
    /// runs longer than its credentials live. The endpoint ends with the command. The command reads
    /// no AWS files then: set AWS_REGION. Not for iam_user.
    #[arg(long)]
    refresh: bool,
    /// Command to run, with its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Exec {
    pub(super) async fn run(self, connection: &Connection) -> Result<(), CliError> {
        let (program, args) = self
            .command
            .split_first()
            .ok_or_else(|| CliError::usage("there is no command to run"))?;
        let mut command = Command::new(program);
        command.args(args);
        for variable in CLEARED {
            command.env_remove(variable);
        }
        // No other source of credentials when these end.
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        if self.refresh {
            let url = self.endpoint(connection).await?;
            command.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", url);
            command.envs(FILES_BEFORE_ENDPOINTS.map(|file| (file, "/dev/null")));
        } else {
            let client = connection.connect().await?;
            let issued = issue(&client, self.grant.clone(), self.ttl, None).await?;
            let session = issued.session_token.iter();
            let until = issued.expiration.iter();
            command
                .env("AWS_ACCESS_KEY_ID", &issued.access_key_id)
                .env("AWS_SECRET_ACCESS_KEY", &issued.secret_access_key)
                .env("CREDBROKER_LEASE_ID", &issued.lease_id)
                .envs(session.map(|token| ("AWS_SESSION_TOKEN", token)))
                .envs(until.map(|until| ("AWS_CREDENTIAL_EXPIRATION", until)));
        }
        let error = command.exec();
        let program = program.display();
        Err(CliError::usage(format!("cannot run {program}: {error}")))
    }

    /// Starts an endpoint in another process, and returns its URL. The endpoint ends when this
    /// process ends, even after the command has replaced this program.
    async fn endpoint(&self, connection: &Connection) -> Result<String, CliError> {
        let mut agent = Command::new(env::current_exe()?);
        agent
            .args(["agent", "--grant", &self.grant])
            .args(["--for-process", &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Signals from a terminal are for the command alone.
            .process_group(0);
        if let Some(ttl) = self.ttl {
            agent.args(["--ttl", &format!("{}s", ttl.as_secs())]);
        }
        let token = connection.hand_on(&mut agent)?;
        let told = spawn_blocking(move || {
            let mut agent = agent.spawn()?;
            if let (Some(mut input), Some(token)) = (agent.stdin.take(), token) {
                input.write_all(token.expose_secret().as_bytes())?;
            }
            let mut url = String::new();
            if let Some(told) = agent.stdout.take() {
                BufReader::new(told).read_line(&mut url)?;
            }
            Ok::<_, std::io::Error>((url.trim_end().to_owned(), agent.wait()?.code()))
        });
        let told = told
            .await
            .map_err(|error| CliError::unexpected(error.to_string()))?;
        match told? {
            (url, _) if !url.is_empty() => Ok(url),
            // The agent has printed the reason.
            (_, ended) => std::process::exit(ended.unwrap_or(1)),
        }
    }
}
