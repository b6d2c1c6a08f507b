//! `credbroker audit verify`: checks an export or a proof, without a broker.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{
    error::CliError,
    output::{Format, Output},
    proof,
};
use crate::audit::{
    checkpoint::Receipt,
    note::Verifier,
    verify::{Fault, Requirements, verify},
};

#[derive(Args, Debug)]
pub(super) struct Verify {
    /// An export or a copy of one, or a file that `audit prove` wrote.
    path: PathBuf,
    /// Key of the log, as `audit checkpoint -o json` printed it, or an earlier one. Default: the
    /// newest key that the copy names, which shows that the copy is consistent, not whose it is.
    /// Required for a proof.
    #[arg(long)]
    key: Option<Verifier>,
    /// Receipt that `issue` or `revoke` returned, SEQ:SIZE:ROOT: the copy must contain its record.
    /// May be repeated.
    #[arg(long, value_name = "RECEIPT")]
    receipt: Vec<Receipt>,
    /// Earlier checkpoint: the copy must continue from it.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Require that the copy begins with the first record: no records were pruned.
    #[arg(long)]
    whole: bool,
}

impl Verify {
    pub(super) fn run(self, out: &mut Output) -> Result<(), CliError> {
        if self.path.is_file() {
            let key = self.key.as_ref().ok_or_else(|| {
                CliError::usage("a proof is checked with the log's key: give --key")
            })?;
            return proof::verify(&text(&self.path)?, key, out);
        }
        let demands = Requirements {
            since: self.since.as_ref().map(text).transpose()?,
            receipts: self.receipt,
            key: self.key,
            whole: self.whole,
        };
        let verified = verify(&self.path, &demands)?;
        let checkpoint = verified.checkpoint;
        if out.format() == Format::Json {
            return Ok(out.show(&json!({
                "size": checkpoint.size, "start": verified.start, "log": checkpoint.origin,
                "verifier_key": verified.key.to_string(),
            }))?);
        }
        let records = records(checkpoint.size, verified.start);
        Ok(out.line(&format!("{records}, as signed by {}", checkpoint.origin))?)
    }
}

/// Returns the number of records in words, and how many of them were pruned.
pub(super) fn records(size: u64, start: u64) -> String {
    match start {
        0 => format!("{size} records"),
        start => format!("{size} records (the first {start} were given up and are not here)"),
    }
}

impl From<Fault> for CliError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unreadable { .. } => Self::unexpected(fault.to_string()),
            _ => Self::verification(fault.to_string()),
        }
    }
}

fn text(path: &PathBuf) -> Result<String, CliError> {
    fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("cannot read {}: {error}", path.display())))
}
