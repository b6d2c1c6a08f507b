//! Denials of sessions in AWS: written, and seen to be enforced by a canary (`canary`). Repair and
//! lifting are in `denial_maintenance`. The content of a policy is computed from the denials in the
//! store, and from those in memory that the store could not record.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::mpsc::UnboundedSender,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    broker::{
        Actor, Broker, Error,
        canary::{NoCanary, ObservedRefusal, UNMET_AFTER},
        denial_outcome::{DenialOutcome, stands_in},
        on_conflict,
        policy_writer::LockedLocation,
        ports::{
            AwsFailure, FailureClass, LeaseTransition, PageRequest, PolicyState, PolicyWritten,
            StoreError,
        },
        removal::end_event,
        revoke::Progress,
    },
    domain::{
        audit::{AuditEvent, Event, Subject},
        denial::{Denial, PolicyLocation, PolicyOwner, Scope, UnknownStatements, document, widen},
        lease::Lease,
        policy::Document,
        random::back_off,
    },
};

/// Longest time that AWS may take to write one policy.
pub(super) const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// Number of canaries for one denial that is in AWS already when its canary is made.
const TRIES: u32 = 3;
/// Longest pause between two attempts.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Number of leases that are recorded as ended in one transaction.
const BATCH: u32 = 500;

/// Denial that is in AWS after a write: the requested one, or a broader one.
pub(super) struct Standing {
    denial: Denial,
    notice: Option<String>,
}

impl Broker {
    /// Enforces these denials concurrently, each as far as AWS allows it now.
    pub(super) async fn deny(
        self: &Arc<Self>,
        denials: Vec<Denial>,
        progress: Option<&UnboundedSender<Progress>>,
    ) -> Vec<DenialOutcome> {
        let mut tasks = JoinSet::new();
        for denial in denials {
            let (broker, progress) = (Arc::clone(self), progress.cloned());
            tasks.spawn(async move {
                let denied = broker.apply_denial(denial, progress.as_ref()).await;
                tell(progress.as_ref(), || Progress::Denied(denied.clone()));
                denied
            });
        }
        let mut done = tasks.join_all().await;
        done.sort_by(|a, b| a.denial.against.cmp(&b.denial.against));
        done
    }

    pub(super) async fn apply_denial(
        &self,
        denial: Denial,
        progress: Option<&UnboundedSender<Progress>>,
    ) -> DenialOutcome {
        let asked = denial.clone();
        let _mark = self.denying.mark(&asked.against);
        match Box::pin(self.attempt_denial(denial, progress)).await {
            Ok(denied) => denied,
            Err(Error::Conflict(_)) => DenialOutcome {
                denial: asked,
                refused_after_seconds: None,
                seen_by: None,
                notice: Some("another replica is applying it".to_owned()),
            },
            Err(error) => DenialOutcome {
                denial: asked,
                refused_after_seconds: None,
                seen_by: None,
                notice: Some(format!("{error}; the broker goes on trying")),
            },
        }
    }

    async fn attempt_denial(
        &self,
        denial: Denial,
        progress: Option<&UnboundedSender<Progress>>,
    ) -> Result<DenialOutcome, Error> {
        self.account_is_ours().await?;
        let (mut denial, mut tries) = (denial, 0);
        loop {
            tries += 1;
            let (reaching, trial) = match self.prepare_canary(denial.clone()).await {
                // Revocation continues while nothing can be recorded.
                Err(Error::Store(error)) => (denial, Err(NoCanary::Because(error.to_string()))),
                prepared => prepared?,
            };
            let ready = self.mark_ready(reaching).await?;
            let standing = match self.write_denial(&ready, Instant::now()).await {
                Ok(standing) => standing,
                Err(error) => {
                    // The denial may have been made broader before the write failed.
                    let standing = self.effective_denial(&ready).await?;
                    return self.postpone_denial(standing, error).await;
                }
            };
            if tries == 1 {
                tell(progress, || Progress::Written(standing.denial.clone()));
            }
            let why = match trial {
                Ok(trial) => match self
                    .wait_until_refused_by_aws(&standing.denial, trial)
                    .await
                {
                    Ok(seen) => return self.confirm_denial(standing, seen).await,
                    Err(why) => why,
                },
                Err(NoCanary::Stood) if tries < TRIES => {
                    sleep(UNMET_AFTER).await;
                    denial = standing.denial;
                    continue;
                }
                Err(untried) => untried.to_string(),
            };
            let unseen = AwsFailure::deferred("NOT_SEEN_REFUSED", why, LONGEST_PAUSE);
            return self.postpone_denial(standing.denial, unseen.into()).await;
        }
    }

    /// Marks a denial in the store as ready to be written. Each write of its policy, by any
    /// replica, then includes it.
    async fn mark_ready(&self, denial: Denial) -> Result<Denial, Error> {
        let ready = denial.ready();
        let put = std::slice::from_ref(&ready);
        match self.store().change_denials(put, &[], Vec::new()).await {
            // Revocation continues while nothing can be recorded.
            Err(StoreError::Unavailable(error)) => {
                tracing::error!(%error, against = %ready.against, "a denial is in memory alone");
                let denying = &self.denying;
                denying.keep_unpersisted(std::slice::from_ref(&ready), true);
            }
            changed => on_conflict(changed, || Error::Conflict(subject(&denial)))?,
        }
        Ok(ready)
    }

    /// Writes the policy that a denial belongs to, unless that was done after `since`.
    pub(super) async fn write_denial(
        &self,
        denial: &Denial,
        since: Instant,
    ) -> Result<Standing, Error> {
        let place = self.parts.placements.of(&denial.against.holder);
        let mut written = self.lock_location(&place).await?;
        let (denials, document, notice) = self.write_location(&place, &mut written, since).await?;
        if let Some(failure) = written.put.missed.get(&denial.against.holder) {
            return Err(failure.clone().into());
        }
        let standing = stands_in(&denials, denial);
        let standing = standing.ok_or_else(|| Error::Conflict(subject(denial)))?;
        let size = document.as_ref().map_or(0, Document::size);
        let audit = self
            .event(Actor::Broker, Event::DenialWritten)
            .denial(denial)
            .aws_request(written.put.aws_request_id.as_deref())
            .detail(&format!(
                "{}; {size} of {} characters",
                describe_leases(standing),
                place.room()
            ));
        if let Err(error) = self.store().record(audit).await {
            // Revocation continues while nothing can be recorded.
            tracing::error!(%error, %place, "a denial is written and not recorded");
        }
        Ok(Standing {
            denial: standing.written(self.now()),
            notice,
        })
    }

    /// Writes the policy of a location as the store has it, unless that was done after `since`.
    pub(super) async fn write_location(
        &self,
        place: &PolicyLocation,
        written: &mut LockedLocation,
        since: Instant,
    ) -> Result<(Vec<Denial>, Option<Document>, Option<String>), Error> {
        let (mut room, mut widened) = (place.room(), None);
        loop {
            let (denials, document, broader) = self.fit(place, room).await?;
            widened = broader.or(widened);
            let holders = holders(&denials);
            let is_there = written.at.is_some_and(|at| at >= since)
                && written.document == document
                && holders.is_subset(&written.attached);
            if is_there {
                return Ok((denials, document, widened));
            }
            if !written.claim.is_certainly_held() {
                // The process was paused for a while: another replica may be writing there.
                self.lock_in_cluster(place, written).await?;
                continue;
            }
            let new: BTreeSet<PolicyOwner> =
                holders.difference(&written.attached).cloned().collect();
            match self.write_policy(place, &new, document.as_ref()).await {
                // Other policies of the role use up the same space.
                Err(failure) if is_over_size_limit(place, &failure) && document.is_some() => {
                    room = document
                        .as_ref()
                        .map_or(0, Document::size)
                        .saturating_sub(1);
                }
                Err(failure) => {
                    written.at = None;
                    if !matches!(written.claim.is_held().await, Ok(true)) {
                        // The failed write may have had its effect nevertheless, and another
                        // replica does not know of it.
                        self.denying.mark_uncertain(place);
                    }
                    return Err(failure.into());
                }
                Ok(put) => {
                    let mut attached = std::mem::take(&mut written.attached);
                    attached.extend(new);
                    attached.retain(|holder| !put.missed.contains_key(holder));
                    (written.at, written.attached) = (Some(Instant::now()), attached);
                    (written.document, written.put) = (document.clone(), put);
                    written.emptied = false;
                    match written.claim.is_held().await {
                        // Another replica has written meanwhile, and this write may have replaced
                        // its policy.
                        Ok(false) => {
                            self.lock_in_cluster(place, written).await?;
                            continue;
                        }
                        Err(_) => self.denying.mark_uncertain(place),
                        Ok(true) => {}
                    }
                    return Ok((denials, document, widened));
                }
            }
        }
    }

    async fn write_policy(
        &self,
        place: &PolicyLocation,
        holders: &BTreeSet<PolicyOwner>,
        document: Option<&Document>,
    ) -> Result<PolicyWritten, AwsFailure> {
        self.enter(place).await?;
        let writing = self.parts.denier.write(place, holders, document);
        let written = timeout(WRITE_LIMIT, writing).await;
        let written = written.unwrap_or_else(|_| Err(AwsFailure::no_answer(WRITE_LIMIT)));
        let silent = [FailureClass::Unavailable, FailureClass::Uncertain];
        let is_silent = written
            .as_ref()
            .is_err_and(|failure| silent.contains(&failure.class));
        self.denying
            .is_unanswered
            .store(is_silent, Ordering::Relaxed);
        written
    }

    /// Prepares to change policies in the account of a location. In another account, records the
    /// session by which they are changed.
    pub(super) async fn enter(&self, place: &PolicyLocation) -> Result<(), AwsFailure> {
        let Some(entered) = self.parts.denier.open_account(place.account()).await? else {
            return Ok(());
        };
        let audit = self
            .event(Actor::Broker, Event::AccountEntered)
            .holder(&PolicyOwner::Role(entered.role))
            .access_key(&entered.access_key_id)
            .aws_request(entered.aws_request_id.as_deref());
        if let Err(error) = self.store().record(audit).await {
            // Revocation continues while nothing can be recorded.
            tracing::error!(%error, %place, "an account is entered, and that is not recorded");
        }
        Ok(())
    }

    /// Returns the denials of a location and their policy. Makes denials broader until the policy
    /// fits into `room` characters, and returns a text on what was made broader.
    pub(super) async fn fit(
        &self,
        place: &PolicyLocation,
        room: usize,
    ) -> Result<(Vec<Denial>, Option<Document>, Option<String>), Error> {
        let (mut widened, unknown) = (None, self.unknown_at(place).await?);
        loop {
            let denials = self.denials_at(place).await?;
            let policy = match &unknown {
                None => document(&denials),
                Some(unknown) => unknown.beside(&denials),
            };
            let policy = policy.map_err(|error| Error::Internal(error.to_string()))?;
            let size = policy.as_ref().map_or(0, Document::size);
            if size <= room {
                return Ok((denials, policy, widened));
            }
            let Some((put, remove)) = widen(&denials, self.now()) else {
                return Err(no_room(place, size, room).into());
            };
            let words = describe_widened(place, &put);
            tracing::warn!(%place, "{words}");
            let audit = |denial: &Denial| {
                let event = self.event(Actor::Broker, Event::DenialWidened);
                event.denial(denial).detail(&words)
            };
            let audit = put.iter().map(audit).collect();
            match self.store().change_denials(&put, &remove, audit).await {
                // Another revocation has changed one of the denials: read them again.
                Err(StoreError::Conflict) => continue,
                changed => changed?,
            }
            for denial in &put {
                self.notify_ended(&denial.against.service, Scope::Service);
            }
            widened = Some(words);
        }
    }

    /// Returns the statements in AWS at this location that the store may not know: the store may be
    /// an older copy, or hold rows that cannot be read.
    async fn unknown_at(&self, place: &PolicyLocation) -> Result<Option<UnknownStatements>, Error> {
        let keeps = self.denying.keeps_unknown.load(Ordering::Relaxed)
            || self.store().denials().await?.unreadable > 0;
        if !keeps {
            return Ok(None);
        }
        self.enter(place).await?;
        let found = self.parts.denier.read(place, &BTreeSet::new()).await?;
        Ok(match found {
            PolicyState::Policy(policy) => Some(UnknownStatements::of(&policy, self.now())),
            PolicyState::Nothing | PolicyState::Other => None,
        })
    }

    /// Returns the denial itself, or the broader one that has replaced it.
    async fn effective_denial(&self, denial: &Denial) -> Result<Denial, Error> {
        let place = self.parts.placements.of(&denial.against.holder);
        let denials = self.denials_at(&place).await?;
        let broader = stands_in(&denials, denial);
        let broader = broader.filter(|broader| broader.against != denial.against);
        Ok(broader.unwrap_or(denial).clone())
    }

    /// Returns the denials that are to be in the policy of a location.
    async fn denials_at(&self, place: &PolicyLocation) -> Result<Vec<Denial>, StoreError> {
        let now = self.now();
        let mut denials = self.store().denials().await?.known;
        let unrecorded = self.denying.unpersisted();
        denials.extend(unrecorded.iter().map(|kept| kept.denial.clone()));
        drop(unrecorded);
        let stands = |denial: &Denial| {
            let is_written = denial.denied_before.is_some() && !denial.is_expired(now);
            is_written && self.parts.placements.of(&denial.against.holder) == *place
        };
        denials.retain(stands);
        Ok(denials)
    }

    /// Ends the leases of the sessions that AWS refuses, then records that AWS enforces the denial.
    async fn confirm_denial(
        &self,
        standing: Standing,
        seen: ObservedRefusal,
    ) -> Result<DenialOutcome, Error> {
        let Standing { denial, notice } = standing;
        let said = format!("{}: {}", seen.by, seen.said);
        let now = self.now();
        self.mark_sessions_revoked(&denial, now).await?;
        let confirmed = match self.record_confirmed(&denial, &said, now).await {
            Err(Error::Conflict(_)) => self.accept_confirmation(&denial, &said, now).await?,
            confirmed => confirmed?,
        };
        let after = now.duration_since(denial.asked_at);
        self.denying.settling.keep(confirmed.clone(), seen.trial);
        Ok(DenialOutcome {
            denial: confirmed,
            refused_after_seconds: Some(after.as_secs_f64()),
            seen_by: Some(seen.by),
            notice,
        })
    }

    /// Confirms a denial that was changed while its canary was tested. If several denials became
    /// one, each of their canaries confirms that one. If a reinstatement only added a cutoff, the
    /// denial is still part of what was seen to be enforced. A denial that was requested again, or
    /// whose cutoff another replica has moved to a later time, is not confirmed.
    async fn accept_confirmation(
        &self,
        seen: &Denial,
        said: &str,
        now: Timestamp,
    ) -> Result<Denial, Error> {
        let place = self.parts.placements.of(&seen.against.holder);
        let denials = self.denials_at(&place).await?;
        match stands_in(&denials, seen) {
            Some(stands) if stands.is_refused() => Ok(stands.clone()),
            Some(stands)
                if stands.was_asked_at(seen.asked_at)
                    && (!seen.spares_newer || stands.issued_before <= seen.issued_before) =>
            {
                self.record_confirmed(stands, said, now).await
            }
            _ => Err(Error::Conflict(subject(seen))),
        }
    }

    async fn record_confirmed(
        &self,
        denial: &Denial,
        said: &str,
        now: Timestamp,
    ) -> Result<Denial, Error> {
        let confirmed = denial.confirm(now);
        let audit = self
            .event(Actor::Broker, Event::DenialConfirmed)
            .denial(denial)
            .refused_after(now.duration_since(denial.asked_at))
            .detail(said);
        self.change(denial, std::slice::from_ref(&confirmed), audit)
            .await?;
        Ok(confirmed)
    }

    async fn mark_sessions_revoked(&self, denial: &Denial, now: Timestamp) -> Result<(), Error> {
        let mut page = PageRequest {
            after: None,
            limit: BATCH,
        };
        loop {
            let service = &denial.against.service;
            let leases = self.store().revoking_sessions(service, &page).await?;
            let Some(last) = leases.last() else {
                return Ok(());
            };
            let after = Some(last.binding.lease_id.to_string());
            let denied = leases.into_iter().filter(|lease| denial.covers(lease));
            let ended: Vec<LeaseTransition> = denied
                .filter_map(|lease| self.end_denied(lease, now))
                .collect();
            // If another task has changed a lease meanwhile, the same page is read again.
            if self.store().update_leases(&ended).await? == ended.len() {
                page.after = after;
            }
        }
    }

    fn end_denied(&self, lease: Lease, now: Timestamp) -> Option<LeaseTransition> {
        let from = lease.revision;
        let after = now.duration_since(lease.removal()?.asked_at);
        let lease = lease.finish(now).ok()?;
        let cause = lease.cause().map(ToString::to_string).unwrap_or_default();
        let audit = self.event(Actor::Broker, end_event(&lease)).lease(&lease);
        let audit = audit.refused_after(after).detail(&cause);
        Some(LeaseTransition { from, lease, audit })
    }

    async fn postpone_denial(&self, denial: Denial, error: Error) -> Result<DenialOutcome, Error> {
        let (against, holder) = (&denial.against, &denial.against.holder);
        tracing::warn!(%against, %holder, %error, "a denial is tried again");
        let pause = back_off(denial.failures(), LONGEST_PAUSE, self.parts.random.as_ref());
        let pause = SignedDuration::try_from(pause).unwrap_or_default();
        let later = denial.postpone(self.now() + pause, error.to_string());
        let audit = self
            .event(Actor::Broker, Event::DenialPostponed)
            .denial(&denial)
            .failed(error.reason());
        let audit = match &error {
            Error::Aws(failure) => audit
                .aws_request(failure.aws_request_id.as_deref())
                .detail(&format!("{}: {}", failure.message, failure.aws_said)),
            _ => audit.detail(&error.to_string()),
        };
        self.change(&denial, std::slice::from_ref(&later), audit)
            .await?;
        let next = error.next();
        let notice = if next.is_empty() {
            format!("{error}; the broker goes on trying")
        } else {
            format!("{error}; the broker goes on trying: {next}")
        };
        Ok(DenialOutcome {
            denial: later,
            refused_after_seconds: None,
            seen_by: None,
            notice: Some(notice),
        })
    }

    pub(super) async fn change(
        &self,
        denial: &Denial,
        put: &[Denial],
        audit: AuditEvent,
    ) -> Result<(), Error> {
        let changed = self.store().change_denials(put, &[], vec![audit]).await;
        on_conflict(changed, || Error::Conflict(subject(denial)))
    }
}

/// Sends progress to the watcher of the revocation, if there is one.
pub(super) fn tell(progress: Option<&UnboundedSender<Progress>>, what: impl FnOnce() -> Progress) {
    if let Some(progress) = progress {
        // The watcher may have hung up.
        let _ = progress.send(what());
    }
}

pub(super) fn holders(denials: &[Denial]) -> BTreeSet<PolicyOwner> {
    let holder = |denial: &Denial| denial.against.holder.clone();
    denials.iter().map(holder).collect()
}

fn subject(denial: &Denial) -> Subject {
    Subject::Service(denial.against.service.clone())
}

/// Returns whether AWS refused a policy because it is too large. Only for an inline policy does the
/// error always mean the size. For a managed policy it may mean the number of policies.
fn is_over_size_limit(place: &PolicyLocation, failure: &AwsFailure) -> bool {
    failure.reason == "AWS_QUOTA" && matches!(place, PolicyLocation::Inline(_))
}

fn no_room(place: &PolicyLocation, size: usize, room: usize) -> AwsFailure {
    let message =
        format!("the denials at {place} take {size} characters, and AWS has room for {room}");
    AwsFailure {
        next: "delete inline policies of that role, or give services roles of their own; what is denied \
               there already stays denied"
            .to_owned(),
        ..AwsFailure::deferred("NO_ROOM_FOR_DENIAL", message, LONGEST_PAUSE)
    }
}

/// Describes the sessions that a denial denies.
fn describe_leases(denial: &Denial) -> String {
    if denial.spares_newer {
        format!("sessions issued before {:.0}", denial.issued_before)
    } else {
        "sessions whenever they were issued".to_owned()
    }
}

fn describe_widened(place: &PolicyLocation, put: &[Denial]) -> String {
    let services: BTreeSet<&str> = put
        .iter()
        .map(|denial| denial.against.service.as_str())
        .collect();
    let services: Vec<&str> = services.into_iter().collect();
    format!(
        "for want of room at {place} all sessions of {} that were issued before are denied",
        services.join(", ")
    )
}
