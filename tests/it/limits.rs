//! Limits of a service and of AWS, and the broker's behaviour while AWS is silent.

use std::{sync::Arc, time::Duration};

use credbroker::{
    broker::{Error, ports::FailureClass},
    domain::{random::SystemRandom, request::RequestId, service::Limits},
};
use tokio::task::JoinSet;

use crate::harness::{
    Account, Broker, Key,
    proxy::{Fault, Proxy},
    stepped::{self, Stepped, Ways, policy},
};

fn limited(error: Error, expected: &str) -> Option<Duration> {
    match error {
        Error::Limited {
            reason,
            retry_after,
            next,
            ..
        } => {
            assert_eq!(reason, expected);
            assert!(!next.is_empty());
            retry_after
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn users_of_a_service_beyond_the_limit_are_refused() {
    let world = Stepped::with(Ways {
        limits: Limits {
            live_users: 3,
            users_per_minute: 10_000,
            ..Limits::default()
        },
        ..Ways::default()
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(world.issue("user").await.unwrap());
        world.wait(60);
    }
    let before = world.proxy.actions().len();
    for _ in 0..20 {
        let hint = limited(world.issue("user").await.unwrap_err(), "TOO_MANY_LEASES");
        let left = Duration::from_secs(3600 - 180);
        let hint = hint.unwrap();
        let off_by = left.abs_diff(hint);
        assert!(off_by < Duration::from_secs(5), "{hint:?}");
    }
    assert_eq!(world.proxy.actions().len(), before, "no call to AWS");
    assert_eq!(world.account.issued_users().await.len(), 3);
    // The first ten are recorded one by one, the others by number.
    world.broker.record_counted().await;
    let denied = world.records("lease.denied").await;
    assert_eq!(denied.len(), 11);
    for record in &denied {
        assert_eq!(record.reason.as_deref(), Some("TOO_MANY_LEASES"));
    }
    let counted = denied[10].detail.as_deref().unwrap();
    assert!(counted.starts_with("10 more like this"), "{counted}");
    // Sessions have a limit of their own.
    world.issue("role").await.unwrap();
    world.revoke(&held[0].lease).await.unwrap();
    world.issue("user").await.unwrap();
}

#[tokio::test]
async fn a_service_beyond_its_issue_rate_gets_a_retry_hint() {
    let world = Stepped::with(Ways {
        limits: Limits {
            issues_per_second: 1,
            ..Limits::default()
        },
        ..Ways::default()
    })
    .await;
    for _ in 0..2 {
        world.issue("role").await.unwrap();
    }
    let hint = limited(world.issue("role").await.unwrap_err(), "TOO_MANY_REQUESTS");
    assert!(hint.unwrap() <= Duration::from_secs(1));
    assert_eq!(world.proxy.calls("AssumeRole").len(), 2);
}

#[tokio::test]
async fn user_issues_have_a_rate_limit_of_their_own() {
    let world = Stepped::with(Ways {
        limits: Limits {
            users_per_minute: 6,
            ..Limits::default()
        },
        ..Ways::default()
    })
    .await;
    let id = RequestId::random(&SystemRandom);
    for _ in 0..2 {
        world.issue_named("user", &id).await.unwrap();
    }
    // A replacement of a key costs as many calls as a new one.
    let before = world.proxy.actions().len();
    let repeated = world.issue_named("user", &id).await.unwrap_err();
    let hint = limited(repeated, "TOO_MANY_REQUESTS");
    assert!(hint.unwrap() <= Duration::from_secs(10));
    limited(world.issue("user").await.unwrap_err(), "TOO_MANY_REQUESTS");
    assert_eq!(world.proxy.actions().len(), before, "no call to AWS");
    world.issue("role").await.unwrap();
}

#[tokio::test]
async fn expired_leases_do_not_count_against_the_limit() {
    let world = Stepped::with(Ways {
        limits: Limits {
            live_users: 1,
            live_sessions: 1,
            ..Limits::default()
        },
        ..Ways::default()
    })
    .await;
    for grant in ["user", "role"] {
        world.issue(grant).await.unwrap();
        limited(world.issue(grant).await.unwrap_err(), "TOO_MANY_LEASES");
        if grant == "role" {
            // The clean-up has not run yet. AWS's clock has moved on since the broker's stood
            // still.
            world.wait(3660);
            world.issue(grant).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_reached_limit_is_reported_with_exit_status_7() {
    let account = Account::new().await;
    let broker = Broker::start(&account).await;
    let (token, neighbour) = (
        broker.service("payments-api").await,
        broker.service("billing").await,
    );
    for service in ["payments-api", "billing"] {
        let grant = format!("{service}/user");
        broker
            .grant(&grant, &["--kind", "iam_user"], &policy())
            .await;
    }
    let held = broker.issue(&token, "user").await;
    // The store gets a hundred leases of the service.
    broker
        .write_store(
            "INSERT INTO leases (lease_id, service, grant_name, grant_version, kind, aws_name, requested_at, state,
                                 revision, due_at, access_key_id, issued_at, expires_at, attempts)
             SELECT substr(lease_id, 1, 23) || CAST(100 + value AS TEXT), service, grant_name, grant_version, kind,
                    aws_name || CAST(value AS TEXT), requested_at, state, revision, due_at, access_key_id, issued_at,
                    expires_at, attempts
             FROM leases, (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 99)
                           SELECT value FROM n) AS numbers",
        )
        .await;
    let run = broker.run_as(Some(&token), &["issue", "user"]).await;
    let words = [
        "service payments-api has 100 live leases of this kind",
        "the first of them ends in",
        "reason: TOO_MANY_LEASES",
        "try again after",
        "limits.live_users",
    ];
    run.fails(7, &words);
    broker.issue(&neighbour, "user").await;
    assert!(Key::issued(&held).works().await);
}

#[tokio::test]
async fn issuing_pauses_while_aws_is_silent_with_a_retry_hint() {
    let world = Stepped::with(Ways::quick()).await;
    let id = RequestId::random(&SystemRandom);
    let held = world.issue_named("user", &id).await.unwrap();
    world.proxy.inject("AssumeRole", Fault::Cut);
    for _ in 0..5 {
        let failed = world.issue("role").await.unwrap_err();
        assert_eq!(failed.reason(), "AWS_NO_ANSWER");
    }
    let (calls, size) = (
        world.proxy.calls("AssumeRole").len(),
        world.records("lease.requested").await.len(),
    );
    let Error::Aws(failure) = world.issue("role").await.unwrap_err() else {
        panic!("not AWS's failure");
    };
    assert_eq!(failure.reason, "AWS_CIRCUIT_OPEN");
    assert_eq!(failure.class, FailureClass::Unavailable);
    let pause = failure.retry_after.unwrap();
    assert!(pause <= Duration::from_secs(5), "{pause:?}");
    assert_eq!(
        world.proxy.calls("AssumeRole").len(),
        calls,
        "AWS is not asked"
    );
    // A user's new key would have to be tried there.
    let users = world.proxy.calls("CreateUser").len();
    for refused in [
        world.issue("user").await,
        world.issue_named("user", &id).await,
    ] {
        assert_eq!(refused.unwrap_err().reason(), "AWS_CIRCUIT_OPEN");
    }
    assert_eq!(world.proxy.calls("CreateUser").len(), users);
    assert_eq!(
        world.records("lease.requested").await.len(),
        size,
        "nothing has begun"
    );
    // Work that needs no AWS continues.
    world.renew(&held.lease, None, None).await.unwrap();
    // Removals are tried all the same, and an answer ends the pause.
    world.proxy.heal();
    world.admin_key().await.identity.unwrap();
    world.issue("role").await.unwrap();
}

#[tokio::test]
async fn revocation_goes_on_while_issuing_waits_for_its_turn() {
    let world = Stepped::with(Ways {
        // Fewer than the emulator handles on a busy machine.
        calls_per_second: 15,
        ..Ways::default()
    })
    .await;
    let world = Arc::new(world);
    let held = world.issue("user").await.unwrap();
    let mut crowd = JoinSet::new();
    for _ in 0..90 {
        let world = Arc::clone(&world);
        crowd.spawn(async move { world.issue("user").await.map(drop) });
    }
    let refused = loop {
        let outcome = crowd.join_next().await.expect("a refusal").unwrap();
        if let Err(Error::Aws(failure)) = outcome {
            break failure;
        }
    };
    assert_eq!(
        (refused.class, refused.reason),
        (FailureClass::Deferred, "AWS_BUDGET")
    );
    assert!(refused.retry_after.is_some());
    // Work that has begun continues for some forty seconds; a third of the calls is reserved.
    let taken = world.revoke(&held.lease).await.unwrap();
    assert_eq!(taken.lease.state.as_str(), "revoked");
    assert!(!stepped::key(&held).works().await);
    assert!(!crowd.is_empty(), "the crowd still waits");
}

/// Error of AWS while it does not know a new key everywhere.
const UNKNOWN_KEY: Fault = Fault::Answer(
    403,
    "InvalidClientTokenId",
    "The security token included in the request is invalid.",
);

#[tokio::test]
async fn a_new_key_is_handed_over_once_aws_accepts_it() {
    let world = Stepped::new().await;
    world.issue("user").await.unwrap();
    world
        .proxy
        .inject_in_turn("GetCallerIdentity", vec![UNKNOWN_KEY; 3]);
    let asked = world.proxy.calls("GetCallerIdentity").len();
    let issued = world.issue("user").await.unwrap();
    let waited = issued.credentials.usable_after.unwrap();
    assert!(waited >= Duration::from_millis(700), "{waited:?}");
    // Three attempts fail, then two succeed, since one place may know the key before another.
    let asked = world.proxy.calls("GetCallerIdentity").len() - asked;
    assert_eq!(asked, 5);
    assert!(stepped::key(&issued).works().await);
    let told = world.records("lease.issued").await.pop().unwrap();
    let told = told.detail.unwrap();
    assert!(
        told.starts_with(&format!(
            "AWS accepted the key after {:.1} s",
            waited.as_secs_f64()
        )),
        "{told}"
    );
}

#[tokio::test]
async fn a_key_that_aws_never_accepts_is_not_handed_over_and_leaves_nothing() {
    let world = Stepped::with(Ways::quick()).await;
    // The broker knows the identity of its own key.
    world.issue("user").await.unwrap();
    world.step(3600).await;
    world.proxy.inject("GetCallerIdentity", UNKNOWN_KEY);
    let failed = world.issue("user").await.unwrap_err();
    assert_eq!(failed.reason(), "AWS_KEY_NOT_ACCEPTED");
    assert!(world.account.issued_users().await.is_empty());
    assert_eq!(world.newest().await.state.as_str(), "revoked");
}

#[tokio::test]
async fn an_issue_reports_the_time_until_the_key_is_usable() {
    let (account, proxy) = (Account::new().await, Proxy::start().await);
    let broker = Broker::start_with(&account.admin, &proxy.endpoint).await;
    let token = broker.service("payments-api").await;
    let flags = ["--kind", "iam_user"];
    broker.grant("payments-api/user", &flags, &policy()).await;
    proxy.inject_in_turn("GetCallerIdentity", vec![UNKNOWN_KEY; 2]);
    let issued = broker.issue(&token, "user").await;
    let waited = issued["usable_after_seconds"].as_f64().unwrap();
    assert!((0.3..10.0).contains(&waited), "{waited}");
    broker
        .counts("credbroker_key_acceptance_seconds_count 1")
        .await;
}
