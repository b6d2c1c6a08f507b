//! `credbroker store`: work on a store while its broker is down.

use std::path::PathBuf;

use clap::Subcommand;
use data_encoding::BASE64;
use secrecy::SecretString;
use serde_json::json;

use super::{
    broker::{database, log_to_stderr},
    error::CliError,
    output::Output,
};
use crate::runtime::copy;

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Move a store from a file to an empty database, with the whole audit log. The broker must not
    /// run. The file is renamed to FILE.moved once the move is complete.
    Copy {
        /// Source: sqlite:FILE.
        #[arg(long, value_name = "sqlite:FILE", value_parser = file)]
        from: PathBuf,
        /// Target database, whose tables `credbroker migrate` has made. Put a password into
        /// PGPASSWORD.
        #[arg(long, value_name = "postgres://USER@HOST/DATABASE", value_parser = database)]
        to: SecretString,
    },
}

impl StoreCommand {
    pub(super) async fn run(self, out: &mut Output) -> Result<(), CliError> {
        log_to_stderr("warn", false)?;
        let Self::Copy { from, to } = self;
        let moved = copy(&from, &to).await?;
        Ok(out.show(&json!({
            "records": moved.size,
            "root": BASE64.encode(&moved.root),
        }))?)
    }
}

fn file(from: &str) -> Result<PathBuf, String> {
    match from.strip_prefix("sqlite:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("write sqlite:FILE".to_owned()),
    }
}
