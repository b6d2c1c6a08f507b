//! Ten thousand leases of one service, and a thousand services in a day.

use std::time::Instant;

use credbroker::{
    client::Client,
    proto::{
        LeaseState, RevokeServiceRequest, StreamRevocationRequest, revocation_progress::What,
        stream_revocation_request::Target,
    },
};

use prost::Message;

use super::{Neighbours, denials_of_role, hands::restarted, size};
use crate::{
    enforcement::refused,
    harness::{Broker, emulator::emulator, eventually_within, proxy::Proxy},
};

/// Leases besides the real one.
const MADE: usize = 9_999;
/// Copies of the one live session's lease, each with an id of its own and no key.
const MAKE: &str = "
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 9999)
    INSERT INTO leases
        (lease_id, service, grant_name, grant_version, kind, aws_name, requested_at, state, revision, due_at,
         access_key_id, issued_at, expires_at, cause, attempts, ended_at, request_id, request_digest, renews,
         replacing_until, key_lost, made_by, left_to_issuer, failing_since, asked_at, holder)
    SELECT '000000000000000000000' || CAST(10000 + n AS TEXT), service, grant_name, grant_version, kind, service || '.000000000000000000000' || CAST(10000 + n AS TEXT),
           requested_at, state, revision, due_at, 'ASIA00000000000' || CAST(10000 + n AS TEXT), issued_at, expires_at, cause, attempts,
           ended_at, NULL, NULL, renews, replacing_until, key_lost, made_by, left_to_issuer, failing_since,
           asked_at, holder
    FROM leases, number WHERE service = 'payments-api' AND state = 'active'";
const REVOKED: &str = "SELECT count(*) FROM leases WHERE state = 'revoked'";
const RECORDED: &str = "SELECT count(DISTINCT lease_id) FROM audit WHERE event = 'lease.revoked'";

async fn count(broker: &Broker, sql: &'static str) -> usize {
    usize::try_from(broker.count(sql).await).unwrap()
}

/// Returns the state of each lease, and `confirmed`.
async fn streamed(client: &Client) -> (Vec<LeaseState>, bool) {
    let request = StreamRevocationRequest {
        target: Some(Target::Service("payments-api".to_owned())),
        reason: "leaked".to_owned(),
        ..StreamRevocationRequest::default()
    };
    let stream = client.revocation().stream_revocation(request).await;
    let (mut stream, mut leases, mut confirmed) = (stream.unwrap().into_inner(), Vec::new(), false);
    while let Ok(Some(progress)) = stream.message().await {
        match progress.what.unwrap() {
            What::Lease(lease) => leases.push(lease.state()),
            What::Done(done) => confirmed = done.confirmed,
            _ => {}
        }
    }
    (leases, confirmed)
}

#[tokio::test]
async fn ten_thousand_leases_are_revoked_by_a_handful_of_calls() {
    let proxy = Proxy::start().await;
    let two = restarted(Neighbours::new().await, &proxy.endpoint).await;
    let (_, neighbour) = two.issue("billing", "work").await;
    let (_, key) = two.issue("payments-api", "work").await;
    two.world.broker.write_store(MAKE).await;
    let before = proxy.actions().len();
    let began = Instant::now();
    let (leases, confirmed) = streamed(&two.admin().await).await;
    let (took, calls) = (began.elapsed(), proxy.actions().split_off(before));
    println!(
        "10,000 leases: {took:.2?}, {} calls: {calls:?}",
        calls.len()
    );
    assert!(confirmed);
    assert_eq!(leases.len(), MADE + 1);
    assert!(leases.iter().all(|state| *state == LeaseState::Revoked));
    let written = calls.iter().filter(|call| *call == "PutRolePolicy");
    assert_eq!(written.count(), 1, "{calls:?}");
    assert!(calls.len() <= 10, "{calls:?}");
    assert_eq!(count(&two.world.broker, REVOKED).await, MADE + 1);
    assert_eq!(count(&two.world.broker, RECORDED).await, MADE + 1);
    refused("sending", key.send_message(&two.world.queue).await);
    assert!(two.works(&neighbour).await);
}

#[tokio::test]
async fn an_answer_for_ten_thousand_leases_counts_the_omitted_ones() {
    let proxy = Proxy::start().await;
    let two = restarted(Neighbours::new().await, &proxy.endpoint).await;
    two.issue("payments-api", "work").await;
    two.world.broker.write_store(MAKE).await;
    let request = RevokeServiceRequest {
        service: "payments-api".to_owned(),
        reason: "leaked".to_owned(),
    };
    let revoked = two.admin().await.revocation().revoke_service(request).await;
    let revoked = revoked.unwrap().into_inner();
    assert!(revoked.encoded_len() <= 256 * 1024);
    assert!(revoked.leases.len() > 1000, "{}", revoked.leases.len());
    let omitted = usize::try_from(revoked.omitted_leases).unwrap();
    assert_eq!(revoked.leases.len() + omitted, MADE + 1);
    assert_eq!((revoked.sessions.len(), revoked.omitted_sessions), (1, 0));
    assert!(revoked.confirmed);
    assert_eq!(count(&two.world.broker, REVOKED).await, MADE + 1);
}

#[tokio::test]
async fn a_revocation_of_ten_thousand_leases_continues_after_a_restart() {
    let mut two = Neighbours::new().await;
    let (_, key) = two.issue("payments-api", "work").await;
    two.world.broker.write_store(MAKE).await;
    let client = two.admin().await;
    let revoking = tokio::spawn(async move { streamed(&client).await });
    let some = async || (count(&two.world.broker, REVOKED).await > 0).then_some(());
    eventually_within(20, "some are recorded as revoked", some).await;
    two.world.broker.kill().await;
    revoking.abort();
    let left = MADE + 1 - count(&two.world.broker, REVOKED).await;
    println!("left behind: {left}");
    assert!(left > 0, "it died too late");
    two = restarted(two, &emulator().endpoint).await;
    let done = async || (count(&two.world.broker, REVOKED).await == MADE + 1).then_some(());
    eventually_within(20, "the rest is recorded as revoked", done).await;
    assert_eq!(count(&two.world.broker, RECORDED).await, MADE + 1);
    refused("sending", key.send_message(&two.world.queue).await);
}

/// Nine hundred further services that were revoked an hour ago, and whose sessions have expired.
const OVER: &str = "
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 900)
    INSERT INTO denials (holder, service, scope, grant_name, grant_version, source_identity, asked_at, issued_before,
                         denied_before, spares_newer, lasts_until, due_at, refused_at, attempts, failure, revision)
    SELECT holder, 'an-old-one-no-' || CAST(1000 + n AS TEXT), scope, grant_name, grant_version, source_identity, asked_at,
           issued_before, denied_before, spares_newer, 1, 1, refused_at, attempts, failure, revision
    FROM denials, number WHERE service = 'a-service-no-000'";

#[tokio::test]
async fn only_live_sessions_of_a_thousand_revoked_services_are_denied() {
    let two = Neighbours::new().await;
    let (_, neighbour) = two.issue("billing", "work").await;
    let crowd = two.crowd(100).await;
    two.revoke_all(&crowd[..50]).await;
    two.world.broker.write_store(OVER).await;
    two.revoke_all(&crowd[50..]).await;
    let lifted = "SELECT count(*) FROM audit WHERE event = 'denial.lifted'";
    let all = async || (count(&two.world.broker, lifted).await == 900).then_some(());
    eventually_within(25, "what is over is lifted", all).await;
    let denied = denials_of_role(&two.world.account, &two.role).await;
    let (_, policy) = denied.unwrap();
    assert!(!policy.to_string().contains("an-old-one"));
    assert!(size(&policy) < 4_000, "{}", size(&policy));
    for member in &crowd {
        refused(
            &member.service,
            member.key.send_message(&two.world.queue).await,
        );
    }
    assert!(two.works(&neighbour).await);
}
