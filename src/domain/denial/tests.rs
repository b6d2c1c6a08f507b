use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::domain::policy::Document;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn text(second: i64) -> String {
    at(second).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn role() -> PolicyOwner {
    "arn:aws:iam::111122223333:role/credbroker/shared"
        .parse()
        .unwrap()
}

fn user() -> PolicyOwner {
    "arn:aws:iam::111122223333:user/credbroker-admin"
        .parse()
        .unwrap()
}

fn name(name: &str) -> Name {
    name.parse().unwrap()
}

fn asked(holder: PolicyOwner, service: &str, scope: Scope, second: i64) -> Denial {
    let concerned = AffectedSessions {
        against: DenialSubject {
            holder,
            service: name(service),
            scope,
        },
        grant: GrantName {
            service: name(service),
            grant: name("work"),
        },
        grant_version: 1,
        source_identity: false,
        access_ends: at(second + 3600),
    };
    Denial::request(concerned, None, at(second)).ready()
}

/// Returns a denial of a service at the role, seen to be enforced.
fn denied(service: &str, second: i64) -> Denial {
    asked(role(), service, Scope::Service, second)
        .reach(at(second), NewSessions::Spared)
        .unwrap()
        .ready()
        .confirm(at(second + 1))
}

fn lease(digit: char) -> LeaseId {
    digit.to_string().repeat(26).parse().unwrap()
}

fn statements(denials: &[Denial]) -> Vec<Value> {
    said(&document(denials).unwrap().unwrap())
}

fn said(policy: &Document) -> Vec<Value> {
    let mut json: Value = serde_json::from_str(&policy.to_json()).unwrap();
    json["Statement"]
        .as_array_mut()
        .unwrap()
        .drain(..)
        .collect()
}

/// Returns the denial of a service that was reinstated a minute later.
fn back(service: &str, second: i64) -> Denial {
    denied(service, second).spare_newer_sessions(at(second + 60))
}

/// Returns the names and the cutoff of a statement.
fn named(statement: &Value) -> (BTreeSet<String>, Option<String>) {
    let condition = &statement["Condition"];
    let list = match &condition["StringLike"]["aws:userid"] {
        Value::Array(names) => names.clone(),
        one => vec![one.clone()],
    };
    let names = list.iter().map(|name| name.as_str().unwrap().to_owned());
    let moment = condition["DateLessThan"]["aws:TokenIssueTime"].as_str();
    (names.collect(), moment.map(ToOwned::to_owned))
}

#[test]
fn a_denial_names_the_sessions_of_one_service_whenever_they_are_issued_until_it_is_reinstated() {
    assert_eq!(
        statements(&[denied("payments-api", 100)]),
        [json!({
            "Effect": "Deny", "Action": "*", "Resource": "*",
            "Condition": {"StringLike": {"aws:userid": "*:payments-api.*"}},
        })]
    );
    assert_eq!(
        statements(&[back("payments-api", 100)]),
        [json!({
            "Effect": "Deny", "Action": "*", "Resource": "*",
            "Condition": {
                "StringLike": {"aws:userid": "*:payments-api.*"},
                "DateLessThan": {"aws:TokenIssueTime": text(160)},
            },
        })]
    );
}

fn session(holder: PolicyOwner, expires_at: i64) -> DenialSession {
    DenialSession {
        grant: GrantName {
            service: name("pay"),
            grant: name("work"),
        },
        grant_version: 1,
        holder,
        expires_at: at(expires_at),
    }
}

#[test]
fn sessions_are_denied_until_all_that_was_made_from_them_is_over() {
    let hour = 3600;
    let lasts = |holder: PolicyOwner, now: i64| {
        let sessions = [session(holder, 0)];
        let concerned = AffectedSessions::of(&Scope::Service, &sessions, at(now));
        let denials = concerned.into_values();
        let mut lasts = denials.map(|c| Denial::request(c, None, at(now)).lasts_until);
        lasts.next()
    };
    // The session signs in to the console in its last second. The sign-in token is valid for 15
    // minutes, the console session for 12 hours.
    let ends = 12 * hour + 15 * 60;
    for now in [-hour, 0, hour, ends - 1] {
        assert_eq!(lasts(role(), now), Some(at(ends + 60)), "asked at {now}");
    }
    assert_eq!(lasts(role(), ends), None);
    let ends = 36 * hour + 15 * 60;
    assert_eq!(lasts(user(), ends - 1), Some(at(ends + 60)));
    assert_eq!(lasts(user(), ends), None);
}

#[test]
fn it_is_tried_by_the_newest_version_of_a_grant_and_lasts_for_all() {
    let (first, mut newest) = (session(role(), 20), session(role(), 10));
    newest.grant_version = 2;
    for sessions in [[&first, &newest], [&newest, &first]] {
        let concerned = AffectedSessions::of(&Scope::Service, sessions, at(0));
        assert_eq!(concerned[&role()].grant_version, 2);
        assert_eq!(concerned[&role()].access_ends, first.access_ends());
    }
}

#[test]
fn a_federated_session_is_named_as_the_broker_shortens_its_service() {
    let long = asked(user(), "a-service-with-a-long-name", Scope::Service, 0);
    let (names, _) = named(&statements(&[long])[0]);
    let pattern = names.first().unwrap();
    let made = aws_name(
        Kind::FederationToken,
        &name("a-service-with-a-long-name"),
        &lease('a'),
    );
    let prefix = pattern.strip_prefix("*:").unwrap().strip_suffix('*');
    assert!(made.starts_with(prefix.unwrap()), "{pattern} and {made}");
}

#[test]
fn a_lease_is_denied_by_its_name_alone_and_a_grant_by_its_tag() {
    let one = asked(role(), "pay", Scope::Lease(lease('a')), 0);
    let (names, _) = named(&statements(&[one])[0]);
    assert_eq!(names, BTreeSet::from([format!("*:pay.{}", lease('a'))]));
    let grant = asked(role(), "pay", Scope::Grant(name("uploads")), 0);
    let condition = &statements(&[grant])[0]["Condition"];
    assert_eq!(condition["StringLike"]["aws:userid"], "*:pay.*");
    assert_eq!(
        condition["StringEquals"]["aws:PrincipalTag/credbroker:grant"],
        "uploads"
    );
}

#[test]
fn a_source_identity_is_denied_as_well_where_a_grant_sets_it() {
    let denial = Denial {
        source_identity: true,
        ..denied("pay", 0)
    };
    let both = statements(&[denial]);
    assert_eq!(both.len(), 2);
    let sources = |s: &&Value| s["Condition"]["StringEquals"]["aws:SourceIdentity"] == "pay";
    assert_eq!(both.iter().filter(sources).count(), 1);
}

#[test]
fn services_that_are_shut_out_share_a_statement_whenever_each_was() {
    let all: Vec<Denial> = (0..300)
        .map(|n| denied(&format!("service-{n:03}-name"), n * 60))
        .collect();
    let all_named = statements(&all);
    assert_eq!(all_named.len(), 1);
    let (names, moment) = named(&all_named[0]);
    assert_eq!(names.len(), 300);
    assert_eq!(moment, None);
    let size = document(&all).unwrap().unwrap().size();
    let room = PolicyLocation::Inline(role()).room();
    assert!(size <= room, "{size} of {room}");
}

#[test]
fn a_reinstated_service_has_a_moment_of_its_own_beside_those_that_are_out() {
    let denials = [back("back", 0), denied("out", 3600), denied("between", 30)];
    let found: BTreeSet<_> = statements(&denials).iter().map(named).collect();
    let names = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| format!("*:{name}.*")).collect()
    };
    let expected = BTreeSet::from([
        (names(&["back"]), Some(text(60))),
        (names(&["out", "between"]), None),
    ]);
    assert_eq!(found, expected);
}

#[test]
fn a_reinstated_service_is_let_once_its_denial_has_been_written_anew() {
    let out = denied("pay", 0);
    let until = |denial: &Denial| newer_hit_until(std::slice::from_ref(denial), &role());
    assert_eq!(until(&out), None, "it is given nothing");
    let back = out.spare_newer_sessions(at(60));
    assert_eq!(until(&back), Some(NOT_WRITTEN));
    let written = back.settle(at(62));
    assert_eq!(until(&written), Some(at(67)), "AWS takes a while");
    assert_eq!(until(&written.settle(at(100))), Some(at(67)));
    assert_eq!(newer_hit_until(&[back], &user()), None, "elsewhere");
    // A revoked grant alone does not delay newer sessions.
    let grant = asked(role(), "pay", Scope::Grant(name("work")), 0);
    assert_eq!(until(&grant), None);
}

#[test]
fn the_same_denials_give_the_same_policy_in_whatever_order() {
    let mut all: Vec<Denial> = (0..20)
        .map(|n| denied(&format!("service-{n}"), n * 7))
        .collect();
    let one = document(&all).unwrap();
    all.reverse();
    assert_eq!(document(&all).unwrap(), one);
    assert_eq!(document([]).unwrap(), None);
}

#[test]
fn a_denied_service_needs_no_denials_of_its_leases() {
    let one = asked(role(), "pay", Scope::Lease(lease('a')), 0);
    let (names, _) = named(&statements(&[one, denied("pay", 10)])[0]);
    assert_eq!(names, BTreeSet::from(["*:pay.*".to_owned()]));
}

#[test]
fn for_want_of_room_a_service_with_many_revoked_leases_is_denied_as_a_whole() {
    let mut denials: Vec<Denial> = "0123456789abcdef"
        .chars()
        .map(|digit| asked(role(), "pay", Scope::Lease(lease(digit)), 10))
        .collect();
    denials.push(asked(role(), "log", Scope::Lease(lease('a')), 20));
    let (put, remove) = widen(&denials, at(900)).unwrap();
    assert_eq!(remove.len(), 16);
    let [whole] = &put[..] else { panic!("{put:?}") };
    assert_eq!(whole.against.scope, Scope::Service);
    assert_eq!(whole.issued_before, denials[0].issued_before);
    // Sessions that are issued from now on work.
    assert!(whole.spares_newer && whole.newer_hit_until.is_none());
    assert_eq!(whole.lasts_until, denials[0].lasts_until);
    assert!(!whole.is_refused(), "nobody has seen it refused");
}

#[test]
fn then_the_nearest_moments_are_joined_until_nothing_is_left_to_widen() {
    let denials: Vec<Denial> = (0..5)
        .map(|n| back(&format!("service-{n}"), n * 1000))
        .collect();
    assert_eq!(statements(&denials).len(), 5);
    let mut all = denials;
    let mut steps = 0;
    while let Some((moved, remove)) = widen(&all, at(900)) {
        assert!(remove.is_empty());
        for denial in moved {
            let place = all.iter_mut().find(|d| d.against == denial.against);
            *place.unwrap() = denial;
        }
        steps += 1;
        assert_eq!(statements(&all).len(), 5 - steps);
    }
    assert_eq!(steps, 4);
}

#[test]
fn a_new_session_waits_until_every_denial_misses_it() {
    let back = denied("pay", 0).spare_newer_sessions(at(30));
    let free = uncontested_from(std::slice::from_ref(&back), &name("work"));
    assert_eq!(free, Some(at(30)));
    let grant = asked(role(), "pay", Scope::Grant(name("uploads")), 100);
    let denials = [back, grant];
    assert_eq!(uncontested_from(&denials, &name("work")), Some(at(30)));
    assert_eq!(uncontested_from(&denials, &name("uploads")), Some(at(105)));
    let lease = asked(role(), "pay", Scope::Lease(lease('a')), 200);
    assert_eq!(uncontested_from(&[lease], &name("work")), None);
    assert_eq!(uncontested_from(&[], &name("work")), None);
}

#[test]
fn a_session_to_try_it_by_is_reached_unless_newer_ones_would_be_hit() {
    let open = asked(role(), "pay", Scope::Service, 0);
    assert_eq!(open.issued_before, at(5));
    let reaching = open.reach(at(4), NewSessions::Spared).unwrap();
    assert_eq!(reaching.issued_before, at(6));
    // Tried again an hour later: the cutoff moves along while the service is suspended.
    let failed = reaching.postpone(at(60), "not yet".to_owned());
    let later = failed.reach(at(3600), NewSessions::Spared).unwrap();
    assert_eq!(later.issued_before, at(3602));
    let back = failed.spare_newer_sessions(at(1800));
    assert_eq!(back.reach(at(3600), NewSessions::Spared), None);
    let alone = back.reach(at(3600), NewSessions::None).unwrap();
    assert_eq!(alone.issued_before, at(3602));
    // Sessions issued under a revoked grant afterwards work.
    let grant = asked(role(), "pay", Scope::Grant(name("work")), 0);
    let reaching = grant.reach(at(1), NewSessions::Spared).unwrap();
    assert_eq!(reaching.issued_before, at(3));
    // The replica that moved the cutoff may have died since.
    assert_eq!(reaching.reach(at(60), NewSessions::Spared), None);
    let failed = reaching.postpone(at(60), "not yet".to_owned());
    assert_eq!(failed.reach(at(3600), NewSessions::Spared), None);
    let alone = failed.reach(at(3600), NewSessions::None).unwrap();
    assert_eq!(alone.issued_before, at(3602));
}

#[test]
fn one_that_is_asked_for_again_is_open_again_and_lasts_longer() {
    let first = denied("pay", 0);
    let concerned = AffectedSessions {
        against: first.against.clone(),
        grant: first.grant.clone(),
        grant_version: 2,
        source_identity: false,
        access_ends: at(100),
    };
    let again = Denial::request(concerned, Some(&first), at(50));
    assert!(!again.is_refused());
    assert_eq!(again.lasts_until, first.lasts_until);
    assert_eq!(again.issued_before, at(55));
    assert_eq!(again.revision, first.revision + 1);
}

#[test]
fn every_document_is_one_that_aws_takes() {
    let denials = [
        denied("pay", 0),
        back("back", 0),
        asked(role(), "log", Scope::Grant(name("work")), 5),
        asked(user(), "log", Scope::Lease(lease('c')), 5),
    ];
    let policy = document(&denials).unwrap().unwrap();
    assert_eq!(Document::parse(&policy.to_json()).unwrap(), policy);
}

#[test]
fn what_a_policy_denies_and_the_store_does_not_know_stays_beside_what_it_knows() {
    let lost = [
        back("pay", 100),
        Denial {
            source_identity: true,
            ..denied("sourced", 100)
        },
        denied("out", 100),
        asked(role(), "log", Scope::Grant(name("work")), 100),
        asked(role(), "log", Scope::Lease(lease('c')), 100),
    ];
    let written = document(&lost).unwrap().unwrap();
    let unknown = UnknownStatements::of(&written, at(200));
    assert_eq!(unknown.beside([]).unwrap(), Some(written));
    // A clause that the store also has appears once, with the store's cutoff. But a clause with a
    // cutoff does not replace one without.
    let known = [back("pay", 300), back("billing", 300), back("out", 300)];
    let said_now = |known: &[Denial]| -> BTreeSet<_> {
        let policy = unknown.beside(known).unwrap().unwrap();
        let again = UnknownStatements::of(&policy, at(400))
            .beside(known)
            .unwrap();
        assert_eq!(again.as_ref(), Some(&policy));
        let sessions = said(&policy).into_iter().filter(is_of_sessions);
        sessions.map(|statement| named(&statement)).collect()
    };
    let names = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| format!("*:{name}.*")).collect()
    };
    let written: Vec<Denial> = known.iter().map(|d| d.settle(at(400))).collect();
    let log = format!("*:log.{}", "c".repeat(26));
    let mut kept = names(&["out", "sourced"]);
    kept.insert(log);
    let moved = names(&["billing", "out", "pay"]);
    let both = BTreeSet::from([(kept.clone(), None), (moved.clone(), Some(text(360)))]);
    assert_eq!(said_now(&written), both);
    // Exception: the store knows that the service is reinstated, and AWS does not know it yet.
    kept.remove("*:out.*");
    let both = BTreeSet::from([(kept, None), (moved, Some(text(360)))]);
    assert_eq!(said_now(&known), both);
}

#[test]
fn a_session_shows_that_a_policy_denies_all_where_that_has_no_date() {
    let all = |written: &[Denial], denial: &Denial| {
        let policy = document(written).unwrap().unwrap();
        denies_all(&policy, denial)
    };
    let grant = asked(role(), "pay", Scope::Grant(name("work")), 100);
    let one = asked(role(), "pay", Scope::Lease(lease('a')), 100);
    let other = asked(role(), "pay", Scope::Lease(lease('b')), 100);
    let out = denied("pay", 0);
    for denial in [&out, &grant, &one] {
        assert!(all(std::slice::from_ref(&out), denial));
        assert!(!all(&[back("pay", 0)], denial), "it has a date");
        assert!(!all(&[denied("payroll", 0)], denial), "it is another's");
        assert!(!all(std::slice::from_ref(&grant), denial));
    }
    assert!(all(std::slice::from_ref(&one), &one));
    assert!(!all(std::slice::from_ref(&one), &out));
    assert!(!all(std::slice::from_ref(&one), &other));
}

fn is_of_sessions(statement: &Value) -> bool {
    let condition = &statement["Condition"];
    !condition["StringLike"].is_null() && condition["StringEquals"].is_null()
}

#[test]
fn what_is_over_or_is_not_the_brokers_own_is_not_kept() {
    let written = document(&[back("pay", 0)]).unwrap().unwrap();
    let hours = 3600;
    // A session of 36 hours, and the access made from it in its last second.
    assert_ne!(
        UnknownStatements::of(&written, at(72 * hours))
            .beside([])
            .unwrap(),
        None
    );
    assert_eq!(
        UnknownStatements::of(&written, at(73 * hours))
            .beside([])
            .unwrap(),
        None
    );
    let foreign = [
        ("\"Deny\"", "\"Allow\""),
        ("\"Action\":\"*\"", "\"Action\":\"s3:*\""),
        ("aws:TokenIssueTime", "aws:CurrentTime"),
        ("StringLike", "StringNotLike"),
        (
            "\"Condition\":{",
            "\"Condition\":{\"Bool\":{\"aws:SecureTransport\":\"true\"},",
        ),
    ];
    for (ours, theirs) in foreign {
        let json = written.to_json();
        assert!(json.contains(ours), "{ours} in {json}");
        let policy = Document::parse(&json.replace(ours, theirs)).unwrap();
        assert_eq!(
            UnknownStatements::of(&policy, at(0)).beside([]).unwrap(),
            None,
            "{theirs}"
        );
    }
}

#[test]
fn scopes_and_holders_read_back_as_they_were_written() {
    for scope in [
        Scope::Service,
        Scope::Grant(name("work")),
        Scope::Lease(lease('a')),
    ] {
        assert_eq!(scope.to_string().parse(), Ok(scope));
    }
    assert!("grant".parse::<Scope>().is_err());
    for holder in [role(), user()] {
        assert_eq!(holder.to_string().parse::<PolicyOwner>().unwrap(), holder);
    }
    assert!(
        "arn:aws:iam::111122223333:root"
            .parse::<PolicyOwner>()
            .is_err()
    );
}
