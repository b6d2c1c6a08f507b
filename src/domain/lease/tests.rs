use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::domain::{name::tests::Counting, request::RequestId};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

const SECOND: SignedDuration = SignedDuration::from_secs(1);

fn lease_of(kind: Kind) -> Lease {
    let lease_id = LeaseId::new(at(1_000), &Counting);
    let grant: GrantName = "payments/uploads".parse().unwrap();
    let aws_name = aws_name(kind, &grant.service, &lease_id);
    let binding = Issuance {
        lease_id,
        grant,
        grant_version: 1,
        kind,
        aws_name,
        renews: None,
        holder: match kind {
            Kind::AssumeRole => "arn:aws:iam::111122223333:role/app".parse().ok(),
            Kind::FederationToken => "arn:aws:iam::111122223333:user/admin".parse().ok(),
            Kind::IamUser => None,
        },
    };
    let request = IdempotencyKey::new(RequestId::random(&Counting), &[]);
    Lease::request(binding, Some(request), at(1_000))
}

fn lease() -> Lease {
    lease_of(Kind::IamUser)
}

fn issued() -> IssuedCredentials {
    IssuedCredentials {
        access_key_id: "AKIAEXAMPLE".to_owned(),
        at: at(1_001),
        expires_at: at(4_600),
    }
}

fn active() -> Lease {
    lease().activate(issued()).unwrap()
}

fn leaked() -> EndReason {
    EndReason::Revoked("leaked".to_owned())
}

#[test]
fn a_lease_lives_from_pending_to_expired() {
    let lease = active()
        .begin_revocation(EndReason::Expired, at(4_600))
        .unwrap();
    let lease = lease.finish(at(4_601)).unwrap();
    assert_eq!(
        lease.state,
        LeaseState::Expired {
            issued: issued(),
            at: at(4_601)
        }
    );
    assert_eq!(lease.revision, 3);
}

#[test]
fn a_session_expires_by_itself_and_not_before_its_time() {
    let session = lease_of(Kind::AssumeRole).activate(issued()).unwrap();
    assert!(session.clone().expire(at(4_599)).is_err());
    assert_eq!(session.expire(at(4_600)).unwrap().state.as_str(), "expired");
    assert!(active().expire(at(4_600)).is_err());
}

#[test]
fn a_lease_that_was_never_handed_out_ends_revoked_and_gives_its_request_back() {
    let nothing = || "x".to_owned();
    let taken_away = lease()
        .begin_revocation(EndReason::NotIssued(nothing()), at(1_010))
        .and_then(|lease| lease.finish(at(1_011)));
    let never_made = lease().abandon(nothing(), at(1_010));
    for lease in [taken_away.unwrap(), never_made.unwrap()] {
        assert_eq!(lease.state.as_str(), "revoked");
        assert_eq!((lease.issued(), &lease.request), (None, &None));
    }
    let revoked = lease().begin_revocation(leaked(), at(1_010)).unwrap();
    assert!(revoked.request.is_some());
    assert!(active().abandon(nothing(), at(1_010)).is_err());
}

#[test]
fn a_lease_revoked_while_it_is_issued_is_left_to_its_issuer_until_the_deadline() {
    let lease = lease().begin_revocation(leaked(), at(1_010)).unwrap();
    assert!(lease.is_in_flight(at(1_059)));
    assert!(!lease.is_in_flight(at(1_060)));
    let again = lease
        .begin_revocation(EndReason::Expired, at(1_020))
        .unwrap();
    assert!(again.is_in_flight(at(1_059)));
    assert_eq!(again.due_at(), Some(at(1_060)));
    let failed = again.postpone(at(1_021), SECOND).unwrap();
    assert!(!failed.is_in_flight(at(1_022)));
}

#[test]
fn a_second_revocation_keeps_the_first_cause_and_is_its_callers_for_a_minute() {
    let lease = active().begin_revocation(leaked(), at(2_000)).unwrap();
    assert_eq!(lease.due_at(), Some(at(2_060)));
    let lease = lease
        .postpone(at(2_001), SignedDuration::from_mins(5))
        .unwrap();
    let lease = lease
        .begin_revocation(EndReason::Expired, at(2_002))
        .unwrap();
    assert_eq!(
        (lease.cause(), lease.due_at()),
        (Some(&leaked()), Some(at(2_062)))
    );
}

#[test]
fn what_merely_ends_is_revoked_when_somebody_revokes_it() {
    for ends in [EndReason::Expired, EndReason::Released] {
        let ending = active().begin_revocation(ends, at(2_000)).unwrap();
        let revoked = ending.begin_revocation(leaked(), at(2_001)).unwrap();
        assert_eq!(revoked.cause(), Some(&leaked()));
        let gone = revoked.finish(at(2_002)).unwrap();
        assert_eq!(gone.state.as_str(), "revoked");
    }
}

#[test]
fn ten_failures_or_half_an_hour_of_them_quarantine_a_lease_until_it_is_gone() {
    let mut lease = active().begin_revocation(leaked(), at(2_000)).unwrap();
    for attempt in 1..=10 {
        assert_eq!(lease.state.as_str(), "revoking");
        lease = lease.postpone(at(2_000 + attempt), SECOND).unwrap();
    }
    assert_eq!(lease.state.as_str(), "quarantined");
    let again = lease
        .begin_revocation(EndReason::Released, at(2_020))
        .unwrap();
    assert_eq!(
        (again.state.as_str(), again.due_at()),
        ("quarantined", Some(at(2_080)))
    );
    let gone = again.finish(at(2_021)).unwrap();
    assert_eq!(
        (gone.state.as_str(), gone.cause()),
        ("revoked", Some(&leaked()))
    );

    let slow = active().begin_revocation(leaked(), at(2_000)).unwrap();
    let slow = slow.postpone(at(2_000), SECOND).unwrap();
    let slow = slow.postpone(at(3_799), SECOND).unwrap();
    assert_eq!(slow.state.as_str(), "revoking");
    let slow = slow.postpone(at(3_800), SECOND).unwrap();
    assert_eq!(slow.state.as_str(), "quarantined");
}

#[test]
fn waiting_is_no_failure() {
    let mut lease = active().begin_revocation(leaked(), at(2_000)).unwrap();
    for hour in 1..=30 {
        lease = lease.wait(at(2_000 + hour * 3_600)).unwrap();
    }
    let removal = lease.removal().unwrap();
    assert_eq!((removal.attempts, removal.failing_since), (0, None));
    assert_eq!(lease.state.as_str(), "revoking");
}

#[test]
fn what_aws_does_not_show_may_appear_for_five_minutes_after_it_may_have_been_made() {
    let pending = lease();
    assert_eq!(pending.may_appear_until(at(1_359)), Some(at(1_360)));
    let abandoned = pending
        .begin_revocation(EndReason::NotIssued(String::new()), at(1_060))
        .unwrap();
    assert_eq!(abandoned.may_appear_until(at(1_359)), Some(at(1_360)));
    assert_eq!(abandoned.may_appear_until(at(1_360)), None);
    assert_eq!(active().may_appear_until(at(1_300)), Some(at(1_301)));
    assert_eq!(active().may_appear_until(at(1_301)), None);
}

#[test]
fn a_replacement_keeps_the_lease_and_its_request() {
    let replacing = active().begin_replacement(at(1_100)).unwrap();
    assert_eq!(replacing.due_at(), Some(at(1_160)));
    assert_eq!(replacing.issued(), Some(&issued()));
    let kept = replacing.clone().cancel_replacement(false).unwrap();
    assert_eq!(kept.state, active().state);
    assert!(replacing.clone().extend(at(9_000), at(1_101)).is_err());
    let other = IssuedCredentials {
        access_key_id: "AKIAOTHER".to_owned(),
        ..issued()
    };
    let replaced = replacing.activate(other.clone()).unwrap();
    assert_eq!(replaced.issued(), Some(&other));
    assert_eq!(replaced.request, active().request);
    assert!(replaced.clone().activate(issued()).is_err());
    assert!(replaced.cancel_replacement(false).is_err());
    assert!(active().begin_replacement(at(4_600)).is_err());
}

#[test]
fn a_lease_whose_key_is_lost_lives_on_and_gets_another() {
    let replacing = active().begin_replacement(at(1_100)).unwrap();
    let lost = replacing.cancel_replacement(true).unwrap();
    let standing = |lease: &Lease| match lease.state {
        LeaseState::Active { standing, .. } => Some(standing),
        _ => None,
    };
    assert_eq!(standing(&lost), Some(CredentialState::KeyLost));
    assert_eq!(lost.due_at(), active().due_at());
    let renewed = lost.extend(at(9_000), at(1_200)).unwrap();
    assert_eq!(standing(&renewed), Some(CredentialState::KeyLost));
    let replaced = renewed.begin_replacement(at(1_300)).unwrap();
    let whole = replaced.activate(issued()).unwrap();
    assert_eq!(standing(&whole), Some(CredentialState::Whole));
}

#[test]
fn a_revoked_session_is_due_when_aws_ends_it() {
    let session = lease_of(Kind::AssumeRole).activate(issued()).unwrap();
    let revoked = session.begin_revocation(leaked(), at(2_000)).unwrap();
    assert_eq!(revoked.due_at(), Some(at(4_600)));
    let again = revoked.begin_revocation(leaked(), at(3_000)).unwrap();
    assert_eq!(again.due_at(), Some(at(4_600)));
    let late = again.begin_revocation(leaked(), at(5_000)).unwrap();
    assert_eq!(late.due_at(), Some(at(5_000)));
}

#[test]
fn an_ended_session_is_revoked_while_access_made_from_it_may_live() {
    for (kind, hours) in [(Kind::AssumeRole, 12), (Kind::FederationToken, 36)] {
        let until = 4_600 + 15 * 60 + hours * 3_600;
        let session = lease_of(kind).activate(issued()).unwrap();
        let expired = session.clone().expire(at(4_600)).unwrap();
        let released = session
            .begin_revocation(EndReason::Released, at(2_000))
            .and_then(|lease| lease.finish(at(4_600)))
            .unwrap();
        for ended in [expired, released] {
            let late = ended.clone().begin_revocation(leaked(), at(until));
            assert!(late.is_err(), "{kind}");
            for not_revoked in [EndReason::Released, EndReason::Expired] {
                let again = ended.clone().begin_revocation(not_revoked, at(5_000));
                assert!(again.is_err(), "{kind}");
            }
            let revoking = ended.begin_revocation(leaked(), at(until - 1)).unwrap();
            assert_eq!(revoking.due_at(), Some(at(until)), "{kind}");
            let revoked = revoking.finish(at(until - 1)).unwrap();
            assert_eq!(revoked.cause(), Some(&leaked()));
            assert!(revoked.begin_revocation(leaked(), at(until - 1)).is_err());
        }
    }
    let user = active().begin_revocation(EndReason::Expired, at(4_600));
    let gone = user.and_then(|lease| lease.finish(at(4_601))).unwrap();
    assert!(gone.begin_revocation(leaked(), at(4_602)).is_err());
}

#[test]
fn only_a_living_user_is_renewed() {
    let renewed = active().extend(at(9_000), at(4_599)).unwrap();
    assert_eq!(renewed.due_at(), Some(at(9_000)));
    assert!(active().extend(at(9_000), at(4_600)).is_err());
    let session = lease_of(Kind::FederationToken).activate(issued()).unwrap();
    assert!(session.extend(at(9_000), at(2_000)).is_err());
}

#[test]
fn causes_read_back_as_they_were_written() {
    for cause in [
        EndReason::Expired,
        EndReason::Released,
        EndReason::Revoked(String::new()),
        EndReason::Revoked("key: found on the internet".to_owned()),
        EndReason::NotIssued("AccessDenied".to_owned()),
    ] {
        assert_eq!(cause.to_string().parse(), Ok(cause));
    }
}

#[test]
fn names_in_aws_fit_their_bounds_and_name_the_service() {
    let lease = LeaseId::new(at(1_000), &Counting);
    let (brief, long): (Name, Name) = (
        "api".parse().unwrap(),
        "a-very-long-service-name-of-32-c".parse().unwrap(),
    );
    for service in [&brief, &long] {
        assert!(aws_name(Kind::AssumeRole, service, &lease).len() <= 64);
        let user = aws_name(Kind::IamUser, service, &lease);
        assert!(user.len() <= 64);
        assert_eq!(
            parse_user_name(&user),
            Some((service.clone(), lease.clone()))
        );
        assert!(aws_name(Kind::FederationToken, service, &lease).len() <= 32);
    }
    assert!(aws_name(Kind::FederationToken, &brief, &lease).starts_with("api."));
    assert!(aws_name(Kind::FederationToken, &long, &lease).starts_with("a-very-lo+"));
    for strange in ["alice", "api.x", "API.0123456789abcdefghijklmnop"] {
        assert_eq!(parse_user_name(strange), None, "{strange}");
    }
}

/// Event in the life of a lease.
#[derive(Clone, Copy, Debug)]
enum Step {
    Resume,
    Activate,
    BeginReplacement,
    Keep,
    LoseKey,
    Extend,
    Abandon,
    Revoke,
    RunOut,
    Expire,
    Wait,
    Fail,
    Finish,
}

const STEPS: [Step; 13] = [
    Step::Resume,
    Step::Activate,
    Step::BeginReplacement,
    Step::Keep,
    Step::LoseKey,
    Step::Extend,
    Step::Abandon,
    Step::Revoke,
    Step::RunOut,
    Step::Expire,
    Step::Wait,
    Step::Fail,
    Step::Finish,
];

/// Model of a lease as the product describes it, without the implementation.
#[derive(Clone, Debug)]
struct Model {
    kind: Kind,
    state: &'static str,
    replacing: bool,
    expires_at: Option<i64>,
    failures: u32,
    failing_since: Option<i64>,
    /// Cause of the end, while or after the lease ends.
    ends: Ends,
    named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    RanOut,
    Revoked,
    Otherwise,
}

impl Model {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            state: "pending",
            replacing: false,
            expires_at: None,
            failures: 0,
            failing_since: None,
            ends: Ends::Otherwise,
            named: true,
        }
    }

    /// Returns whether access made from an ended session may live.
    fn is_outlived(&self, now: i64) -> bool {
        let hours = match self.kind {
            Kind::AssumeRole => 12,
            Kind::FederationToken => 36,
            Kind::IamUser => return false,
        };
        let ends = self.expires_at.map(|at| at + 15 * 60 + hours * 3_600);
        ends.is_some_and(|ends| ends > now)
    }

    /// Applies a step, and returns whether it is possible.
    fn take(&mut self, step: Step, now: i64) -> bool {
        let session = self.kind.is_session();
        let lives = self.expires_at.is_some_and(|at| at > now);
        let going = matches!(self.state, "revoking" | "quarantined");
        match (step, self.state) {
            (Step::Resume, "pending") => {}
            (Step::Activate, "pending") => {
                (self.state, self.expires_at) = ("active", Some(now + 3_600));
            }
            (Step::Activate, "active") if self.replacing => {
                (self.replacing, self.expires_at) = (false, Some(now + 3_600));
            }
            (Step::BeginReplacement, "active") if lives => self.replacing = true,
            (Step::Keep | Step::LoseKey, "active") if self.replacing => self.replacing = false,
            (Step::Extend, "active") if lives && !session && !self.replacing => {
                self.expires_at = Some(now + 7_200);
            }
            (Step::Abandon, "pending") => (self.state, self.named) = ("revoked", false),
            (Step::Revoke | Step::RunOut, "pending" | "active") => {
                self.ends = match step {
                    Step::Revoke => Ends::Revoked,
                    _ if self.state == "active" => Ends::RanOut,
                    _ => Ends::Otherwise,
                };
                (self.state, self.replacing) = ("revoking", false);
            }
            (Step::Revoke, _) if going => self.ends = Ends::Revoked,
            (Step::Revoke, "revoked" | "expired")
                if self.ends != Ends::Revoked && self.is_outlived(now) =>
            {
                (self.state, self.ends) = ("revoking", Ends::Revoked);
                (self.failures, self.failing_since) = (0, None);
            }
            (Step::RunOut | Step::Wait, _) if going => {}
            (Step::Expire, "active") if session && !lives => {
                (self.state, self.replacing) = ("expired", false);
            }
            (Step::Fail, _) if going => {
                self.failures += 1;
                let since = *self.failing_since.get_or_insert(now);
                if self.failures >= 10 || now - since >= 1_800 {
                    self.state = "quarantined";
                }
            }
            (Step::Finish, _) if going => {
                self.state = if self.ends == Ends::RanOut {
                    "expired"
                } else {
                    "revoked"
                };
            }
            _ => return false,
        }
        true
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, "revoked" | "expired")
    }
}

fn take(lease: Lease, step: Step, now: i64) -> Result<Lease, InvalidTransition> {
    let issued = IssuedCredentials {
        access_key_id: format!("AKIA{now}"),
        at: at(now),
        expires_at: at(now + 3_600),
    };
    match step {
        Step::Resume => lease.resume(at(now)),
        Step::Activate => lease.activate(issued),
        Step::BeginReplacement => lease.begin_replacement(at(now)),
        Step::Keep => lease.cancel_replacement(false),
        Step::LoseKey => lease.cancel_replacement(true),
        Step::Extend => lease.extend(at(now + 7_200), at(now)),
        Step::Abandon => lease.abandon("AWS_THROTTLED".to_owned(), at(now)),
        Step::Revoke => lease.begin_revocation(leaked(), at(now)),
        Step::RunOut => lease.begin_revocation(EndReason::Expired, at(now)),
        Step::Expire => lease.expire(at(now)),
        Step::Wait => lease.wait(at(now + 30)),
        Step::Fail => lease.postpone(at(now), SECOND),
        Step::Finish => lease.finish(at(now)),
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::AssumeRole, Kind::FederationToken, Kind::IamUser])
}

/// Steps with the seconds that pass before each.
fn stories() -> impl Strategy<Value = Vec<(Step, i64)>> {
    let pause = prop_oneof![Just(0), 1..90_i64, 1_500..4_000_i64];
    prop::collection::vec((prop::sample::select(&STEPS[..]), pause), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_story_of_a_lease_goes_as_its_model_says(kind in kinds(), story in stories()) {
        let (mut lease, mut model) = (lease_of(kind), Model::new(kind));
        let (mut now, mut changes, mut handed_out) = (1_000, 0, false);
        for (step, pause) in story {
            now += pause;
            let before = lease.clone();
            let issued_before = lease.issued().cloned();
            let taken = take(lease, step, now);
            prop_assert_eq!(taken.is_ok(), model.take(step, now), "{:?} of {:?}", step, before);
            lease = match taken {
                Ok(next) => {
                    changes += 1;
                    let is_revoked = matches!(step, Step::Revoke);
                    prop_assert!(before.ended_at().is_none() || is_revoked, "it stays ended");
                    next
                }
                Err(_) => before,
            };
            let is_active = lease.state.as_str() == "active";
            handed_out |= is_active;
            // The store writes the columns of issued credentials only for an active lease.
            prop_assert!(is_active || lease.issued() == issued_before.as_ref());
            prop_assert_eq!(lease.state.as_str(), model.state);
            prop_assert_eq!(lease.revision, changes);
            prop_assert_eq!(lease.issued().is_some(), handed_out);
            prop_assert_eq!(lease.due_at().is_none(), model.has_ended());
            prop_assert_eq!(lease.ended_at().is_some(), model.has_ended());
            prop_assert_eq!(lease.request.is_some(), model.named);
            prop_assert_eq!(&lease.binding, &lease_of(kind).binding);
            if let Some(removal) = lease.removal() {
                prop_assert_eq!(removal.attempts, model.failures);
                prop_assert!(removal.made_by <= at(now + 60));
            }
        }
    }
}

#[test]
fn services_whose_federated_users_aws_could_not_tell_apart_are_known() {
    let name = |text: &str| -> Name { text.parse().unwrap() };
    // Found by a search of two million names.
    let (one, other) = (
        name("payments-yvqb43nwuhwrhz"),
        name("payments-lw1l6vfs7ji8z6"),
    );
    assert!(federated_alike(&one, &other));
    assert_eq!(
        aws_name_prefix(Kind::FederationToken, &one),
        aws_name_prefix(Kind::FederationToken, &other)
    );
    assert_eq!(federated_head(&one), Some("payments-"));
    assert!(!federated_alike(&one, &one));
    assert!(!federated_alike(&one, &name("payments-yvqb43nwuhwrh1")));
    assert_eq!(federated_head(&name("payments-at-most18")), None);
}
