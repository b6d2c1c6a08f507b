//! `credbroker audit export`: the log as plain files in the layout of C2SP tlog-tiles.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{failure::Failure, output::Output};
use crate::{
    audit::{
        files::{self, CHECKPOINT, Growing, KEYS},
        note::Verifier,
        tile::{self, WIDTH},
        verify::{opened, read},
    },
    client::Client,
    proto::{ExportEntriesRequest, GetCheckpointRequest},
};

#[derive(Args, Debug)]
pub(super) struct Export {
    /// Where to write; what an earlier export has left there is gone on from.
    dir: PathBuf,
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
            let bytes = files::bundle(&bundle.entries)
                .ok_or_else(|| Failure::unexpected("the broker sent a record that is too long"))?;
            bundle.entries.iter().for_each(|entry| tree.push(entry));
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
                self.write(&files::handover_path(number), note.as_bytes())?;
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

pub(super) fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::unexpected(format!("{}: {error}", path.display()))
}
