//! `credbroker audit export`: the log as plain files in the layout of C2SP tlog-tiles. Exports as
//! lines are in `jsonl`.

use std::{fs, path::PathBuf};

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;

use super::{
    checkpoint::{Bundle, Head, unusable},
    error::CliError,
    jsonl::{self, Line},
    output::{Format, Output},
    verify::records,
};
use crate::{
    audit::{
        files::{self, CHECKPOINT, Growing, KEYS},
        tile::{self, WIDTH},
        verify::read,
    },
    client::Client,
};

#[derive(Args, Debug)]
pub(super) struct Export {
    /// Target of the export: for tiles a directory, in which an earlier export is continued; else a
    /// file, or - for standard output.
    #[arg(value_name = "DIR|FILE")]
    to: PathBuf,
    /// Form of the export.
    #[arg(long, value_enum, default_value_t = Form::Tiles)]
    format: Form,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    /// A directory of plain files (C2SP tlog-tiles), which `audit verify` checks.
    Tiles,
    /// A line per record, the JSON as it is in the log.
    Jsonl,
    /// A line per record, an event of OCSF 1.3.0 in JSON.
    Ocsf,
}

/// Line of a record as it is in the log: JSON, which contains no line feed.
const AS_IT_IS: Line = |entry, _| Ok(entry.to_vec());

impl Export {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let head = Head::ask(client).await?;
        match self.format {
            Form::Tiles => self.tiles(client, &head, out).await,
            Form::Jsonl => jsonl::write(client, &head, &self.to, AS_IT_IS, out).await,
            Form::Ocsf => jsonl::write(client, &head, &self.to, jsonl::ocsf, out).await,
        }
    }

    async fn tiles(self, client: &Client, head: &Head, out: &mut Output) -> Result<(), CliError> {
        if self.to.as_os_str() == jsonl::STANDARD_OUTPUT {
            let what = "tiles are files in a directory, and cannot go to standard output";
            return Err(CliError::usage(what).next("give a directory, or --format jsonl"));
        }
        let size = head.checkpoint.size;
        let mut tree = Growing::default();
        self.take_up(&mut tree, size)?;
        let (taken_up, mut given_up) = (tree.edge.size(), 0);
        self.must_not_tear(taken_up, head.signed.start)?;
        let bar = ProgressBar::no_length();
        head.fetch(client, taken_up, &bar, |bundle| {
            let entries = match bundle {
                Bundle::Entries(entries) => entries,
                Bundle::Pruned(root) => {
                    given_up += WIDTH;
                    tree.push_pruned(root);
                    return Ok(());
                }
            };
            let index = tree.edge.size() / WIDTH;
            let bytes = files::bundle(entries)
                .ok_or_else(|| CliError::unexpected("the broker sent a record that is too long"))?;
            for entry in entries {
                tree.push(entry);
            }
            self.write(&tile::bundle_path(index, size), &bytes)
        })
        .await?;
        head.confirm(&tree.edge, "export into an empty directory")?;
        for (tile, hashes) in &tree.tiles {
            self.write(&tile.path(size), hashes.as_flattened())?;
        }
        let mut keys = String::new();
        for (key, number) in head.signed.keys.iter().zip(1..) {
            keys = keys + &key.verifier_key + "\n";
            if let Some(note) = &key.handover {
                self.write(&files::handover_path(number), note.as_bytes())?;
            }
        }
        self.write(KEYS, keys.as_bytes())?;
        self.write(CHECKPOINT, head.signed.note.as_bytes())?;
        bar.finish_and_clear();
        let new = size - taken_up - given_up;
        if out.format() == Format::Json {
            let told = json!({ "size": size, "start": given_up, "new": new, "dir": self.to });
            return Ok(out.show(&told)?);
        }
        Ok(out.line(&format!(
            "{}, {new} of them new, in {}",
            records(size, given_up),
            self.to.display()
        ))?)
    }

    /// Refuses to continue an earlier export that has some, but not all, of the records that the
    /// broker has pruned: the missing ones would be a hole.
    fn must_not_tear(&self, taken_up: u64, start: u64) -> Result<(), CliError> {
        let holds = |index| self.to.join(tile::bundle_path(index, start)).exists();
        if taken_up >= start || !(0..start / WIDTH).any(holds) {
            return Ok(());
        }
        let what = format!(
            "{} holds records that the broker has given up since, and not all of them",
            self.to.display()
        );
        Err(CliError::usage(what).next("keep it, and export into an empty directory"))
    }

    /// Loads the full bundles of an earlier export.
    fn take_up(&self, tree: &mut Growing, size: u64) -> Result<(), CliError> {
        for index in 0..size / WIDTH {
            let path = self.to.join(tile::bundle_path(index, size));
            let Some(bytes) = read(&path)? else {
                return Ok(());
            };
            let (entries, rest) = files::entries(&bytes);
            if entries.len() as u64 != WIDTH || !rest.is_empty() {
                return Ok(());
            }
            for entry in entries {
                tree.push(entry);
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CliError> {
        let path = self.to.join(name);
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| {
                let partial = path.with_extension("partial");
                fs::write(&partial, bytes)?;
                fs::rename(&partial, &path)
            });
        written.map_err(|error| unusable(&path, &error))
    }
}
