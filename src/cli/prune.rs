//! `credbroker audit prune`: deletes old records that an export contains.

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::{
    checkpoint::{Head, unusable},
    convert::proto_time,
    error::CliError,
    output::{Format, Output},
};
use crate::{
    audit::{
        files::CHECKPOINT,
        verify::{Requirements, verify},
    },
    client::Client,
    domain::{clock::wall_time, duration},
    proto::PruneRecordsRequest,
};

#[derive(Args, Debug)]
pub(super) struct Prune {
    /// Export (tiles) that contains the records to delete. It is checked first.
    dir: PathBuf,
    /// Age from which records are deleted, e.g. 400d.
    #[arg(long, value_parser = duration::parse)]
    older_than: Duration,
}

impl Prune {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let head = Head::ask(client).await?;
        let copy = verify(&self.dir, &Requirements::default())?;
        let key = copy.key.to_string();
        if head.signed.keys.iter().all(|ours| ours.verifier_key != key) {
            return Err(CliError::verification(
                "the export is of another broker's log",
            ));
        }
        if copy.start > head.signed.start {
            let first = copy.start + 1;
            let what =
                format!("the export begins with record {first}, and the broker has older ones");
            return Err(CliError::usage(what).next("export into an empty directory first"));
        }
        let path = self.dir.join(CHECKPOINT);
        let checkpoint = fs::read_to_string(&path).map_err(|error| unusable(&path, &error))?;
        let before = wall_time().checked_sub(self.older_than);
        let request = PruneRecordsRequest {
            before: Some(proto_time(before.unwrap_or(Timestamp::MIN))),
            checkpoint,
        };
        let pruned = client.audit().prune_records(request).await?.into_inner();
        let (start, gone) = (pruned.start, pruned.start - head.signed.start);
        if out.format() == Format::Json {
            return Ok(out.show(&json!({ "start": start, "pruned": gone }))?);
        }
        Ok(out.line(&format!(
            "{gone} records pruned; the log begins with record {}",
            start + 1
        ))?)
    }
}
