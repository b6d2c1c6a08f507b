//! `credbroker audit export` with a line per record, to a file or to standard output.

use std::{
    fs::{self, File},
    io::{self, BufWriter, IsTerminal, Write},
    path::Path,
};

use indicatif::ProgressBar;
use serde_json::json;

use super::{
    checkpoint::{Bundle, Head, unusable},
    error::CliError,
    output::{Format, Output},
    verify::records,
};
use crate::{
    audit::{
        ocsf,
        tile::HEIGHT,
        tree::{Frontier, leaf_hash},
    },
    client::Client,
};

/// Path that stands for standard output.
pub(super) const STANDARD_OUTPUT: &str = "-";

/// Function that makes a record's line from its bytes and the name of its log.
pub(super) type Line = fn(&[u8], &str) -> Result<Vec<u8>, CliError>;

/// Returns the record as an event of OCSF.
pub(super) fn ocsf(entry: &[u8], log: &str) -> Result<Vec<u8>, CliError> {
    let event = ocsf::event(entry, log).map_err(|error| {
        CliError::unexpected(format!("the broker sent a record that is none: {error}"))
            .next("see that this program is not older than the broker")
    })?;
    Ok(event.to_string().into_bytes())
}

/// Writes the log as lines. A file appears only once all of it is checked. Lines on standard output
/// are written before the check, and are right only if this succeeds.
pub(super) async fn write(
    client: &Client,
    head: &Head,
    to: &Path,
    line: Line,
    out: &mut Output,
) -> Result<(), CliError> {
    if to.as_os_str() == STANDARD_OUTPUT {
        // A progress bar would come between the lines.
        let bar = if io::stdout().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::no_length()
        };
        return pour(client, head, line, &bar, io::stdout(), CliError::from).await;
    }
    if to.is_dir() {
        let what = format!("{} is a directory", to.display());
        return Err(CliError::usage(what).next("give a file, or - for standard output"));
    }
    let failed = |error| unusable(to, &error);
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let file = File::create(&partial).map_err(failed)?;
    let bar = ProgressBar::no_length();
    let poured = pour(client, head, line, &bar, file, failed).await;
    let kept = poured.and_then(|()| fs::rename(&partial, to).map_err(failed));
    if kept.is_err() {
        let _ = fs::remove_file(&partial);
    }
    kept?;
    let (size, start) = (head.checkpoint.size, head.signed.start);
    if out.format() == Format::Json {
        return Ok(out.show(&json!({ "size": size, "start": start, "file": to }))?);
    }
    let records = records(size, start);
    Ok(out.line(&format!("{records} in {}", to.display()))?)
}

async fn pour(
    client: &Client,
    head: &Head,
    line: Line,
    bar: &ProgressBar,
    sink: impl Write,
    failed: impl Fn(io::Error) -> CliError,
) -> Result<(), CliError> {
    let (mut sink, mut taken) = (BufWriter::new(sink), Frontier::default());
    let log = &head.checkpoint.origin;
    head.fetch(client, 0, bar, |bundle| {
        let entries = match bundle {
            Bundle::Entries(entries) => entries,
            Bundle::Pruned(root) => {
                taken.push_subtree(HEIGHT, root);
                return Ok(());
            }
        };
        for entry in entries {
            taken.push(leaf_hash(entry));
            let mut line = line(entry, log)?;
            line.push(b'\n');
            sink.write_all(&line).map_err(&failed)?;
        }
        Ok(())
    })
    .await?;
    sink.flush().map_err(&failed)?;
    bar.finish_and_clear();
    head.confirm(&taken, "export again")
}
