//! The key that signs the log. The first start creates it; an operator may rotate it. A record of
//! the log announces each later key, and the previous key signs the log with that record. So any of
//! the keys leads to the next one.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use data_encoding::BASE64;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use tokio::sync::MutexGuard;

use crate::{
    audit::{checkpoint::Checkpoint, note::Signer},
    broker::{
        Actor, Broker, Error, SignedCheckpoint,
        locks::LockGuard,
        ports::{LogHead, LogKey},
    },
    domain::{
        access::Caller,
        audit::{AuditEvent, Event, Subject},
        sealing::SealingKey,
    },
};

/// Length of a seed in bytes (RFC 8032).
const SEED_LENGTH: usize = 32;

/// State of the log signer. One task signs at a time.
#[derive(Default)]
pub(super) struct LogSigner {
    /// The key in use; `None` until it is loaded.
    signer: Option<Signer>,
    /// Number of records that are known to be signed.
    pub(super) size: u64,
    /// Fencing token of the last lock; `None` if the store serves one broker alone.
    epoch: Option<u64>,
}

/// Exclusive access to the log signer, within the process and across replicas.
pub(super) struct ExclusiveSigner<'a> {
    signing: MutexGuard<'a, LogSigner>,
    _claim: LockGuard,
}

impl Deref for ExclusiveSigner<'_> {
    type Target = LogSigner;

    fn deref(&self) -> &LogSigner {
        &self.signing
    }
}

impl DerefMut for ExclusiveSigner<'_> {
    fn deref_mut(&mut self) -> &mut LogSigner {
        &mut self.signing
    }
}

/// Context to which the seed of a log key is sealed.
fn place(number: usize) -> String {
    format!("audit_keys/seed/{number}")
}

impl Broker {
    /// Rotates the key that signs the log.
    ///
    /// # Errors
    /// The log is in doubt or is not signed; the store's error.
    pub async fn rotate_log_key(
        self: &Arc<Self>,
        caller: Caller,
    ) -> Result<SignedCheckpoint, Error> {
        let broker = Arc::clone(self);
        self.spawn_detached(async move { broker.rotate(&caller).await })
            .await
    }

    async fn rotate(&self, caller: &Caller) -> Result<SignedCheckpoint, Error> {
        self.check_log_integrity()?;
        let mut signing = self.begin_signing().await?;
        let before = self.log_signer(&mut signing).await?;
        let before = before.ok_or_else(not_signed)?.verifier().clone();
        // An earlier rotation may have been interrupted. Loading the key again completes it.
        signing.signer = None;
        let newest = self.log_signer(&mut signing).await?;
        if newest.is_none_or(|newest| *newest.verifier() == before) {
            let audit = self.caller_event(caller, Event::LogKeyMade);
            let next = self.make_log_key(audit).await?;
            if let Some(newest) = &signing.signer {
                self.hand_over(newest, &next).await?;
            }
            signing.signer = Some(next);
        }
        self.signed_now(&mut signing).await
    }

    /// Waits for exclusive access to the signer, within the process and across replicas. Unless
    /// this replica held the lock last, loads the signed size again and drops the key: another
    /// replica may have signed meanwhile, perhaps with another key.
    pub(super) async fn begin_signing(&self) -> Result<ExclusiveSigner<'_>, Error> {
        let mut signing = self.signing.lock().await;
        let claim = self.lock("signing").await?;
        if claim.epoch() != signing.epoch.map(|last| last + 1) {
            let kept = self.store().checkpoint().await?;
            *signing = LogSigner {
                signer: None,
                size: kept.map_or(0, |kept| kept.size),
                epoch: None,
            };
        }
        signing.epoch = claim.epoch();
        Ok(ExclusiveSigner {
            signing,
            _claim: claim,
        })
    }

    /// Returns the key in use; `None` if there is no key to seal it with.
    pub(super) async fn log_signer<'a>(
        &self,
        signing: &'a mut LogSigner,
    ) -> Result<Option<&'a Signer>, Error> {
        if let (None, Some(sealing)) = (&signing.signer, &self.parts.custody.sealing) {
            signing.signer = Some(self.load_log_key(sealing).await?);
        }
        Ok(signing.signer.as_ref())
    }

    /// Loads the newest key, or creates the first one. If the key cannot be opened because its
    /// sealing key was lost, creates another; the log announces that key before its first use.
    async fn load_log_key(&self, sealing: &SealingKey) -> Result<Signer, Error> {
        let keys = self.store().log_keys().await?;
        let name = self.log_name().await?;
        let open = |number: usize| opened(sealing, &name, number, keys.get(number - 1)?);
        let Some(newest) = keys.last() else {
            return self.make_first_log_key().await;
        };
        let Some(signer) = open(keys.len()) else {
            if self.claims.living() > 1 {
                // The other replicas have the sealing key of this log key; this replica has
                // another.
                return Err(other_sealing_key());
            }
            tracing::error!("the key of the audit log cannot be opened; another follows it");
            return self.make_first_log_key().await;
        };
        // The process may have died before the previous key announced this one.
        if newest.handover.is_none()
            && keys.len() > 1
            && let Some(before) = open(keys.len() - 1)
        {
            self.hand_over(&before, &signer).await?;
        }
        Ok(signer)
    }

    async fn make_first_log_key(&self) -> Result<Signer, Error> {
        self.make_log_key(self.event(Actor::Broker, Event::LogKeyMade))
            .await
    }

    async fn make_log_key(&self, audit: AuditEvent) -> Result<Signer, Error> {
        let sealing = self.parts.custody.sealing.as_ref().ok_or_else(not_signed)?;
        let number = self.store().log_keys().await?.len() + 1;
        let mut seed = vec![0; SEED_LENGTH];
        self.parts.random.fill(&mut seed);
        let seed = SecretSlice::from(seed);
        let text = SecretString::from(BASE64.encode(seed.expose_secret()));
        let signer = Signer::new(&self.log_name().await?, &seed).map_err(refused)?;
        let made = LogKey {
            verifier: signer.verifier().to_string(),
            seed: sealing.seal(&place(number), &text).map_err(refused)?,
            since: self.now(),
            handover: None,
        };
        let audit = audit.detail(&made.verifier);
        self.store()
            .add_log_key(number as u64, &made, audit)
            .await?;
        Ok(signer)
    }

    /// Signs the log with the previous key, to announce the next one.
    async fn hand_over(&self, before: &Signer, next: &Signer) -> Result<(), Error> {
        let head = checkpoint(before, &self.store().log_head().await?);
        let note = before
            .sign(&head.handover_text(next.verifier()))
            .map_err(refused)?;
        let next = next.verifier().to_string();
        Ok(self.store().hand_over_log_key(&next, &note).await?)
    }

    /// Returns the globally unique name of the log.
    async fn log_name(&self) -> Result<String, Error> {
        Ok(format!("credbroker/{}", self.store().deployment().await?))
    }
}

/// Returns the checkpoint of this head, signed.
pub(super) fn signed(signer: &Signer, head: &LogHead) -> Result<String, Error> {
    let text = checkpoint(signer, head).text();
    signer.sign(&text).map_err(refused)
}

fn checkpoint(signer: &Signer, head: &LogHead) -> Checkpoint {
    Checkpoint {
        origin: signer.verifier().name().to_owned(),
        size: head.size,
        root: head.root,
    }
}

fn opened(sealing: &SealingKey, name: &str, number: usize, kept: &LogKey) -> Option<Signer> {
    let text = sealing.open(&place(number), &kept.seed).ok()?;
    let seed = BASE64.decode(text.expose_secret().as_bytes()).ok()?;
    let signer = Signer::new(name, &SecretSlice::from(seed)).ok()?;
    (signer.verifier().to_string() == kept.verifier).then_some(signer)
}

fn other_sealing_key() -> Error {
    Error::WrongState {
        subject: Subject::AuditLog,
        reason: "OTHER_SEALING_KEY",
        message: "the log's key is sealed with another key than this broker has, and other brokers work on the store"
            .to_owned(),
        next: "give all brokers the same admin_key.sealing_key_file and restart this one"
            .to_owned(),
    }
}

pub(super) fn not_signed() -> Error {
    Error::WrongState {
        subject: Subject::AuditLog,
        reason: "LOG_NOT_SIGNED",
        message: "the audit log is not signed: there is nothing to seal its key with".to_owned(),
        next: "set admin_key.sealing_key_file in the broker's configuration and restart it"
            .to_owned(),
    }
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Internal(format!("the log's key: {error}"))
}
