//! Revocation while the store accepts no records: issuing stops, revocation continues. The record
//! goes to the journal (the emergency file), and into the log once the store can be written again.

use std::{
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use data_encoding::BASE64;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    audit::leaf,
    broker::{
        Broker, DenialOutcome, Error, RemovalOutcome, Revocation, RevokedLease, in_time,
        policy_writer::UnpersistedDenial,
        ports::{DeleteOutcome, RevokeTarget, StoreError},
        removal::{RecordWith, usable_until_notice},
        revoke::{as_denied, by_id, is_denied_session},
    },
    domain::{
        audit::{AuditEvent, AuditRecord, Event},
        denial::{AffectedSessions, Denial, DenialSession, Scope},
        lease::{EndReason, Lease},
        name::{LeaseId, Name},
        sealing::Sealed,
        service::Suspension,
    },
};

/// Notice in the answer to such a revocation.
const SPOOLED: &str = "the broker's store takes no records: the revocation is in the emergency file and enters the \
                       log, marked late, when the store works again";
/// Notice if the journal cannot be written either.
const IN_MEMORY: &str = "the broker's store takes no records, and neither does the emergency file: the revocation is \
                         in the broker's memory alone; repeat it if the broker restarts before the store works again";
/// Interval at which AWS is asked to accept a denial that the store could not record.
const EVERY: Duration = Duration::from_secs(1);
/// Context that the seal of a journal entry is bound to.
const PLACE: &str = "emergency";

/// Revocations that are not in the log yet.
#[derive(Default)]
pub(super) struct PendingRevocations {
    /// Revocations, oldest first.
    events: Mutex<Vec<AuditEvent>>,
    /// True while the journal has entries; locked while the journal is written.
    in_file: tokio::sync::Mutex<bool>,
}

impl PendingRevocations {
    fn list(&self) -> MutexGuard<'_, Vec<AuditEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broker {
    /// Returns whether a service was suspended and the store does not know it yet.
    #[must_use]
    pub fn is_suspended_in_journal(&self, service: &Name) -> bool {
        let events = self.unrecorded.list();
        events.iter().any(|event| suspends(event, service))
    }

    /// Returns whether a lease, or the lease that it renews, was revoked and the store does not
    /// know it yet. Counts a revocation of the lease alone and one of its service.
    pub(super) fn is_withdrawn(&self, lease: &Lease) -> bool {
        let binding = &lease.binding;
        let ids = [Some(&binding.lease_id), binding.renews.as_ref()];
        let withdraws = |event: &AuditEvent| {
            suspends(event, &binding.grant.service)
                || event.event == Event::LeaseRevoking
                    && ids
                        .into_iter()
                        .flatten()
                        .any(|id| event.lease_id.as_ref() == Some(id))
        };
        self.unrecorded.list().iter().any(withdraws)
    }

    /// Suspends a service in memory and ends its credentials in AWS, or ends in AWS what was issued
    /// under a grant.
    pub(super) async fn revoke_degraded(
        self: &Arc<Self>,
        target: &RevokeTarget,
        suspension: Suspension,
        audit: AuditEvent,
    ) -> Result<Revocation, Error> {
        self.require_service(target.service()).await?;
        let notice = self.append_to_journal(audit).await;
        self.notify_revoked(target);
        let leases = self.live_leases(target, &suspension).await?;
        let (sessions, others): (Vec<_>, Vec<_>) = leases.into_iter().partition(is_denied_session);
        let denials = self.denials_for(target, suspension.at).await?;
        let others = self.end_all(others, RecordWith::Later, None).await;
        let denials = self.deny_degraded(denials).await;
        Ok(Revocation {
            suspension,
            leases: by_id([self.all_as_denied(sessions, &denials), others].concat()),
            denials,
            receipt: None,
            unreadable: 0,
            notice: Some(notice.to_owned()),
        })
    }

    /// Ends the credentials of one lease in AWS.
    pub(super) async fn revoke_lease_degraded(
        &self,
        lease: Lease,
        words: &str,
        audit: AuditEvent,
    ) -> RevokedLease {
        let spooled = self.append_to_journal(audit).await;
        let binding = &lease.binding;
        let scope = Scope::Lease(binding.lease_id.clone());
        self.notify_ended(&binding.grant.service, scope.clone());
        let now = self.now();
        let lease = as_revoked(lease, Some(words), now);
        let mut revoked = if is_denied_session(&lease) {
            let denials = asked(&scope, DenialSession::of(&lease).as_slice(), now);
            let denials = self.deny_degraded(denials).await;
            as_denied(lease, denials.first(), now)
        } else {
            self.as_revoked_since(self.remove_degraded(lease).await, now)
        };
        revoked.notice = Some(match revoked.notice {
            Some(notice) => format!("{notice}; {spooled}"),
            None => spooled.to_owned(),
        });
        revoked
    }

    /// Returns the leases of a service or grant that have not ended, in their state once revoked.
    async fn live_leases(
        &self,
        target: &RevokeTarget,
        suspension: &Suspension,
    ) -> Result<Vec<Lease>, Error> {
        let live = self.store().live_leases(target.service(), target.grant());
        let live = live.await?;
        let words = suspension.reason.as_deref();
        let revoked = |lease| as_revoked(lease, words, suspension.at);
        Ok(live.into_iter().map(revoked).collect())
    }

    /// Returns the denials for the sessions of a service or grant.
    pub(super) async fn denials_for(
        &self,
        target: &RevokeTarget,
        now: Timestamp,
    ) -> Result<Vec<Denial>, Error> {
        let sessions = self.store().last_sessions(target.service(), target.grant());
        let scope = match target {
            RevokeTarget::Service(_) => Scope::Service,
            RevokeTarget::Grant(name) => Scope::Grant(name.grant.clone()),
        };
        Ok(asked(&scope, &sessions.await?, now))
    }

    /// Deletes the credentials of a revoking lease in AWS, without a record.
    pub(super) async fn remove_degraded(&self, lease: Lease) -> RemovalOutcome {
        let now = self.now();
        let open = if lease.is_in_flight(now) {
            Some("it was being issued, and is not handed out".to_owned())
        } else if let Some(notice) = usable_until_notice(&lease, now) {
            Some(notice)
        } else {
            match (
                self.delete_in_aws(&lease).await,
                lease.may_appear_until(now),
            ) {
                (Ok(DeleteOutcome::NotFound), Some(_)) => {
                    Some("AWS shows no such user; the broker looks again".to_owned())
                }
                (Ok(_), _) => None,
                (Err(failure), _) => Some(format!("{failure}; the credential may still work")),
            }
        };
        if open.is_some() {
            return RemovalOutcome {
                lease,
                notice: open,
            };
        }
        RemovalOutcome {
            lease: lease.clone().finish(now).unwrap_or(lease),
            notice: None,
        }
    }

    /// Writes the record of a revocation to the journal. If that fails, the revocation continues,
    /// with its record in memory and in the log of the process. Returns the notice for the caller.
    async fn append_to_journal(&self, audit: AuditEvent) -> &'static str {
        let late = audit.late();
        self.unrecorded.list().push(late.clone());
        let mut in_file = self.unrecorded.in_file.lock().await;
        // An entry may reach the file although its write fails or is not answered in time.
        *in_file = true;
        let added = match self.encode_entry(&late) {
            Ok(entry) => in_time("the emergency file", self.parts.spool.add(&entry)).await,
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        };
        let Err(error) = added else {
            return SPOOLED;
        };
        tracing::error!(%error, event = late.event.as_str(), actor = %late.actor, service = ?late.service,
            lease = ?late.lease_id, "the store is down: this revocation is in memory and in this log only, until the store works again");
        IN_MEMORY
    }

    /// Encodes a record for the journal. Seals it if there is a key for that, so that only the
    /// broker can write entries.
    fn encode_entry(&self, event: &AuditEvent) -> Result<Vec<u8>, Error> {
        let internal = |error: &dyn std::fmt::Display| Error::Internal(error.to_string());
        let record = AuditRecord {
            seq: 0,
            event: event.clone(),
        };
        let leaf = leaf::encode(&record).map_err(|error| internal(&error))?;
        let Some(sealing) = &self.parts.custody.sealing else {
            return Ok(leaf);
        };
        let text = String::from_utf8(leaf).map_err(|error| internal(&error))?;
        let sealed = sealing.seal(PLACE, &text.into());
        let sealed = sealed.map_err(|error| internal(&error))?;
        Ok(BASE64.encode(sealed.as_bytes()).into_bytes())
    }

    /// Returns the record in an entry, if the broker's sealing key opens the entry and the record
    /// is a revocation. The broker writes no other records. Without a sealing key, any entry that
    /// can be decoded is accepted.
    fn decode_entry(&self, entry: &[u8]) -> Option<AuditEvent> {
        let leaf = match &self.parts.custody.sealing {
            None => entry.to_vec(),
            Some(sealing) => {
                let sealed = Sealed::from_bytes(BASE64.decode(entry).ok()?);
                let leaf = sealing.open(PLACE, &sealed).ok()?;
                leaf.expose_secret().as_bytes().to_vec()
            }
        };
        let event = leaf::decode(&leaf).ok()?.event;
        let revocations = [
            Event::ServiceRevoked,
            Event::GrantRevoked,
            Event::LeaseRevoking,
        ];
        let revocation = revocations.contains(&event.event);
        revocation.then(|| event.late())
    }

    /// Loads what an earlier run could not record, and records it if the store works. Called when
    /// the broker starts.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn load_journal(&self) -> Result<(), Error> {
        for entry in self.parts.spool.entries().await? {
            let Some(event) = self.decode_entry(&entry) else {
                // The entry stays in the file: a broker with the key that sealed it may still read
                // it.
                tracing::error!(
                    "skipping an entry of the emergency file that this broker's key does not open; it stays there"
                );
                continue;
            };
            *self.unrecorded.in_file.lock().await = true;
            self.unrecorded.list().push(event);
        }
        if let Err(error) = self.replay_journal().await {
            tracing::error!(%error, "the revocations of the emergency file are not in the log yet");
            self.remember_denials().await;
        }
        Ok(())
    }

    /// Keeps the denials of the earlier run in memory: the store does not know of them.
    async fn remember_denials(&self) {
        let events = self.unrecorded.list().clone();
        for event in events {
            match self.denied_by(&event).await {
                Ok(denials) => {
                    let ready: Vec<Denial> = denials.iter().map(Denial::ready).collect();
                    self.denying.keep_unpersisted(&ready, false);
                }
                Err(error) => {
                    tracing::error!(%error, "what an earlier run has denied is not known");
                }
            }
        }
    }

    async fn denied_by(&self, event: &AuditEvent) -> Result<Vec<Denial>, Error> {
        let now = event.time;
        match (event.event, &event.service, &event.grant, &event.lease_id) {
            (Event::ServiceRevoked, Some(service), ..) => {
                self.denials_for(&RevokeTarget::Service(service.clone()), now)
                    .await
            }
            (Event::GrantRevoked, _, Some(grant), _) => {
                self.denials_for(&RevokeTarget::Grant(grant.clone()), now)
                    .await
            }
            (Event::LeaseRevoking, .., Some(id)) => {
                let session = DenialSession::of(&self.require_lease(id).await?);
                Ok(asked(&Scope::Lease(id.clone()), session.as_slice(), now))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Writes denials that the store could not record. They are recorded, and tested by a canary,
    /// once the store works again.
    async fn deny_degraded(&self, denials: Vec<Denial>) -> Vec<DenialOutcome> {
        let denials: Vec<Denial> = denials.iter().map(Denial::ready).collect();
        self.denying.keep_unpersisted(&denials, false);
        let mut done = Vec::new();
        for denial in denials {
            let notice = match self.write_unpersisted_denial(&denial, Instant::now()).await {
                Ok(()) => {
                    "the denial is written; that AWS refuses is seen once the store works again"
                        .to_owned()
                }
                Err(error) => {
                    format!("{error}; the credential may still work, and the broker goes on trying")
                }
            };
            done.push(DenialOutcome {
                denial,
                refused_after_seconds: None,
                seen_by: None,
                notice: Some(notice),
            });
        }
        done
    }

    async fn write_unpersisted_denial(&self, denial: &Denial, since: Instant) -> Result<(), Error> {
        self.write_denial(denial, since).await?;
        let mut unrecorded = self.denying.unpersisted();
        for kept in unrecorded.iter_mut().filter(|kept| kept.denial == *denial) {
            kept.is_written = true;
        }
        Ok(())
    }

    /// Writes the denials in memory that AWS has not accepted yet, until the store has recorded
    /// them.
    pub(super) async fn run_unpersisted_denials(&self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.write_unpersisted_denials().await;
        }
    }

    async fn write_unpersisted_denials(&self) {
        let kept = self.denying.unpersisted().clone();
        for UnpersistedDenial {
            denial,
            since,
            is_written,
            is_stored,
        } in kept
        {
            if is_stored && self.offer_to_store(&denial).await {
                self.denying
                    .unpersisted()
                    .retain(|kept| kept.denial != denial);
                // Another replica, which did not know of the denial, may have written there.
                if self.store().peers().is_some() {
                    let place = self.parts.placements.of(&denial.against.holder);
                    self.denying.mark_uncertain(&place);
                }
            } else if !is_written
                && let Err(error) = self.write_unpersisted_denial(&denial, since).await
            {
                tracing::warn!(against = %denial.against, %error, "a denial in memory is written later");
            }
        }
    }

    /// Returns whether the store now accepts the change that it could not record, or has recorded a
    /// later one.
    async fn offer_to_store(&self, denial: &Denial) -> bool {
        let put = std::slice::from_ref(denial);
        let taken = self.store().change_denials(put, &[], Vec::new()).await;
        matches!(taken, Ok(()) | Err(StoreError::Conflict))
    }

    /// Records the revocations that could not be recorded at their time.
    ///
    /// # Errors
    /// The store's error; the rest is tried again.
    pub(super) async fn replay_journal(&self) -> Result<(), Error> {
        let first = || self.unrecorded.list().first().cloned();
        while let Some(event) = first() {
            self.replay_entry(event).await?;
            self.unrecorded.list().remove(0);
        }
        if self.unrecorded.list().is_empty() {
            // The store has these denials now.
            self.denying.unpersisted().retain(|kept| kept.is_stored);
        }
        let mut in_file = self.unrecorded.in_file.lock().await;
        // Another revocation may have been added meanwhile.
        if *in_file && self.unrecorded.list().is_empty() {
            let what = "the emergency file";
            let mut unreadable = in_time(what, self.parts.spool.entries()).await?;
            unreadable.retain(|entry| self.decode_entry(entry).is_none());
            in_time(what, self.parts.spool.keep_only(&unreadable)).await?;
            *in_file = false;
            tracing::info!("the revocations of the emergency file are in the log");
        }
        Ok(())
    }

    async fn replay_entry(&self, event: AuditEvent) -> Result<(), StoreError> {
        let suspension = Suspension {
            at: event.time,
            reason: event.detail.clone(),
        };
        let revoke = async |target: RevokeTarget| {
            let revoked = self.store().revoke(&target, &suspension, event.clone());
            let (revoked, _) = revoked.await?;
            self.hand_denials_to_maintenance(&revoked.denials).await;
            Ok(())
        };
        let written = match (event.event, &event.service, &event.grant, &event.lease_id) {
            (Event::ServiceRevoked, Some(service), ..) => {
                revoke(RevokeTarget::Service(service.clone())).await
            }
            (Event::GrantRevoked, _, Some(grant), _) => {
                revoke(RevokeTarget::Grant(grant.clone())).await
            }
            (Event::LeaseRevoking, .., Some(lease)) => {
                self.revoke_from_journal(lease, &event).await
            }
            _ => Err(StoreError::Conflict),
        };
        match written {
            // Nothing is left to revoke: write the record alone.
            Err(StoreError::Conflict) => self.store().record(event).await.map(drop),
            written => written,
        }
    }

    /// Makes denials due at once, because no task is enforcing them.
    async fn hand_denials_to_maintenance(&self, denials: &[Denial]) {
        let due: Vec<Denial> = denials.iter().map(|d| d.make_due(self.now())).collect();
        let left = self.store().change_denials(&due, &[], Vec::new()).await;
        if let Err(error) = left {
            tracing::warn!(%error, "denials that were asked for late are tried in a while");
        }
    }

    /// Revokes a lease late. Conflict when the lease is unknown, or has ended meanwhile.
    async fn revoke_from_journal(
        &self,
        id: &LeaseId,
        event: &AuditEvent,
    ) -> Result<(), StoreError> {
        let words = event.detail.as_deref().unwrap_or_default();
        let cause = EndReason::from_str(words).unwrap_or(EndReason::Revoked(String::new()));
        loop {
            let lease = self.store().lease(id).await?.ok_or(StoreError::Conflict)?;
            let from = lease.revision;
            let revoking = lease.begin_revocation(cause.clone(), self.now());
            let revoking = revoking.map_err(|_| StoreError::Conflict)?;
            let updated = self
                .store()
                .revoke_lease(from, &revoking, event.clone())
                .await;
            // Another task or replica has changed the lease: read it again.
            if matches!(updated, Err(StoreError::Conflict)) {
                continue;
            }
            let (denials, _) = updated?;
            self.hand_denials_to_maintenance(&denials).await;
            return Ok(());
        }
    }
}

/// Returns a lease in its state once the revocation is recorded.
fn as_revoked(lease: Lease, words: Option<&str>, now: Timestamp) -> Lease {
    let cause = EndReason::Revoked(words.unwrap_or_default().to_owned());
    let revoking = lease.clone().begin_revocation(cause, now);
    revoking.unwrap_or(lease)
}

/// Returns denials of these sessions, one for each role and user.
fn asked(scope: &Scope, sessions: &[DenialSession], now: Timestamp) -> Vec<Denial> {
    let concerned = AffectedSessions::of(scope, sessions, now).into_values();
    concerned
        .map(|concerned| Denial::request(concerned, None, now))
        .collect()
}

fn suspends(event: &AuditEvent, service: &Name) -> bool {
    event.event == Event::ServiceRevoked && event.service.as_ref() == Some(service)
}
