//! Membership of this replica in a cluster on one store: heartbeats, the changes of other replicas,
//! and the work that dead replicas have left.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    broker::{
        Broker, Error, in_time,
        ports::{Members, Peers, RevokeTarget, StoreError},
        signing::contradicted,
        wait::Wait,
    },
    domain::{
        audit::{Actor, AuditEvent, Event},
        denial::Scope,
    },
};

/// Interval of the heartbeats.
const APPEAR_EVERY: Wait = Wait::seconds(2);
/// Longest time that a heartbeat may take.
const APPEAR_LIMIT: Duration = Duration::from_secs(5);
/// Interval at which the changes of other replicas are read; two indexed queries.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Broker {
    /// Sends the first heartbeat. Called at the start, before anything is locked. A store that
    /// takes no writes does not prevent the start.
    pub async fn join_cluster(&self) {
        let living = match self.store().peers() {
            Some(peers) => self
                .send_heartbeat(peers)
                .await
                .map(|living| living.brokers),
            None => Ok(1),
        };
        match living {
            Ok(1) => self.claims.mark_orphaned_work(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the other brokers do not know of this one"),
        }
    }

    /// Leaves the cluster at the end: locks of this replica are free at once.
    pub async fn leave_cluster(&self) {
        if let Some(peers) = self.store().peers()
            && let Err(error) = peers.leave(&self.instance).await
        {
            tracing::debug!(%error, "the other brokers will notice that this one has ended");
        }
    }

    pub(super) async fn send_heartbeat(&self, peers: &dyn Peers) -> Result<Members, Error> {
        let file = self.claims.emergency_file.get_or_init(async || {
            let id = self.parts.spool.id().await;
            id.unwrap_or_else(|error| {
                tracing::warn!(%error, "that this broker follows another is noticed later");
                self.instance.clone()
            })
        });
        let (file, at) = (file.await, Instant::now());
        let appearing = peers.appear(&self.instance, file);
        let living = timeout(APPEAR_LIMIT, appearing).await;
        let late = |_| StoreError::Unavailable("the database does not answer".to_owned());
        let living = living.map_err(late)??;
        self.claims.record_heartbeat(at, living.brokers);
        if living.buried > 0 {
            tracing::warn!("another broker has ended");
            self.claims.mark_orphaned_work();
        }
        self.parts.issuer.share_with(living.brokers);
        Ok(living)
    }

    /// Sends heartbeats and applies the changes of other replicas. To be aborted at the very end.
    pub async fn run_membership(self: Arc<Self>) {
        if let Some(peers) = self.store().peers() {
            tokio::join!(self.run_heartbeat(peers), self.run_listener(peers));
        }
    }

    async fn run_heartbeat(&self, peers: &dyn Peers) {
        let mut ticks = interval(APPEAR_EVERY.length());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.send_heartbeat(peers).await {
                tracing::warn!(%error, "the other brokers may take this one for dead");
            }
        }
    }

    async fn run_listener(&self, peers: &dyn Peers) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut key_is_known, mut answers) = (None, true, true);
        loop {
            ticks.tick().await;
            match in_time("the database", self.listen(peers, heard)).await {
                Ok(told) => {
                    heard = Some(told.read);
                    key_is_known &= !told.of_admin_key;
                    answers = true;
                }
                Err(error) => {
                    if std::mem::take(&mut answers) {
                        tracing::warn!(%error, "not known what other brokers do; it is asked again");
                    }
                }
            }
            if !key_is_known {
                key_is_known = self.follow_admin_key().await;
            }
        }
    }

    /// Reads and applies the records of other replicas after record `heard`. Nothing from before
    /// the first read is in this replica's memory, except for the admin key.
    async fn listen(
        &self,
        peers: &dyn Peers,
        heard: Option<u64>,
    ) -> Result<AppliedNews, StoreError> {
        let size = match self.store().audit_size().await {
            Err(StoreError::Inconsistent { detail, .. }) if heard.is_some() => {
                self.record_log_doubt(shorter(format!("of the audit log, {detail}")));
                return Err(StoreError::Unavailable(detail));
            }
            size => size?,
        };
        let Some(heard) = heard else {
            return Ok(AppliedNews {
                read: size,
                of_admin_key: true,
            });
        };
        let news = peers.news(heard, size).await?;
        let mut of_admin_key = false;
        for record in &news.records {
            let event = &record.event;
            // This replica may not have applied its own change of the key, either.
            of_admin_key |=
                [Event::AdminKeyImported, Event::AdminKeySwitched].contains(&event.event);
            if event.instance.as_ref() != Some(&self.instance) {
                self.apply_news(event);
            }
        }
        Ok(AppliedNews {
            read: news.read,
            of_admin_key,
        })
    }

    /// Loads the stored admin key and uses it, unless a step of its replacement is in progress.
    /// Returns whether that is settled: a key that cannot be opened now cannot be opened later,
    /// either.
    async fn follow_admin_key(&self) -> bool {
        let Ok(_no_step_meanwhile) = self.rotating.try_lock() else {
            return false;
        };
        match self.load_admin_key().await {
            Ok(()) => true,
            Err(Error::Store(error)) => {
                tracing::warn!(%error, "which admin key is at work is asked again");
                false
            }
            Err(error) => {
                tracing::error!(%error, "the admin key that other brokers work with cannot be used");
                true
            }
        }
    }

    /// Applies a change of another replica to the state in memory.
    fn apply_news(&self, done: &AuditEvent) {
        match (done.event, &done.service, &done.grant, &done.lease_id) {
            (Event::ServiceSuspended | Event::ServiceDeleted, Some(service), ..) => {
                self.notify_suspended(service);
            }
            (Event::ServiceRevoked, Some(service), ..) => {
                self.notify_revoked(&RevokeTarget::Service(service.clone()));
            }
            (Event::GrantRevoked, _, Some(grant), _) => {
                self.notify_revoked(&RevokeTarget::Grant(grant.clone()));
            }
            (Event::LeaseRevoking, Some(service), _, Some(id))
                if matches!(done.actor, Actor::Operator(_)) =>
            {
                self.notify_ended(service, Scope::Lease(id.clone()));
            }
            (Event::DenialWidened, Some(service), ..) => {
                self.notify_ended(service, Scope::Service);
            }
            _ => {}
        }
    }
}

/// Result of one read of other replicas' records.
struct AppliedNews {
    /// Sequence number of the last record read.
    read: u64,
    /// True if another admin key may be in use.
    of_admin_key: bool,
}

fn shorter(lost: String) -> Error {
    contradicted(
        lost,
        "the database has lost what was durable, as when a copy takes over that had not heard of it: put the newest \
               copy in its place; revocation works meanwhile. Only then, to go on with what is left, restart the brokers",
    )
}
