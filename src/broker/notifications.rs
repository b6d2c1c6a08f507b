//! Notices of revocations for the services concerned, and of suspensions for open connections.

use tokio::sync::broadcast;

use crate::{
    broker::{Broker, Error, ports::RevokeTarget},
    domain::{
        access::Caller,
        audit::Event,
        decide::own_service,
        denial::Scope,
        lease::LeaseState,
        name::{LeaseId, Name},
    },
};

/// Number of unread notices after which a slow subscriber is disconnected.
const WAITING: usize = 256;

/// Notice of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationNotice {
    /// Service whose credentials are revoked.
    pub service: Name,
    /// Scope of the revocation within the service.
    pub scope: Scope,
}

/// Subscription of a service to revocations.
#[derive(Debug)]
pub struct Watch {
    /// Name of the service.
    pub service: Name,
    /// Leases among the given ones that are no longer valid, or never were the service's.
    pub over: Vec<LeaseId>,
    /// Notices from now on, of all services.
    pub news: broadcast::Receiver<RevocationNotice>,
}

/// Channel to the subscribers of revocations.
pub(super) struct Subscribers(broadcast::Sender<RevocationNotice>);

/// Channel to the holders of connections.
pub(super) struct SuspensionChannel(broadcast::Sender<Name>);

impl Default for SuspensionChannel {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Default for Subscribers {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Broker {
    /// Returns the channel of services that are suspended, revoked or deleted from now on.
    #[must_use]
    pub fn suspensions(&self) -> broadcast::Sender<Name> {
        self.shut_outs.0.clone()
    }

    pub(super) fn notify_suspended(&self, service: &Name) {
        self.shared.forget(service);
        // Sending fails if there is no subscriber.
        let _ = self.shut_outs.0.send(service.clone());
    }

    /// Subscribes a service to revocations; `held` are leases that the service holds.
    ///
    /// # Errors
    /// The caller is no service; the store's error.
    pub async fn watch(&self, caller: &Caller, held: &[LeaseId]) -> Result<Watch, Error> {
        let service = own_service(caller).ok_or(Error::Unauthenticated)?.clone();
        // The subscription comes before the look-up, so that no revocation is missed in between.
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

    /// Notifies the subscribers of a revocation.
    pub(super) fn notify_revoked(&self, target: &RevokeTarget) {
        if let RevokeTarget::Service(service) = target {
            self.notify_suspended(service);
        }
        let scope = match target {
            RevokeTarget::Service(_) => Scope::Service,
            RevokeTarget::Grant(grant) => Scope::Grant(grant.grant.clone()),
        };
        self.notify_ended(target.service(), scope);
    }

    pub(super) fn notify_ended(&self, service: &Name, scope: Scope) {
        self.shared.forget(service);
        // Sending fails if there is no subscriber.
        let _ = self.watchers.0.send(RevocationNotice {
            service: service.clone(),
            scope,
        });
    }
}
