//! `credbroker dev`, `credbroker serve` and `credbroker migrate`.

use std::{
    env,
    io::{self, IsTerminal},
    path::PathBuf,
};

use clap::Args;
use secrecy::SecretString;
use serde_json::json;
use tracing::Level;
use tracing_subscriber::EnvFilter;

use super::{convert::http_url, error::CliError, output::Output};
use crate::{
    config::{Config, is_database},
    runtime::{
        StartError, StartProblem,
        dev::{DevOptions, dev},
        migrate,
        serve::{check, serve},
    },
};

#[derive(Args, Debug)]
pub(super) struct Dev {
    /// Directory of all state; a second start there resumes it. Default: the user's state
    /// directory.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Another endpoint for STS and IAM, e.g. an emulator.
    #[arg(long = "aws-endpoint", value_name = "URL", value_parser = http_url)]
    aws_endpoint_url: Option<String>,
    /// PostgreSQL database instead of the embedded store: postgres://USER@HOST/DATABASE. Put a
    /// password into CREDBROKER_STORE or PGPASSWORD.
    #[arg(
        long,
        value_name = "URL",
        env = "CREDBROKER_STORE",
        hide_env_values = true,
        value_parser = database
    )]
    store: Option<SecretString>,
}

pub(super) fn database(url: &str) -> Result<SecretString, String> {
    if is_database(url) {
        Ok(url.into())
    } else {
        Err("write postgres://USER@HOST/DATABASE".to_owned())
    }
}

#[derive(Args, Debug)]
pub(super) struct Migrate {
    /// Configuration file of `serve`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Migrate {
    pub(super) async fn run(self, out: &mut Output) -> Result<(), CliError> {
        let config = Config::load(&self.config).map_err(StartError::from)?;
        log_to_stderr(&config.log.level, config.log.json)?;
        let version = migrate(&config.store).await?;
        Ok(out.show(&json!({ "schema_version": version }))?)
    }
}

#[derive(Args, Debug)]
pub(super) struct Serve {
    /// Configuration file; deploy/credbroker.example.toml documents it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and the files that it names, then exit. Contacts neither the store
    /// nor AWS.
    #[arg(long)]
    check: bool,
}

impl Dev {
    pub(super) async fn run(self) -> Result<(), CliError> {
        log_to_stderr("info", false)?;
        let state_dir = self.state_dir.or_else(default_state_dir).ok_or_else(|| {
            CliError::usage("there is no home directory to keep the state in: give --state-dir")
        })?;
        Ok(dev(DevOptions {
            state_dir,
            aws_endpoint_url: self.aws_endpoint_url,
            database: self.store,
        })
        .await?)
    }
}

impl Serve {
    pub(super) async fn run(self, out: &mut Output) -> Result<(), CliError> {
        let config = Config::load(&self.config).map_err(StartError::from)?;
        log_to_stderr(&config.log.level, config.log.json)?;
        if self.check {
            check(&config)?;
            let path = self.config.display().to_string();
            return Ok(out.show(&json!({
                "config": path,
                "valid": true,
                "not_asked": ["the store", "AWS"],
            }))?);
        }
        // On the heap: the future is large.
        Ok(Box::pin(serve(&self.config, config)).await?)
    }
}

/// Returns the directory for state: that of the XDG base directory specification.
fn default_state_dir() -> Option<PathBuf> {
    let home = || env::home_dir().map(|home| home.join(".local/state"));
    let base = env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    base.or_else(home).map(|base| base.join("credbroker/dev"))
}

/// Logs to standard error. A plain level applies to the broker alone; its libraries log from `warn`
/// on.
pub(super) fn log_to_stderr(level: &str, json: bool) -> Result<(), CliError> {
    let directives = match level.parse::<Level>() {
        Ok(level) => format!("warn,credbroker={level}"),
        Err(_) => level.to_owned(),
    };
    let filter = EnvFilter::try_new(directives)
        .map_err(|error| CliError::usage(format!("log.level: {level:?} is no filter: {error}")))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    if json {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
    Ok(())
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        let text = error.to_string();
        let failure = match error.problem() {
            StartProblem::Told => Self::usage(text),
            StartProblem::State => Self::conflict(text),
            StartProblem::Unavailable => Self::unavailable(text),
            StartProblem::Unexpected => Self::unexpected(text),
        };
        match error.next() {
            Some(next) => failure.next(next),
            None => failure,
        }
    }
}
