//! Canaries: evidence that AWS enforces a denial. The broker issues a session just before it writes
//! the denial, which matches this canary like the sessions that it is for. The canary makes a
//! harmless call, the probe, until AWS refuses it. If such a denial stands already, AWS refuses
//! from the start. Then a second session, the control, has another name and is not refused: this
//! shows that the denial refuses the first.
//!
//! The broker keeps no secret of a session that it has handed out, so it needs one of its own.
//! `GetCallerIdentity` would not do as probe: it cannot be denied.

use std::{collections::BTreeSet, sync::PoisonError, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    broker::{
        Actor, Broker, Error,
        ports::{AwsFailure, PolicyState, ProbeOutcome, RefusalCause, StoreError},
    },
    domain::{
        audit::Event,
        credential::Credentials,
        denial::{Denial, NewSessions, PolicyOwner, Scope, denies_all, may_meet},
        grant::{Grant, GrantSpec, Kind, KindSpec},
        lease::{Issuance, Lease},
        name::LeaseId,
        probe::Probe,
    },
};

/// Number of refusals in a row that count as evidence. One answer may come from a server of AWS
/// that knows the denial already while the next does not.
const PROOFS: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Time that AWS may take to enforce a denial, in production, before that is left to the
/// background.
pub const PROOF_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait before a canary is issued, until existing denials would no longer match it.
const LONGEST_WAIT: Duration = Duration::from_secs(7);
/// Longest time for which the denial waits for its canary to be issued, and again for the canary's
/// first calls.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two refusals that count.
const BETWEEN: Duration = Duration::from_millis(250);
/// Number of attempts of a call before the denial.
const TRIES: u32 = 3;
/// Prefix of the name of a control session, and of a canary for everyone's denial. Names of
/// services' sessions have a dot and these have none, so that no denial of a service matches them.
const CONTROL: &str = "ctl-";
/// Time after which a new session is later than the cutoff of the denial that matched the last one.
pub(super) const UNMET_AFTER: Duration = Duration::from_secs(3);

/// A canary: a session that shows whether AWS enforces a denial.
#[derive(Clone)]
pub(super) struct Canary {
    credentials: Credentials,
    /// Calls of the canary: each probe of the grant in each of its regions.
    pub(super) calls: Vec<ProbeCall>,
    /// Time of issue, by AWS's clock.
    issued: Timestamp,
    /// Time of the request for the denial that the canary is for.
    asked_at: Timestamp,
}

impl Canary {
    /// Returns whether the session has not expired at that time.
    pub(super) fn is_valid_at(&self, moment: Timestamp) -> bool {
        self.credentials.expires_at.is_some_and(|end| end > moment)
    }
}

/// A call of a canary.
#[derive(Clone)]
pub(super) struct ProbeCall {
    probe: Probe,
    /// `None`: the broker's own region.
    region: Option<String>,
    /// True if AWS allowed the call before the denial.
    allowed: bool,
}

/// Refusals that were seen.
pub(super) struct ObservedRefusal {
    /// Calls that AWS refused, with their regions.
    pub(super) by: String,
    /// AWS's code and words, from the last of them.
    pub(super) said: String,
    /// The canary that was refused.
    pub(super) trial: Canary,
}

/// Reason why AWS was not seen to refuse a call.
enum NotRefused {
    /// The canary is no longer valid, so it cannot show a refusal any more.
    Dead(String),
    /// The time is up; AWS's last words.
    Late(String),
}

/// Reason why there is no canary.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoCanary {
    /// An existing denial with a cutoff may match the canary. A canary issued a moment later may
    /// be of use.
    #[error("it stood before a session to try it by was made")]
    Stood,
    #[error("{0}")]
    Because(String),
}

/// Existing denial of the broker that may refuse a canary.
enum StandingDenial {
    /// A denial of such sessions, whenever they are issued.
    Always,
    /// A denial of sessions that were issued before a cutoff.
    Before,
    Nothing,
}

impl Broker {
    /// Issues a canary that the denial will match, and makes its calls. Returns the denial, with a
    /// cutoff that covers the canary, and the canary or the reason why there is none.
    pub(super) async fn prepare_canary(
        &self,
        denial: Denial,
    ) -> Result<(Denial, Result<Canary, NoCanary>), Error> {
        if let Some(trial) = self.take_cached_canary(&denial) {
            return Ok((denial, Ok(trial)));
        }
        let Some(grant) = self.canary_grant(&denial).await? else {
            let why = format!("grant {} is not known any more", denial.grant);
            return Ok((denial, Err(NoCanary::Because(why))));
        };
        let binding = self.canary_binding(&denial, &grant);
        let probes = grant.spec.probes();
        self.wait_for_cutoffs(&denial).await?;
        if self.reach(&denial, self.now()).await?.is_none() {
            let too_late = too_late(&denial);
            return Ok((denial, Err(too_late)));
        }
        let audit = self
            .event(Actor::Broker, Event::CanaryRequested)
            .denial(&denial)
            .aws_name(&binding);
        self.store().record(audit).await?;
        let credentials = match self.canary(&denial, &grant, &binding, &probes).await {
            Ok(credentials) => credentials,
            Err(failure) => return Ok((denial, Err(no_canary(&failure)))),
        };
        let issued = issued(&credentials, Kind::ttl_bounds(binding.kind).0);
        let Some(reaching) = self.reach(&denial, issued).await? else {
            let too_late = too_late(&denial);
            return Ok((denial, Err(too_late)));
        };
        let audit = self
            .event(Actor::Broker, Event::CanaryIssued)
            .denial(&denial)
            .access_key(&credentials.access_key_id)
            .aws_name(&binding)
            .aws_request(credentials.aws_request_id.as_deref())
            .detail(&describe_permissions(&probes));
        self.change(&denial, std::slice::from_ref(&reaching), audit)
            .await?;
        let trial = Canary {
            credentials,
            calls: calls(&grant.spec),
            issued,
            asked_at: denial.asked_at,
        };
        let told = self.describe_calls(&trial);
        // The denial must not be delayed for long.
        let trying = timeout(TRY_LIMIT, self.check_before_denial(&denial, &grant, trial)).await;
        let tried = trying.unwrap_or_else(|_| {
            let why = format!("no answer within {} s: {told}", TRY_LIMIT.as_secs());
            Err(NoCanary::Because(why))
        });
        Ok((reaching, tried))
    }

    /// Returns the grant under which the canary is issued. Everyone's sessions need a canary that
    /// only everyone's denial matches. At a user there may be no grant for that.
    async fn canary_grant(&self, denial: &Denial) -> Result<Option<Grant>, StoreError> {
        let (name, version) = (&denial.grant, denial.grant_version);
        if denial.against.scope != Scope::Everyone {
            return self.store().grant_version(name, version).await;
        }
        if let PolicyOwner::User(_) = &denial.against.holder {
            return Ok(Some(Grant {
                name: name.clone(),
                version,
                spec: GrantSpec::federation(),
                created_at: denial.asked_at,
                created_by: name.service.clone(),
            }));
        }
        let grant = self.store().grant_version(name, version).await?;
        Ok(grant.as_ref().map(Grant::without_source_identity))
    }

    /// Returns the denial with a cutoff that covers a session issued at that time; `None` if the
    /// denial would then cover a session that may still be in use.
    async fn reach(&self, denial: &Denial, issued: Timestamp) -> Result<Option<Denial>, Error> {
        if let Some(reaching) = denial.reach(issued, NewSessions::Spared) {
            return Ok(Some(reaching));
        }
        let service = &denial.against.service;
        let live = self.store().live_leases(service, None).await?;
        let is_newer = |lease: &Lease| lease.removal().is_none() && denial.concerns(lease);
        if live.iter().any(is_newer) {
            return Ok(None);
        }
        Ok(denial.reach(issued, NewSessions::None))
    }

    /// Waits until no denial with a cutoff would match a canary issued now. A canary that matches
    /// could show nothing. Waits for [`LONGEST_WAIT`] at most.
    async fn wait_for_cutoffs(&self, denial: &Denial) -> Result<(), Error> {
        let against = &denial.against;
        let place = self.parts.placements.of(&against.holder);
        let standing = self.store().denials_of(&against.service).await?;
        let meeting = standing.iter().filter(|standing| {
            standing.spares_newer
                && self.parts.placements.of(&standing.against.holder) == place
                && standing.conflicts_with_canary(denial)
        });
        let until = meeting.filter_map(|standing| standing.denied_before).max();
        let wait = until.map(|until| until.duration_since(self.now()));
        let wait = wait.and_then(|wait| Duration::try_from(wait).ok());
        sleep(wait.unwrap_or_default().min(LONGEST_WAIT)).await;
        Ok(())
    }

    fn take_cached_canary(&self, denial: &Denial) -> Option<Canary> {
        let mut trials = self
            .denying
            .trials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let trial = trials.remove(&denial.against)?;
        let lives = trial.is_valid_at(self.now() + SignedDuration::from_secs(60));
        // A canary of an earlier revocation is refused because of that revocation.
        let meets = trial.issued < denial.issued_before && denial.was_asked_at(trial.asked_at);
        (lives && meets).then_some(trial)
    }

    fn canary_binding(&self, denial: &Denial, grant: &Grant) -> Issuance {
        let id = match &denial.against.scope {
            Scope::Lease(id) => id.clone(),
            Scope::Everyone | Scope::Service | Scope::Grant(_) => {
                LeaseId::new(self.now(), self.parts.random.as_ref())
            }
        };
        let user = match &denial.against.holder {
            PolicyOwner::User(user) => Some(user.clone()),
            PolicyOwner::Role(_) => None,
        };
        let control = (denial.against.scope == Scope::Everyone).then(|| format!("{CONTROL}{id}"));
        let binding = Issuance::new(id, grant, user, None);
        match control {
            Some(aws_name) => Issuance {
                aws_name,
                ..binding
            },
            None => binding,
        }
    }

    async fn canary(
        &self,
        denial: &Denial,
        grant: &Grant,
        binding: &Issuance,
        probes: &[Probe],
    ) -> Result<Credentials, AwsFailure> {
        if let PolicyOwner::User(user) = &denial.against.holder {
            let federates = self.parts.denier.federates().await?;
            if federates.as_ref() != Some(user) {
                let message = format!(
                    "the sessions are federated by {user}, as whom the broker does not work any more"
                );
                return Err(AwsFailure::deferred("OTHER_USER", message, LONGEST_PAUSE));
            }
        }
        let made = timeout(TRY_LIMIT, self.parts.denier.canary(grant, binding, probes));
        made.await
            .unwrap_or_else(|_| Err(AwsFailure::no_answer(TRY_LIMIT)))
    }

    /// Makes each call before the denial is written. A call that another denial refuses already
    /// would prove nothing later.
    async fn check_before_denial(
        &self,
        denial: &Denial,
        grant: &Grant,
        mut trial: Canary,
    ) -> Result<Canary, NoCanary> {
        let mut control = None;
        for at in 0..trial.calls.len() {
            let call = &trial.calls[at];
            trial.calls[at].allowed = match self.first_answer(&trial, call).await? {
                ProbeOutcome::Allowed => true,
                ProbeOutcome::Refused {
                    cause: RefusalCause::NotAllowed | RefusalCause::Untold,
                    ..
                } => false,
                ProbeOutcome::Refused {
                    cause: RefusalCause::IdentityDenial,
                    said,
                } => {
                    if control.is_none() {
                        match self.find_standing_denial(denial, &trial).await {
                            StandingDenial::Always => {}
                            StandingDenial::Before => return Err(NoCanary::Stood),
                            StandingDenial::Nothing => {
                                return Err(denied_anyway(call.probe, &said));
                            }
                        }
                        control = Some(self.control_session(denial, grant, &trial).await?);
                    }
                    if let Some(control) = &control {
                        self.check_control_call(control, call).await?;
                    }
                    false
                }
                ProbeOutcome::Refused { said, .. } => return Err(denied_anyway(call.probe, &said)),
                ProbeOutcome::Dead => {
                    let call = self.describe_call(call);
                    let why = format!(
                        "AWS does not accept the session by which the denial is tried ({call})"
                    );
                    return Err(NoCanary::Because(why));
                }
            };
        }
        Ok(trial)
    }

    /// Returns AWS's first answer to a call. Retries while AWS does not know the session yet.
    async fn first_answer(
        &self,
        trial: &Canary,
        call: &ProbeCall,
    ) -> Result<ProbeOutcome, NoCanary> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_call(trial, call).await {
                Err(failure) if tries == TRIES => {
                    let why = format!("{} cannot be tried: {failure}", self.describe_call(call));
                    return Err(NoCanary::Because(why));
                }
                Ok(ProbeOutcome::Dead) if tries < TRIES => {}
                Err(_) => {}
                Ok(verdict) => return Ok(verdict),
            }
            sleep(FIRST_PAUSE * 2_u32.pow(tries)).await;
        }
    }

    /// Issues a control session: a canary with another name and no source identity, which no denial
    /// of the broker's matches.
    async fn control_session(
        &self,
        denial: &Denial,
        grant: &Grant,
        trial: &Canary,
    ) -> Result<Canary, NoCanary> {
        let because = |error: &dyn std::fmt::Display| NoCanary::Because(error.to_string());
        let id = LeaseId::new(self.now(), self.parts.random.as_ref());
        let binding = Issuance {
            aws_name: format!("{CONTROL}{id}"),
            ..self.canary_binding(denial, grant)
        };
        let audit = self.event(Actor::Broker, Event::CanaryRequested);
        let audit = audit.denial(denial).aws_name(&binding);
        let recorded = self.store().record(audit).await;
        recorded.map_err(|error| because(&error))?;
        let grant = grant.without_source_identity();
        let probes = grant.spec.probes();
        let made = self.canary(denial, &grant, &binding, &probes).await;
        let credentials = made.map_err(|failure| no_canary(&failure))?;
        let audit = self
            .event(Actor::Broker, Event::CanaryIssued)
            .denial(denial);
        let audit = audit.access_key(&credentials.access_key_id);
        let audit = audit
            .aws_name(&binding)
            .aws_request(credentials.aws_request_id.as_deref())
            .detail(&describe_permissions(&probes));
        let recorded = self.store().record(audit).await;
        recorded.map_err(|error| because(&error))?;
        Ok(Canary {
            credentials,
            ..trial.clone()
        })
    }

    /// Checks that AWS does not deny a call to the control session: then another policy denies it.
    async fn check_control_call(&self, control: &Canary, call: &ProbeCall) -> Result<(), NoCanary> {
        for tries in 1..=TRIES {
            match self.try_call(control, call).await {
                Ok(ProbeOutcome::Refused {
                    cause: RefusalCause::IdentityDenial | RefusalCause::OtherDenial,
                    said,
                }) => return Err(denied_anyway(call.probe, &said)),
                Ok(ProbeOutcome::Allowed | ProbeOutcome::Refused { .. }) => return Ok(()),
                Ok(ProbeOutcome::Dead) | Err(_) => sleep(FIRST_PAUSE * 2_u32.pow(tries)).await,
            }
        }
        let why = format!("{} does not answer", self.describe_call(call));
        Err(NoCanary::Because(why))
    }

    /// Returns the kind of the broker's denial that may refuse the canary already. The denial is of
    /// an earlier attempt, or was written for another revocation.
    async fn find_standing_denial(&self, denial: &Denial, trial: &Canary) -> StandingDenial {
        let place = self.parts.placements.of(&denial.against.holder);
        match self.parts.denier.read(&place, &BTreeSet::new()).await {
            Ok(PolicyState::Policy(policy)) if denies_all(&policy, denial) => {
                StandingDenial::Always
            }
            Ok(PolicyState::Policy(policy)) if may_meet(&policy, denial, trial.issued) => {
                StandingDenial::Before
            }
            Ok(_) => StandingDenial::Nothing,
            // The policy is unknown. `Nothing` would blame the probe.
            Err(_) => StandingDenial::Before,
        }
    }

    /// Repeats each call until AWS refuses it because of the denial. Returns the refusals, or AWS's
    /// last words. If the time is up, the canary is cached for the next attempt.
    pub(super) async fn wait_until_refused_by_aws(
        &self,
        denial: &Denial,
        trial: Canary,
    ) -> Result<ObservedRefusal, String> {
        let (began, mut said) = (Instant::now(), String::new());
        for call in &trial.calls {
            match self.wait_until_call_refused(call, &trial, began).await {
                Ok(words) => said = words,
                Err(NotRefused::Dead(why)) => return Err(why),
                Err(NotRefused::Late(last)) => {
                    let call = self.describe_call(call);
                    let mut trials = self
                        .denying
                        .trials
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    trials.insert(denial.against.clone(), trial);
                    return Err(format!(
                        "the denial is written, and not seen to hold yet ({call}): {last}"
                    ));
                }
            }
        }
        let by = self.describe_calls(&trial);
        Ok(ObservedRefusal { by, said, trial })
    }

    /// Repeats one call until AWS refuses it, or the time since `began` is up. Returns AWS's words.
    async fn wait_until_call_refused(
        &self,
        call: &ProbeCall,
        trial: &Canary,
        began: Instant,
    ) -> Result<String, NotRefused> {
        let (mut pause, mut refusals) = (FIRST_PAUSE, 0);
        loop {
            let last = match self.try_call(trial, call).await {
                Ok(ProbeOutcome::Refused { cause, said }) if proves(cause, call) => {
                    refusals += 1;
                    if refusals == PROOFS {
                        return Ok(said);
                    }
                    sleep(BETWEEN).await;
                    continue;
                }
                Ok(ProbeOutcome::Dead) => {
                    let why = "the session by which the denial is tried is over";
                    return Err(NotRefused::Dead(why.to_owned()));
                }
                Ok(ProbeOutcome::Allowed) => "AWS still lets such a session".to_owned(),
                Ok(ProbeOutcome::Refused { said, .. }) => said,
                Err(failure) => failure.to_string(),
            };
            refusals = 0;
            if began.elapsed() + pause > self.parts.proof_limit {
                return Err(NotRefused::Late(last));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Formats a call: its action and region.
    pub(super) fn describe_call(&self, call: &ProbeCall) -> String {
        let own = self.parts.denier.region();
        match call.region.as_ref().or(own.as_ref()) {
            Some(region) => format!("{} in {region}", call.probe),
            None => call.probe.to_string(),
        }
    }

    /// Formats all calls of a canary, each action once: "sqs:ListQueues in eu-west-1, us-east-1".
    pub(super) fn describe_calls(&self, trial: &Canary) -> String {
        let of_one_probe = trial.calls.chunk_by(|one, next| one.probe == next.probe);
        let told = of_one_probe.map(|calls| {
            let first = self.describe_call(&calls[0]);
            let further = calls[1..].iter().filter_map(|call| call.region.as_ref());
            further.fold(first, |told, region| format!("{told}, {region}"))
        });
        told.collect::<Vec<_>>().join("; ")
    }

    pub(super) async fn try_call(
        &self,
        trial: &Canary,
        call: &ProbeCall,
    ) -> Result<ProbeOutcome, AwsFailure> {
        let (denier, region) = (&self.parts.denier, call.region.as_deref());
        denier.probe(&trial.credentials, call.probe, region).await
    }
}

/// Returns the time of issue of a session, by AWS's clock: its expiry less its lifetime.
pub(super) fn issued(credentials: &Credentials, ttl: Duration) -> Timestamp {
    let ttl = SignedDuration::try_from(ttl).unwrap_or_default();
    credentials.expires_at.unwrap_or(Timestamp::MAX) - ttl
}

/// Returns the calls of a canary: each probe of the grant in the grant's own region, then in its
/// further probe regions.
fn calls(spec: &GrantSpec) -> Vec<ProbeCall> {
    let own = match &spec.kind {
        KindSpec::AssumeRole { region, .. } | KindSpec::FederationToken { region, .. } => {
            region.clone()
        }
        KindSpec::IamUser { .. } => None,
    };
    let further = spec.probe_regions.iter().cloned().map(Some);
    let regions: Vec<_> = std::iter::once(own).chain(further).collect();
    let untried = |probe, region: &Option<String>| ProbeCall {
        probe,
        region: region.clone(),
        allowed: false,
    };
    let of_probe = |probe| regions.iter().map(move |region| untried(probe, region));
    spec.probes().into_iter().flat_map(of_probe).collect()
}

fn describe_permissions(probes: &[Probe]) -> String {
    let probes: Vec<_> = probes.iter().map(|probe| probe.as_str()).collect();
    format!("may do nothing but {}", probes.join(", "))
}

/// Returns whether the denial caused the refusal.
pub(super) const fn proves(cause: RefusalCause, call: &ProbeCall) -> bool {
    match cause {
        RefusalCause::IdentityDenial => true,
        RefusalCause::Untold => call.allowed,
        RefusalCause::OtherDenial | RefusalCause::NotAllowed => false,
    }
}

fn denied_anyway(probe: Probe, said: &str) -> NoCanary {
    NoCanary::Because(format!(
        "{probe} is denied to such sessions anyway ({said}), so that it shows nothing: choose another --probe for \
         the grant"
    ))
}

/// Reason of a canary that would come too late: newer sessions would be denied with it.
fn too_late(denial: &Denial) -> NoCanary {
    let why = if denial.against.scope == Scope::Everyone {
        format!(
            "the denial is written; a session to try it by could not be had before {:.0}, and one that is made now is \
             not denied: repeat `credbroker admin-key rotate --stolen`",
            denial.issued_before
        )
    } else {
        "the service has been given new sessions since, which a session to try the denial by would be one of".to_owned()
    };
    NoCanary::Because(why)
}

fn no_canary(failure: &AwsFailure) -> NoCanary {
    NoCanary::Because(format!(
        "the denial is written; to see it hold takes another session of the kind, and that cannot be had: {failure}"
    ))
}
