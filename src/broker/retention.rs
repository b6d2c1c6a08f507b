//! Giving up the log's oldest records, once somebody has an export of them. The tree stays,
//! so what proves the others stays valid.

use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    audit::{
        tile::{self, WIDTH},
        tree::Range,
    },
    broker::{Broker, Error, on_conflict},
    domain::{
        access::Caller,
        approval::Change,
        audit::{Event, Subject},
        duration::humanize,
        grant::check::Violation,
    },
};

/// How many records are deleted in one transaction.
const AT_ONCE: u64 = 2_000;

impl Broker {
    /// Gives up the records of whole bundles that were made before a time and are in an
    /// export with this checkpoint. Returns how many have been given up in all.
    ///
    /// # Errors
    /// The checkpoint is none of this log's, the log is in doubt, or the store's.
    pub async fn prune_log(
        self: &Arc<Self>,
        caller: &Caller,
        before: Timestamp,
        exported: &str,
    ) -> Result<u64, Error> {
        self.log_is_whole()?;
        self.certain_clock()?;
        let keep = self.parts.keep;
        if self
            .now()
            .checked_sub(keep)
            .is_ok_and(|youngest| before > youngest)
        {
            let kept = format!(
                "records stay for {} at least, as audit.keep says",
                humanize(keep)
            );
            return Err(Error::Invalid(vec![Violation::new("before", kept)]));
        }
        let exported = self.own_checkpoint(exported).await?;
        let mut count = self.store().log_older(before).await?.min(exported);
        let fed = self.fed().clone();
        for sink in &fed {
            count = count.min(self.store().sink_cursor(sink).await?);
        }
        // What the witness has cosigned is gone on from there.
        if self.parts.witness.is_some() {
            count = count.min(self.size_cosigned().await?);
        }
        count -= count % WIDTH;
        let pruned = self.store().log_start().await?;
        if count <= pruned {
            let audit = self.caller_event(caller, Event::AuditRead);
            self.store()
                .record(audit.detail("nothing to prune"))
                .await?;
            return Ok(pruned);
        }
        let change = Change::PruneLog { records: count };
        if let Change::PruneLog { records } = self.approved(caller, change).await? {
            count = records;
        }
        let audit = self.caller_event(caller, Event::LogPruned);
        let audit = audit.pruned(count);
        on_conflict(self.store().prune_log(count, audit).await, || {
            Error::Conflict(Subject::AuditLog)
        })?;
        let broker = Arc::clone(self);
        self.detached(async move { broker.delete_pruned().await })
            .await?;
        Ok(count)
    }

    /// Deletes what was given up and is still there.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn delete_pruned(&self) -> Result<(), Error> {
        while self.store().delete_pruned(AT_ONCE).await? > 0 {}
        Ok(())
    }

    /// How many records a checkpoint of this log stands for.
    async fn own_checkpoint(&self, note: &str) -> Result<u64, Error> {
        let refused = |why: String| Error::Invalid(vec![Violation::new("checkpoint", why)]);
        let checkpoint = self.read_checkpoint(note).await?.map_err(refused)?;
        let size = checkpoint.size;
        let whole = [Range {
            start: 0,
            end: size,
        }];
        if size == 0 || size < self.store().log_start().await? {
            return Err(refused(
                "the export ends before what was pruned already".to_owned(),
            ));
        }
        let tiles = self
            .store()
            .log_tiles(&tile::tiles_of(&whole), size)
            .await?;
        if tile::root(size, &tiles) != Some(checkpoint.root) {
            return Err(refused("it is of another log".to_owned()));
        }
        Ok(size)
    }
}
