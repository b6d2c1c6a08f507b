//! Records of the log as the broker sends them, up to a signed checkpoint.

use std::{io, path::Path};

use indicatif::ProgressBar;

use super::error::CliError;
use crate::{
    audit::{
        checkpoint::Checkpoint,
        note::Verifier,
        tile::WIDTH,
        tree::{Frontier, Hash},
        verify::opened,
    },
    client::Client,
    proto::{self, ExportEntriesRequest, GetCheckpointRequest},
};

/// Bundle of 256 neighbouring records, or fewer at the end.
pub(super) enum Bundle<'e> {
    Entries(&'e [Vec<u8>]),
    /// Root of records that were pruned.
    Pruned(Hash),
}

/// Checkpoint that an export ends at, parsed and as signed.
pub(super) struct Head {
    pub(super) checkpoint: Checkpoint,
    pub(super) signed: proto::Checkpoint,
}

impl Head {
    pub(super) async fn ask(client: &Client) -> Result<Self, CliError> {
        let signed = client
            .audit()
            .get_checkpoint(GetCheckpointRequest {})
            .await?;
        let signed = signed.into_inner();
        let key: Verifier = signed.verifier_key.parse().map_err(|error| {
            CliError::unexpected(format!("the broker's key of the log: {error}"))
        })?;
        let checkpoint = opened(&signed.note, std::slice::from_ref(&key))?;
        Ok(Self { checkpoint, signed })
    }

    /// Passes every bundle from record `start`, a multiple of 256, up to the checkpoint to `take`.
    pub(super) async fn fetch(
        &self,
        client: &Client,
        start: u64,
        bar: &ProgressBar,
        mut take: impl FnMut(Bundle<'_>) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let end = self.checkpoint.size;
        bar.set_length(end);
        bar.set_position(start);
        let request = ExportEntriesRequest { start, end };
        let mut bundles = client.audit().export_entries(request).await?.into_inner();
        while let Some(bundle) = bundles.message().await? {
            for root in bundle.pruned_roots {
                let root = root
                    .try_into()
                    .map_err(|_| CliError::unexpected("the broker sent a root that is none"))?;
                take(Bundle::Pruned(root))?;
                bar.inc(WIDTH);
            }
            if !bundle.entries.is_empty() {
                take(Bundle::Entries(&bundle.entries))?;
                bar.inc(bundle.entries.len() as u64);
            }
        }
        Ok(())
    }

    /// Checks that the fetched records match the checkpoint.
    pub(super) fn confirm(&self, taken: &Frontier, next: &str) -> Result<(), CliError> {
        let Checkpoint { size, root, .. } = self.checkpoint;
        if (taken.size(), taken.root()) == (size, root) {
            return Ok(());
        }
        let what = "what was exported is not what the broker's checkpoint stands for";
        let next = format!("{next}; if that fails too, the log was changed");
        Err(CliError::verification(what).next(next))
    }
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> CliError {
    CliError::unexpected(format!("{}: {error}", path.display()))
}
