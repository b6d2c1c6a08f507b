//! Reconciliation of the users under the broker's path in AWS with the leases in the store. A user
//! without a live lease is deleted, and so is a key that no lease names. A live lease whose user
//! has vanished is reported. Users without the broker's path and tags are never touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::Duration,
};

use jiff::Timestamp;
use metrics::{counter, gauge};
use tokio::time::{Instant, sleep};

use crate::{
    broker::{
        Actor, Broker, Error,
        ports::{DeleteOutcome, Priority},
    },
    domain::{
        audit::{AuditEvent, Event, Subject},
        lease::{CredentialState, Lease, LeaseState, parse_user_name},
        name::LeaseId,
    },
};

/// Interval after a successful reconciliation.
const EVERY: Duration = Duration::from_mins(5);
/// Interval after a failed one, and longest pause between checks whether AWS answers.
const RETRY: Duration = Duration::from_secs(30);
/// Interval of the checks whether another replica still does the reconciliation.
const OTHERS: Duration = Duration::from_secs(2);
/// Number of users whose keys are checked in one round, with one call each. The next round goes on
/// with the next users.
const KEY_CHECKS: usize = 200;

/// Outcome of a reconciliation.
#[derive(Clone, Debug)]
pub struct Reconciliation {
    /// Time at which the reconciliation was complete.
    pub at: Timestamp,
    /// Number of users under the broker's path.
    pub users: usize,
    /// Number of users that were deleted because no live lease names them.
    pub orphans_removed: usize,
    /// Users that no live lease names and that do not have the broker's tags.
    pub strangers: BTreeSet<String>,
    /// Number of keys that were deleted because no lease names them.
    pub keys_removed: usize,
    /// Live leases whose user or key is gone.
    pub vanished: BTreeSet<LeaseId>,
    /// Number of users and leases that could not be checked or repaired. The next round retries
    /// them.
    pub failed: usize,
}

impl Broker {
    pub(super) async fn reconcile(&self) {
        let stop = self.parts.stop.clone();
        let rounds = async {
            loop {
                if !self.hold_lock("reconciliation").await {
                    sleep(OTHERS).await;
                    continue;
                }
                let may = self
                    .check_log_integrity()
                    .and_then(|()| self.certain_clock());
                let reconciled = match may {
                    Ok(()) => self.reconcile_once().await,
                    Err(reason) => Err(reason),
                };
                let pause = match reconciled {
                    Ok(_) => EVERY,
                    Err(error) => {
                        tracing::warn!(%error, "the reconciliation failed and is tried again");
                        RETRY
                    }
                };
                let next = Instant::now() + pause;
                while Instant::now() < next && self.hold_lock("reconciliation").await {
                    sleep(OTHERS).await;
                }
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    /// Reconciles once. The failure of one user or lease does not stop the others.
    ///
    /// # Errors
    /// AWS does not list the users, or the store does not list the leases.
    pub async fn reconcile_once(&self) -> Result<Reconciliation, Error> {
        // AWS comes first: every user that it shows was recorded before it was created.
        let users: BTreeSet<String> = self.parts.inventory.users().await?.into_iter().collect();
        let leases = self.store().live_users().await?.into_iter();
        let live: BTreeMap<String, Lease> = leases
            .map(|lease| (lease.binding.aws_name.clone(), lease))
            .collect();
        let mut found = Reconciliation {
            at: self.now(),
            users: users.len(),
            orphans_removed: 0,
            strangers: BTreeSet::new(),
            keys_removed: 0,
            vanished: BTreeSet::new(),
            failed: 0,
        };
        for user in users.iter().filter(|user| !live.contains_key(*user)) {
            if let Err(error) = self.reconcile_user(user, &mut found).await {
                tracing::warn!(user, %error, "a user could not be reconciled");
                found.failed += 1;
            }
        }
        let settled = live.values().filter(|lease| self.is_settled(lease));
        let (shown, missing): (Vec<_>, Vec<_>) =
            settled.partition(|lease| users.contains(&lease.binding.aws_name));
        for lease in missing {
            if let Err(error) = self.reconcile_missing(lease, &mut found).await {
                tracing::warn!(lease = %lease.binding.lease_id, %error, "a lease could not be reconciled");
                found.failed += 1;
            }
        }
        let (now, later) = self.next_to_check(shown);
        found.vanished.extend(self.known_vanished(&later));
        for lease in now {
            if let Err(error) = self.reconcile_keys(lease, &mut found).await {
                tracing::warn!(lease = %lease.binding.lease_id, %error, "keys could not be reconciled");
                found.failed += 1;
            }
        }
        self.publish(found.clone());
        Ok(found)
    }

    /// Returns the outcome of the last reconciliation; `None` before the first.
    pub(super) fn reconciled(&self) -> Option<Reconciliation> {
        let last = self.reconciled.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, found: Reconciliation) {
        #[expect(clippy::cast_precision_loss, reason = "counts of users are small")]
        let count = |count: usize| count as f64;
        gauge!("credbroker_stranger_users").set(count(found.strangers.len()));
        gauge!("credbroker_vanished_leases").set(count(found.vanished.len()));
        gauge!("credbroker_reconciliation_failures").set(count(found.failed));
        let mut last = self
            .reconciled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(found);
    }

    /// Returns whether the lease is active, not being replaced, and issued long enough ago for AWS
    /// to show its user.
    fn is_settled(&self, lease: &Lease) -> bool {
        let LeaseState::Active { standing, .. } = &lease.state else {
            return false;
        };
        let at_rest = matches!(standing, CredentialState::Whole | CredentialState::KeyLost);
        at_rest && lease.may_appear_until(self.now()).is_none()
    }

    /// Deletes a user that no live lease names, if it has the broker's tags.
    async fn reconcile_user(&self, user: &str, found: &mut Reconciliation) -> Result<(), Error> {
        match self.parts.inventory.is_ours(user).await? {
            None => return Ok(()),
            Some(false) => {
                tracing::warn!(
                    user,
                    "a user under the broker's path does not bear its mark"
                );
                found.strangers.insert(user.to_owned());
                return Ok(());
            }
            Some(true) => {}
        }
        if self.delete_user_in_aws(user, Priority::Ordinary).await? == DeleteOutcome::NotFound {
            return Ok(());
        }
        found.orphans_removed += 1;
        counter!("credbroker_orphans_removed_total").increment(1);
        let audit = self.event(Actor::Broker, Event::OrphanRemoved);
        let audit = match parse_user_name(user) {
            Some((service, lease)) => audit.service(&service).about(&Subject::Lease(lease)),
            None => audit,
        };
        let audit = audit.detail(&format!("user {user}: no live lease knows it"));
        self.store().record(audit).await?;
        Ok(())
    }

    /// Reports a live lease whose user AWS neither lists nor shows.
    async fn reconcile_missing(
        &self,
        lease: &Lease,
        found: &mut Reconciliation,
    ) -> Result<(), Error> {
        let user = &lease.binding.aws_name;
        if self.parts.inventory.is_ours(user).await?.is_some() {
            return Ok(());
        }
        self.report_vanished(lease, "USER_VANISHED", found).await
    }

    /// Deletes every key of the lease's user but the recorded one, and reports if that one is gone.
    async fn reconcile_keys(&self, lease: &Lease, found: &mut Reconciliation) -> Result<(), Error> {
        let keys = self.remove_unknown_keys(lease).await?;
        found.keys_removed += keys.removed;
        if keys.recorded_is_there || lease.has_lost_its_key() {
            return Ok(());
        }
        self.report_vanished(lease, "KEY_VANISHED", found).await
    }

    /// Reports a vanished user or key once, not again in every round.
    async fn report_vanished(
        &self,
        lease: &Lease,
        reason: &str,
        found: &mut Reconciliation,
    ) -> Result<(), Error> {
        let id = &lease.binding.lease_id;
        found.vanished.insert(id.clone());
        let known = self.reconciled();
        if known.is_some_and(|last| last.vanished.contains(id)) {
            return Ok(());
        }
        tracing::warn!(lease = %id, reason, "what a live lease stands for is gone from AWS");
        let audit: AuditEvent = self.event(Actor::Broker, Event::LeaseVanished);
        self.store()
            .record(audit.lease(lease).failed(reason))
            .await?;
        Ok(())
    }

    /// Returns the leases among these, not checked in this round, that the last round found
    /// vanished.
    fn known_vanished(&self, leases: &[&Lease]) -> Vec<LeaseId> {
        let known = self.reconciled().map(|last| last.vanished);
        let known = known.unwrap_or_default();
        let ids = leases.iter().map(|lease| &lease.binding.lease_id);
        ids.filter(|id| known.contains(*id)).cloned().collect()
    }

    /// Splits off the users whose keys are to be checked now; returns them and the others.
    fn next_to_check<'a>(&self, mut shown: Vec<&'a Lease>) -> (Vec<&'a Lease>, Vec<&'a Lease>) {
        let mut last = self
            .last_checked
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let after = shown.partition_point(|lease| lease.binding.aws_name <= *last);
        shown.rotate_left(after);
        let others = shown.split_off(KEY_CHECKS.min(shown.len()));
        if let Some(lease) = shown.last() {
            last.clone_from(&lease.binding.aws_name);
        }
        (shown, others)
    }
}
