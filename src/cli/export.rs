//! `credbroker audit export`: the log as plain files in the layout of C2SP tlog-tiles.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{failure::Failure, output::Output};
use crate::{
    audit::{
        checkpoint::Checkpoint,
        note::{self, Verifier},
        tile::{self, Tile, Tiles, WIDTH},
        tree::{Edge, leaf_hash},
    },
    client::Client,
    proto::{ExportEntriesRequest, GetCheckpointRequest},
};

/// Where the signed checkpoint lies in an export.
pub(super) const CHECKPOINT: &str = "checkpoint";
/// The keys that have signed the log, a line each, the newest last.
pub(super) const KEYS: &str = "keys";

/// The checkpoint of the key before, over the log that announces key `number`, from 2.
pub(super) fn handover_path(number: usize) -> String {
    format!("handover/{number}")
}

#[derive(Args, Debug)]
pub(super) struct Export {
    /// Where to write; what an earlier export has left there is gone on from.
    dir: PathBuf,
}

/// A tree over entries that come one by one, with all its tiles.
#[derive(Default)]
pub(super) struct Growing {
    pub(super) edge: Edge,
    pub(super) tiles: Tiles,
}

impl Growing {
    pub(super) fn push(&mut self, entry: &[u8]) {
        for (node, hash) in self.edge.push(leaf_hash(entry)) {
            if let Some(tile) = Tile::holding(node) {
                self.tiles.entry(tile).or_default().push(hash);
            }
        }
    }
}

impl Export {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
        let mut audit = client.audit();
        let signed = audit.get_checkpoint(GetCheckpointRequest {}).await?;
        let signed = signed.into_inner();
        let key: Verifier = signed.verifier_key.parse().map_err(|error| {
            Failure::unexpected(format!("the broker's key of the log: {error}"))
        })?;
        let checkpoint = opened(&signed.note, std::slice::from_ref(&key))?;
        let mut tree = Growing::default();
        self.take_up(&mut tree, checkpoint.size)?;
        let taken_up = tree.edge.size();
        let request = ExportEntriesRequest {
            start: taken_up,
            end: checkpoint.size,
        };
        let mut bundles = audit.export_entries(request).await?.into_inner();
        while let Some(bundle) = bundles.message().await? {
            let index = tree.edge.size() / WIDTH;
            let mut bytes = Vec::new();
            for entry in &bundle.entries {
                let length = u16::try_from(entry.len()).map_err(|_| {
                    Failure::unexpected("the broker sent a record that is too long")
                })?;
                bytes.extend(length.to_be_bytes());
                bytes.extend(entry);
                tree.push(entry);
            }
            self.write(&tile::bundle_path(index, checkpoint.size), &bytes)?;
        }
        if (tree.edge.size(), tree.edge.root()) != (checkpoint.size, checkpoint.root) {
            let what = "what was exported is not what the broker's checkpoint stands for";
            return Err(Failure::verification(what)
                .next("export into an empty directory; if that fails too, the log was changed"));
        }
        for (tile, hashes) in &tree.tiles {
            self.write(&tile.path(checkpoint.size), hashes.as_flattened())?;
        }
        let mut keys = String::new();
        for (key, number) in signed.keys.iter().zip(1..) {
            keys = keys + &key.verifier_key + "\n";
            if let Some(note) = &key.handover {
                self.write(&handover_path(number), note.as_bytes())?;
            }
        }
        self.write(KEYS, keys.as_bytes())?;
        self.write(CHECKPOINT, signed.note.as_bytes())?;
        let (size, new) = (checkpoint.size, checkpoint.size - taken_up);
        Ok(out.line(&format!(
            "{size} records, {new} of them new, in {}",
            self.dir.display()
        ))?)
    }

    /// The full bundles of an earlier export.
    fn take_up(&self, tree: &mut Growing, size: u64) -> Result<(), Failure> {
        for index in 0..size / WIDTH {
            let path = self.dir.join(tile::bundle_path(index, size));
            let Some(bytes) = read(&path)? else {
                return Ok(());
            };
            let entries = entries(&bytes).filter(|entries| entries.len() as u64 == WIDTH);
            let Some(entries) = entries else {
                return Ok(());
            };
            for entry in entries {
                tree.push(entry);
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.dir.join(name);
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

/// The checkpoint of a note that one of `keys` has signed.
pub(super) fn opened(note: &str, keys: &[Verifier]) -> Result<Checkpoint, Failure> {
    let text = note::open(note, keys)
        .map_err(|error| Failure::verification(format!("the checkpoint: {error}")))?;
    let checkpoint = Checkpoint::parse(text)
        .map_err(|error| Failure::verification(format!("the checkpoint: {error}")))?;
    if keys.iter().all(|key| key.name() != checkpoint.origin) {
        return Err(Failure::verification("the checkpoint is of another log"));
    }
    Ok(checkpoint)
}

/// The entries of a bundle: a length of 16 bits, big endian, before each.
pub(super) fn entries(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk()?;
        let (entry, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        entries.push(entry);
        bytes = rest;
    }
    Some(entries)
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, &error)),
    }
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::unexpected(format!("{}: {error}", path.display()))
}
