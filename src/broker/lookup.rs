//! Owners of access keys and of the broker's own tokens, for an operator who has found one.

use jiff::Timestamp;

use crate::{
    broker::{
        Broker, Error,
        ports::{AuditFilter, PageRequest, TokenOwner},
    },
    domain::{
        access::Caller,
        admin_key::{AdminKey, Phase},
        audit::{AuditEvent, Event, Outcome},
        credential::KeyId,
        lease::{EndReason, Lease},
        token::{StoredToken, TokenId},
    },
};

/// Number of records of a key that are read at once; the first one nearly always names the owner.
const PAGE: u32 = 10;

/// Owner of an access key.
#[derive(Debug)]
pub enum KeyOwner {
    /// A lease under which the key was issued.
    Lease {
        /// Current state of the lease.
        lease: Box<Lease>,
        /// True if the key is the lease's current key, or was its last one.
        current: bool,
        /// Time at which AWS created the key, if known.
        issued_at: Option<Timestamp>,
        /// End of the last access that may have been made from the session; set if the lease has
        /// ended and that access is not denied.
        access_may_live_until: Option<Timestamp>,
    },
    /// The broker itself: its former, current or next admin key.
    Admin {
        /// True if the key is in use.
        current: bool,
        /// Time at which the broker began to use the key, if known.
        since: Option<Timestamp>,
    },
}

impl Broker {
    /// Returns the owners of these access keys, in the same order; `None` for an unknown key.
    ///
    /// # Errors
    /// The store's error.
    pub async fn lookup_access_keys(
        &self,
        caller: &Caller,
        keys: &[KeyId],
    ) -> Result<Vec<Option<KeyOwner>>, Error> {
        let kept = self.store().admin_key().await?;
        let mut owners = Vec::with_capacity(keys.len());
        for key in keys {
            owners.push(self.owner(key, kept.as_ref()).await?);
        }
        self.report_key_in_use(keys, &mut owners).await;
        self.store()
            .record(looked_up(
                self.caller_event(caller, Event::LeaseRead),
                keys,
                &owners,
            ))
            .await?;
        Ok(owners)
    }

    /// Returns the owners of these tokens, in the same order; `None` for an unknown token.
    ///
    /// # Errors
    /// The store's error.
    pub async fn lookup_tokens(
        &self,
        caller: &Caller,
        ids: &[TokenId],
    ) -> Result<Vec<Option<(StoredToken, TokenOwner)>>, Error> {
        let mut owners = Vec::with_capacity(ids.len());
        for id in ids {
            owners.push(self.store().token_owner(id).await?);
        }
        let known = owners.iter().flatten().count();
        let words = format!("tokens looked up: {}; known: {known}", ids.len());
        let audit = self.caller_event(caller, Event::TokenRead).detail(&words);
        let audit = match &owners[..] {
            [Some((_, TokenOwner::Service(service) | TokenOwner::Enrollee(service)))] => {
                audit.service(&service.name)
            }
            _ => audit,
        };
        self.store().record(audit).await?;
        Ok(owners)
    }

    async fn owner(&self, key: &KeyId, kept: Option<&AdminKey>) -> Result<Option<KeyOwner>, Error> {
        if let Some(admin) = kept.and_then(|kept| of_kept(kept, key)) {
            return Ok(Some(admin));
        }
        if let Some(lease) = self.store().lease_of_key(key).await? {
            return Ok(Some(KeyOwner::Lease {
                current: !lease.has_lost_its_key(),
                issued_at: lease.issued().map(|issued| issued.at),
                access_may_live_until: self.outliving(&lease),
                lease: Box::new(lease),
            }));
        }
        match self.told_of(key).await? {
            Some(told) => self.former_owner(&told).await,
            None => Ok(None),
        }
    }

    /// Returns the first record that names the owner of the key.
    async fn told_of(&self, key: &KeyId) -> Result<Option<AuditEvent>, Error> {
        let filter = AuditFilter {
            access_key_id: Some(key.to_string()),
            ..AuditFilter::default()
        };
        let mut page = PageRequest {
            after: None,
            limit: PAGE,
        };
        loop {
            let records = self.store().audit(&filter, &page).await?;
            let Some(last) = records.last().map(|record| record.seq.to_string()) else {
                return Ok(None);
            };
            page.after = Some(last);
            let mut events = records.into_iter().map(|record| record.event);
            let told = events.find(|event| event.lease_id.is_some() || names_the_admin_key(event));
            if told.is_some() {
                return Ok(told);
            }
        }
    }

    async fn former_owner(&self, told: &AuditEvent) -> Result<Option<KeyOwner>, Error> {
        let Some(id) = &told.lease_id else {
            return Ok(Some(KeyOwner::Admin {
                current: false,
                since: takes_up(told.event).then_some(told.time),
            }));
        };
        let lease = self.store().lease(id).await?;
        Ok(lease.map(|lease| KeyOwner::Lease {
            access_may_live_until: self.outliving(&lease),
            lease: Box::new(lease),
            current: false,
            issued_at: hands_out(told.event).then_some(told.time),
        }))
    }

    /// Returns the end of the access that may have been made from a session. Set only for a lease
    /// that has ended without a revocation.
    fn outliving(&self, lease: &Lease) -> Option<Timestamp> {
        lease.ended_at()?;
        if matches!(lease.cause(), Some(EndReason::Revoked(_))) {
            return None;
        }
        lease.access_may_live_until(self.now())
    }

    /// Finds the admin key in use among keys without an owner: no record names a key of the
    /// standard AWS chain.
    async fn report_key_in_use(&self, keys: &[KeyId], owners: &mut [Option<KeyOwner>]) {
        if owners.iter().all(Option::is_some) {
            return;
        }
        let at_work = self.parts.keyring.id().await;
        for (key, owner) in keys.iter().zip(owners) {
            if owner.is_none() && at_work.as_deref() == Some(key.as_str()) {
                *owner = Some(KeyOwner::Admin {
                    current: true,
                    since: None,
                });
            }
        }
    }
}

fn of_kept(kept: &AdminKey, key: &KeyId) -> Option<KeyOwner> {
    if kept.current.id.as_str() == key.as_str() {
        return Some(KeyOwner::Admin {
            current: true,
            since: Some(kept.current.since),
        });
    }
    let mut others = kept.phase.others().iter();
    let other = others.any(|other| other.as_str() == key.as_str());
    other.then_some(KeyOwner::Admin {
        current: false,
        since: match &kept.phase {
            Phase::Proving { new } => Some(new.since),
            _ => None,
        },
    })
}

/// Adds the number of keys to the record. A key itself is recorded, with its lease, only if it is
/// the single one and a lease's.
fn looked_up(audit: AuditEvent, keys: &[KeyId], owners: &[Option<KeyOwner>]) -> AuditEvent {
    let known = owners.iter().flatten().count();
    let audit = audit.detail(&format!(
        "access keys looked up: {}; known: {known}",
        keys.len()
    ));
    match (keys, owners) {
        ([key], [Some(KeyOwner::Lease { lease, .. })]) => {
            audit.lease(lease).access_key(key.as_str())
        }
        _ => audit,
    }
}

/// Returns whether the event names a key of the broker's. A key that AWS did not accept never was.
fn names_the_admin_key(event: &AuditEvent) -> bool {
    event.outcome == Outcome::Success
        && (takes_up(event.event)
            || matches!(
                event.event,
                Event::AdminKeyRotating
                    | Event::AdminKeyStolen
                    | Event::AdminKeyCreated
                    | Event::AdminKeyDeactivated
                    | Event::AdminKeyRotated
            ))
}

const fn takes_up(event: Event) -> bool {
    matches!(event, Event::AdminKeyImported | Event::AdminKeySwitched)
}

const fn hands_out(event: Event) -> bool {
    matches!(event, Event::LeaseIssued | Event::LeaseRedelivered)
}
