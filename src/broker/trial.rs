//! The proof that AWS refuses: a session made just before the denial, which the denial
//! matches like those that it is for, tries something harmless until AWS says no. Where such a
//! denial stands already, AWS refuses from the start; then a second session, which differs in
//! its name alone and is not refused, shows that it is the denial that refuses the first.
//!
//! The broker keeps no secret of a session that it has handed out, so it needs one of its
//! own. GetCallerIdentity would not do: it cannot be denied.

use std::{collections::BTreeSet, sync::PoisonError, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    broker::{
        Broker, By, Error,
        ports::{AwsFailure, Found, RefusalCause, StoreError, Verdict},
    },
    domain::{
        audit::Event,
        credential::Credentials,
        denial::{Denial, Holder, Newer, Scope, denies_all, may_meet},
        grant::{Grant, GrantSpec, Kind, KindSpec},
        lease::{Binding, Lease},
        name::LeaseId,
        probe::Probe,
    },
};

/// How often in a row AWS must refuse: one answer may come from a place that knows the
/// denial already while the next does not.
const PROOFS: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long AWS may take to enforce a denial, in production, before that is left to the
/// background.
pub const PROOF_LIMIT: Duration = Duration::from_secs(30);
/// How long a session to try a denial by waits for those that stand.
const LONGEST_WAIT: Duration = Duration::from_secs(7);
/// How long the denial waits for the session by which it is tried, and again for its first
/// call.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// Between two refusals that count.
const BETWEEN: Duration = Duration::from_millis(250);
/// How often the probe is tried before the denial.
const TRIES: u32 = 3;
/// Prefix of the session name that no denial meets: it has no dot, as those of services do.
const CONTROL: &str = "ctl-";
/// After so long a new session is later than the moment of the denial that met the last one.
pub(super) const UNMET_AFTER: Duration = Duration::from_secs(3);

/// A session to try a denial by.
#[derive(Clone)]
pub(super) struct Trial {
    credentials: Credentials,
    /// Calls to try it by: each probe of the grant in each of its regions.
    pub(super) calls: Vec<Call>,
    /// When AWS made it, by AWS's clock.
    issued: Timestamp,
    /// When the denial was asked for that it is made for.
    asked_at: Timestamp,
}

impl Trial {
    /// Returns whether the session's time is not up at that moment.
    pub(super) fn lives_at(&self, moment: Timestamp) -> bool {
        self.credentials.expires_at.is_some_and(|end| end > moment)
    }
}

/// A call that a session is tried by.
#[derive(Clone)]
pub(super) struct Call {
    probe: Probe,
    /// `None` for the broker's own region.
    region: Option<String>,
    /// True where AWS let the session make it before the denial.
    allowed: bool,
}

/// Refusals that were seen.
pub(super) struct Seen {
    /// The calls that AWS refused, and the regions.
    pub(super) by: String,
    /// AWS's words, to the last of them.
    pub(super) said: String,
    /// The session that was refused.
    pub(super) trial: Trial,
}

/// Why AWS was not seen to refuse a call.
enum NotSeen {
    /// Nor can it be by this session.
    Dead(String),
    /// AWS's last words before the time was up.
    Late(String),
}

/// Why there is no session to try a denial by.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untried {
    /// One that is issued a moment later may be of use.
    #[error("it stood before a session to try it by was made")]
    Stood,
    #[error("{0}")]
    Because(String),
}

/// Denials that stand already against the session by which a denial is tried.
enum Stands {
    /// A denial of such sessions whenever they are issued.
    Always,
    /// A denial of those issued before a moment.
    Before,
    Nothing,
}

impl Broker {
    /// Makes a session that the denial will match, and tries what it may. Returns the denial,
    /// which reaches that session, and the session or why there is none.
    pub(super) async fn prepare_trial(
        &self,
        denial: Denial,
    ) -> Result<(Denial, Result<Trial, Untried>), Error> {
        if let Some(trial) = self.kept_trial(&denial) {
            return Ok((denial, Ok(trial)));
        }
        let Some(grant) = self.grant_to_try_by(&denial).await? else {
            let why = format!("grant {} is not known any more", denial.grant);
            return Ok((denial, Err(Untried::Because(why))));
        };
        let binding = self.canary_binding(&denial, &grant);
        let probes = grant.spec.probes();
        self.wait_out_denials(&denial).await?;
        if self.reach(&denial, self.now()).await?.is_none() {
            let too_late = too_late(&denial);
            return Ok((denial, Err(too_late)));
        }
        let audit = self
            .event(By::Broker, Event::CanaryRequested)
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
            .event(By::Broker, Event::CanaryIssued)
            .denial(&denial)
            .access_key(&credentials.access_key_id)
            .aws_name(&binding)
            .aws_request(credentials.aws_request_id.as_deref())
            .detail(&nothing_but(&probes));
        self.change(&denial, std::slice::from_ref(&reaching), audit)
            .await?;
        let trial = Trial {
            credentials,
            calls: calls(&grant.spec),
            issued,
            asked_at: denial.asked_at,
        };
        let told = self.told_calls(&trial);
        // The denial must not wait for long.
        let trying = timeout(TRY_LIMIT, self.try_before(&denial, &grant, trial)).await;
        let tried = trying.unwrap_or_else(|_| {
            let why = format!("no answer within {} s: {told}", TRY_LIMIT.as_secs());
            Err(Untried::Because(why))
        });
        Ok((reaching, tried))
    }

    /// The grant that a session to try it by is made under. Everyone's sessions are tried by one that
    /// only everyone's denial meets; at a user there may be no grant for it.
    async fn grant_to_try_by(&self, denial: &Denial) -> Result<Option<Grant>, StoreError> {
        let (name, version) = (&denial.grant, denial.grant_version);
        if denial.against.scope != Scope::Everyone {
            return self.store().grant_version(name, version).await;
        }
        if let Holder::User(_) = &denial.against.holder {
            return Ok(Some(Grant {
                name: name.clone(),
                version,
                spec: GrantSpec::federation(),
                created_at: denial.asked_at,
                created_by: name.service.clone(),
            }));
        }
        let grant = self.store().grant_version(name, version).await?;
        Ok(grant.as_ref().map(without_source_identity))
    }

    /// The denial as it meets a session issued at that moment, and no session that somebody
    /// may still use.
    async fn reach(&self, denial: &Denial, issued: Timestamp) -> Result<Option<Denial>, Error> {
        if let Some(reaching) = denial.reach(issued, Newer::Spared) {
            return Ok(Some(reaching));
        }
        let service = &denial.against.service;
        let live = self.store().live_leases(service, None).await?;
        let is_newer = |lease: &Lease| lease.removal().is_none() && denial.concerns(lease);
        if live.iter().any(is_newer) {
            return Ok(None);
        }
        Ok(denial.reach(issued, Newer::None))
    }

    /// Waits until none that has a date would meet a session made now: it could show nothing.
    async fn wait_out_denials(&self, denial: &Denial) -> Result<(), Error> {
        let against = &denial.against;
        let place = self.parts.placements.of(&against.holder);
        let standing = self.store().denials_of(&against.service).await?;
        let meeting = standing.iter().filter(|standing| {
            standing.spares_newer
                && self.parts.placements.of(&standing.against.holder) == place
                && standing.meets_trial_of(denial)
        });
        let until = meeting.filter_map(|standing| standing.denied_before).max();
        let wait = until.map(|until| until.duration_since(self.now()));
        let wait = wait.and_then(|wait| Duration::try_from(wait).ok());
        sleep(wait.unwrap_or_default().min(LONGEST_WAIT)).await;
        Ok(())
    }

    fn kept_trial(&self, denial: &Denial) -> Option<Trial> {
        let mut trials = self
            .denying
            .trials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let trial = trials.remove(&denial.against)?;
        let lives = trial.lives_at(self.now() + SignedDuration::from_secs(60));
        // One that was made for an earlier revocation is refused for the sake of that.
        let meets = trial.issued < denial.issued_before && denial.was_asked_at(trial.asked_at);
        (lives && meets).then_some(trial)
    }

    fn canary_binding(&self, denial: &Denial, grant: &Grant) -> Binding {
        let id = match &denial.against.scope {
            Scope::Lease(id) => id.clone(),
            Scope::Everyone | Scope::Service | Scope::Grant(_) => {
                LeaseId::new(self.now(), self.parts.random.as_ref())
            }
        };
        let user = match &denial.against.holder {
            Holder::User(user) => Some(user.clone()),
            Holder::Role(_) => None,
        };
        let control = (denial.against.scope == Scope::Everyone).then(|| format!("{CONTROL}{id}"));
        let binding = Binding::new(id, grant, user, None);
        match control {
            Some(aws_name) => Binding {
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
        binding: &Binding,
        probes: &[Probe],
    ) -> Result<Credentials, AwsFailure> {
        if let Holder::User(user) = &denial.against.holder {
            let federates = self.parts.denier.federates().await?;
            if federates.as_ref() != Some(user) {
                let message = format!(
                    "the sessions are federated by {user}, as whom the broker does not work any more"
                );
                return Err(AwsFailure::held_back("OTHER_USER", message, LONGEST_PAUSE));
            }
        }
        let made = timeout(TRY_LIMIT, self.parts.denier.canary(grant, binding, probes));
        made.await
            .unwrap_or_else(|_| Err(AwsFailure::no_answer(TRY_LIMIT)))
    }

    /// Answers of AWS before the denial, to each call: a refusal that names a denial proves
    /// nothing later.
    async fn try_before(
        &self,
        denial: &Denial,
        grant: &Grant,
        mut trial: Trial,
    ) -> Result<Trial, Untried> {
        let mut controlled = None;
        for at in 0..trial.calls.len() {
            let call = &trial.calls[at];
            trial.calls[at].allowed = match self.first_answer(&trial, call).await? {
                Verdict::Allowed => true,
                Verdict::Refused {
                    cause: RefusalCause::NotAllowed | RefusalCause::Untold,
                    ..
                } => false,
                Verdict::Refused {
                    cause: RefusalCause::IdentityDenial,
                    said,
                } => {
                    match self.what_stands(denial, &trial).await {
                        Stands::Always if controlled == Some(call.probe) => {}
                        Stands::Always => self.try_control(denial, grant, &trial, call).await?,
                        Stands::Before => return Err(Untried::Stood),
                        Stands::Nothing => return Err(denied_anyway(call.probe, &said)),
                    }
                    controlled = Some(call.probe);
                    false
                }
                Verdict::Refused { said, .. } => return Err(denied_anyway(call.probe, &said)),
                Verdict::Dead => {
                    let call = self.told_call(call);
                    let why = format!(
                        "AWS does not accept the session by which the denial is tried ({call})"
                    );
                    return Err(Untried::Because(why));
                }
            };
        }
        Ok(trial)
    }

    /// AWS's answer to one call; an answer that it does not know the session yet is not the first.
    async fn first_answer(&self, trial: &Trial, call: &Call) -> Result<Verdict, Untried> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_call(trial, call).await {
                Err(failure) if tries == TRIES => {
                    let why = format!("{} cannot be tried: {failure}", self.told_call(call));
                    return Err(Untried::Because(why));
                }
                Ok(Verdict::Dead) if tries < TRIES => {}
                Err(_) => {}
                Ok(verdict) => return Ok(verdict),
            }
            sleep(FIRST_PAUSE * 2_u32.pow(tries)).await;
        }
    }

    /// Tries a session that differs from the first in its name alone.
    async fn try_control(
        &self,
        denial: &Denial,
        grant: &Grant,
        trial: &Trial,
        call: &Call,
    ) -> Result<(), Untried> {
        let because = |error: &dyn std::fmt::Display| Untried::Because(error.to_string());
        let id = LeaseId::new(self.now(), self.parts.random.as_ref());
        let binding = Binding {
            aws_name: format!("{CONTROL}{id}"),
            ..self.canary_binding(denial, grant)
        };
        let audit = self.event(By::Broker, Event::CanaryRequested);
        let audit = audit.denial(denial).aws_name(&binding);
        let recorded = self.store().record(audit).await;
        recorded.map_err(|error| because(&error))?;
        let grant = without_source_identity(grant);
        let made = self.canary(denial, &grant, &binding, &[call.probe]).await;
        let credentials = made.map_err(|failure| no_canary(&failure))?;
        let audit = self.event(By::Broker, Event::CanaryIssued).denial(denial);
        let audit = audit.access_key(&credentials.access_key_id);
        let audit = audit
            .aws_name(&binding)
            .aws_request(credentials.aws_request_id.as_deref())
            .detail(&nothing_but(&[call.probe]));
        let recorded = self.store().record(audit).await;
        recorded.map_err(|error| because(&error))?;
        let control = Trial {
            credentials,
            ..trial.clone()
        };
        for tries in 1..=TRIES {
            match self.try_call(&control, call).await {
                Ok(Verdict::Refused {
                    cause: RefusalCause::IdentityDenial | RefusalCause::OtherDenial,
                    said,
                }) => return Err(denied_anyway(call.probe, &said)),
                Ok(Verdict::Allowed | Verdict::Refused { .. }) => return Ok(()),
                Ok(Verdict::Dead) | Err(_) => sleep(FIRST_PAUSE * 2_u32.pow(tries)).await,
            }
        }
        let why = format!("{} does not answer", self.told_call(call));
        Err(Untried::Because(why))
    }

    /// Finds what denial of the broker's may refuse the session already: an earlier attempt of
    /// this one, or one that was written for another's sake.
    async fn what_stands(&self, denial: &Denial, trial: &Trial) -> Stands {
        let place = self.parts.placements.of(&denial.against.holder);
        match self.parts.denier.read(&place, &BTreeSet::new()).await {
            Ok(Found::Policy(policy)) if denies_all(&policy, denial) => Stands::Always,
            Ok(Found::Policy(policy)) if may_meet(&policy, denial, trial.issued) => Stands::Before,
            Ok(_) => Stands::Nothing,
            // Then nothing is known, and that would be said of the probe.
            Err(_) => Stands::Before,
        }
    }

    /// Tries each call until AWS refuses it for the denial's sake. Returns the refusals, or what
    /// AWS said last; the session is kept for the next attempt.
    pub(super) async fn see_refused(&self, denial: &Denial, trial: Trial) -> Result<Seen, String> {
        let (began, mut said) = (Instant::now(), String::new());
        for call in &trial.calls {
            match self.see_call_refused(call, &trial, began).await {
                Ok(words) => said = words,
                Err(NotSeen::Dead(why)) => return Err(why),
                Err(NotSeen::Late(last)) => {
                    let call = self.told_call(call);
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
        let by = self.told_calls(&trial);
        Ok(Seen { by, said, trial })
    }

    /// Tries one call, until the time since `began` is up. Returns AWS's words.
    async fn see_call_refused(
        &self,
        call: &Call,
        trial: &Trial,
        began: Instant,
    ) -> Result<String, NotSeen> {
        let (mut pause, mut refusals) = (FIRST_PAUSE, 0);
        loop {
            let last = match self.try_call(trial, call).await {
                Ok(Verdict::Refused { cause, said }) if proves(cause, call) => {
                    refusals += 1;
                    if refusals == PROOFS {
                        return Ok(said);
                    }
                    sleep(BETWEEN).await;
                    continue;
                }
                Ok(Verdict::Dead) => {
                    let why = "the session by which the denial is tried is over";
                    return Err(NotSeen::Dead(why.to_owned()));
                }
                Ok(Verdict::Allowed) => "AWS still lets such a session".to_owned(),
                Ok(Verdict::Refused { said, .. }) => said,
                Err(failure) => failure.to_string(),
            };
            refusals = 0;
            if began.elapsed() + pause > self.parts.proof_limit {
                return Err(NotSeen::Late(last));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A call's action and region, in words.
    pub(super) fn told_call(&self, call: &Call) -> String {
        let own = self.parts.denier.region();
        match call.region.as_ref().or(own.as_ref()) {
            Some(region) => format!("{} in {region}", call.probe),
            None => call.probe.to_string(),
        }
    }

    /// All calls of a trial in words, each action once: "sqs:ListQueues in eu-west-1, us-east-1".
    pub(super) fn told_calls(&self, trial: &Trial) -> String {
        let of_one_probe = trial.calls.chunk_by(|one, next| one.probe == next.probe);
        let told = of_one_probe.map(|calls| {
            let first = self.told_call(&calls[0]);
            let further = calls[1..].iter().filter_map(|call| call.region.as_ref());
            further.fold(first, |told, region| format!("{told}, {region}"))
        });
        told.collect::<Vec<_>>().join("; ")
    }

    pub(super) async fn try_call(&self, trial: &Trial, call: &Call) -> Result<Verdict, AwsFailure> {
        let (denier, region) = (&self.parts.denier, call.region.as_deref());
        denier.probe(&trial.credentials, call.probe, region).await
    }
}

/// When AWS made a session, by AWS's clock.
pub(super) fn issued(credentials: &Credentials, ttl: Duration) -> Timestamp {
    let ttl = SignedDuration::try_from(ttl).unwrap_or_default();
    credentials.expires_at.unwrap_or(Timestamp::MAX) - ttl
}

/// Each probe of a grant in its own region, then in those that it names to probe in as well.
fn calls(spec: &GrantSpec) -> Vec<Call> {
    let own = match &spec.kind {
        KindSpec::AssumeRole { region, .. } | KindSpec::FederationToken { region, .. } => {
            region.clone()
        }
        KindSpec::IamUser { .. } => None,
    };
    let further = spec.probe_regions.iter().cloned().map(Some);
    let regions: Vec<_> = std::iter::once(own).chain(further).collect();
    let untried = |probe, region: &Option<String>| Call {
        probe,
        region: region.clone(),
        allowed: false,
    };
    let of_probe = |probe| regions.iter().map(move |region| untried(probe, region));
    spec.probes().into_iter().flat_map(of_probe).collect()
}

fn nothing_but(probes: &[Probe]) -> String {
    let probes: Vec<_> = probes.iter().map(|probe| probe.as_str()).collect();
    format!("may do nothing but {}", probes.join(", "))
}

/// Tells whether a refusal is the denial's work.
pub(super) const fn proves(cause: RefusalCause, call: &Call) -> bool {
    match cause {
        RefusalCause::IdentityDenial => true,
        RefusalCause::Untold => call.allowed,
        RefusalCause::OtherDenial | RefusalCause::NotAllowed => false,
    }
}

/// The same grant without what a denial may meet beside the name.
fn without_source_identity(grant: &Grant) -> Grant {
    let mut grant = grant.clone();
    if let KindSpec::AssumeRole {
        source_identity, ..
    } = &mut grant.spec.kind
    {
        *source_identity = false;
    }
    grant
}

fn denied_anyway(probe: Probe, said: &str) -> Untried {
    Untried::Because(format!(
        "{probe} is denied to such sessions anyway ({said}), so that it shows nothing: choose another --probe for \
         the grant"
    ))
}

/// Newer sessions would be denied with one that is made now.
fn too_late(denial: &Denial) -> Untried {
    let why = if denial.against.scope == Scope::Everyone {
        format!(
            "the denial is written; a session to try it by could not be had before {:.0}, and one that is made now is \
             not denied: repeat `credbroker admin-key rotate --stolen`",
            denial.issued_before
        )
    } else {
        "the service has been given new sessions since, which a session to try the denial by would be one of".to_owned()
    };
    Untried::Because(why)
}

fn no_canary(failure: &AwsFailure) -> Untried {
    Untried::Because(format!(
        "the denial is written; to see it hold takes another session of the kind, and that cannot be had: {failure}"
    ))
}
