//! Living beside other brokers on one store: saying so, hearing what they have done, and
//! seeing to what the dead have left.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    broker::{
        Broker, Error,
        checkpoints::contradicted,
        ports::{Living, Peers, Target},
    },
    domain::{
        audit::{Actor, AuditEvent, Event},
        denial::Scope,
    },
};

/// How often a broker says that it lives.
const APPEAR_EVERY: Duration = Duration::from_secs(2);
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
        let (at, place) = (Instant::now(), self.parts.spool.place());
        let living = peers.appear(&self.instance, &place).await?;
        self.claims.said_alive(at);
        if living.buried > 0 {
            tracing::warn!("another broker has died");
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
        let mut ticks = interval(APPEAR_EVERY);
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
        let mut heard = None;
        loop {
            ticks.tick().await;
            match self.listen(peers, heard).await {
                Ok(read) => heard = Some(read),
                Err(error) => tracing::debug!(%error, "not known what other brokers have done"),
            }
        }
    }

    /// Follows what others have recorded since; from the first time on.
    async fn listen(&self, peers: &dyn Peers, heard: Option<u64>) -> Result<u64, Error> {
        let Some(mut heard) = heard else {
            // What was before is in nobody's memory here, but for the admin key.
            let heard = self.store().audit_size().await?;
            self.take_up_admin_key().await?;
            return Ok(heard);
        };
        loop {
            let news = peers.news(heard).await?;
            if news.size < heard {
                let lost = format!(
                    "the audit log ends with record {}, and had {heard}",
                    news.size
                );
                self.doubt_log(shorter(lost));
            }
            for record in &news.records {
                if record.event.instance.as_ref() != Some(&self.instance) {
                    self.follow_suit(&record.event).await?;
                }
            }
            heard = news.read;
            if news.read >= news.size {
                return Ok(heard);
            }
        }
    }

    /// What another broker has done, as far as it is in memory here.
    async fn follow_suit(&self, done: &AuditEvent) -> Result<(), Error> {
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
            (Event::AdminKeyImported | Event::AdminKeySwitched, ..) => {
                self.take_up_admin_key().await?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn shorter(lost: String) -> Error {
    contradicted(
        lost,
        "the database has lost what was durable, as when a copy takes over that had not heard of it: put the newest \
               copy in its place; revocation works meanwhile. Only then, to go on with what is left, restart the brokers",
    )
}
