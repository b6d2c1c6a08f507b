//! Promises of the `Store` port, one function each, over every engine. An engine is a function that
//! opens an empty store, and one line that runs the suite over it.

mod audit;
mod backup;
mod copy;
mod grants;
mod leases;
mod owners;
mod postgres;
mod sqlite;

use std::{fmt::Debug, time::Duration};

use credbroker::{
    broker::ports::{BeginOutcome, PageRequest, Store, StoreError},
    domain::{
        audit::{AuditEvent, Event},
        grant::{Grant, GrantSpec, KindSpec},
        lease::{Issuance, IssuedCredentials, Lease},
        name::{LeaseId, Name},
        random::SystemRandom,
        service::{Service, Suspension},
        token::{StoredToken, Token, TokenKind},
    },
};
use jiff::Timestamp;

/// An open store, with everything that must live as long as the store.
struct Engine {
    store: Box<dyn Store>,
    _home: Box<dyn Send>,
}

macro_rules! suite {
    ($engine:ident: $($room:ident::$promise:ident)*) => {
        mod $engine {
            $(
                #[tokio::test]
                async fn $promise() {
                    let engine = super::super::$engine::open().await;
                    super::super::$room::$promise(engine.store.as_ref()).await;
                }
            )*
        }
    };
}

/// Runs every promise over one engine.
macro_rules! over {
    ($engine:ident) => {
        suite! { $engine:
            audit::records_are_counted_from_one_without_gaps_and_read_back_as_written
            audit::each_filter_picks_its_records
            audit::a_time_finds_its_records_wherever_a_clock_that_was_set_has_put_them
            audit::a_page_goes_on_after_the_last_record_of_the_page_before
            audit::a_change_that_is_refused_leaves_no_record
            audit::counts_include_every_kind_of_object
            grants::a_version_follows_the_newest_ever
            grants::a_grant_of_an_unknown_service_is_refused
            grants::a_deleted_grant_leaves_its_version_number_behind
            grants::current_grants_are_listed_by_name_in_pages
            grants::concurrent_puts_of_one_version_succeed_once
            leases::a_lease_begins_only_under_the_current_grant_of_an_open_service
            leases::a_lease_reads_back_as_written_in_every_state
            leases::a_lease_is_replaced_only_from_the_revision_it_has
            leases::a_lease_of_a_suspended_service_does_not_become_active
            leases::a_lease_of_a_suspended_service_gets_no_other_key_and_no_longer_life
            leases::a_request_id_keeps_its_lease_until_the_issue_fails
            leases::concurrent_repeats_of_one_request_begin_one_lease
            leases::denials_of_a_service_are_returned_in_their_current_state
            leases::what_is_asked_at_the_same_moment_is_done_or_refused_each_alone
            leases::live_users_and_sessions_beyond_the_limits_are_refused
            leases::a_key_leads_to_the_lease_that_has_it_or_had_it_last
            leases::live_users_are_those_that_have_not_ended
            leases::leases_are_listed_newest_first_in_pages
            leases::due_leases_are_returned_oldest_first
            leases::revoking_a_service_begins_every_lease_that_has_not_ended
            leases::revoking_a_service_keeps_an_earlier_suspension
            leases::the_session_that_expires_last_is_known_of_each_version_of_a_grant_at_each_role
            leases::sessions_that_have_ended_are_denied_while_access_made_from_them_may_live
            leases::concurrent_activation_and_revocation_succeed_once
            owners::a_service_name_is_taken_once
            owners::services_are_listed_by_name_in_pages_with_what_they_hold
            owners::a_service_is_suspended_once_and_reinstated_once
            owners::a_service_with_live_leases_cannot_be_deleted
            owners::a_service_has_ten_tokens_at_most_listed_oldest_first
            owners::a_token_is_deleted_by_its_own_service_alone
            owners::a_token_leads_to_its_owner_as_it_stands_now
            owners::an_operator_name_is_taken_once
            owners::the_last_admin_cannot_be_deleted
            owners::a_replaced_operator_token_ends_the_one_before
        }
    };
}

/// Queries of every issue or every second, and the index that each uses.
const INDEXED: [(&str, &str); 9] = [
    (
        "SELECT * FROM leases WHERE access_key_id = 'AKIAIOSFODNN7EXAMPLE' LIMIT 1",
        "leases_by_access_key",
    ),
    (
        "SELECT * FROM leases WHERE service = 'billing' AND request_id = 'a'",
        "leases_by_request",
    ),
    (
        "SELECT * FROM leases WHERE kind = 'iam_user' AND due_at <= 1",
        "leases_users_due",
    ),
    (
        "SELECT * FROM leases WHERE kind <> 'iam_user' AND due_at <= 1 ORDER BY due_at LIMIT 8",
        "leases_sessions_due",
    ),
    (
        "SELECT count(*) FROM live_leases WHERE service = 'billing' AND (kind = 'iam_user') = (1 = 0)",
        "leases_live",
    ),
    (
        "SELECT * FROM unsettled_leases WHERE lease_id < 'w' AND state = 'quarantined'",
        "leases_unsettled",
    ),
    (
        "SELECT max(issued_at) FROM leases WHERE service = 'billing' AND issued_at IS NOT NULL",
        "leases_issued",
    ),
    (
        "SELECT * FROM issued_sessions
         WHERE service = 'billing' AND (grant_name, grant_version, holder) > ('work', 1, 'a')
         ORDER BY grant_name, grant_version, holder, expires_at DESC LIMIT 1",
        "leases_last",
    ),
    (
        "SELECT * FROM audit WHERE lease_id = 'a' ORDER BY seq",
        "audit_by_lease",
    ),
];

mod over {
    over!(postgres);
    over!(sqlite);
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn audit(event: Event) -> AuditEvent {
    AuditEvent::by_broker(event, at(1))
}

fn page(after: Option<&str>, limit: u32) -> PageRequest {
    PageRequest {
        after: after.map(ToOwned::to_owned),
        limit,
    }
}

fn suspension(second: i64, reason: &str) -> Suspension {
    Suspension {
        at: at(second),
        reason: Some(reason.to_owned()),
    }
}

fn token(kind: TokenKind, second: i64) -> StoredToken {
    let token = Token::new(kind, &SystemRandom);
    StoredToken {
        id: token.id().clone(),
        digest: token.digest(),
        created_at: at(second),
        expires_at: Some(at(second + 60)),
    }
}

/// `SERVICE/GRANT` of kind `iam_user`.
fn grant(grant: &str, version: u64) -> Grant {
    let kind = KindSpec::IamUser {
        groups: vec!["readers".to_owned()],
        path: "/".to_owned(),
        permissions_boundary: None,
        tags: Vec::new(),
    };
    Grant {
        name: grant.parse().unwrap(),
        version,
        spec: GrantSpec {
            kind,
            policy: None,
            managed_policies: Vec::new(),
            default_ttl: Duration::from_secs(60),
            max_ttl: Duration::from_secs(60 * version),
            allow_broad: false,
            probe: None,
            further_probes: Vec::new(),
            probe_regions: Vec::new(),
            ends_by_policy: false,
            reuse: None,
        },
        created_at: at(1),
        created_by: name("ann"),
    }
}

fn issued(second: i64) -> IssuedCredentials {
    IssuedCredentials {
        access_key_id: format!("AKIA{second}"),
        at: at(second),
        expires_at: at(second + 600),
    }
}

async fn register(store: &dyn Store, service: &str) -> Name {
    let service = Service {
        name: name(service),
        created_at: at(1),
        suspension: None,
    };
    let created = audit(Event::ServiceCreated).service(&service.name);
    store.create_service(&service, created).await.unwrap();
    service.name
}

async fn put(store: &dyn Store, grant: &Grant) -> Result<(), StoreError> {
    store
        .put_grant(grant, audit(Event::GrantPut).grant(grant))
        .await
}

/// Registers the service and puts the first version of the grant.
async fn granted(store: &dyn Store, full_name: &str) -> Grant {
    let grant = grant(full_name, 1);
    register(store, grant.name.service.as_str()).await;
    put(store, &grant).await.unwrap();
    grant
}

fn requested(grant: &Grant, second: i64) -> Lease {
    let id = LeaseId::new(at(second), &SystemRandom);
    Lease::request(Issuance::new(id, grant, None, None), None, at(second))
}

async fn begin(store: &dyn Store, lease: &Lease) -> Result<BeginOutcome, StoreError> {
    begin_of(store, lease, u64::MAX).await
}

async fn begin_of(store: &dyn Store, lease: &Lease, most: u64) -> Result<BeginOutcome, StoreError> {
    let event = audit(Event::LeaseRequested).lease(lease);
    store.begin_lease(lease, most, event).await
}

/// Stores `to` in place of `from`.
async fn update(store: &dyn Store, from: &Lease, to: &Lease) -> Result<(), StoreError> {
    let event = audit(Event::LeaseIssued).lease(to);
    let updated = store.update_lease(from.revision, to, event).await;
    updated.map(drop)
}

async fn pending(store: &dyn Store, grant: &Grant, second: i64) -> Lease {
    let lease = requested(grant, second);
    assert_eq!(begin(store, &lease).await.unwrap(), BeginOutcome::Recorded);
    lease
}

async fn active(store: &dyn Store, grant: &Grant, second: i64) -> Lease {
    let pending = pending(store, grant, second).await;
    let active = pending.clone().activate(issued(second)).unwrap();
    update(store, &pending, &active).await.unwrap();
    active
}

/// Asserts that `change` is refused as a conflict and leaves nothing, not even a record.
async fn refuses<T: Debug>(store: &dyn Store, change: impl Future<Output = Result<T, StoreError>>) {
    let (size, counts) = (
        store.audit_size().await.unwrap(),
        store.counts().await.unwrap(),
    );
    let refused = change.await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    assert_eq!(store.audit_size().await.unwrap(), size);
    assert_eq!(store.counts().await.unwrap(), counts);
}
