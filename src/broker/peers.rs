//! Living beside other brokers on one store: saying so, hearing what they have done, and
//! seeing to what the dead have left.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    broker::{
        Broker, Error,
        checkpoints::contradicted,
        in_time,
        ports::{Living, Peers, StoreError, Target},
        wait::Wait,
    },
    domain::{
        audit::{Actor, AuditEvent, Event},
        denial::Scope,
    },
};

/// How often a broker says that it lives.
const APPEAR_EVERY: Wait = Wait::seconds(2);
/// Longest time that this may take.
const APPEAR_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked what others have done; two indexed queries.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Broker {
    /// For the start, before anything is claimed: says that the broker lives. A store that
    /// takes nothing is no reason not to start.
    pub async fn appear(&self) {
        let living = match self.store().peers() {
            Some(peers) => self.say_alive(peers).await.map(|living| living.brokers),
            None => Ok(1),
        };
        match living {
            Ok(1) => self.claims.are_left(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the other brokers do not know of this one"),
        }
    }

    /// For the end: what is claimed is free at once.
    pub async fn disappear(&self) {
        if let Some(peers) = self.store().peers()
            && let Err(error) = peers.leave(&self.instance).await
        {
            tracing::debug!(%error, "the other brokers will notice that this one has ended");
        }
    }

    pub(super) async fn say_alive(&self, peers: &dyn Peers) -> Result<Living, Error> {
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
        self.claims.said_alive(at, living.brokers);
        if living.buried > 0 {
            tracing::warn!("another broker has ended");
            self.claims.are_left();
        }
        self.parts.issuer.share_with(living.brokers);
        Ok(living)
    }

    /// Says that the broker lives, and follows what others do; to be cut off at its very end.
    pub async fn keep_in_step(self: Arc<Self>) {
        if let Some(peers) = self.store().peers() {
            tokio::join!(self.keep_appearing(peers), self.keep_listening(peers));
        }
    }

    async fn keep_appearing(&self, peers: &dyn Peers) {
        let mut ticks = interval(APPEAR_EVERY.length());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.say_alive(peers).await {
                tracing::warn!(%error, "the other brokers may take this one for dead");
            }
        }
    }

    async fn keep_listening(&self, peers: &dyn Peers) {
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

    /// Follows what others have recorded after the first `heard`; what was before the first
    /// look is in nobody's memory here, but for the admin key.
    async fn listen(&self, peers: &dyn Peers, heard: Option<u64>) -> Result<Told, StoreError> {
        let size = match self.store().audit_size().await {
            Err(StoreError::Inconsistent { detail, .. }) if heard.is_some() => {
                self.doubt_log(shorter(format!("of the audit log, {detail}")));
                return Err(StoreError::Unavailable(detail));
            }
            size => size?,
        };
        let Some(heard) = heard else {
            return Ok(Told {
                read: size,
                of_admin_key: true,
            });
        };
        let news = peers.news(heard, size).await?;
        let mut of_admin_key = false;
        for record in &news.records {
            let event = &record.event;
            // Of its own it may not have heard, either.
            of_admin_key |=
                [Event::AdminKeyImported, Event::AdminKeySwitched].contains(&event.event);
            if event.instance.as_ref() != Some(&self.instance) {
                self.follow_suit(event);
            }
        }
        Ok(Told {
            read: news.read,
            of_admin_key,
        })
    }

    /// Goes to work with the admin key that is kept, unless a step of its replacement is being
    /// taken. Returns whether that is settled: what cannot be opened here is not opened later,
    /// either.
    async fn follow_admin_key(&self) -> bool {
        let Ok(_no_step_meanwhile) = self.rotating.try_lock() else {
            return false;
        };
        match self.take_up_admin_key().await {
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

    /// What another broker has done, as far as it is in memory here.
    fn follow_suit(&self, done: &AuditEvent) {
        match (done.event, &done.service, &done.grant, &done.lease_id) {
            (Event::ServiceSuspended | Event::ServiceDeleted, Some(service), ..) => {
                self.tell_shut_out(service);
            }
            (Event::ServiceRevoked, Some(service), ..) => {
                self.tell_revoked(&Target::Service(service.clone()));
            }
            (Event::GrantRevoked, _, Some(grant), _) => {
                self.tell_revoked(&Target::Grant(grant.clone()));
            }
            (Event::LeaseRevoking, Some(service), _, Some(id))
                if matches!(done.actor, Actor::Operator(_)) =>
            {
                self.tell_ended(service, Scope::Lease(id.clone()));
            }
            (Event::DenialWidened, Some(service), ..) => {
                self.tell_ended(service, Scope::Service);
            }
            _ => {}
        }
    }
}

/// What a look at the others' records has told.
struct Told {
    /// The record that was read last.
    read: u64,
    /// Whether it may be another admin key that is at work.
    of_admin_key: bool,
}

fn shorter(lost: String) -> Error {
    contradicted(
        lost,
        "the database has lost what was durable, as when a copy takes over that had not heard of it: put the newest \
               copy in its place; revocation works meanwhile. Only then, to go on with what is left, restart the brokers",
    )
}
