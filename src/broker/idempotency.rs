//! Idempotent repeats. A repeated request finds its lease: an incomplete issue is completed, and a
//! completed one is answered again. The broker stores no secret, so the answer has another key of
//! the same user, or another session of the same name.

use std::time::Duration;

use jiff::Timestamp;
use metrics::counter;
use tokio::time::{Instant, sleep};

use crate::{
    broker::{
        Actor, Broker, Error,
        issue::{IssuedLease, over},
        on_conflict,
        ports::{AuditFilter, AwsFailure, IssueFailure, PageRequest, Peers, Residue},
    },
    domain::{
        access::Caller,
        audit::{AuditEvent, Event, Subject},
        credential::Credentials,
        decide::{Authorized, Issue, IssueRefusal},
        lease::{Lease, LeaseState},
        request::IdempotencyKey,
    },
};

/// Longest wait for another replica that works on the same request.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Broker {
    /// Answers a request that has a lease already.
    pub(super) async fn replay(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
        named: &IdempotencyKey,
        lease: Lease,
    ) -> Result<IssuedLease, Error> {
        if lease.request.as_ref().map(|known| known.digest) != Some(named.digest) {
            return Err(Error::request_id_reused());
        }
        let grant = &issue.get().grant;
        if grant.version != lease.binding.grant_version {
            let lease_id = lease.binding.lease_id.clone();
            let changed = IssueRefusal::GrantChanged { lease_id };
            return self.refuse(caller, &grant.name, changed.into()).await;
        }
        let lease = self.wait_for_other_replica(lease).await?;
        match &lease.state {
            LeaseState::Pending { .. } => {
                self.ready(caller, issue).await?;
                self.resume(caller, issue, lease).await
            }
            LeaseState::Active { .. } => {
                self.ready(caller, issue).await?;
                self.replace_credentials(caller, issue, lease).await
            }
            ended => {
                let denial = over(&lease, ended.as_str());
                self.refuse(caller, &grant.name, denial.into()).await
            }
        }
    }

    /// Waits while another live replica works on the same request.
    async fn wait_for_other_replica(&self, mut lease: Lease) -> Result<Lease, Error> {
        let Some(peers) = self.store().peers() else {
            return Ok(lease);
        };
        let began = Instant::now();
        while lease.is_in_progress(self.now())
            && self.is_in_progress_elsewhere(peers, &lease).await?
        {
            if began.elapsed() > PATIENCE {
                let busy = "another broker is at the same request".to_owned();
                return Err(AwsFailure::deferred("ANOTHER_BROKER", busy, PATIENCE).into());
            }
            sleep(LOOK_EVERY).await;
            lease = self.require_lease(&lease.binding.lease_id).await?;
        }
        Ok(lease)
    }

    /// Returns whether the last record of the lease shows that another replica began work on it,
    /// and that replica is alive.
    async fn is_in_progress_elsewhere(
        &self,
        peers: &dyn Peers,
        lease: &Lease,
    ) -> Result<bool, Error> {
        let filter = AuditFilter {
            lease_id: Some(lease.binding.lease_id.to_string()),
            ..AuditFilter::default()
        };
        let page = PageRequest {
            after: None,
            limit: 1_000,
        };
        let last = self.store().audit(&filter, &page).await?.pop();
        let Some(AuditEvent {
            event: Event::LeaseRequested | Event::LeaseResumed | Event::LeaseReplacing,
            instance: Some(broker),
            ..
        }) = last.map(|last| last.event)
        else {
            return Ok(false);
        };
        Ok(broker != self.instance && peers.lives(&broker).await?)
    }

    /// Resumes an issue that was not completed: AWS did not answer, or the broker died. The lease
    /// has no other issuer: concurrent equal requests share one call, and [`Self::replay`] has
    /// waited for other replicas.
    async fn resume(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
        lease: Lease,
    ) -> Result<IssuedLease, Error> {
        let from = lease.revision;
        let resumed = lease
            .resume(self.now())
            .map_err(|e| Error::Internal(e.to_string()))?;
        let audit = self.caller_event(caller, Event::LeaseResumed);
        let resumed = self.save_replacement(from, resumed, audit).await?;
        self.carry_out(caller, issue, resumed).await
    }

    async fn replace_credentials(
        &self,
        caller: &Caller,
        issue: &Authorized<Issue>,
        lease: Lease,
    ) -> Result<IssuedLease, Error> {
        let now = self.now();
        let Some(left) = time_left(&lease, issue, now) else {
            let denial = over(&lease, "at the end of its time");
            return self
                .refuse(caller, &issue.get().grant.name, denial.into())
                .await;
        };
        let (from, key_lost) = (lease.revision, lease.has_lost_its_key());
        let replacing = lease
            .begin_replacement(now)
            .map_err(|e| Error::Internal(e.to_string()))?;
        let audit = self.caller_event(caller, Event::LeaseReplacing);
        let replacing = self.save_replacement(from, replacing, audit).await?;
        match self.replacement(issue, &replacing, left).await {
            Ok(credentials) => {
                let event = Event::LeaseRedelivered;
                self.hand_out(caller, issue, replacing, event, credentials)
                    .await
            }
            Err(failed) => self.not_replaced(caller, replacing, key_lost, failed).await,
        }
    }

    async fn replacement(
        &self,
        issue: &Authorized<Issue>,
        lease: &Lease,
        left: Duration,
    ) -> Result<Credentials, IssueFailure> {
        let (issuer, binding) = (&self.parts.issuer, &lease.binding);
        if binding.kind.is_session() {
            let shorter = issue.for_at_most(left);
            let asked = self.ask_for_session_or_user(&shorter, binding);
            return self.in_time(lease, asked).await;
        }
        let recorded = lease.issued().map(|issued| issued.access_key_id.as_str());
        let settled = lease.may_appear_until(self.now()).is_none();
        let asked = issuer.replace_key(binding, recorded.unwrap_or_default(), settled);
        self.in_time(lease, asked).await
    }

    async fn save_replacement(
        &self,
        from: u64,
        lease: Lease,
        audit: AuditEvent,
    ) -> Result<Lease, Error> {
        let audit = audit.lease(&lease);
        let written = self.store().update_lease(from, &lease, audit).await;
        let id = || Subject::Lease(lease.binding.lease_id.clone());
        on_conflict(written, || Error::Conflict(id()))?;
        Ok(lease)
    }

    async fn not_replaced(
        &self,
        caller: &Caller,
        lease: Lease,
        key_lost: bool,
        failed: IssueFailure,
    ) -> Result<IssuedLease, Error> {
        let audit = self.failed_event(caller, &lease, Event::LeaseUncertain, &failed.failure);
        self.store().record(audit).await?;
        let in_order = match failed.left {
            Residue::Nothing => self.keep(lease.clone(), key_lost).await,
            _ => self.repair_replacement(lease.clone()).await,
        };
        if let Err(error) = in_order {
            tracing::warn!(lease = %lease.binding.lease_id, %error, "left to the background clean-up");
        }
        Err(failed.failure.into())
    }

    /// Ends a replacement that its issuer did not complete; called by the clean-up.
    pub(super) async fn finish_replacement_of(&self, lease: Lease) -> Result<(), Error> {
        let Err(error) = self.repair_replacement(lease.clone()).await else {
            return Ok(());
        };
        let from = lease.revision;
        let audit = self
            .event(Actor::Broker, Event::LeasePostponed)
            .lease(&lease);
        if let Ok(later) = lease.begin_replacement(self.now()) {
            let audit = audit.failed(error.reason());
            self.store().update_lease(from, &later, audit).await?;
        }
        Err(error)
    }

    /// Repairs a lease after a replacement that failed, or whose outcome is unknown: deletes keys
    /// that the lease does not name, and keeps the lease as it was.
    pub(super) async fn repair_replacement(&self, lease: Lease) -> Result<(), Error> {
        let key_lost = if lease.binding.kind.is_session() {
            false
        } else {
            let keys = self.remove_unknown_keys(&lease).await?;
            !keys.recorded_is_there
        };
        self.keep(lease, key_lost).await
    }

    async fn keep(&self, lease: Lease, key_lost: bool) -> Result<(), Error> {
        let from = lease.revision;
        let Ok(kept) = lease.cancel_replacement(key_lost) else {
            return Ok(());
        };
        let audit = self.event(Actor::Broker, Event::LeaseKept).lease(&kept);
        let written = self.store().update_lease(from, &kept, audit).await;
        let id = || Subject::Lease(kept.binding.lease_id.clone());
        on_conflict(written, || Error::Conflict(id())).map(drop)
    }

    /// Deletes every key of a lease's user but the recorded one, unless the lease has changed
    /// meanwhile.
    pub(super) async fn remove_unknown_keys(&self, lease: &Lease) -> Result<ExtraKeys, Error> {
        let user = &lease.binding.aws_name;
        let recorded = lease.issued().map(|issued| issued.access_key_id.as_str());
        let keys = self.parts.inventory.keys(user).await?;
        let now = self.require_lease(&lease.binding.lease_id).await?;
        if now.revision != lease.revision {
            return Ok(ExtraKeys {
                recorded_is_there: true,
                removed: 0,
            });
        }
        let (known, unknown): (Vec<_>, Vec<_>) = keys
            .into_iter()
            .partition(|key| Some(key.as_str()) == recorded);
        for key in &unknown {
            self.parts.inventory.remove_key(user, key).await?;
            counter!("credbroker_unknown_keys_removed_total").increment(1);
            let audit = self.event(Actor::Broker, Event::KeyRemoved).lease(lease);
            let audit = audit.detail(&format!("key {key} of user {user}: no lease knows it"));
            self.store().record(audit).await?;
        }
        Ok(ExtraKeys {
            recorded_is_there: !known.is_empty(),
            removed: unknown.len(),
        })
    }
}

/// Returns the lifetime of the credentials in the answer to a repeat; `None` if there is no time
/// left. A user's key lives until its lease ends. A session lives until the first one would have
/// ended, or for AWS's minimum if that is longer. So the session may outlast the first one, but no
/// new session begins after the first has ended.
fn time_left(lease: &Lease, issue: &Authorized<Issue>, now: Timestamp) -> Option<Duration> {
    let ends = if lease.binding.kind.is_session() {
        lease.requested_at.saturating_add(issue.get().ttl).ok()
    } else {
        lease.issued().map(|issued| issued.expires_at)
    };
    let left = Duration::try_from(ends?.duration_since(now)).ok()?;
    let (shortest, _) = lease.binding.kind.ttl_bounds();
    let whole = Duration::from_secs(left.as_secs());
    (!whole.is_zero()).then(|| whole.max(shortest))
}

/// State of the keys of a lease's user after a clean-up.
pub(super) struct ExtraKeys {
    pub(super) recorded_is_there: bool,
    pub(super) removed: usize,
}
