//! `credbroker revoke` while the broker is down.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
#[command(next_help_heading = "While the broker is down")]
pub(super) struct BreakGlass {
    /// Revoke in this process, on the broker's store. Uses CREDBROKER_TOKEN as usual, and AWS
    /// credentials of the standard chain unless the store holds a key that can be opened.
    #[arg(long, group = "break_glass")]
    offline: bool,
    /// Print a shell script of AWS CLI commands with which an IAM administrator can revoke. Only
    /// reads the broker's store, and works beside a running broker as well.
    #[arg(long, group = "break_glass", conflicts_with = "reason")]
    print_aws_commands: bool,
    /// Path of the broker's store; in the directory of `dev` it is credbroker.db.
    #[arg(long, value_name = "FILE", requires = "break_glass")]
    state: Option<PathBuf>,
    /// Configuration of `serve`: store, AWS, sealing key and the rest.
    #[arg(long, value_name = "FILE", requires = "break_glass")]
    config: Option<PathBuf>,
    /// Another endpoint for AWS, e.g. an emulator.
    #[arg(
        long = "aws-endpoint",
        value_name = "URL",
        value_parser = super::convert::http_url,
        requires = "break_glass",
        conflicts_with = "print_aws_commands"
    )]
    aws_endpoint_url: Option<String>,
}

impl BreakGlass {
    pub(super) const fn is_asked_for(&self) -> bool {
        self.offline || self.print_aws_commands
    }
}

#[cfg(not(feature = "server"))]
pub(super) fn refused() -> super::CliError {
    super::CliError::usage("this program is the client alone, and this takes the broker's own code")
        .next("use the `credbroker` that the broker is run with")
}

#[cfg(feature = "server")]
mod with_store {
    use serde_json::json;

    use super::BreakGlass;
    use crate::{
        cli::{Connection, broker::log_to_stderr, error::CliError, output::Output, revoke::Revoke},
        config::{Config, StoreAt},
        domain::name::Name,
        runtime::{
            StartError,
            offline::{Offline, Whose, script},
        },
    };

    /// Text that says who completes what is still open.
    const LATER: &str = "the broker goes on once it runs again";

    impl BreakGlass {
        fn whose(&self) -> Result<Whose, CliError> {
            match (&self.config, &self.state) {
                (Some(path), state) => {
                    let mut config = Config::load(path).map_err(StartError::from)?;
                    if let Some(store) = state {
                        config.store = StoreAt::File(store.clone());
                    }
                    if self.aws_endpoint_url.is_some() {
                        config.aws.endpoint_url.clone_from(&self.aws_endpoint_url);
                    }
                    Ok(Whose::Configured(Box::new(config)))
                }
                (None, Some(store)) => Ok(Whose::Stored {
                    store: store.clone(),
                    aws_endpoint_url: self.aws_endpoint_url.clone(),
                }),
                (None, None) => Err(
                    CliError::usage("it is not said where the broker's store is")
                        .next("give --state FILE, or --config FILE of `serve`"),
                ),
            }
        }
    }

    impl Revoke {
        pub(in crate::cli) async fn break_glass(
            self,
            connection: &Connection,
            out: &mut Output,
        ) -> Result<(), CliError> {
            log_to_stderr("warn", false)?;
            let whose = self.break_glass.whose()?;
            if self.break_glass.print_aws_commands {
                return print_script(&self.target, &whose, out).await;
            }
            let token = connection.token()?.token()?.unwrap_or_default();
            let offline = Offline::open(whose).await?;
            let broker = offline.called_by(token);
            let done = match broker.stream_revocation(self.request()).await {
                Ok(stream) => self.follow(stream, LATER, out).await,
                Err(status) => Err(status.into()),
            };
            let closed = offline.close().await;
            done?;
            Ok(closed?)
        }
    }

    async fn print_script(target: &str, whose: &Whose, out: &mut Output) -> Result<(), CliError> {
        let (service, grant) = match target.split_once('/') {
            Some((service, grant)) => (service, Some(grant)),
            None => (target, None),
        };
        let name = |text: &str| -> Result<Name, CliError> {
            let parsed = text.parse();
            parsed.map_err(|error| CliError::usage(format!("{text:?} is no name: {error}")))
        };
        let (service, grant) = (name(service)?, grant.map(name).transpose()?);
        let script = script(whose, service, grant).await?.ok_or_else(|| {
            let what = if target.contains('/') {
                "grant"
            } else {
                "service"
            };
            CliError::not_found(format!("there is no {what} {target} in the store"))
        })?;
        Ok(out.entry(&json!({ "script": script }), script.trim_end())?)
    }
}
