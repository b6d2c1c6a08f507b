//! One stolen token, or peers without any, deny no call to an operator or another service, and add
//! no more than a few records to the log.

use std::time::Duration;

use credbroker::proto::{IssueCredentialsRequest, RevokeServiceRequest, WhoAmIRequest};
use serde_json::Value;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::bounds::bounded;
use crate::{
    harness::{
        Account,
        attacks::{ATTACKS, Attack, Attackers},
        eventually, eventually_within,
        proxy::Fault,
        site::{Site, stop},
        stepped::policy,
        wire::tls_ask,
    },
    lifecycle::channel,
};

/// A token that no broker has issued.
const UNKNOWN: &str = "cbs_AAAAAAAAAAAAAAAA_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// Time within which each call is answered beside an attack; a limit, not a measure.
const LIMIT: Duration = Duration::from_secs(20);

impl Site {
    async fn records(&self, of: &[&str]) -> Vec<Value> {
        let query = [&["audit", "query", "-o", "json"], of].concat();
        let records = self.run(&query).await.ok().json();
        records.as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn attacks_with_one_token_and_failed_logins_do_not_block_other_callers() {
    const ROUNDS: usize = 10;
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let (noisy, calm) = (site.service("noisy").await, site.service("calm").await);
    let role = account.role("calm", &policy()).await;
    let grant = ["--role-arn", &role];
    site.put("calm/role", &grant, &policy()).await.ok();
    for round in 0..ROUNDS {
        site.create(&format!("victim-{round}")).await;
    }
    let (admin, calm) = (site.admin_client().await, site.client(&calm).await);

    let by_token = ATTACKS.map(|attack| vec![site.attacker(2, &noisy, attack); 8]);
    let unknown = (3..=10).map(|number| site.attacker(number, UNKNOWN, Attack::WhoAmI));
    let flood = unknown.flat_map(|attacker| vec![attacker; 4]);
    let attackers = Attackers::begin(by_token.concat().into_iter().chain(flood).collect());
    // A busy machine sends less than the broker would accept.
    let counted = async || {
        let counted = site.metric("credbroker_records_aggregated_total").await;
        counted.filter(|count| *count > 20.0)
    };
    eventually_within(30, "the attack goes on", counted).await;
    for round in 0..ROUNDS {
        let revoke = RevokeServiceRequest {
            service: format!("victim-{round}"),
            reason: "to see whether it can be".to_owned(),
        };
        let issue = IssueCredentialsRequest {
            grant: "role".to_owned(),
            ..IssueCredentialsRequest::default()
        };
        let (mut revocation, mut credentials) = (admin.revocation(), calm.credentials());
        let (revoked, issued) = tokio::join!(
            timeout(LIMIT, revocation.revoke_service(revoke)),
            timeout(LIMIT, credentials.issue_credentials(issue)),
        );
        assert!(revoked.unwrap().unwrap().into_inner().confirmed);
        issued.unwrap().unwrap();
    }
    site.run(&["revoke", "noisy"]).await.ok();
    attackers.end();

    // The log has ten records of each kind at once, and one a minute that counts the others.
    let of_noisy = site.records(&["--actor", "service:noisy"]).await.len();
    let of_strangers = site.records(&["--event", "login.failed"]).await.len();
    assert!(of_noisy < 80, "{of_noisy}");
    assert!(of_strangers < 250, "{of_strangers}");
    stop(child).await;
}

#[tokio::test]
async fn a_call_without_its_message_occupies_no_slot() {
    let account = Account::new().await;
    let (site, _proxy) = bounded("calls = 1\ncalls_per_service = 1").await;
    let child = site.serving(&account.admin).await;
    let token = site.service("pay").await;
    let silent = site.attacker(2, &token, Attack::SilentBodies);
    let stream = silent.connected().await.unwrap();
    let held = tokio::spawn(async move { silent.over(stream).await });
    let client = site.client(&token).await;
    for _ in 0..20 {
        client.identity().who_am_i(WhoAmIRequest {}).await.unwrap();
    }
    held.abort();
    stop(child).await;
}

#[tokio::test]
async fn concurrent_calls_of_one_service_beyond_the_limit_are_refused() {
    let account = Account::new().await;
    let (site, proxy) = bounded("calls_per_service = 1").await;
    let child = site.serving(&account.admin).await;
    let (token, other) = (site.payments_api().await, site.service("billing").await);
    proxy.inject("CreateUser", Fault::Hold);
    let issue = site.run_as(&token, &["issue", "user"]);
    let refused = async {
        let begun = async || (proxy.calls("CreateUser").len() == 1).then_some(());
        eventually("it waits for AWS", begun).await;
        let refused = site.run_as(&token, &["whoami"]).await;
        let words = "too many concurrent calls of service payments-api";
        refused.fails(7, &[words, "bounds.calls_per_service"]);
        site.run_as(&other, &["whoami"]).await.ok();
        proxy.heal();
    };
    let (issued, ()) = tokio::join!(issue, refused);
    issued.ok();
    site.run_as(&token, &["whoami"]).await.ok();
    stop(child).await;
}

#[tokio::test]
async fn a_service_beyond_its_rate_limit_is_refused_then_disconnected() {
    let account = Account::new().await;
    let site = Site::new();
    site.set("# calls_per_second = 200", "calls_per_second = 5");
    let child = site.serving(&account.admin).await;
    let (token, other) = (site.service("loops").await, site.service("calm").await);
    let client = site.client(&token).await;
    let who = async || client.identity().who_am_i(WhoAmIRequest {}).await;
    let (mut answered, mut refused) = (0, 0);
    let lost = loop {
        match who().await {
            Ok(_) => answered += 1,
            Err(status) if status.code() == Code::ResourceExhausted => {
                assert!(status.message().contains("more than 5 times a second"));
                refused += 1;
            }
            Err(status) => break status,
        }
    };
    assert!(answered >= 10 && refused >= 10, "{answered} {refused}");
    assert_ne!(lost.code(), Code::Unauthenticated, "{lost:?}");
    site.run_as(&other, &["whoami"]).await.ok();
    let refusals = site.records(&["--event", "request.denied"]).await;
    assert_eq!(refusals.len(), 10, "{refusals:#?}");
    assert_eq!(refusals[0]["reason"], "TOO_MANY_REQUESTS");
    stop(child).await;
}

#[tokio::test]
async fn an_address_with_failed_logins_is_disconnected_and_no_other_address() {
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let attacker = site.attacker(2, UNKNOWN, Attack::WhoAmI);
    let stream = attacker.connected().await.unwrap();
    let ended = timeout(LIMIT, attacker.over(stream)).await;
    ended.expect("the connection is ended").unwrap_err();
    let offending = "credbroker_connections_offending_total";
    assert_eq!(site.metric(offending).await, Some(1.0));
    site.run(&["whoami"]).await.ok();

    // Ten are recorded at once, the others by number.
    stop(child).await;
    let child = site.serving(&account.admin).await;
    let failed = site.records(&["--event", "login.failed"]).await;
    assert_eq!(failed.len(), 11, "{failed:#?}");
    let counted = failed[10]["detail"].as_str().unwrap();
    assert!(counted.contains(" more like this since "), "{counted}");
    assert!(
        failed[10]["peer"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.2:"),
        "{failed:#?}"
    );
    stop(child).await;
}

#[tokio::test]
async fn calls_of_a_suspended_service_do_not_count_against_its_address() {
    let account = Account::new().await;
    let (site, _proxy) = bounded("connections_per_address = 4").await;
    let child = site.serving(&account.admin).await;
    let token = site.service("noisy").await;
    site.run(&["service", "suspend", "noisy"]).await.ok();
    // The attack comes from the address of all other callers, until its connection is ended four
    // times.
    let attacker = site.attacker(1, &token, Attack::WhoAmI);
    for _ in 0..4 {
        let stream = attacker.connected().await.unwrap();
        let ended = timeout(LIMIT, attacker.over(stream)).await;
        ended.expect("the connection is ended").unwrap_err();
    }
    site.run(&["whoami"]).await.ok();
    stop(child).await;
}

#[tokio::test]
async fn silent_handshakes_do_not_block_other_callers() {
    let account = Account::new().await;
    let (site, _proxy) = bounded("handshakes = 2\nhandshake_timeout = \"10m\"").await;
    let child = site.serving(&account.admin).await;
    let mut silent = Vec::new();
    for number in 2..6 {
        let attacker = site.attacker(number, UNKNOWN, Attack::WhoAmI);
        silent.push(attacker.tcp().await.unwrap());
    }
    site.run(&["whoami"]).await.ok();
    drop(silent);
    stop(child).await;
}

#[tokio::test]
async fn http_1_headers_have_the_same_bound_as_http_2_headers() {
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let ask = async |bytes: usize| {
        let large = "x".repeat(bytes);
        let request = format!(
            "GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {large}\r\nconnection: close\r\n\r\n"
        );
        tls_ask(&site.address, &site.path("tls.pem"), &request).await
    };
    assert!(ask(6 * 1024).await.ends_with("ok\n"));
    let refused = ask(16 * 1024).await;
    assert!(!refused.ends_with("ok\n"), "{refused}");
    stop(child).await;
}

#[tokio::test]
async fn health_streams_of_one_address_beyond_the_limit_are_refused() {
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let connected = async || HealthClient::new(channel(&site.env()).await);
    let mut clients = [connected().await, connected().await];
    let ask = HealthCheckRequest::default;
    let mut held = Vec::new();
    for client in &mut clients {
        for _ in 0..32 {
            held.push(client.watch(ask()).await.unwrap());
        }
    }
    let mut one_more = clients[0].watch(ask()).await.unwrap().into_inner();
    one_more.message().await.unwrap_err();
    clients[0].check(ask()).await.unwrap_err();
    held.clear();
    let is_told = async || clients[0].clone().check(ask()).await.ok();
    eventually("there is room again", is_told).await;
    stop(child).await;
}
