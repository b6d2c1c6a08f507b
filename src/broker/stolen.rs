//! Replacement of a stolen admin key, and the end of all that was made with it: the key, and every
//! session made with it, directly or indirectly, at the broker's own user and at every role. That
//! includes the services' own sessions, so each grant is revoked as well, and the callers that
//! follow it get the next session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, mpsc::UnboundedSender},
    task::JoinSet,
    time::sleep,
};

use crate::{
    broker::{
        Actor, AdminKeyStatus, Broker, DenialOutcome, Error,
        admin_key::CLAIM,
        on_conflict,
        ports::{KeyReach, RevokeTarget},
        revoke::PARALLEL,
    },
    domain::{
        access::Caller,
        admin_key::{AdminKey, Phase},
        arn::RoleArn,
        audit::{Event, Subject},
        denial::{AffectedSessions, Denial, PolicyOwner, Scope},
        name::GrantName,
    },
};

/// Reason that is recorded for the end of the services' own sessions.
const REASON: &str = "admin key stolen";
/// Grant name that is recorded for denials of everyone's sessions if the store has no grant.
const NO_GRANT: &str = "admin-key/stolen";
/// Number of attempts to get another key while the thief creates keys as well.
const TRIES: u32 = 5;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Step in the replacement of a stolen admin key.
#[derive(Debug)]
pub enum StolenProgress {
    /// Another key is in use, and the stolen one is deactivated.
    Replaced(AdminKeyStatus),
    /// AWS was seen to refuse every earlier session at a role or user, or the reason why not.
    Denied(DenialOutcome),
    /// The sessions of a grant are revoked.
    Grant {
        /// Name of the grant.
        grant: GrantName,
        /// Number of leases that were revoked.
        leases: usize,
        /// True if AWS was seen to refuse each of them.
        confirmed: bool,
    },
}

/// Outcome of the replacement of a stolen admin key.
#[derive(Clone, Debug)]
pub struct StolenKeyReplaced {
    /// Cutoff: every session that was issued before it is denied.
    pub denied_before: Timestamp,
    /// True if AWS was seen to refuse all of them, and there is no `notice`.
    pub confirmed: bool,
    /// Access that the broker cannot end, in words; `None` if there is none.
    pub notice: Option<String>,
}

/// Grant and version under which a canary is issued.
type TriedBy = (GrantName, u64);

impl Broker {
    /// Replaces a stolen admin key and ends what was made with it. Reports each step to `progress`.
    /// Safe to repeat.
    ///
    /// # Errors
    /// The broker does not keep its key, AWS creates no other key, or the replacement cannot be
    /// recorded. A session that AWS is not seen to refuse at once is no error: the step says so,
    /// and the broker retries.
    pub async fn replace_stolen_admin_key(
        self: &Arc<Self>,
        caller: Caller,
        progress: UnboundedSender<StolenProgress>,
    ) -> Result<StolenKeyReplaced, Error> {
        let broker = Arc::clone(self);
        self.spawn_detached(
            async move { Box::pin(broker.replace_stolen(&caller, &progress)).await },
        )
        .await
    }

    async fn replace_stolen(
        self: &Arc<Self>,
        caller: &Caller,
        progress: &UnboundedSender<StolenProgress>,
    ) -> Result<StolenKeyReplaced, Error> {
        // A reader that has left does not stop the replacement.
        let tell = |what| drop(progress.send(what));
        let key = self.replace_at_once(caller).await?;
        let user = own_user(&key)?;
        tell(StolenProgress::Replaced(self.status_of(Some(key)).await));
        let reach = self.store().reach_of_key().await?;
        let denials = self.cut_off(caller, &user, &reach).await?;
        let moments = denials.iter().map(|denial| denial.issued_before);
        let denied_before = moments.max().unwrap_or_else(|| self.now());
        let denying = async {
            let denied = self.deny(denials, None).await;
            let all = denied.iter().all(|denied| denied.denial.is_refused());
            for denied in denied {
                tell(StolenProgress::Denied(denied));
            }
            all
        };
        // AWS begins to refuse the services' sessions now. New sessions are of use only after the
        // cutoff, so the services get them then.
        let renewing = async {
            self.wait_until(denied_before).await;
            let mut confirmed = true;
            let mut revoking = self.revoke_live_grants(caller).await?;
            while let Some(revoked) = revoking.join_next().await {
                let Ok((grant, leases, is_refused)) = revoked else {
                    confirmed = false;
                    continue;
                };
                confirmed &= is_refused;
                tell(StolenProgress::Grant {
                    grant,
                    leases,
                    confirmed: is_refused,
                });
            }
            Ok::<_, Error>(confirmed)
        };
        let (all_denied, all_renewed) = tokio::join!(denying, renewing);
        let all_renewed = all_renewed?;
        // Keys that the thief created with the old key until now are deleted with it.
        self.finish_replacement(caller).await?;
        let notice = self.beyond_reach(reach.unreadable);
        Ok(StolenKeyReplaced {
            denied_before,
            confirmed: all_denied && all_renewed && notice.is_none(),
            notice,
        })
    }

    /// Replaces the kept key by another and deactivates the old one, without the pauses of a
    /// rotation. Deletes all other keys of the user: they are the thief's.
    async fn replace_at_once(&self, caller: &Caller) -> Result<AdminKey, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_to_replace(caller).await {
                Err(error) if tries < TRIES && may_be_the_thiefs_doing(&error) => {
                    tracing::warn!(%error, "another admin key is asked for once more");
                    sleep(PAUSE).await;
                }
                replaced => return replaced,
            }
        }
    }

    async fn try_to_replace(&self, caller: &Caller) -> Result<AdminKey, Error> {
        let key = self.kept_admin_key().await?;
        let key = self.steps_at_once(caller, key, |phase| *phase == Phase::Steady);
        let key = key.await?;
        self.delete_unknown_keys(caller, &key).await?;
        let key = self.begin_rotation(Actor::Caller(caller), key).await?;
        let until = |phase: &Phase| matches!(phase, Phase::Retiring { .. } | Phase::Steady);
        let key = self.steps_at_once(caller, key, until).await?;
        if key.phase == Phase::Steady {
            // AWS has created no key.
            return Err(Error::Conflict(Subject::AdminKey));
        }
        Ok(key)
    }

    /// Deletes the old key, and every other key that the broker does not keep.
    async fn finish_replacement(&self, caller: &Caller) -> Result<(), Error> {
        let key = self.kept_admin_key().await?;
        let key = self.steps_at_once(caller, key, |phase| *phase == Phase::Steady);
        let key = key.await?;
        self.delete_unknown_keys(caller, &key).await
    }

    async fn steps_at_once(
        &self,
        caller: &Caller,
        mut key: AdminKey,
        until: impl Fn(&Phase) -> bool,
    ) -> Result<AdminKey, Error> {
        while !until(&key.phase) {
            key = self.step_at_once(caller, key).await?;
        }
        Ok(key)
    }

    async fn step_at_once(&self, caller: &Caller, key: AdminKey) -> Result<AdminKey, Error> {
        let pauses = matches!(key.phase, Phase::Grace { .. } | Phase::Retiring { .. });
        if !pauses || key.is_due(self.now()) {
            return self.take_step(key).await;
        }
        let (from, now) = (key.revision, self.now());
        let hurried = key.make_due(now)?;
        let audit = self.caller_event(caller, Event::AdminKeyStolen);
        self.replace_admin_key(Some(from), &hurried, audit).await?;
        Ok(hurried)
    }

    async fn delete_unknown_keys(&self, caller: &Caller, key: &AdminKey) -> Result<(), Error> {
        let _no_step_meanwhile = self.rotating.lock().await;
        let _by_others = self.lock(CLAIM).await?;
        let known = self.parts.keyring.keys(&key.user).await?;
        for unknown in known.iter().filter(|id| *id != key.current.id.as_str()) {
            let audit = self.caller_event(caller, Event::AdminKeyStolen);
            let words = "a key of the broker's user that the broker does not keep is to be deleted";
            let audit = audit.access_key(unknown).detail(words);
            self.store().record(audit).await?;
        }
        self.delete_lost_keys(key).await
    }

    /// Requests the denial of everyone's sessions at the broker's user, and at every role that any
    /// version of a grant names or for which a session was issued. An earlier such denial may be
    /// retried in the background meanwhile; then the denials are read again.
    async fn cut_off(
        &self,
        caller: &Caller,
        user: &PolicyOwner,
        reach: &KeyReach,
    ) -> Result<Vec<Denial>, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_to_cut_off(caller, user.clone(), reach).await {
                Err(Error::Conflict(_)) if tries < TRIES => sleep(PAUSE).await,
                denials => return denials,
            }
        }
    }

    async fn try_to_cut_off(
        &self,
        caller: &Caller,
        user: PolicyOwner,
        reach: &KeyReach,
    ) -> Result<Vec<Denial>, Error> {
        let now = self.now();
        let standing = self.store().denials().await?.known;
        let everyones = |denial: &&Denial| denial.against.scope == Scope::Everyone;
        let everyones: Vec<&Denial> = standing.iter().filter(everyones).collect();
        let (mut denials, mut overtaken) = (Vec::new(), Vec::new());
        for (holder, (grant, version)) in places(user, reach)? {
            let concerned = AffectedSessions::everyone(holder, grant, version, now);
            let at_holder = everyones
                .iter()
                .filter(|denial| denial.against.holder == concerned.against.holder);
            let (same, others): (Vec<&Denial>, Vec<&Denial>) =
                at_holder.partition(|denial| denial.against == concerned.against);
            overtaken.extend(others.into_iter().cloned());
            denials.push(Denial::request(concerned, same.first().copied(), now));
        }
        let audit = self.caller_event(caller, Event::AdminKeyStolen);
        let audit = audit.detail(&format!(
            "every session issued so far is denied; roles and users: {}",
            denials.len()
        ));
        let put = self
            .store()
            .change_denials(&denials, &overtaken, vec![audit]);
        on_conflict(put.await, || Error::Conflict(Subject::AdminKey))?;
        Ok(denials)
    }

    async fn wait_until(&self, moment: Timestamp) {
        let wait = Duration::try_from(moment.duration_since(self.now()));
        sleep(wait.unwrap_or_default()).await;
    }

    /// Revokes each grant that may have live sessions, several at a time. Each task returns the
    /// grant, the number of its leases, and whether AWS was seen to refuse them.
    async fn revoke_live_grants(
        self: &Arc<Self>,
        caller: &Caller,
    ) -> Result<JoinSet<(GrantName, usize, bool)>, Error> {
        let now = self.now();
        let sessions = self.store().reach_of_key().await?.sessions;
        let live = sessions.into_iter().filter(|s| s.expires_at > now);
        let mut live: Vec<GrantName> = live.map(|session| session.grant).collect();
        live.sort();
        live.dedup();
        let permits = Arc::new(Semaphore::new(PARALLEL));
        let mut tasks = JoinSet::new();
        for grant in live {
            let (broker, permits) = (Arc::clone(self), Arc::clone(&permits));
            let caller = caller.clone();
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await;
                let target = RevokeTarget::Grant(grant.clone());
                let revoking = broker.revoke_saga(&caller, &target, REASON, None);
                match Box::pin(revoking).await {
                    Ok(revoked) => (grant, revoked.leases.len(), revoked.confirmed()),
                    Err(error) => {
                        tracing::error!(%grant, %error, "the grant's sessions are not revoked");
                        (grant, 0, false)
                    }
                }
            });
        }
        Ok(tasks)
    }

    /// Describes access that the broker cannot end: sessions of the roles with which it writes
    /// policies in other accounts, and rows of the store that it cannot read.
    fn beyond_reach(&self, unreadable: u64) -> Option<String> {
        let revokers = self.parts.placements.revokers.values();
        let revokers: Vec<&str> = revokers.map(RoleArn::as_str).collect();
        let revokers = (!revokers.is_empty()).then(|| {
            format!(
                "the broker cannot deny the sessions of the roles by which it works in other accounts: deny those by \
                 hand, as the runbook says, for {}",
                revokers.join(", ")
            )
        });
        let unreadable = (unreadable > 0).then(|| {
            format!("sessions and grants in the store that cannot be read: {unreadable}; see which roles they name")
        });
        let told: Vec<String> = revokers.into_iter().chain(unreadable).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// Returns each role and user, with the grant under which a canary there is issued: that of the
/// session that expires last, if there is one.
fn places(user: PolicyOwner, reach: &KeyReach) -> Result<BTreeMap<PolicyOwner, TriedBy>, Error> {
    let mut places = BTreeMap::new();
    for (role, grant, version) in &reach.roles {
        places.insert(PolicyOwner::Role(role.clone()), (grant.clone(), *version));
    }
    let mut sessions: Vec<_> = reach.sessions.iter().collect();
    sessions.sort_by_key(|session| session.expires_at);
    for session in sessions {
        let tried_by = (session.grant.clone(), session.grant_version);
        places.insert(session.holder.clone(), tried_by);
    }
    let any = match places.values().next() {
        Some(any) => any.clone(),
        None => (no_grant()?, 1),
    };
    places.entry(user).or_insert(any);
    Ok(places)
}

fn may_be_the_thiefs_doing(error: &Error) -> bool {
    matches!(
        error,
        Error::Conflict(_)
            | Error::Aws(_)
            | Error::WrongState {
                reason: "SECOND_ADMIN_KEY",
                ..
            }
    )
}

fn own_user(key: &AdminKey) -> Result<PolicyOwner, Error> {
    let user = key.user.parse();
    user.map_err(|error| Error::Internal(format!("the admin key's user: {error}")))
}

fn no_grant() -> Result<GrantName, Error> {
    let name = NO_GRANT.parse();
    name.map_err(|error| Error::Internal(format!("{NO_GRANT}: {error}")))
}
