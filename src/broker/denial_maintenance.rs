//! Maintenance of denials in AWS: retries those that are due, lifts expired ones, and rewrites
//! policies that were changed outside the broker.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use jiff::SignedDuration;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    broker::{
        Actor, Broker, Error,
        deny::{LONGEST_PAUSE, WRITE_LIMIT, holders},
        policy_writer::LockedLocation,
        ports::{NO_REVOKER, PolicyState, StoreError},
    },
    domain::{
        audit::{AuditEvent, Event},
        denial::{Denial, PolicyLocation},
        name::Name,
        random::back_off,
    },
};

/// Interval at which the store is queried for due denials; the query is indexed and mostly returns
/// nothing.
const EVERY: Duration = Duration::from_secs(1);
/// Interval at which the policies in AWS are compared with the store.
const LOOK_EVERY: Duration = Duration::from_mins(5);
/// Time for which AWS may not show a policy that was just written.
const SETTLED: Duration = Duration::from_secs(60);
/// Delay with which a replica that AWS does not answer takes up due denials, so that a healthy
/// replica goes first.
const OTHERS_FIRST: SignedDuration = SignedDuration::from_secs(5);
/// Delays after a replica's death at which every policy is rewritten. AWS may apply the dead
/// replica's last write late: mostly by seconds, at worst by as long as a write may take.
const LATE: [Duration; 3] = [Duration::ZERO, Duration::from_secs(5), WRITE_LIMIT];
/// Pause after a failed write, before the policy of denials with a new cutoff is rewritten again.
const AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// Largest number of due denials that are begun in one round.
const AT_ONCE: usize = 64;

impl Broker {
    /// Carries out due denials, lifts expired ones and repairs changed policies, until the broker
    /// stops. While the log is in doubt, only writes denials: an older copy of the store may not
    /// know how long denials are to stand, nor what a replica has changed since. While the clock is
    /// in doubt, lifts nothing.
    pub(super) async fn run_denial_maintenance(self: &Arc<Self>) {
        let stop = self.parts.stop.clone();
        stop.run_until_cancelled(async {
            tokio::join!(
                self.run_due_denials(),
                self.run_unpersisted_denials(),
                self.rewrite_uncertain_locations(),
                self.detect_drift(),
                self.run_second_checks()
            );
        })
        .await;
    }

    /// Preserves denials in AWS that the store does not know: the store may be an older copy.
    pub fn preserve_unknown_denials(&self) {
        self.denying.keeps_unknown.store(true, Ordering::Relaxed);
    }

    /// Takes over the unfinished denials of dead replicas, and marks every policy to be rewritten.
    async fn resume_denials(self: &Arc<Self>) -> Result<(), Error> {
        let mut left = self.store().denials().await?.known;
        let dead = Instant::now();
        for place in self.by_location(left.clone()).keys() {
            for late in LATE {
                self.denying.mark_uncertain_until(place, dead + late);
            }
        }
        let (now, lifts) = (self.now(), self.may_end_by_time());
        let is_left = |denial: &Denial| !denial.is_settled() && !denial.is_expired(now);
        left.retain(|denial| is_left(denial) || lifts && denial.is_expired(now));
        self.start_denials(left);
        Ok(())
    }

    async fn run_due_denials(self: &Arc<Self>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.claims.take_orphaned_work()
                && let Err(error) = self.resume_denials().await
            {
                tracing::warn!(%error, "denials in progress are resumed later");
                self.claims.mark_orphaned_work();
            }
            if let Err(error) = self.start_due_denials().await {
                tracing::warn!(%error, "what is due of denials is tried again");
            }
        }
    }

    /// Carries out everything that is due now, and waits for the end.
    ///
    /// # Errors
    /// The store cannot list the due denials.
    pub async fn maintain_denials_once(self: &Arc<Self>) -> Result<(), Error> {
        for begun in self.start_due_denials().await? {
            // The outcome is in the store.
            let _ = begun.await;
        }
        Ok(())
    }

    async fn start_due_denials(self: &Arc<Self>) -> Result<Vec<JoinHandle<()>>, Error> {
        let is_unanswered = self.denying.is_unanswered.load(Ordering::Relaxed);
        let now = if is_unanswered && self.store().peers().is_some() {
            self.now() - OTHERS_FIRST
        } else {
            self.now()
        };
        let due = if self.may_end_by_time() {
            self.store().denials_due(now, AT_ONCE).await?
        } else {
            let mut all = self.store().denials().await?.known;
            all.retain(|denial| denial.due_at <= now && !denial.is_expired(now));
            all
        };
        Ok(self.start_denials(due))
    }

    /// Starts a task for each open denial, and tasks for each policy with denials that have expired
    /// or have a new cutoff. No task waits for another.
    fn start_denials(self: &Arc<Self>, denials: Vec<Denial>) -> Vec<JoinHandle<()>> {
        let now = self.now();
        let (over, live): (Vec<_>, Vec<_>) = denials.into_iter().partition(|d| d.is_expired(now));
        let (moved, open): (Vec<_>, Vec<_>) = live.into_iter().partition(Denial::is_refused);
        let open = open.into_iter().map(|denial| {
            let broker = Arc::clone(self);
            self.sagas
                .spawn(async move { broker.retry_denial(denial).await })
        });
        let over = self.by_location(over).into_iter().map(|(place, over)| {
            let broker = Arc::clone(self);
            self.sagas
                .spawn(async move { broker.retry_lift(&place, &over).await })
        });
        let moved = self.by_location(moved).into_iter().map(|(place, moved)| {
            let broker = Arc::clone(self);
            self.sagas
                .spawn(async move { broker.retry_rewrite(&place, &moved).await })
        });
        open.chain(over).chain(moved).collect()
    }

    fn by_location(&self, denials: Vec<Denial>) -> BTreeMap<PolicyLocation, Vec<Denial>> {
        let mut by_place: BTreeMap<PolicyLocation, Vec<Denial>> = BTreeMap::new();
        for denial in denials {
            let place = self.parts.placements.of(&denial.against.holder);
            by_place.entry(place).or_default().push(denial);
        }
        by_place
    }

    /// Reserves these denials for a while, exclusively. A denial whose attempt fails is due again
    /// after that.
    async fn lock_denials(&self, denials: &[Denial]) -> Result<Vec<Denial>, StoreError> {
        let claimed: Vec<Denial> = denials.iter().map(|d| d.reserve(self.now())).collect();
        let claim = self.store().change_denials(&claimed, &[], Vec::new());
        claim.await.map(|()| claimed)
    }

    async fn retry_denial(&self, denial: Denial) {
        if self.denying.is_in_progress(&denial.against) {
            return;
        }
        let claimed = self.lock_denials(&[denial]).await.unwrap_or_default();
        for denial in claimed {
            self.apply_denial(denial, None).await;
        }
    }

    async fn retry_lift(&self, place: &PolicyLocation, over: &[Denial]) {
        if self.lock_denials(over).await.is_err() {
            // Another task works on them, or the store takes no writes.
            return;
        }
        if let Err(error) = self.lift(place).await {
            tracing::warn!(%place, %error, "what is over of the denials there is lifted later");
        }
    }

    /// Removes expired denials from a policy, then from the store. In this order, the store knows
    /// every denial that AWS still has.
    async fn lift(&self, place: &PolicyLocation) -> Result<(), Error> {
        let mut written = self.lock_location(place).await?;
        let now = self.now();
        let all = self.store().denials().await?.known;
        let (mut over, live): (Vec<_>, Vec<_>) = all.into_iter().partition(|d| d.is_expired(now));
        over.retain(|denial| self.parts.placements.of(&denial.against.holder) == *place);
        match self
            .write_location(place, &mut written, Instant::now())
            .await
        {
            // The broker has no role in this account, and no denial there was seen to hold.
            Err(Error::Aws(failure))
                if failure.reason == NO_REVOKER && over.iter().all(|d| !d.is_refused()) => {}
            written => {
                written?;
                let live = self.others(&live);
                for other in self.others(&over).difference(&live) {
                    self.empty(other).await?;
                }
            }
        }
        for denial in over {
            let audit = self
                .event(Actor::Broker, Event::DenialLifted)
                .denial(&denial);
            let remove = std::slice::from_ref(&denial);
            let removed = self.store().change_denials(&[], remove, vec![audit]).await;
            match removed {
                // The denial was requested again: it stays.
                Err(StoreError::Conflict) => {}
                removed => removed?,
            }
            let mut trials = self
                .denying
                .trials
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            trials.remove(&denial.against);
        }
        Ok(())
    }

    /// Rewrites the policies of a reinstated service: its denials now have a cutoff.
    pub(super) fn rewrite_for_service(self: &Arc<Self>, service: &Name) {
        let (broker, service) = (Arc::clone(self), service.clone());
        self.sagas.spawn(async move {
            // Denials that cannot be read now are due anyway.
            let denials = broker.store().denials_of(&service).await;
            let moved = |denial: &Denial| denial.is_refused() && !denial.is_settled();
            let moved = denials.unwrap_or_default().into_iter().filter(moved);
            broker.start_denials(moved.collect());
        });
    }

    async fn retry_rewrite(&self, place: &PolicyLocation, moved: &[Denial]) {
        let since = Instant::now();
        let Ok(moved) = self.lock_denials(moved).await else {
            // Another replica works on them, or the store takes no writes.
            return;
        };
        if let Err(error) = self.write_moved_cutoffs(place, &moved, since).await {
            tracing::warn!(%place, %error, "the denials' new cutoffs are written there later");
            let again = self.now() + AGAIN;
            let again: Vec<Denial> = moved.iter().map(|d| d.make_due(again)).collect();
            // If this write fails, they are due when their reservation ends.
            let _ = self.store().change_denials(&again, &[], Vec::new()).await;
        }
    }

    async fn write_moved_cutoffs(
        &self,
        place: &PolicyLocation,
        moved: &[Denial],
        since: Instant,
    ) -> Result<(), Error> {
        let mut written = self.lock_location(place).await?;
        self.write_location(place, &mut written, since).await?;
        for denial in moved {
            if let Some(failure) = written.put.missed.get(&denial.against.holder) {
                return Err(failure.clone().into());
            }
            let settled = [denial.settle(self.now())];
            match self.store().change_denials(&settled, &[], Vec::new()).await {
                // The denial was requested again, or its cutoff was moved again.
                Err(StoreError::Conflict) => {}
                changed => changed?,
            }
        }
        Ok(())
    }

    async fn detect_drift(&self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.check_log_integrity().is_ok()
                && let Err(error) = self.repair_denials().await
            {
                tracing::warn!(%error, "denials in AWS are looked at again later");
            }
        }
    }

    /// Compares each policy of denials with the store, and rewrites policies that were changed
    /// outside the broker. A failure at one policy does not stop the others.
    ///
    /// # Errors
    /// The store's error.
    pub async fn repair_denials(&self) -> Result<(), Error> {
        let mut denials = self.store().denials().await?.known;
        let mut unsure = BTreeSet::new();
        for (place, _) in self.by_location(denials.clone()) {
            let stands = self.repair(&place).await;
            if let Err(error) = &stands {
                tracing::warn!(%place, %error, "the denials there could not be looked at");
            }
            if !matches!(stands, Ok(true)) {
                unsure.insert(place.account().clone());
            }
        }
        // A policy of the other placement is emptied only if the account's configured ones are in
        // order.
        denials.retain(|denial| !unsure.contains(denial.against.holder.account()));
        for other in self.others(&denials) {
            if let Err(error) = self.empty(&other).await {
                tracing::warn!(place = %other, %error, "what was denied there could not be looked at");
            }
        }
        Ok(())
    }

    /// Returns the policies into which an earlier configuration may have written these denials.
    fn others(&self, denials: &[Denial]) -> BTreeSet<PolicyLocation> {
        let other = |denial: &Denial| self.parts.placements.other(&denial.against.holder);
        denials.iter().map(other).collect()
    }

    /// Removes what an earlier configuration has left in a policy, once in a run.
    async fn empty(&self, place: &PolicyLocation) -> Result<(), Error> {
        let mut written = self.lock_location(place).await?;
        if written.emptied {
            return Ok(());
        }
        self.enter(place).await?;
        let nobody = BTreeSet::new();
        if self.parts.denier.read(place, &nobody).await? != PolicyState::Nothing {
            self.write_location(place, &mut written, Instant::now())
                .await?;
            let audit = self.repaired(place, &written);
            let audit = audit.detail(&format!("{place}: the configuration names another place"));
            self.store().record(audit).await?;
        }
        written.emptied = true;
        Ok(())
    }

    /// Repairs a policy that differs from the store. Returns whether the policy is in order.
    async fn repair(&self, place: &PolicyLocation) -> Result<bool, Error> {
        let mut written = self.lock_location(place).await?;
        self.repair_location(place, &mut written).await
    }

    async fn repair_location(
        &self,
        place: &PolicyLocation,
        written: &mut LockedLocation,
    ) -> Result<bool, Error> {
        // A location in doubt is compared soon after a write, too. With several replicas it is not:
        // another replica's recent write would look like a change from outside.
        let looks = self.store().peers().is_none() && self.denying.may_be_overtaken(place);
        if written.at.is_some_and(|at| at.elapsed() < SETTLED) && !looks {
            return Ok(written.put.missed.is_empty());
        }
        let (denials, wanted, _) = self.fit(place, place.room()).await?;
        let settled = !denials.is_empty() && denials.iter().all(Denial::is_settled);
        if !settled || self.is_expired_at(place).await? {
            // The task that carries out, moves or lifts a denial writes the whole policy.
            return Ok(false);
        }
        self.enter(place).await?;
        let found = self.parts.denier.read(place, &holders(&denials)).await?;
        let is_there = match (&found, &wanted) {
            (PolicyState::Nothing, None) => true,
            (PolicyState::Policy(found), Some(wanted)) => found == wanted,
            _ => false,
        };
        if is_there {
            return Ok(true);
        }
        // Another replica that was paused for a while may have completed an old write.
        let may_be_a_brokers =
            self.denying.may_be_overtaken(place) || self.store().peers().is_some();
        let told = if may_be_a_brokers {
            format!("{place}: changed by hand, or AWS applied an earlier write of a replica late")
        } else {
            place.to_string()
        };
        written.attached.clear();
        self.write_location(place, written, Instant::now()).await?;
        if let Some(failure) = written.put.missed.values().next() {
            return Err(failure.clone().into());
        }
        tracing::warn!("denials in AWS differed from the store and are rewritten at {told}");
        let audit = self.repaired(place, written).detail(&told);
        self.store().record(audit).await?;
        Ok(true)
    }

    /// Rewrites policies with uncertain content: this replica and another may have overwritten each
    /// other, or AWS may have applied a dead replica's write late.
    async fn rewrite_uncertain_locations(&self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures: BTreeMap<PolicyLocation, u32> = BTreeMap::new();
        loop {
            let now = ticks.tick().await;
            for place in self.denying.uncertain_by(now) {
                let written = self.rewrite_location(&place).await;
                self.denying.clear_uncertain(&place, now);
                if let Err(error) = written {
                    tracing::warn!(%place, %error, "the denials there are written once more later");
                    let failed = failures.entry(place.clone()).or_default();
                    let pause = back_off(*failed, LONGEST_PAUSE, self.parts.random.as_ref());
                    *failed += 1;
                    self.denying
                        .mark_uncertain_until(&place, Instant::now() + pause);
                } else {
                    failures.remove(&place);
                }
            }
        }
    }

    async fn rewrite_location(&self, place: &PolicyLocation) -> Result<(), Error> {
        let mut written = self.lock_location(place).await?;
        let since = Instant::now();
        // A change from outside the broker is recorded before it is overwritten.
        let looked = if self.check_log_integrity().is_ok() {
            self.repair_location(place, &mut written).await
        } else {
            Ok(false)
        };
        match self.write_location(place, &mut written, since).await {
            // The broker has no role in this account.
            Err(Error::Aws(failure)) if failure.reason == NO_REVOKER => return Ok(()),
            written => written?,
        };
        if let Err(error) = looked {
            tracing::warn!(%place, %error, "the denials there are written once more without a look");
        }
        Ok(())
    }

    /// Returns whether any denial of the policy has expired, and so is to be lifted.
    async fn is_expired_at(&self, place: &PolicyLocation) -> Result<bool, Error> {
        let (all, now) = (self.store().denials().await?.known, self.now());
        let is_over = |denial: &Denial| {
            denial.is_expired(now) && self.parts.placements.of(&denial.against.holder) == *place
        };
        Ok(all.iter().any(is_over))
    }

    fn repaired(&self, place: &PolicyLocation, written: &LockedLocation) -> AuditEvent {
        let audit = self.event(Actor::Broker, Event::DenialRepaired);
        let audit = audit.aws_request(written.put.aws_request_id.as_deref());
        match place {
            PolicyLocation::Inline(holder) => audit.holder(holder),
            PolicyLocation::Managed(_) => audit,
        }
    }
}
