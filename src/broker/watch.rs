//! What is revoked, told to those who hold it.

use tokio::sync::broadcast;

use crate::{
    broker::{Broker, Error, ports::Target},
    domain::{
        access::Caller,
        audit::Event,
        decide::own_service,
        denial::Scope,
        lease::LeaseState,
        name::{LeaseId, Name},
    },
};

/// How much waits for a slow watcher before it is sent away.
const WAITING: usize = 256;

/// That something of a service's was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whose.
    pub service: Name,
    /// What.
    pub scope: Scope,
}

/// What a service watches.
#[derive(Debug)]
pub struct Watch {
    /// Whose it is.
    pub service: Name,
    /// Leases that are over already.
    pub over: Vec<LeaseId>,
    /// What is revoked from now on, of anybody's.
    pub news: broadcast::Receiver<Ended>,
}

/// Those who watch.
pub(super) struct Watchers(broadcast::Sender<Ended>);

/// Those who hold connections.
pub(super) struct ShutOuts(broadcast::Sender<Name>);

impl Default for ShutOuts {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Default for Watchers {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Broker {
    /// Tells which services are shut out from now on: suspended, revoked or deleted.
    #[must_use]
    pub fn shut_outs(&self) -> broadcast::Sender<Name> {
        self.shut_outs.0.clone()
    }

    pub(super) fn tell_shut_out(&self, service: &Name) {
        self.shared.forget(service);
        // Nobody may be connected.
        let _ = self.shut_outs.0.send(service.clone());
    }

    /// Begins to tell a service what of its own is revoked; `held` are leases that it holds.
    ///
    /// # Errors
    /// The caller is no service; the store's.
    pub async fn watch(&self, caller: &Caller, held: &[LeaseId]) -> Result<Watch, Error> {
        let service = own_service(caller).ok_or(Error::Unauthenticated)?.clone();
        // Before the look, so that nothing falls between.
        let news = self.watchers.0.subscribe();
        let mut over = Vec::new();
        for id in held {
            let lease = self.store().lease(id).await?;
            let lives = lease.is_some_and(|lease| {
                lease.binding.grant.service == service
                    && matches!(
                        lease.state,
                        LeaseState::Pending { .. } | LeaseState::Active { .. }
                    )
            });
            if !lives {
                over.push(id.clone());
            }
        }
        let audit = self.caller_event(caller, Event::LeaseWatched);
        let audit = audit.service(&service);
        self.record_by(caller.principal(), audit).await?;
        Ok(Watch {
            service,
            over,
            news,
        })
    }

    /// Tells those who watch what was revoked.
    pub(super) fn tell_revoked(&self, target: &Target) {
        if let Target::Service(service) = target {
            self.tell_shut_out(service);
        }
        let scope = match target {
            Target::Service(_) => Scope::Service,
            Target::Grant(grant) => Scope::Grant(grant.grant.clone()),
        };
        self.tell_ended(target.service(), scope);
    }

    pub(super) fn tell_ended(&self, service: &Name, scope: Scope) {
        self.shared.forget(service);
        // Nobody may watch.
        let _ = self.watchers.0.send(Ended {
            service: service.clone(),
            scope,
        });
    }
}
