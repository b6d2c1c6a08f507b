//! Leases: begun, replaced revision by revision, found again when due.

use credbroker::{
    broker::ports::{BeginOutcome, LeaseFilter, RevokeTarget, Store, StoreError},
    domain::{
        audit::Event,
        credential::KeyId,
        denial::{DenialSession, PolicyOwner},
        grant::{Grant, GrantSpec, Kind, KindSpec},
        lease::{EndReason, InvalidTransition, Issuance, IssuedCredentials, Lease, LeaseState},
        name::LeaseId,
        random::SystemRandom,
        request::{IdempotencyKey, RequestId},
        service::Suspension,
    },
};
use jiff::SignedDuration;
use tokio::join;

use super::{
    active, at, audit, begin, begin_of, grant, granted, issued, name, page, pending, put, refuses,
    requested, suspension, update,
};

async fn suspend(store: &dyn Store, service: &str) {
    let event = audit(Event::ServiceSuspended);
    store
        .suspend_service(&name(service), &suspension(5, "audit"), event)
        .await
        .unwrap();
}

async fn revoke(store: &dyn Store, service: &str, second: i64) -> (Suspension, Vec<Lease>) {
    let event = audit(Event::ServiceRevoked);
    let (service, standing) = (name(service), suspension(second, "leaked"));
    let target = RevokeTarget::Service(service);
    let (revoked, _) = store.revoke(&target, &standing, event).await.unwrap();
    (revoked.suspension, revoked.leases)
}

async fn stored(store: &dyn Store, lease: &Lease) -> Lease {
    store.lease(&lease.binding.lease_id).await.unwrap().unwrap()
}

pub(super) async fn a_lease_begins_only_under_the_current_grant_of_an_open_service(
    store: &dyn Store,
) {
    let first = granted(store, "payments-api/work").await;
    let unknown = requested(&grant("nobody/work", 1), 10);
    refuses(store, begin(store, &unknown)).await;
    let second = grant("payments-api/work", 2);
    put(store, &second).await.unwrap();
    refuses(store, begin(store, &requested(&first, 10))).await;
    begin(store, &requested(&second, 11)).await.unwrap();

    suspend(store, "payments-api").await;
    refuses(store, begin(store, &requested(&second, 12))).await;
    let reinstated = audit(Event::ServiceReinstated);
    store
        .reinstate_service(&name("payments-api"), reinstated)
        .await
        .unwrap();
    begin(store, &requested(&second, 13)).await.unwrap();

    let deleted = audit(Event::GrantDeleted);
    store
        .delete_grant(&second.name, at(14), &name("ann"), deleted)
        .await
        .unwrap();
    refuses(store, begin(store, &requested(&second, 15))).await;
}

pub(super) async fn a_lease_reads_back_as_written_in_every_state(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    let told = || EndReason::Revoked("found on the internet: twice".to_owned());
    let mut lease = named(&grant, 10, 1);
    lease.binding.renews = Some(requested(&grant, 9).binding.lease_id);
    begin(store, &lease).await.unwrap();
    assert_eq!(stored(store, &lease).await, lease);
    let steps: [&dyn Fn(Lease) -> Result<Lease, InvalidTransition>; 13] = [
        &|lease| lease.resume(at(11)),
        &|lease| lease.activate(issued(11)),
        &|lease| lease.begin_replacement(at(12)),
        &|lease| lease.activate(issued(13)),
        &|lease| lease.begin_replacement(at(14)),
        &|lease| lease.cancel_replacement(true),
        &|lease| lease.begin_replacement(at(14)),
        &|lease| lease.cancel_replacement(false),
        &|lease| lease.extend(at(9_000), at(15)),
        &|lease| lease.begin_revocation(told(), at(16)),
        &|lease| lease.wait(at(17)),
        &|lease| lease.postpone(at(18), SignedDuration::from_secs(2)),
        &|lease| lease.postpone(at(3_600), SignedDuration::from_secs(2)),
    ];
    for step in steps {
        let next = step(lease.clone()).unwrap();
        update(store, &lease, &next).await.unwrap();
        assert_eq!(stored(store, &next).await, next);
        lease = next;
    }
    assert_eq!(lease.state.as_str(), "quarantined");
    let revoked = lease.clone().finish(at(3_601)).unwrap();
    update(store, &lease, &revoked).await.unwrap();
    assert_eq!(stored(store, &revoked).await, revoked);

    let lease = super::active(store, &grant, 20).await;
    let ending = lease
        .clone()
        .begin_revocation(EndReason::Expired, at(21))
        .unwrap();
    let expired = ending.clone().finish(at(22)).unwrap();
    update(store, &lease, &ending).await.unwrap();
    update(store, &ending, &expired).await.unwrap();
    assert!(matches!(expired.state, LeaseState::Expired { .. }));
    assert_eq!(stored(store, &expired).await, expired);

    let lease = pending(store, &grant, 30).await;
    let left = lease.clone().begin_revocation(told(), at(31)).unwrap();
    update(store, &lease, &left).await.unwrap();
    assert!(stored(store, &left).await.is_in_flight(at(32)));
    assert_eq!(stored(store, &left).await, left);
    let unknown = requested(&grant, 40).binding.lease_id;
    assert_eq!(store.lease(&unknown).await.unwrap(), None);
}

/// Lease of a request whose id ends with this number.
fn named(grant: &Grant, second: i64, number: u8) -> Lease {
    let id = format!("00000000-0000-4000-8000-0000000000{number:02x}");
    let request = IdempotencyKey::new(id.parse().unwrap(), &["issue"]);
    let id = LeaseId::new(at(second), &SystemRandom);
    Lease::request(
        Issuance::new(id, grant, None, None),
        Some(request),
        at(second),
    )
}

fn request_id(lease: &Lease) -> RequestId {
    lease.request.as_ref().unwrap().id.clone()
}

pub(super) async fn a_request_id_keeps_its_lease_until_the_issue_fails(store: &dyn Store) {
    let (ours, theirs) = (
        granted(store, "payments-api/work").await,
        granted(store, "billing/work").await,
    );
    let first = named(&ours, 10, 1);
    assert_eq!(begin(store, &first).await.unwrap(), BeginOutcome::Recorded);
    let size = store.audit_size().await.unwrap();
    let again = named(&ours, 11, 1);
    assert_eq!(
        begin(store, &again).await.unwrap(),
        BeginOutcome::Known(Box::new(first.clone()))
    );
    assert_eq!(store.audit_size().await.unwrap(), size);
    // Each service has its own request ids.
    begin(store, &named(&theirs, 12, 1)).await.unwrap();
    let found = async |service: &str, lease: &Lease| {
        let (service, id) = (name(service), request_id(lease));
        let found = store.lease_of_request(&service, &id).await;
        found.unwrap().map(|lease| lease.binding.lease_id)
    };
    let id = Some(first.binding.lease_id.clone());
    assert_eq!(found("payments-api", &first).await, id);
    assert_ne!(found("billing", &first).await, id);
    assert_eq!(found("payments-api", &named(&ours, 13, 2)).await, None);

    let nothing = first.clone().abandon("AWS_THROTTLED".to_owned(), at(14));
    update(store, &first, &nothing.unwrap()).await.unwrap();
    assert_eq!(found("payments-api", &first).await, None);
    assert_eq!(begin(store, &again).await.unwrap(), BeginOutcome::Recorded);
    // A lease that was handed out keeps its request, even after its end.
    let held = again.clone().activate(issued(15)).unwrap();
    update(store, &again, &held).await.unwrap();
    let going = held
        .clone()
        .begin_revocation(EndReason::Released, at(16))
        .unwrap();
    update(store, &held, &going).await.unwrap();
    let over = going.clone().finish(at(17)).unwrap();
    update(store, &going, &over).await.unwrap();
    let third = begin(store, &named(&ours, 18, 1)).await.unwrap();
    assert_eq!(third, BeginOutcome::Known(Box::new(over)));
}

pub(super) async fn concurrent_repeats_of_one_request_begin_one_lease(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    let (one, other) = (named(&grant, 10, 1), named(&grant, 10, 1));
    let (first, second) = join!(begin(store, &one), begin(store, &other));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_ne!(
        first == BeginOutcome::Recorded,
        second == BeginOutcome::Recorded
    );
}

pub(super) async fn what_is_asked_at_the_same_moment_is_done_or_refused_each_alone(
    store: &dyn Store,
) {
    let older = session_grant("payments-api/sessions");
    let grant = Grant {
        version: 2,
        ..older.clone()
    };
    super::register(store, "payments-api").await;
    put(store, &older).await.unwrap();
    put(store, &grant).await.unwrap();
    let standing = active(store, &grant, 9).await;
    let size = store.audit_size().await.unwrap();
    let (one, alike, another) = (
        named(&grant, 10, 1),
        named(&grant, 10, 1),
        named(&grant, 10, 2),
    );
    let (outdated, plain) = (requested(&older, 10), requested(&grant, 10));
    let going = |cause| standing.clone().begin_revocation(cause, at(11)).unwrap();
    let (released, expired) = (going(EndReason::Released), going(EndReason::Expired));
    let over = released.clone().finish(at(12)).unwrap();
    let (one_begun, release, alike_begun, expiry, another_begun) = join!(
        begin(store, &one),
        update(store, &standing, &released),
        begin(store, &alike),
        update(store, &standing, &expired),
        begin(store, &another),
    );
    let (outdated_begun, finished, plain_begun, recorded) = join!(
        begin(store, &outdated),
        // The revision is outdated.
        update(store, &standing, &over),
        begin(store, &plain),
        store.record(audit(Event::LeaseDenied)),
    );
    let of_request = [one_begun.unwrap(), alike_begun.unwrap()];
    let begun = of_request
        .iter()
        .filter(|begun| **begun == BeginOutcome::Recorded);
    assert_eq!(begun.count(), 1, "{of_request:?}");
    assert_ne!(release.is_ok(), expiry.is_ok(), "{release:?} {expiry:?}");
    assert_eq!(another_begun.unwrap(), BeginOutcome::Recorded);
    assert!(matches!(outdated_begun, Err(StoreError::Conflict)));
    assert!(matches!(finished, Err(StoreError::Conflict)));
    assert_eq!(plain_begun.unwrap(), BeginOutcome::Recorded);
    recorded.unwrap();
    // One of the request, one of the revision, two that began, and the record alone.
    assert_eq!(store.audit_size().await.unwrap(), size + 5);
    let stands = stored(store, &standing).await;
    assert_eq!(stands, if release.is_ok() { released } else { expired });
}

pub(super) async fn live_users_and_sessions_beyond_the_limits_are_refused(store: &dyn Store) {
    let users = granted(store, "payments-api/users").await;
    let sessions = session_grant("payments-api/sessions");
    put(store, &sessions).await.unwrap();
    let (theirs, size) = (granted(store, "billing/users").await, async || {
        store.audit_size().await.unwrap()
    });
    let begun = async |lease: Lease| begin_of(store, &lease, 2).await.unwrap();
    assert_eq!(begun(requested(&users, 10)).await, BeginOutcome::Recorded);
    let first = active(store, &users, 20).await;
    let before = size().await;
    let next_end = Some(at(620));
    assert_eq!(
        begun(requested(&users, 30)).await,
        BeginOutcome::TooMany { next_end }
    );
    assert_eq!(size().await, before);
    assert_eq!(begun(requested(&theirs, 30)).await, BeginOutcome::Recorded);
    for _ in 0..2 {
        assert_eq!(
            begun(requested(&sessions, 30)).await,
            BeginOutcome::Recorded
        );
    }
    let next_end = None;
    assert_eq!(
        begun(requested(&sessions, 30)).await,
        BeginOutcome::TooMany { next_end }
    );

    let going = first
        .clone()
        .begin_revocation(EndReason::Released, at(31))
        .unwrap();
    update(store, &first, &going).await.unwrap();
    assert_ne!(begun(requested(&users, 32)).await, BeginOutcome::Recorded);
    update(store, &going, &going.clone().finish(at(33)).unwrap())
        .await
        .unwrap();
    assert_eq!(begun(requested(&users, 34)).await, BeginOutcome::Recorded);
}

/// `SERVICE/GRANT` of kind `federation_token`, of an existing service.
fn session_grant(name: &str) -> Grant {
    let grant = grant(name, 1);
    let kind = KindSpec::FederationToken {
        region: None,
        tags: Vec::new(),
    };
    let spec = GrantSpec { kind, ..grant.spec };
    Grant { spec, ..grant }
}

pub(super) async fn live_users_are_those_that_have_not_ended(store: &dyn Store) {
    let users = granted(store, "payments-api/users").await;
    let sessions = session_grant("payments-api/sessions");
    put(store, &sessions).await.unwrap();
    pending(store, &sessions, 10).await;
    let asked = pending(store, &users, 11).await;
    let held = active(store, &users, 12).await;
    let gone = active(store, &users, 13).await;
    let going = gone
        .clone()
        .begin_revocation(EndReason::Released, at(14))
        .unwrap();
    update(store, &gone, &going).await.unwrap();
    let mut expected = vec![asked, held, going.clone()];
    expected.sort_by(|a, b| a.binding.aws_name.cmp(&b.binding.aws_name));
    assert_eq!(store.live_users().await.unwrap(), expected);
    update(store, &going, &going.clone().finish(at(15)).unwrap())
        .await
        .unwrap();
    assert_eq!(store.live_users().await.unwrap().len(), 2);
}

pub(super) async fn a_lease_of_a_suspended_service_gets_no_other_key_and_no_longer_life(
    store: &dyn Store,
) {
    let grant = granted(store, "payments-api/work").await;
    let held = active(store, &grant, 10).await;
    suspend(store, "payments-api").await;
    let longer = held.clone().extend(at(9_000), at(11)).unwrap();
    refuses(store, update(store, &held, &longer)).await;
    let replacing = held.clone().begin_replacement(at(11)).unwrap();
    update(store, &held, &replacing).await.unwrap();
    let other = IssuedCredentials {
        access_key_id: "AKIAOTHER".to_owned(),
        ..issued(10)
    };
    let replaced = replacing.clone().activate(other).unwrap();
    refuses(store, update(store, &replacing, &replaced)).await;
    // A repair of the lease still succeeds.
    let kept = replacing.clone().cancel_replacement(false).unwrap();
    update(store, &replacing, &kept).await.unwrap();
}

pub(super) async fn a_key_leads_to_the_lease_that_has_it_or_had_it_last(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    let key = |digit: char| -> KeyId { format!("AKIAIOSFODNN7EXAMPL{digit}").parse().unwrap() };
    let of = async |digit: char| {
        let found = store.lease_of_key(&key(digit)).await.unwrap();
        found.map(|lease| lease.binding.lease_id)
    };
    let issued = |digit: char| IssuedCredentials {
        access_key_id: key(digit).to_string(),
        ..issued(10)
    };
    pending(store, &grant, 9).await;
    assert_eq!(of('1').await, None);
    let lease = pending(store, &grant, 10).await;
    let first = lease.clone().activate(issued('1')).unwrap();
    update(store, &lease, &first).await.unwrap();
    let id = Some(lease.binding.lease_id);
    assert_eq!((of('1').await, of('2').await), (id.clone(), None));

    let replacing = first.clone().begin_replacement(at(11)).unwrap();
    update(store, &first, &replacing).await.unwrap();
    let second = replacing.clone().activate(issued('2')).unwrap();
    update(store, &replacing, &second).await.unwrap();
    assert_eq!((of('1').await, of('2').await), (None, id.clone()));

    let going = second.clone().begin_revocation(EndReason::Released, at(12));
    let going = going.unwrap();
    update(store, &second, &going).await.unwrap();
    let over = going.clone().finish(at(13)).unwrap();
    update(store, &going, &over).await.unwrap();
    assert_eq!(of('2').await, id);
}

pub(super) async fn a_lease_is_replaced_only_from_the_revision_it_has(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    let pending = pending(store, &grant, 10).await;
    let active = pending.clone().activate(issued(10)).unwrap();
    update(store, &pending, &active).await.unwrap();
    let stale = pending
        .clone()
        .begin_revocation(EndReason::Released, at(11))
        .unwrap();
    refuses(store, update(store, &pending, &stale)).await;
    assert_eq!(stored(store, &active).await, active);
    let unknown = requested(&grant, 12);
    let never = unknown.clone().activate(issued(12)).unwrap();
    refuses(store, update(store, &unknown, &never)).await;
    let revoking = active
        .clone()
        .begin_revocation(EndReason::Released, at(11))
        .unwrap();
    update(store, &active, &revoking).await.unwrap();
}

pub(super) async fn a_lease_of_a_suspended_service_does_not_become_active(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    let pending = pending(store, &grant, 10).await;
    suspend(store, "payments-api").await;
    let active = pending.clone().activate(issued(10)).unwrap();
    refuses(store, update(store, &pending, &active)).await;
    // A removal of the lease still succeeds.
    let revoking = pending
        .clone()
        .begin_revocation(EndReason::Released, at(11))
        .unwrap();
    update(store, &pending, &revoking).await.unwrap();
}

pub(super) async fn leases_are_listed_newest_first_in_pages(store: &dyn Store) {
    let (ours, theirs) = (
        granted(store, "payments-api/work").await,
        granted(store, "billing/work").await,
    );
    let leases = [
        pending(store, &ours, 10).await,
        active(store, &theirs, 20).await,
        active(store, &ours, 30).await,
    ];
    let all = LeaseFilter::default();
    let newest_first: Vec<Lease> = leases.iter().rev().cloned().collect();
    assert_eq!(
        store.leases(&all, &page(None, 10)).await.unwrap(),
        newest_first
    );
    let first = store.leases(&all, &page(None, 2)).await.unwrap();
    assert_eq!(first, newest_first[..2]);
    let after = first[1].binding.lease_id.as_str();
    let rest = store.leases(&all, &page(Some(after), 2)).await.unwrap();
    assert_eq!(rest, newest_first[2..]);
    let of_one = LeaseFilter {
        service: Some(name("payments-api")),
        state: None,
    };
    let found = store.leases(&of_one, &page(None, 10)).await.unwrap();
    assert_eq!(found, [leases[2].clone(), leases[0].clone()]);
    for (state, lease) in [("active", &leases[2]), ("pending", &leases[0])] {
        let in_state = LeaseFilter {
            state: Some(state),
            ..of_one.clone()
        };
        let found = store.leases(&in_state, &page(None, 10)).await.unwrap();
        assert_eq!(found.as_slice(), std::slice::from_ref(lease), "{state}");
    }
}

pub(super) async fn due_leases_are_returned_oldest_first(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    let asked = pending(store, &grant, 1_000).await; // until 1 060
    let held = active(store, &grant, 1_000).await; // until 1 600
    let taken = active(store, &grant, 1_000).await;
    let revoking = taken
        .clone()
        .begin_revocation(EndReason::Released, at(1_000))
        .unwrap();
    update(store, &taken, &revoking).await.unwrap();
    let later = revoking
        .clone()
        .postpone(at(1_000), SignedDuration::from_secs(30))
        .unwrap();
    update(store, &revoking, &later).await.unwrap(); // from 1 030
    let over = active(store, &grant, 1_000).await;
    let ending = over
        .clone()
        .begin_revocation(EndReason::Released, at(1_000))
        .unwrap();
    update(store, &over, &ending).await.unwrap();
    update(store, &ending, &ending.clone().finish(at(1_001)).unwrap())
        .await
        .unwrap();

    let session = session_grant("payments-api/sessions");
    put(store, &session).await.unwrap();
    let session = active(store, &session, 1_000).await; // until 1 600

    let due = async |now| -> Vec<LeaseId> {
        let due = store.users_due(at(now), 10).await.unwrap();
        due.into_iter()
            .map(|lease| lease.binding.lease_id)
            .collect()
    };
    let [first, second, third] = [&later, &asked, &held].map(|lease| &lease.binding.lease_id);
    assert_eq!(due(1_029).await, []);
    for (now, expected) in [
        (1_030, vec![first]),
        (1_059, vec![first]),
        (1_060, vec![first, second]),
        (1_599, vec![first, second]),
        (1_600, vec![first, second, third]),
    ] {
        assert_eq!(due(now).await.iter().collect::<Vec<_>>(), expected, "{now}");
    }
    assert_eq!(store.users_due(at(9_999), 1).await.unwrap(), [later]);
    assert_eq!(store.sessions_due(at(1_599), 10).await.unwrap(), []);
    assert_eq!(store.sessions_due(at(1_600), 10).await.unwrap(), [session]);
}

pub(super) async fn revoking_a_service_begins_every_lease_that_has_not_ended(store: &dyn Store) {
    let (ours, theirs) = (
        granted(store, "payments-api/work").await,
        granted(store, "billing/work").await,
    );
    let asked = pending(store, &ours, 10).await;
    let held = active(store, &ours, 11).await;
    let taken = active(store, &ours, 12).await;
    let revoking = taken
        .clone()
        .begin_revocation(EndReason::Released, at(13))
        .unwrap();
    update(store, &taken, &revoking).await.unwrap();
    let over = active(store, &ours, 14).await;
    let ending = over
        .clone()
        .begin_revocation(EndReason::Released, at(15))
        .unwrap();
    update(store, &over, &ending).await.unwrap();
    update(store, &ending, &ending.clone().finish(at(16)).unwrap())
        .await
        .unwrap();
    let neighbour = active(store, &theirs, 17).await;

    let size = store.audit_size().await.unwrap();
    let (standing, leases) = revoke(store, "payments-api", 20).await;
    assert_eq!(standing, suspension(20, "leaked"));
    assert_eq!(store.audit_size().await.unwrap(), size + 1);
    let ids: Vec<_> = leases.iter().map(|lease| &lease.binding.lease_id).collect();
    let expected = [&asked, &held, &taken].map(|lease| &lease.binding.lease_id);
    assert_eq!(ids, expected);
    for lease in &leases {
        assert_eq!(lease.state.as_str(), "revoking");
        assert_eq!(stored(store, lease).await, *lease);
    }
    // A lease that was merely released is revoked now.
    let revoked = EndReason::Revoked("leaked".to_owned());
    assert_eq!(leases[2].cause(), Some(&revoked));
    assert_eq!(
        leases[1].cause(),
        Some(&EndReason::Revoked("leaked".to_owned()))
    );
    assert_eq!(stored(store, &neighbour).await, neighbour);
    let unknown = audit(Event::ServiceRevoked);
    let nobody = name("nobody");
    refuses(
        store,
        store.revoke(&RevokeTarget::Service(nobody), &standing, unknown),
    )
    .await;
}

pub(super) async fn denials_of_a_service_are_returned_in_their_current_state(store: &dyn Store) {
    let mut grant = session_grant("payments-api/sessions");
    grant.spec.kind = KindSpec::AssumeRole {
        role_arn: "arn:aws:iam::123456789012:role/payments".parse().unwrap(),
        external_id: None,
        source_identity: false,
        region: None,
        tags: Vec::new(),
    };
    super::register(store, "payments-api").await;
    put(store, &grant).await.unwrap();
    active(store, &grant, 10).await;
    let told = async || store.denials_of(&name("payments-api")).await.unwrap();
    assert_eq!(told().await, []);
    revoke(store, "payments-api", 20).await;
    let denied = store.denials().await.unwrap().known;
    assert_ne!(denied, []);
    assert_eq!(told().await, denied);
    // The end of a denial needs no record.
    store
        .change_denials(&[], &denied, Vec::new())
        .await
        .unwrap();
    assert_eq!(told().await, []);
}

pub(super) async fn revoking_a_service_keeps_an_earlier_suspension(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    active(store, &grant, 2).await;
    suspend(store, "payments-api").await;
    for second in [20, 30] {
        let (standing, leases) = revoke(store, "payments-api", second).await;
        assert_eq!(standing, suspension(5, "audit"));
        assert_eq!(leases.len(), 1);
    }
    let service = store.service(&name("payments-api")).await.unwrap().unwrap();
    assert_eq!(service.service.suspension, Some(suspension(5, "audit")));
}

pub(super) async fn concurrent_activation_and_revocation_succeed_once(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    let pending = pending(store, &grant, 10).await;
    let active = pending.clone().activate(issued(10)).unwrap();
    let revoking = pending
        .clone()
        .begin_revocation(EndReason::Released, at(11))
        .unwrap();
    let (one, other) = join!(
        update(store, &pending, &active),
        update(store, &pending, &revoking)
    );
    assert_ne!(one.is_ok(), other.is_ok());
    let winner = if one.is_ok() { active } else { revoking };
    assert_eq!(stored(store, &winner).await, winner);
}

fn role(name: &str) -> PolicyOwner {
    format!("arn:aws:iam::111122223333:role/{name}")
        .parse()
        .unwrap()
}

/// Lease of a session at a role, requested at one second, expiring at another.
async fn session(
    store: &dyn Store,
    grant: &Grant,
    holder: &PolicyOwner,
    (from, to): (i64, i64),
) -> Lease {
    let mut lease = requested(grant, from);
    lease.binding.kind = Kind::AssumeRole;
    lease.binding.holder = Some(holder.clone());
    begin(store, &lease).await.unwrap();
    let issued = IssuedCredentials {
        expires_at: at(to),
        ..issued(from)
    };
    let active = lease.clone().activate(issued).unwrap();
    update(store, &lease, &active).await.unwrap();
    active
}

pub(super) async fn the_session_that_expires_last_is_known_of_each_version_of_a_grant_at_each_role(
    store: &dyn Store,
) {
    let (one, other) = (role("one"), role("other"));
    let first = granted(store, "payments-api/work").await;
    session(store, &first, &one, (10, 100)).await;
    session(store, &first, &one, (11, 300)).await;
    session(store, &first, &one, (12, 200)).await;
    session(store, &first, &other, (13, 50)).await;
    let second = grant("payments-api/work", 2);
    put(store, &second).await.unwrap();
    let expired = session(store, &second, &one, (14, 20)).await;
    let ended = expired.clone().expire(at(20)).unwrap();
    update(store, &expired, &ended).await.unwrap();
    let uploads = grant("payments-api/uploads", 1);
    put(store, &uploads).await.unwrap();
    session(store, &uploads, &one, (15, 400)).await;
    // Neither a user nor a pending lease counts as a session, nor does a lease of another service.
    active(store, &second, 16).await;
    let mut pending = requested(&second, 17);
    pending.binding.holder = Some(role("third"));
    begin(store, &pending).await.unwrap();
    let theirs = granted(store, "payments/work").await;
    session(store, &theirs, &one, (18, 500)).await;

    let service = name("payments-api");
    let all = store.last_sessions(&service, None).await.unwrap();
    let listed = |sessions: Vec<DenialSession>| -> Vec<_> {
        let told = sessions.into_iter().map(|session| {
            let grant = session.grant.grant.to_string();
            let end = session.expires_at.as_second();
            (grant, session.grant_version, session.holder, end)
        });
        told.collect()
    };
    let work = [
        ("work".to_owned(), 1, one.clone(), 300),
        ("work".to_owned(), 1, other, 50),
        ("work".to_owned(), 2, one.clone(), 20),
    ];
    let uploads = [("uploads".to_owned(), 1, one, 400)];
    assert_eq!(listed(all), [uploads.to_vec(), work.to_vec()].concat());
    for (grant, expected) in [("work", work.to_vec()), ("uploads", uploads.to_vec())] {
        let of_grant = store.last_sessions(&service, Some(&name(grant))).await;
        assert_eq!(listed(of_grant.unwrap()), expected);
    }
    let nothing = store.last_sessions(&service, Some(&name("more"))).await;
    assert_eq!(nothing.unwrap(), []);
}

pub(super) async fn sessions_that_have_ended_are_denied_while_access_made_from_them_may_live(
    store: &dyn Store,
) {
    let hour = 3_600;
    let (gone, left, live) = (role("gone"), role("left"), role("live"));
    let grant = granted(store, "payments-api/work").await;
    for (holder, times) in [
        (&gone, (10, hour)),
        (&left, (11, 2 * hour)),
        (&live, (12, 20 * hour)),
    ] {
        let lease = session(store, &grant, holder, times).await;
        if *holder != live {
            let ended = lease.clone().expire(at(times.1)).unwrap();
            update(store, &lease, &ended).await.unwrap();
        }
    }
    let now = 14 * hour;
    let event = audit(Event::ServiceRevoked);
    let target = RevokeTarget::Service(name("payments-api"));
    let leaked = suspension(now, "leaked");
    let (revoked, _) = store.revoke(&target, &leaked, event).await.unwrap();
    assert_eq!(revoked.leases.len(), 1);
    let lasts: Vec<_> = revoked
        .denials
        .iter()
        .map(|denial| (&denial.against.holder, denial.lasts_until.as_second()))
        .collect();
    let until = |expires: i64| expires + 12 * hour + 15 * 60 + 60;
    assert_eq!(lasts, [(&left, until(2 * hour)), (&live, until(20 * hour))]);
    let read = store.denials_of(&name("payments-api")).await.unwrap();
    assert_eq!(read, revoked.denials);
}
