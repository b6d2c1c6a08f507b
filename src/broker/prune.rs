//! Pruning of the log's oldest records, once they have been exported. The Merkle tree stays, so
//! that proofs of the other records stay valid.

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
        approval::ApprovedChange,
        audit::{Event, Subject},
        duration::humanize,
        grant::validate::Violation,
    },
};

/// Number of records that are deleted in one transaction.
const AT_ONCE: u64 = 2_000;

impl Broker {
    /// Prunes the records of whole bundles that were made before a time, are in an export with this
    /// checkpoint, and have been accepted by every sink and the witness. Returns the number of
    /// records pruned in all.
    ///
    /// # Errors
    /// The checkpoint is not of this log, `before` is too recent, the log or the clock is in doubt,
    /// or the change needs a second operator; the store's error.
    pub async fn prune_log(
        self: &Arc<Self>,
        caller: &Caller,
        before: Timestamp,
        exported: &str,
    ) -> Result<u64, Error> {
        self.check_log_integrity()?;
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
        let mut count = self
            .store()
            .count_log_older_than(before)
            .await?
            .min(exported);
        let fed = self.delivering().clone();
        for sink in &fed {
            count = count.min(self.store().sink_cursor(sink).await?);
        }
        // The next request to the witness continues from the size that the witness has cosigned.
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
        let change = ApprovedChange::PruneLog { records: count };
        if let ApprovedChange::PruneLog { records } = self.approved(caller, change).await? {
            count = records;
        }
        let audit = self.caller_event(caller, Event::LogPruned);
        let audit = audit.pruned(count);
        on_conflict(self.store().prune_log(count, audit).await, || {
            Error::Conflict(Subject::AuditLog)
        })?;
        let broker = Arc::clone(self);
        self.spawn_detached(async move { broker.delete_pruned().await })
            .await?;
        Ok(count)
    }

    /// Deletes records that were pruned but still exist.
    ///
    /// # Errors
    /// The store's error.
    pub(super) async fn delete_pruned(&self) -> Result<(), Error> {
        while self.store().delete_pruned(AT_ONCE).await? > 0 {}
        Ok(())
    }

    /// Returns the number of records in a checkpoint of this log.
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
