//! Audit log.

use credbroker::{
    broker::ports::{AuditFilter, Store, StoreCounts},
    domain::{
        audit::{Actor, AuditEvent, AuditRecord, Event, Outcome},
        lease::EndReason,
        token::TokenKind,
    },
};

use fastrand::Rng;
use jiff::SignedDuration;

use super::{active, at, audit, granted, page, register, requested, token};

/// A record with every field filled.
fn full(grant: &str, second: i64) -> AuditEvent {
    let grant = super::grant(grant, 3);
    let lease = requested(&grant, second);
    let lease = lease.activate(super::issued(second)).unwrap();
    AuditEvent {
        time: at(second),
        outcome: Outcome::Failure,
        actor: Actor::Service(grant.name.service.clone()),
        token_id: Some(token(TokenKind::Service, 1).id),
        peer: Some("127.0.0.1:4000".parse().unwrap()),
        method: Some("credbroker.v1.CredentialService/IssueCredentials".to_owned()),
        aws_request_id: Some("0000-1111".to_owned()),
        reason: Some("AWS_THROTTLED".to_owned()),
        detail: Some("Throttling: Rate exceeded".to_owned()),
        request_id: Some("6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10".parse().unwrap()),
        late: true,
        ..audit(Event::LeaseDenied)
            .instance("0123abcd")
            .lease(&lease)
            .permits(&grant)
    }
}

async fn matching(store: &dyn Store, filter: AuditFilter) -> Vec<u64> {
    let records = store.audit(&filter, &page(None, 1000)).await.unwrap();
    records.iter().map(|record| record.seq).collect()
}

pub(super) async fn records_are_counted_from_one_without_gaps_and_read_back_as_written(
    store: &dyn Store,
) {
    assert_eq!(store.audit_size().await.unwrap(), 0);
    let events = [
        audit(Event::BrokerStarted),
        full("payments-api/work", 7),
        audit(Event::StatusRead).denied("NOT_PERMITTED"),
    ];
    for event in &events {
        store.record(event.clone()).await.unwrap();
    }
    let records = store
        .audit(&AuditFilter::default(), &page(None, 1000))
        .await
        .unwrap();
    let expected: Vec<AuditRecord> = (1..)
        .zip(events)
        .map(|(seq, event)| AuditRecord { seq, event })
        .collect();
    assert_eq!(records, expected);
    assert_eq!(store.audit_size().await.unwrap(), 3);
}

pub(super) async fn each_filter_picks_its_records(store: &dyn Store) {
    let (wanted, other) = (full("payments-api/work", 20), full("billing/report", 30));
    for event in [audit(Event::BrokerStarted), wanted.clone(), other] {
        store.record(event).await.unwrap();
    }
    let text = |value: Option<String>| value.unwrap();
    let lease_id = wanted.lease_id.map(|id| id.to_string());
    let any = AuditFilter::default;
    let filters = [
        AuditFilter {
            service: wanted.service.map(|s| s.to_string()),
            ..any()
        },
        AuditFilter {
            grant: wanted.grant.map(|g| g.to_string()),
            ..any()
        },
        AuditFilter {
            lease_id: Some(text(lease_id)),
            ..any()
        },
        AuditFilter {
            access_key_id: Some(text(wanted.access_key_id)),
            ..any()
        },
        AuditFilter {
            actor: Some(wanted.actor.to_string()),
            ..any()
        },
        AuditFilter {
            since: Some(at(20)),
            until: Some(at(30)),
            ..any()
        },
    ];
    for filter in filters {
        assert_eq!(matching(store, filter.clone()).await, [2], "{filter:?}");
    }
    let event = AuditFilter {
        event: Some("lease.denied".to_owned()),
        ..any()
    };
    assert_eq!(matching(store, event.clone()).await, [2, 3]);
    let outcome = AuditFilter {
        outcome: Some("success".to_owned()),
        ..any()
    };
    assert_eq!(matching(store, outcome).await, [1]);
    let both = AuditFilter {
        service: Some("billing".to_owned()),
        ..event
    };
    assert_eq!(matching(store, both).await, [3]);
    let none = AuditFilter {
        actor: Some("operator:nobody".to_owned()),
        ..any()
    };
    assert!(matching(store, none).await.is_empty());
}

pub(super) async fn a_time_finds_its_records_wherever_a_clock_that_was_set_has_put_them(
    store: &dyn Store,
) {
    let mut rng = Rng::with_seed(11);
    let mut times = Vec::new();
    let mut clock = 10_000;
    for number in 0..900 {
        clock = match number {
            // The clock is set back by more than a bundle's worth, then by little, then far ahead.
            300 => clock - 400,
            500 => clock - 3,
            700 => clock + 5_000,
            _ => clock + rng.i64(-1..3),
        };
        times.push(clock);
    }
    let record = |time: &i64| AuditEvent {
        time: at(*time),
        ..audit(Event::StatusRead)
    };
    let written = times.iter().map(|time| store.record(record(time)));
    for written in written {
        written.await.unwrap();
    }
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    for _ in 0..200 {
        let since = rng.bool().then(|| rng.i64(first - 5..last + 5));
        let until = rng.bool().then(|| rng.i64(first - 5..last + 5));
        let within = |time: &i64| {
            since.is_none_or(|since| *time >= since) && until.is_none_or(|until| *time < until)
        };
        let expected = (1..).zip(&times).filter(|(_, time)| within(time));
        let filter = AuditFilter {
            since: since.map(at),
            until: until.map(at),
            ..AuditFilter::default()
        };
        let found = matching(store, filter).await;
        assert_eq!(found, expected.map(|(seq, _)| seq).collect::<Vec<u64>>());
    }
}

pub(super) async fn a_page_goes_on_after_the_last_record_of_the_page_before(store: &dyn Store) {
    for event in [
        Event::BrokerStarted,
        Event::StatusRead,
        Event::BrokerStopped,
    ] {
        store.record(audit(event)).await.unwrap();
    }
    let all = AuditFilter::default();
    let first = store.audit(&all, &page(None, 2)).await.unwrap();
    assert_eq!(first.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2]);
    let second = store.audit(&all, &page(Some("2"), 2)).await.unwrap();
    assert_eq!(second.iter().map(|r| r.seq).collect::<Vec<_>>(), [3]);
    assert!(
        store
            .audit(&all, &page(Some("3"), 2))
            .await
            .unwrap()
            .is_empty()
    );
}

pub(super) async fn a_change_that_is_refused_leaves_no_record(store: &dyn Store) {
    register(store, "payments-api").await;
    let service = store
        .service(&super::name("payments-api"))
        .await
        .unwrap()
        .unwrap()
        .service;
    let again = store.create_service(&service, audit(Event::ServiceCreated));
    super::refuses(store, again).await;
    // The next record follows the last durable one.
    store.record(audit(Event::StatusRead)).await.unwrap();
    assert_eq!(matching(store, AuditFilter::default()).await, [1, 2]);
}

pub(super) async fn counts_include_every_kind_of_object(store: &dyn Store) {
    assert_eq!(store.counts().await.unwrap(), StoreCounts::default());
    let grant = granted(store, "payments-api/work").await;
    register(store, "billing").await;
    active(store, &grant, 10).await;
    let lease = active(store, &grant, 20).await;
    let revoking = lease
        .clone()
        .begin_revocation(EndReason::Released, at(21))
        .unwrap();
    super::update(store, &lease, &revoking).await.unwrap();
    let lease = active(store, &grant, 30).await;
    let going = lease
        .clone()
        .begin_revocation(EndReason::Released, at(31))
        .unwrap();
    super::update(store, &lease, &going).await.unwrap();
    super::update(store, &going, &going.clone().finish(at(32)).unwrap())
        .await
        .unwrap();
    let mut stuck = active(store, &grant, 40).await;
    let ending = stuck
        .clone()
        .begin_revocation(EndReason::Released, at(41))
        .unwrap();
    super::update(store, &stuck, &ending).await.unwrap();
    stuck = ending;
    for attempt in 0..10 {
        let later = stuck
            .clone()
            .postpone(at(41), SignedDuration::ZERO)
            .unwrap();
        super::update(store, &stuck, &later).await.unwrap();
        assert_eq!(
            store.counts().await.unwrap().quarantined_leases,
            u64::from(attempt == 9)
        );
        stuck = later;
    }
    super::pending(store, &grant, 50).await;
    let expected = StoreCounts {
        services: 2,
        grants: 1,
        live_leases: 4,
        pending_leases: 1,
        revoking_leases: 1,
        quarantined_leases: 1,
        open_denials: 0,
        refused_denials: 0,
        audit_records: 26,
    };
    assert_eq!(store.counts().await.unwrap(), expected);
}
