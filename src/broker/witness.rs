//! The witness: a separate party that cosigns each checkpoint, but only one that extends those
//! before. So an older log, or another one, cannot replace this one without an objection of the
//! witness. <https://c2sp.org/tlog-witness>

use std::{error::Error as StdError, time::Duration};

use data_encoding::BASE64;
use metrics::{counter, gauge};
use tokio::time::{sleep, timeout};

use crate::{
    audit::{
        checkpoint::Checkpoint,
        note::{NoteError, WitnessKey},
        tile,
        tree::{self, Hash, Range},
    },
    broker::{
        Broker, Error,
        ports::{CosignedCheckpoint, SinkError, StoreError, Witness, WitnessAnswer},
        signing::contradicted,
        wait::Wait,
    },
    domain::random::back_off,
};

/// Lock under which one replica at a time calls the witness.
const CLAIM: &str = "asking the witness";
/// Shortest time between two checkpoints that are sent.
const EVERY: Wait = Wait::seconds(10);
/// Interval of the checks for a newer checkpoint.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest time that the witness may take.
const LIMIT: Wait = Wait::seconds(10);
/// Longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Reason why a checkpoint is not cosigned.
type Failure = Box<dyn StdError + Send + Sync>;

impl Broker {
    /// Has the newest checkpoint cosigned, repeatedly as the log grows, until the broker stops.
    pub async fn run_witness(&self) {
        if let Some(witness) = &self.parts.witness {
            let asking = self.ask_for_ever(witness.as_ref());
            self.parts.stop.run_until_cancelled(asking).await;
        }
    }

    async fn ask_for_ever(&self, witness: &dyn Witness) {
        let failed = counter!("credbroker_audit_witness_failures_total");
        // The metric is exported from the start.
        failed.increment(0);
        let mut failures = 0;
        loop {
            let pause = match self.ask_if_grown(witness).await {
                Ok(asked) => {
                    failures = 0;
                    if asked { EVERY.length() } else { PAUSE }
                }
                Err(error) => {
                    failed.increment(1);
                    let name = witness.key().name();
                    tracing::warn!(witness = name, %error, "the witness has not cosigned the log and is asked again");
                    failures += 1;
                    back_off(failures - 1, LONGEST_PAUSE, self.parts.random.as_ref())
                }
            };
            sleep(pause).await;
        }
    }

    /// Has the newest checkpoint cosigned, if it covers more records than the last cosigned one.
    /// Returns whether it does.
    async fn ask_if_grown(&self, witness: &dyn Witness) -> Result<bool, Failure> {
        if self.check_log_integrity().is_err() || !self.hold_lock("witness").await {
            return Ok(false);
        }
        let _asked_by_nobody_else = self.lock(CLAIM).await?;
        let known = self.size_cosigned().await?;
        tell(known);
        match self.store().checkpoint().await? {
            Some(newest) if newest.size > known => {
                self.ask(witness, &newest.note, known).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Compares the log with what the witness has cosigned. Called at the start, after the log's
    /// own integrity check. A witness that does not answer does not delay the start for long.
    ///
    /// # Errors
    /// The store's error.
    pub(super) async fn ask_witness(&self) -> Result<(), Error> {
        let newest = self.store().checkpoint().await?;
        let Some((witness, newest)) = self.parts.witness.as_ref().zip(newest) else {
            return Ok(());
        };
        let asking = async {
            let _asked_by_nobody_else = self.lock(CLAIM).await?;
            let known = self.size_cosigned().await?;
            self.ask(witness.as_ref(), &newest.note, known).await
        };
        if let Err(error) = asking.await {
            let name = witness.key().name();
            tracing::warn!(witness = name, %error, "the witness has not confirmed the log; the broker starts all the same");
        }
        Ok(())
    }

    /// Returns the number of records that the witness has cosigned, as far as the store knows.
    pub(super) async fn size_cosigned(&self) -> Result<u64, StoreError> {
        let cosigned = self.store().cosigned().await?;
        Ok(cosigned.map_or(0, |cosigned| cosigned.size))
    }

    /// Has the witness cosign a checkpoint. `known`: number of records that it has cosigned, as far
    /// as the store knows. If the witness contradicts the log, nothing is issued any more.
    async fn ask(&self, witness: &dyn Witness, note: &str, known: u64) -> Result<(), Failure> {
        let limit = LIMIT.length();
        let answered = timeout(limit, self.cosign(witness, note, known)).await;
        if let Some(doubt) = answered.unwrap_or_else(|_| Err(SinkError::late(limit).into()))? {
            self.record_log_doubt(doubt);
        }
        Ok(())
    }

    /// Submits a checkpoint to the witness. Saves the cosigned checkpoint, or returns the witness's
    /// contradiction of the log.
    async fn cosign(
        &self,
        witness: &dyn Witness,
        note: &str,
        known: u64,
    ) -> Result<Option<Error>, Failure> {
        let checkpoint = self.read_checkpoint(note).await??;
        let (size, key) = (checkpoint.size, witness.key());
        let mut old = known.min(size);
        let mut answer = self.submit(witness, note, &checkpoint, old).await?;
        if let WitnessAnswer::Conflict(Some(other)) = answer
            && other <= size
            && other != old
        {
            old = other;
            answer = self.submit(witness, note, &checkpoint, old).await?;
        }
        match answer {
            WitnessAnswer::Cosigned(lines) => {
                let note = key.cosigned(note, &lines).map_err(not_by(key))?;
                let cosigned = CosignedCheckpoint { size, note };
                self.store().save_cosigned(&cosigned).await?;
                tell(size);
                Ok(None)
            }
            other => {
                let doubt = against(&other, key, old, size)?;
                match other {
                    // Another replica has shown the witness a later checkpoint of the same log
                    // meanwhile.
                    WitnessAnswer::Conflict(Some(told))
                        if told > size && self.store().log_head().await?.size >= told =>
                    {
                        Err("it has been shown a later checkpoint meanwhile".into())
                    }
                    _ => Ok(Some(doubt)),
                }
            }
        }
    }

    async fn submit(
        &self,
        witness: &dyn Witness,
        note: &str,
        checkpoint: &Checkpoint,
        old: u64,
    ) -> Result<WitnessAnswer, Failure> {
        let proof = self.consistency(old, checkpoint).await?;
        let lines: String = proof
            .iter()
            .map(|hash| BASE64.encode(hash) + "\n")
            .collect();
        let body = format!("old {old}\n{lines}\n{note}");
        Ok(witness.add_checkpoint(body).await?)
    }

    /// Returns the proof that the log of this checkpoint begins with its first `old` records. The
    /// proof is verified here, so a witness that refuses it has seen other records.
    async fn consistency(&self, old: u64, checkpoint: &Checkpoint) -> Result<Vec<Hash>, Error> {
        let Checkpoint { size, root, .. } = checkpoint;
        let unproven = || {
            let why = "they have been pruned, or the log and its tiles differ";
            Error::Internal(format!(
                "the first {old} records cannot be gone on from: {why}"
            ))
        };
        let ranges = tree::consistency_proof(old, *size).ok_or_else(unproven)?;
        let before = Range { start: 0, end: old };
        let mut tiles = tile::tiles_of(&ranges);
        tiles.extend(tile::tiles_of(&[before]));
        let tiles = self.store().log_tiles(&tiles, *size).await?;
        let proof = tile::hashes(&ranges, &tiles);
        let (proof, old_root) = proof.zip(tile::root(old, &tiles)).ok_or_else(unproven)?;
        let holds = tree::extends(root, *size, &old_root, old, &proof);
        holds.then_some(proof).ok_or_else(unproven)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn tell(cosigned: u64) {
    gauge!("credbroker_audit_witnessed_size").set(cosigned as f64);
}

/// Returns how an answer that is no cosignature contradicts a log of `size` records that was shown
/// to extend its first `old`. The error says why the answer contradicts nothing.
fn against(answer: &WitnessAnswer, key: &WitnessKey, old: u64, size: u64) -> Result<Error, String> {
    match *answer {
        WitnessAnswer::Conflict(Some(other)) if other > size => Ok(behind(key, size, other)),
        // The witness knows another root of that size.
        WitnessAnswer::Conflict(told) if old == size && told.unwrap_or(size) == size => {
            Ok(beside(key, old))
        }
        // A proof from size 0 cannot be wrong.
        WitnessAnswer::Inconsistent if old > 0 => Ok(beside(key, old)),
        WitnessAnswer::Refused(status) => Err(refused(status)),
        _ => Err("it does not say from which size it goes on".to_owned()),
    }
}

fn not_by(key: &WitnessKey) -> impl FnOnce(NoteError) -> String {
    move |error| {
        let name = key.name();
        format!(
            "what it answers is no cosignature by {name}: {error}; see that audit.witness.key is its key"
        )
    }
}

fn refused(status: u16) -> String {
    let tells = "`credbroker audit checkpoint -o json` prints it";
    match status {
        403 => format!(
            "it does not trust the log's key (403): have its operator add the newest one; {tells}"
        ),
        404 => format!(
            "it does not know the log (404): have its operator add the log's key, {tells}, and see that audit.witness.url is its submission prefix"
        ),
        _ => format!("it answered {status}; see that audit.witness.url is its submission prefix"),
    }
}

fn behind(key: &WitnessKey, size: u64, cosigned: u64) -> Error {
    doubt(format!(
        "the audit log was signed last with {size} records, and the witness {} has cosigned {cosigned}: the store is an older copy",
        key.name()
    ))
}

fn beside(key: &WitnessKey, cosigned: u64) -> Error {
    doubt(format!(
        "the first {cosigned} records are not those that the witness {} has cosigned",
        key.name()
    ))
}

fn doubt(message: String) -> Error {
    contradicted(
        message,
        "put the newest copy of the store in its place, or find out who changed what; revocation works \
               meanwhile. A witness takes nothing back: only then, to go on with this log, take audit.witness out of \
               the configuration and restart the broker",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_speaks_against_the_log_only_where_it_can() {
        let key = "w+ad3e372c+BNy/co4C1Hn1p+INwJrfUlgz7W55dSZReusH/GhUhJ/G";
        let key: WitnessKey = key.parse().unwrap();
        let says = |answer, old| match against(&answer, &key, old, 10) {
            Ok(error) => error.to_string(),
            Err(failure) => failure,
        };
        let (older, other) = ("the store is an older copy", "are not those that");
        let (unclear, refused) = ("it does not say from which", "have its operator add");
        for (answer, old, words) in [
            (WitnessAnswer::Conflict(Some(11)), 7, older),
            (WitnessAnswer::Conflict(Some(11)), 10, older),
            (WitnessAnswer::Conflict(Some(10)), 10, other),
            (WitnessAnswer::Conflict(None), 10, other),
            (WitnessAnswer::Conflict(None), 7, unclear),
            (WitnessAnswer::Conflict(Some(8)), 7, unclear),
            (WitnessAnswer::Conflict(Some(7)), 10, unclear),
            (WitnessAnswer::Inconsistent, 7, other),
            (WitnessAnswer::Inconsistent, 0, unclear),
            (WitnessAnswer::Refused(403), 7, refused),
            (WitnessAnswer::Refused(404), 7, refused),
            (WitnessAnswer::Refused(500), 7, "it answered 500"),
        ] {
            let said = says(answer.clone(), old);
            assert!(said.contains(words), "{answer:?} {old}: {said}");
        }
    }
}
