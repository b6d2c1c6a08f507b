//! The broker's own access key: imported, stored sealed, and replaced on demand or on schedule.
//! Each step is recorded before the next one, so that after a crash the broker continues from the
//! last recorded step.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use tokio::time::sleep;

use crate::{
    broker::{
        Actor, Broker, Error, on_conflict,
        ports::{AwsFailure, FailureClass, StoreError},
    },
    domain::{
        access::Caller,
        admin_key::{AccessKeyId, AdminKey, InvalidStep, KeptKey, Phase, place},
        approval::ApprovedChange,
        audit::{AuditEvent, Event, Subject},
        credential::AccessKey,
        random::back_off,
        sealing::{SealError, Sealed, SealingKey},
    },
};

/// Interval between two checks for a due step.
const EVERY: Duration = Duration::from_secs(1);
/// Interval between two checks while the store does not answer.
const AFTER_STORE_FAILURE: Duration = Duration::from_secs(30);
/// Time after which a new key that AWS does not list does not exist.
const SETTLED: SignedDuration = SignedDuration::from_mins(5);
/// Longest pause between two attempts at a step; full jitter shortens it.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// Name of the lock under which one replica at a time replaces the admin key.
pub(super) const CLAIM: &str = "admin key";

/// Settings for storing the admin key.
#[derive(Debug, Default)]
pub struct AdminKeyPolicy {
    /// Key that seals the admin key; `None` when the broker stores no admin key.
    pub sealing: Option<SealingKey>,
    /// Age at which the admin key is rotated; `None`: the broker does not rotate it on schedule.
    pub rotate_every: Option<Duration>,
}

/// Status of the admin key.
#[derive(Debug)]
pub struct AdminKeyStatus {
    /// Stored key and its replacement; `None` when the key comes from the standard AWS chain.
    pub kept: Option<AdminKey>,
    /// ARN of the identity behind the current key, or AWS's error.
    pub identity: Result<String, AwsFailure>,
    /// Time of the next scheduled rotation; `None` without a schedule and during a rotation.
    pub rotates_at: Option<Timestamp>,
    /// Current time, to compute ages.
    pub now: Timestamp,
}

impl Broker {
    /// Starts to use the stored key, if there is one. Called when the broker starts.
    ///
    /// # Errors
    /// The key cannot be opened, or the store cannot be read.
    pub async fn load_admin_key(&self) -> Result<(), Error> {
        let Some(kept) = self.store().admin_key().await? else {
            return Ok(());
        };
        let key = self.open(&kept.current)?;
        self.parts.keyring.adopt(&key);
        Ok(())
    }

    /// Returns the status of the admin key.
    ///
    /// # Errors
    /// The store's error. An error of AWS is part of the returned status instead.
    pub async fn admin_key_status(&self, caller: &Caller) -> Result<AdminKeyStatus, Error> {
        let kept = self.store().admin_key().await?;
        self.store()
            .record(self.caller_event(caller, Event::AdminKeyRead))
            .await?;
        Ok(self.status_of(kept).await)
    }

    /// Stores a key and starts to use it, once AWS has accepted it. If it replaces a stored key,
    /// that key is deleted in AWS as in a rotation.
    ///
    /// # Errors
    /// The broker stores no keys, AWS does not accept the key, the key is not an IAM user's, the
    /// broker uses it already, it belongs to another user or account than before, or the import
    /// needs a second operator.
    pub async fn import_admin_key(
        self: &Arc<Self>,
        caller: Caller,
        id: AccessKeyId,
        secret: SecretString,
    ) -> Result<AdminKeyStatus, Error> {
        let broker = Arc::clone(self);
        self.spawn_detached(async move {
            let imported = broker.take_over(&caller, &id, secret).await;
            if let Err(Error::Aws(failure)) = &imported {
                let audit = broker
                    .caller_event(&caller, Event::AdminKeyImported)
                    .access_key(id.as_str())
                    .failed(failure.reason)
                    .aws_request(failure.aws_request_id.as_deref())
                    .detail(&failure.aws_said);
                broker.store().record(audit).await?;
            }
            Ok(broker.status_of(Some(imported?)).await)
        })
        .await
    }

    async fn take_over(
        &self,
        caller: &Caller,
        id: &AccessKeyId,
        secret: SecretString,
    ) -> Result<AdminKey, Error> {
        let sealed = self.seal(id, &secret)?;
        let key = AccessKey {
            id: id.as_str().to_owned(),
            secret,
        };
        let proved = self.parts.keyring.prove(&key).await;
        let admin = proved.map_err(not_imported)?;
        let _no_step_meanwhile = self.rotating.lock().await;
        let _by_others = self.lock(CLAIM).await?;
        let before = self.store().admin_key().await?;
        may_take_over(&admin.arn, before.as_ref())?;
        let change = ApprovedChange::ImportAdminKey {
            access_key_id: id.as_str().to_owned(),
        };
        self.approved(caller, change).await?;
        self.bind_account(Actor::Caller(caller), &admin).await?;
        let kept = KeptKey {
            id: id.clone(),
            secret: sealed,
            since: self.now(),
        };
        let (from, imported) = match before {
            Some(before) if before.current.id == kept.id => {
                return Err(wrong_state(
                    "ADMIN_KEY_KNOWN",
                    "the broker works with this key already",
                    "see `credbroker admin-key status`",
                ));
            }
            Some(before) => (Some(before.revision), before.replaced_by(kept)),
            None => (None, AdminKey::imported(admin.arn, kept)),
        };
        let audit = self.caller_event(caller, Event::AdminKeyImported);
        self.replace_admin_key(from, &imported, audit).await?;
        self.parts.keyring.adopt(&key);
        Ok(imported)
    }

    /// Replaces the stored key by a new one, made by AWS. Returns once the new key is in use; the
    /// old one is deactivated and deleted later.
    ///
    /// # Errors
    /// The broker stores no key, a rotation is in progress, the user has a second key already, or
    /// AWS fails. After a failure of AWS the broker retries, unless AWS has certainly made no key.
    pub async fn rotate_admin_key(
        self: &Arc<Self>,
        caller: Caller,
    ) -> Result<AdminKeyStatus, Error> {
        let broker = Arc::clone(self);
        self.spawn_detached(async move {
            let kept = broker.kept_admin_key().await?;
            let mut key = broker.begin_rotation(Actor::Caller(&caller), kept).await?;
            while matches!(key.phase, Phase::Creating | Phase::Proving { .. }) {
                key = broker.take_step(key).await?;
            }
            Ok(broker.status_of(Some(key)).await)
        })
        .await
    }

    pub(super) async fn kept_admin_key(&self) -> Result<AdminKey, Error> {
        self.store().admin_key().await?.ok_or_else(|| {
            wrong_state(
                "ADMIN_KEY_NOT_KEPT",
                "the admin key comes from the standard AWS chain, so the broker cannot replace it",
                "give it to the broker first: `credbroker admin-key import`",
            )
        })
    }

    /// Continues a rotation that is due, and begins one on schedule, until the broker stops.
    pub(super) async fn run_admin_key(&self) {
        let stop = self.parts.stop.clone();
        let rounds = async {
            loop {
                let tended = self.maintain_admin_key_once().await;
                if let Err(error) = &tended {
                    tracing::warn!(%error, "the admin key's rotation does not go on; tried again");
                }
                sleep(match tended {
                    Err(Error::Store(_)) => AFTER_STORE_FAILURE,
                    _ => EVERY,
                })
                .await;
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    /// Takes the steps that are due.
    ///
    /// # Errors
    /// AWS or the store fails, or a rotation cannot begin. A failure is recorded with the time of
    /// the next attempt, but not a store error, a conflict or an internal error.
    pub async fn maintain_admin_key_once(&self) -> Result<(), Error> {
        if !self.clock_is_certain() {
            return Ok(());
        }
        let Some(mut key) = self.store().admin_key().await? else {
            return Ok(());
        };
        if self.rotates_at(&key).is_some_and(|at| at <= self.now()) {
            key = match self.begin_rotation(Actor::Broker, key.clone()).await {
                Ok(begun) => begun,
                Err(error) => {
                    return self
                        .step_failed(key, Failed::Refused(error))
                        .await
                        .map(drop);
                }
            };
        }
        while key.is_due(self.now()) {
            key = self.take_step(key).await?;
        }
        Ok(())
    }

    /// Takes one step. Only one step is taken at a time: a call that waits for its rotation and the
    /// background task share the steps.
    pub(super) async fn take_step(&self, key: AdminKey) -> Result<AdminKey, Error> {
        let _one_at_a_time = self.rotating.lock().await;
        let _of_all = self.lock(CLAIM).await?;
        let stored = self.store().admin_key().await?;
        let stored = stored.ok_or(Error::Conflict(Subject::AdminKey))?;
        if stored.revision != key.revision {
            return Ok(stored);
        }
        match self.step(key.clone()).await {
            Err(failed) => self.step_failed(key, failed).await,
            Ok(taken) => Ok(taken),
        }
    }

    /// Records a failed step in the key's status and in the audit log, with the time of the next
    /// attempt.
    async fn step_failed(&self, key: AdminKey, failed: Failed) -> Result<AdminKey, Error> {
        let pause = back_off(key.attempts, LONGEST_PAUSE, self.parts.random.as_ref());
        let pause = SignedDuration::try_from(pause).unwrap_or_default();
        let (from, now) = (key.revision, self.now());
        let (later, error) = match failed {
            Failed::Refused(
                error @ (Error::Store(_) | Error::Conflict(_) | Error::Internal(_)),
            ) => {
                return Err(error);
            }
            Failed::Refused(error) if key.phase == Phase::Steady => {
                (key.record_failed_start(error.reason(), now, pause)?, error)
            }
            Failed::Refused(error) => (key.postpone(error.reason(), now, pause)?, error),
            Failed::NothingMade(failure) => (
                key.record_failed_start(failure.reason, now, pause)?,
                failure.into(),
            ),
        };
        let audit = self.event(Actor::Broker, Event::AdminKeyPostponed);
        let audit = audit.failed(error.reason());
        let audit = match &error {
            Error::Aws(failure) => audit
                .aws_request(failure.aws_request_id.as_deref())
                .detail(&failure.aws_said),
            _ => audit,
        };
        self.replace_admin_key(Some(from), &later, audit).await?;
        Err(match error {
            Error::Aws(failure) if later.phase != Phase::Steady => still_rotating(failure).into(),
            error => error,
        })
    }

    async fn step(&self, key: AdminKey) -> Result<AdminKey, Failed> {
        let (now, from) = (self.now(), key.revision);
        let keyring = &self.parts.keyring;
        let (next, event) = match &key.phase {
            Phase::Steady => return Ok(key),
            Phase::Creating => {
                let new = self.create_second_key(&key).await?;
                (key.created(new)?, Event::AdminKeyCreated)
            }
            Phase::Proving { new } => {
                let new = self.open(new)?;
                if let Err(failure) = keyring.prove(&new).await {
                    let known = keyring.keys(&key.user).await?;
                    let settled = now.duration_since(key.phase_since) > SETTLED;
                    if known.contains(&new.id) || !settled {
                        return Err(failure.into());
                    }
                    let again = key.restart(now)?;
                    let audit = self.event(Actor::Broker, Event::AdminKeyRotating);
                    let audit = audit.failed("NEW_KEY_VANISHED");
                    self.replace_admin_key(Some(from), &again, audit).await?;
                    return Ok(again);
                }
                let switched = key.switch(now)?;
                let audit = self.event(Actor::Broker, Event::AdminKeySwitched);
                self.replace_admin_key(Some(from), &switched, audit).await?;
                keyring.adopt(&new);
                return Ok(switched);
            }
            Phase::Grace { old } => {
                keyring.prove(&self.open(&key.current)?).await?;
                for id in old {
                    keyring.deactivate(&key.user, id.as_str()).await?;
                }
                (key.retire(now)?, Event::AdminKeyDeactivated)
            }
            Phase::Retiring { old } => {
                keyring.prove(&self.open(&key.current)?).await?;
                for id in old {
                    keyring.delete(&key.user, id.as_str()).await?;
                }
                // AWS may have made a key after the broker stopped waiting for it.
                self.delete_lost_keys(&key).await?;
                (key.finish(now)?, Event::AdminKeyRotated)
            }
        };
        let audit = self.event(Actor::Broker, event);
        self.replace_admin_key(Some(from), &next, audit).await?;
        Ok(next)
    }

    /// Begins a rotation, only if the user has one key in AWS: any other key that appears later was
    /// made by this rotation.
    pub(super) async fn begin_rotation(
        &self,
        by: Actor<'_>,
        key: AdminKey,
    ) -> Result<AdminKey, Error> {
        let current = key.current.id.as_str();
        if key.phase == Phase::Steady {
            let keys = self.parts.keyring.keys(&key.user).await?;
            if let Some(other) = keys.iter().find(|id| *id != current) {
                return Err(wrong_state(
                    "SECOND_ADMIN_KEY",
                    &format!(
                        "{} has another access key, {other}, which the broker does not keep",
                        key.user
                    ),
                    "AWS takes two keys per user: find out whose it is, delete it, then rotate again",
                ));
            }
        }
        let from = key.revision;
        let begun = key.begin_rotation(self.now())?;
        let audit = self.event(by, Event::AdminKeyRotating);
        self.replace_admin_key(Some(from), &begun, audit).await?;
        Ok(begun)
    }

    /// Makes a second key and returns it sealed. First deletes a key of an earlier attempt, whose
    /// secret was lost with the attempt. Never deletes the current key, which is stored.
    async fn create_second_key(&self, key: &AdminKey) -> Result<KeptKey, Failed> {
        self.open(&key.current)?;
        self.delete_lost_keys(key).await?;
        let made = match self.parts.keyring.create(&key.user).await {
            Err(failure) if failure.class != FailureClass::Uncertain => {
                return Err(Failed::NothingMade(failure));
            }
            made => made?,
        };
        let id: AccessKeyId = made
            .id
            .parse()
            .map_err(|_| Error::Internal("AWS made a key of an unknown form".to_owned()))?;
        Ok(KeptKey {
            secret: self.seal(&id, &made.secret)?,
            id,
            since: self.now(),
        })
    }

    /// Deletes every key of the user except the current one. The stored key is read again before
    /// each deletion, because another replica may have continued a replacement while this process
    /// was paused.
    pub(super) async fn delete_lost_keys(&self, key: &AdminKey) -> Result<(), Error> {
        let keyring = &self.parts.keyring;
        for lost in keyring.keys(&key.user).await? {
            if lost != key.current.id.as_str() {
                let stored = self.store().admin_key().await?;
                if stored.is_none_or(|stored| stored.revision != key.revision) {
                    return Err(Error::Conflict(Subject::AdminKey));
                }
                keyring.deactivate(&key.user, &lost).await?;
                keyring.delete(&key.user, &lost).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn status_of(&self, kept: Option<AdminKey>) -> AdminKeyStatus {
        AdminKeyStatus {
            rotates_at: kept.as_ref().and_then(|kept| self.rotates_at(kept)),
            kept,
            identity: self.admin_arn().await,
            now: self.now(),
        }
    }

    fn rotates_at(&self, key: &AdminKey) -> Option<Timestamp> {
        let every = self.parts.custody.rotate_every?;
        let at = key.current.since.saturating_add(every).ok()?;
        let at = key.due_at.map_or(at, |again| again.max(at));
        (key.phase == Phase::Steady).then_some(at)
    }

    pub(super) async fn replace_admin_key(
        &self,
        from: Option<u64>,
        key: &AdminKey,
        audit: AuditEvent,
    ) -> Result<(), Error> {
        let audit = audit.access_key(key.current.id.as_str());
        let others = key.phase.others().iter().map(AccessKeyId::as_str);
        let others: Vec<&str> = others.collect();
        let audit = if others.is_empty() {
            audit.detail(key.phase.as_str())
        } else {
            audit.detail(&format!(
                "{}; other key: {}",
                key.phase.as_str(),
                others.join(", ")
            ))
        };
        let written: Result<(), StoreError> =
            self.store().replace_admin_key(from, key, audit).await;
        on_conflict(written, || Error::Conflict(Subject::AdminKey))
    }

    fn sealing(&self) -> Result<&SealingKey, Error> {
        self.parts.custody.sealing.as_ref().ok_or_else(|| {
            wrong_state(
                "NO_SEALING_KEY",
                "the broker has nothing to seal a key with",
                "set admin_key.sealing_key_file in its configuration and restart it",
            )
        })
    }

    fn seal(&self, id: &AccessKeyId, secret: &SecretString) -> Result<Sealed, Error> {
        self.sealing()?.seal(&place(id), secret).map_err(not_opened)
    }

    fn open(&self, kept: &KeptKey) -> Result<AccessKey, Error> {
        let opened = self.sealing()?.open(&place(&kept.id), &kept.secret);
        Ok(AccessKey {
            id: kept.id.as_str().to_owned(),
            secret: opened.map_err(not_opened)?,
        })
    }
}

/// Reason why a step was not taken.
enum Failed {
    /// An error after which the step may have had its effect, or not yet.
    Refused(Error),
    /// AWS has certainly made no key.
    NothingMade(AwsFailure),
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

fn wrong_state(reason: &'static str, message: &str, next: &str) -> Error {
    Error::WrongState {
        subject: Subject::AdminKey,
        reason,
        message: message.to_owned(),
        next: next.to_owned(),
    }
}

/// Checks that the new key is an IAM user's, and that it is the user of the stored key, if there is
/// one.
fn may_take_over(user: &str, before: Option<&AdminKey>) -> Result<(), Error> {
    if !user.contains(":user/") {
        return Err(wrong_state(
            "NOT_AN_IAM_USER",
            &format!("the key belongs to {user}, which is not an IAM user"),
            "import the key of the broker's own IAM user: deploy/aws/bootstrap.sh makes one",
        ));
    }
    match before {
        Some(before) if before.user != user => Err(wrong_state(
            "OTHER_USER",
            &format!(
                "the key belongs to {user}, the broker works as {}",
                before.user
            ),
            "import a key of the same user: roles trust that one",
        )),
        _ => Ok(()),
    }
}

fn not_opened(error: SealError) -> Error {
    wrong_state(
        "ADMIN_KEY_SEALED",
        &format!("the kept admin key cannot be opened: {error}"),
        "give the broker the sealing key that it had; without it, give it a new one, start it with an AWS key \
         in the standard chain, and import that key",
    )
}

impl From<InvalidStep> for Error {
    fn from(refused: InvalidStep) -> Self {
        wrong_state(
            "ADMIN_KEY_ROTATING",
            &refused.to_string(),
            "see `credbroker admin-key status`",
        )
    }
}

/// Rewords a refusal by AWS: AWS refuses the imported key, not the current one.
fn not_imported(failure: AwsFailure) -> AwsFailure {
    if failure.class != FailureClass::Refused && failure.reason != "AWS_KEY_NOT_ACCEPTED" {
        return failure;
    }
    AwsFailure {
        class: FailureClass::Refused,
        reason: "ADMIN_KEY_REFUSED",
        message: "AWS does not accept this key".to_owned(),
        next:
            "see that id and secret belong together and that the key is active; nothing was changed"
                .to_owned(),
        retry_after: None,
        ..failure
    }
}

fn still_rotating(failure: AwsFailure) -> AwsFailure {
    AwsFailure {
        next: "the broker continues it; see `credbroker admin-key status`".to_owned(),
        ..failure
    }
}
