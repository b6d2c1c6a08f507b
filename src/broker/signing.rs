//! Checkpoints: signed states of the log. A later change of the signed records is detected.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use crate::{
    audit::{
        checkpoint::Checkpoint,
        note::{self, Verifier},
        proof::InclusionProof,
        tile,
        tree::{self, Range},
    },
    broker::{
        Broker, Error, in_time,
        ports::{AuditFilter, CheckpointFile, KeptCheckpoint, LogKey, PageRequest, StoreError},
        removal::no_lease,
        signing_key::{LogSigner, not_signed, signed},
    },
    domain::{
        access::Caller,
        audit::{Event, Subject},
        name::LeaseId,
    },
};

/// Interval at which the log is signed while it grows.
const EVERY: Duration = Duration::from_secs(1);
/// Interval at which the broker adds a heartbeat record, so that silence is visible.
const HEARTBEAT: Duration = Duration::from_mins(1);
/// Name of the checkpoint file in the error of a disk that does not answer.
const ANCHOR: &str = "the place of the checkpoint";

/// Signed state of the log.
#[derive(Debug)]
pub struct SignedCheckpoint {
    /// Signed note.
    pub note: String,
    /// Number of records that the checkpoint covers.
    pub size: u64,
    /// Key that verifies the signature, as text.
    pub verifier: String,
    /// All keys that have signed the log, newest last.
    pub keys: Vec<LogKey>,
    /// Number of records that have been pruned from the start of the log.
    pub start: u64,
}

impl Broker {
    /// Signs the log each second in which it has grown, and adds a heartbeat record each minute,
    /// until the broker stops.
    pub async fn run_signing(&self) {
        if self.parts.custody.sealing.is_none() {
            tracing::warn!("the audit log is not signed: set admin_key.sealing_key_file");
        }
        let mut ticks = interval(EVERY);
        let mut beats = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Work that has begun is completed, not cancelled: a file must not be written twice.
            let done = tokio::select! {
                () = self.parts.stop.cancelled() => return,
                _ = ticks.tick() => self.maintain_log().await,
                _ = beats.tick() => self.beat().await,
            };
            if let Err(error) = done {
                tracing::warn!(%error, "the audit log could not be signed and is tried again");
            }
        }
    }

    async fn beat(&self) -> Result<(), Error> {
        if self.hold_lock("heartbeat").await {
            self.record_lifecycle(Event::LogHeartbeat).await?;
        }
        Ok(())
    }

    async fn maintain_log(&self) -> Result<(), Error> {
        let recorded = self.replay_journal().await;
        self.sign_log().await?;
        recorded
    }

    /// Signs the log, if it has grown since the last signature. One task signs at a time, so that
    /// no older checkpoint follows a newer one. A log that contradicts another checkpoint is not
    /// signed.
    ///
    /// # Errors
    /// The store's error, or the key does not sign.
    pub async fn sign_log(&self) -> Result<(), Error> {
        if self.check_log_integrity().is_err() {
            return Ok(());
        }
        let is_shared = self.store().peers().is_some() && self.parts.anchor.is_none();
        if is_shared && self.is_signed().await? {
            // The log is signed already: the lock would block other replicas for no use.
            return Ok(());
        }
        self.sign(&mut *self.begin_signing().await?).await
    }

    /// Returns whether the newest checkpoint, of any replica, covers the whole log.
    async fn is_signed(&self) -> Result<bool, Error> {
        let head = self.store().log_head().await?;
        let kept = self.store().checkpoint().await?;
        Ok(kept.is_some_and(|kept| kept.size >= head.size))
    }

    pub(super) async fn sign(&self, signing: &mut LogSigner) -> Result<(), Error> {
        let size = signing.size;
        let Some(signer) = self.log_signer(signing).await? else {
            return Ok(());
        };
        // The head is read only now: a key that was just made also signs the record that announces
        // it.
        let head = self.store().log_head().await?;
        if size >= head.size {
            return Ok(());
        }
        let note = signed(signer, &head)?;
        let signer = signer.verifier().to_string();
        let before = self.store().checkpoint().await?;
        let mut kept = KeptCheckpoint {
            size: head.size,
            note,
            anchored: before.is_some_and(|before| before.anchored),
        };
        self.store().save_checkpoint(&kept, &signer).await?;
        if let Some(anchor) = &self.parts.anchor {
            if let Err(error) = anchored(anchor.as_ref(), &kept.note).await {
                tracing::warn!(%error, "the checkpoint beside the store stays as it was, and is tried again");
                return Ok(());
            }
            if !kept.anchored {
                kept.anchored = true;
                self.store().save_checkpoint(&kept, &signer).await?;
            }
        }
        signing.size = head.size;
        Ok(())
    }

    /// Reads the whole log when the broker starts. Compares it with itself, with the checkpoints in
    /// the store and in the checkpoint file, and with what the witness has cosigned. If they
    /// differ, the broker issues nothing, cleans up nothing and signs nothing. Explicit revocation
    /// still works.
    ///
    /// # Errors
    /// The store's error.
    pub async fn check_log(&self) -> Result<(), Error> {
        match self.contradiction().await? {
            Some(doubt) => {
                self.record_log_doubt(doubt);
                Ok(())
            }
            None => self.ask_witness().await,
        }
    }

    /// Stops issuing from now on. The first doubt is kept.
    pub(super) fn record_log_doubt(&self, doubt: Error) {
        self.preserve_unknown_denials();
        let message = doubt.to_string();
        if self.log_doubt.set(doubt).is_ok() {
            tracing::error!(doubt = message, "nothing is issued");
        }
    }

    /// Checks that there is no doubt about the log. With a doubt, no caller gets credentials.
    ///
    /// # Errors
    /// The doubt.
    pub fn check_log_integrity(&self) -> Result<(), Error> {
        self.log_doubt
            .get()
            .map_or(Ok(()), |doubt| Err(doubt.clone()))
    }

    async fn contradiction(&self) -> Result<Option<Error>, Error> {
        let kept = self.store().checkpoint().await?;
        let beside = match &self.parts.anchor {
            None => None,
            Some(anchor) => match in_time(ANCHOR, anchor.read()).await {
                Ok(note) => note,
                Err(error) => return Ok(Some(doubt(error.to_string()))),
            },
        };
        let was_beside = kept.as_ref().is_some_and(|kept| kept.anchored);
        if self.parts.anchor.is_some() && beside.is_none() && was_beside {
            let message = "the checkpoint beside the store is not there any more";
            return Ok(Some(doubt(message.to_owned())));
        }
        let kept = kept.map(|kept| kept.note);
        // An empty file means that an operator has decided to start again. The same note need not
        // be compared with the whole log twice.
        let beside = beside.filter(|note| !note.is_empty() && Some(note) != kept.as_ref());
        let mut told = Vec::new();
        for (place, note) in [("in the store", kept), ("beside the store", beside)] {
            let Some(note) = note else { continue };
            match self.read_checkpoint(&note).await? {
                Ok(checkpoint) => told.push((place, checkpoint)),
                Err(wrong) => return Ok(Some(doubt(format!("{wrong} (the checkpoint {place})")))),
            }
        }
        let sizes: Vec<u64> = told.iter().map(|(_, checkpoint)| checkpoint.size).collect();
        let check = self.store().check_log(&sizes).await?;
        if let Some(fault) = check.fault {
            return Ok(Some(doubt(fault)));
        }
        let other = told
            .into_iter()
            .find(|(_, checkpoint)| check.roots.get(&checkpoint.size) != Some(&checkpoint.root));
        Ok(other.map(|(place, Checkpoint { size, .. })| {
            let what = format!("the first {size} records are not those that were signed");
            doubt(format!("{what} (the checkpoint {place})"))
        }))
    }

    /// Returns the checkpoint in a note, if it is one of this log that the log has reached.
    /// Otherwise returns what is wrong with the note.
    pub(super) async fn read_checkpoint(
        &self,
        note: &str,
    ) -> Result<Result<Checkpoint, String>, Error> {
        let keys = self.store().log_keys().await?;
        let keys: Vec<Verifier> = keys
            .iter()
            .filter_map(|key| key.verifier.parse().ok())
            .collect();
        let text = match note::open(note, &keys) {
            Ok(text) => text,
            Err(error) => {
                let of = "it is of another log, or of a later state of this one";
                return Ok(Err(format!("{of}: {error}")));
            }
        };
        let Ok(checkpoint) = Checkpoint::parse(text) else {
            return Ok(Err("it cannot be read".to_owned()));
        };
        let (last, size) = (self.store().log_head().await?.size, checkpoint.size);
        if last < size {
            return Ok(Err(format!(
                "the audit log ends with record {last} and was signed with {size}: the store is an older copy"
            )));
        }
        Ok(Ok(checkpoint))
    }

    /// Signs the log as it is now, and returns the checkpoint.
    ///
    /// # Errors
    /// The store's error, the log is in doubt, or the log has no key because the broker has no
    /// sealing key.
    pub async fn checkpoint(self: &Arc<Self>, caller: Caller) -> Result<SignedCheckpoint, Error> {
        let read = self.caller_event(&caller, Event::AuditRead);
        self.store().record(read).await?;
        self.check_log_integrity()?;
        let broker = Arc::clone(self);
        let signing = async move { broker.signed_now(&mut *broker.begin_signing().await?).await };
        self.spawn_detached(signing).await
    }

    pub(super) async fn signed_now(
        &self,
        signing: &mut LogSigner,
    ) -> Result<SignedCheckpoint, Error> {
        self.sign(signing).await?;
        let kept = self.store().checkpoint().await?;
        let keys = self.store().log_keys().await?;
        match kept.zip(self.log_signer(signing).await?) {
            Some((kept, signer)) => Ok(SignedCheckpoint {
                size: kept.size,
                note: kept.note,
                verifier: signer.verifier().to_string(),
                keys,
                start: self.store().log_start().await?,
            }),
            None => Err(not_signed()),
        }
    }

    /// Returns a page of the records of a lease, each with its inclusion proof.
    ///
    /// # Errors
    /// The lease has no records, or an error of [`Self::checkpoint`].
    pub async fn prove(
        self: &Arc<Self>,
        caller: Caller,
        id: &LeaseId,
        page: &PageRequest,
    ) -> Result<(SignedCheckpoint, Vec<InclusionProof>), Error> {
        let signed = self.checkpoint(caller).await?;
        let filter = AuditFilter {
            lease_id: Some(id.to_string()),
            ..AuditFilter::default()
        };
        let mut proofs = Vec::new();
        for record in self.store().audit(&filter, page).await? {
            let index = record.seq - 1;
            if let Some(path) = tree::inclusion_proof(index, signed.size) {
                proofs.push(self.proof(index, &path, &signed).await?);
            }
        }
        if proofs.is_empty() && page.after.is_none() {
            return Err(no_lease(id));
        }
        Ok((signed, proofs))
    }

    async fn proof(
        &self,
        index: u64,
        path: &[Range],
        signed: &SignedCheckpoint,
    ) -> Result<InclusionProof, Error> {
        let tiles = tile::tiles_of(path);
        let tiles = self.store().log_tiles(&tiles, signed.size).await?;
        let hashes = tile::hashes(path, &tiles);
        let leaf = self.store().log_leaves(index, 1).await?.pop();
        let (leaf, hashes) = leaf
            .zip(hashes)
            .ok_or_else(|| Error::Internal("the log and its tiles differ".to_owned()))?;
        Ok(InclusionProof {
            leaf,
            index,
            hashes,
            checkpoint: signed.note.clone(),
        })
    }
}

/// Writes a checkpoint to the checkpoint file.
async fn anchored(anchor: &dyn CheckpointFile, note: &str) -> Result<(), StoreError> {
    in_time(ANCHOR, anchor.write(note)).await
}

fn doubt(message: String) -> Error {
    contradicted(
        message,
        "put the newest copy of the store in its place, see that the checkpoint's volume is there, or find \
               out who changed what; revocation works meanwhile. Only then, to go on with an older copy, empty the \
               checkpoint file and restart the broker",
    )
}

/// Returns the error of a call that is refused because the log is in doubt.
pub(super) fn contradicted(message: String, next: &str) -> Error {
    Error::WrongState {
        subject: Subject::AuditLog,
        reason: "LOG_CONTRADICTED",
        message,
        next: next.to_owned(),
    }
}
