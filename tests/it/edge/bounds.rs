//! Bounds on well-behaved callers: more than the bound is refused with an error, and other callers
//! are served.

use std::process::Stdio;

use credbroker::proto::{RevokeServiceRequest, credential_service_server};
use tokio::{
    io::{AsyncWriteExt, split},
    time::timeout,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    harness::{
        Account, Broker, Run, World,
        broker::credbroker,
        emulator::emulator,
        eventually, eventually_within,
        floods::{FLOODS, sent},
        h2::{
            END_HEADERS, END_STREAM, HEADERS, LIMIT, ask_without_a_window, begun, call, frame,
            gone, h2, half_a_call, next,
        },
        proxy::{Fault, Proxy},
        site::{Site, stop},
        wire::tls_get,
    },
    lifecycle::channel,
};

/// Creates a site with these bounds, whose broker reaches AWS by way of a proxy.
pub(super) async fn bounded(bounds: &str) -> (Site, Proxy) {
    let (site, proxy) = (Site::new(), Proxy::start().await);
    let config = site
        .config()
        .replace("[bounds]\n", &format!("[bounds]\n{bounds}\n"))
        .replace(&emulator().endpoint, &proxy.endpoint);
    std::fs::write(site.path("config.toml"), config).unwrap();
    (site, proxy)
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_and_succeed_once_there_is_room() {
    let account = Account::new().await;
    let (site, proxy) = bounded("calls = 2").await;
    let child = site.serving(&account.admin).await;
    let token = site.payments_api().await;
    site.create("another").await;
    proxy.inject("CreateUser", Fault::Hold);
    let issue = async || site.run_as(&token, &["issue", "user"]).await;
    let refused = async {
        let both = async || (proxy.calls("CreateUser").len() == 2).then_some(());
        eventually("two wait for AWS", both).await;
        let refused = site.run_as(&token, &["whoami"]).await;
        refused.fails(
            7,
            &["too many concurrent calls of services", "next: try again"],
        );
        // Operators have slots of their own.
        site.run(&["status"]).await.ok();
        site.run(&["revoke", "another"]).await.ok();
        proxy.heal();
    };
    let (one, two, ()) = tokio::join!(issue(), issue(), refused);
    one.ok();
    two.ok();
    site.run_as(&token, &["whoami"]).await.ok();
    assert_eq!(site.metric("credbroker_calls_shed_total").await, Some(1.0));
    stop(child).await;
}

#[tokio::test]
async fn the_slot_of_an_offender_stays_occupied_for_a_while() {
    let account = Account::new().await;
    let (site, _proxy) = bounded("connections_per_address = 4").await;
    let child = site.serving(&account.admin).await;
    let connected = async || begun(h2(&site.address, &site.path("tls.pem")).await).await;
    for (name, flood) in FLOODS.into_iter().skip(1).step_by(4).take(2) {
        let (mut reader, writer) = split(connected().await);
        tokio::join!(sent(writer, flood), gone(&mut reader, name));
    }
    // A peer that merely leaves is no offender.
    drop(connected().await);
    let offending = "credbroker_connections_offending_total";
    assert_eq!(site.metric(offending).await, Some(2.0));
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = connected().await;
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &call("/livez"));
        stream.write_all(&headers).await.unwrap();
        held.push(stream);
    }
    let more = site.run(&["whoami"]).await;
    more.fails(7, &["cannot reach the broker"]);
    let served = async || (site.run(&["whoami"]).await.code == 0).then_some(());
    eventually_within(15, "there is room again", served).await;
    drop(held);
    stop(child).await;
}

#[tokio::test]
async fn a_call_past_its_deadline_gets_an_error_and_continues() {
    let account = Account::new().await;
    let (site, proxy) = bounded("call_timeout = \"1s\"").await;
    let child = site.serving(&account.admin).await;
    let token = site.payments_api().await;
    proxy.inject("CreateUser", Fault::Hold);
    let request = "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10";
    let issue = ["issue", "user", "--request-id", request];
    let late = site.run_as(&token, &issue).await;
    late.fails(7, &["deadline exceeded", "CALL_TOO_LONG", request]);
    proxy.heal();
    let issued = async || (site.run_as(&token, &issue).await.code == 0).then_some(());
    eventually("it has gone on", issued).await;
    assert_eq!(account.issued_users().await.len(), 1);
    stop(child).await;
}

#[tokio::test]
async fn operators_are_served_at_an_address_of_their_own() {
    let account = Account::new().await;
    let site = Site::new();
    let other = Site::new();
    let config = site.config().replace(
        "# admin_address = \"127.0.0.1:8444\"",
        &format!("admin_address = {:?}", other.address),
    );
    std::fs::write(site.path("config.toml"), config).unwrap();
    let operator = async |args: &[&str]| {
        let mut command = credbroker(args);
        command.envs(site.env());
        command.env("CREDBROKER_ADDR", format!("https://{}", other.address));
        Run::of(command, "").await
    };
    let mut serve = site.serve(&account.admin);
    let child = serve.stderr(Stdio::null()).spawn().unwrap();
    let answers = async || (operator(&["status"]).await.code == 0).then_some(());
    eventually("it serves", answers).await;
    let refused = site.run(&["service", "create", "pay"]).await;
    refused.fails(4, &["at the address for operators"]);
    operator(&["service", "create", "pay"]).await.ok();
    let create = ["service", "token", "create", "pay", "-o", "json"];
    let token = operator(&create).await.ok().json();
    let token = token["token"].as_str().unwrap();
    site.run_as(token, &["whoami"]).await.ok();
    let get = async |address: &str, path| tls_get(address, &site.path("tls.pem"), path).await;
    assert!(get(&site.address, "/readyz").await.contains(" 200 "));
    assert!(get(&site.address, "/metrics").await.contains(" 404 "));
    assert!(get(&other.address, "/metrics").await.contains(" 200 "));
    let denied = operator(&["audit", "query", "--outcome", "denied"]).await;
    assert!(denied.ok().stdout.contains("request.denied"));
    stop(child).await;
}

#[tokio::test]
async fn a_stopping_broker_becomes_unready_and_still_serves() {
    let account = Account::new().await;
    let site = Site::new();
    let config = site.config().replace("shutdown_delay = \"0s\"", "");
    std::fs::write(site.path("config.toml"), config).unwrap();
    let child = site.serving(&account.admin).await;
    let ready = async || tls_get(&site.address, &site.path("tls.pem"), "/readyz").await;
    assert!(ready().await.contains(" 200 "));
    let ended = stop(child);
    let unready = async {
        let unready = async || ready().await.contains("the broker ends").then_some(());
        eventually("it is unready", unready).await;
        site.run(&["status"]).await.ok();
    };
    tokio::join!(ended, unready);
}

#[tokio::test]
async fn a_call_that_a_peer_keeps_open_is_cut_off_when_the_broker_ends() {
    let account = Account::new().await;
    let bounds = "drain_timeout = \"1s\"\nbody_timeout = \"1h\"\ncall_timeout = \"1h\"";
    let (site, _) = bounded(bounds).await;
    let child = site.serving(&account.admin).await;
    let mut stream = begun(h2(&site.address, &site.path("tls.pem")).await).await;
    let token = std::fs::read_to_string(site.path("admin-token")).unwrap();
    let half = half_a_call(1, "/credbroker.v1.IdentityService/WhoAmI", token.trim());
    let livez = frame(HEADERS, END_HEADERS | END_STREAM, 3, &call("/livez"));
    stream.write_all(&[half, livez].concat()).await.unwrap();
    // A later call has an answer, so this one has arrived.
    loop {
        let (kind, number, _) = next(&mut stream).await;
        if (kind, number) == (HEADERS, 3) {
            break;
        }
    }
    let ended = timeout(LIMIT, stop(child)).await;
    ended.expect("it ends, whatever a peer keeps open");
    let log = std::fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("some calls did not end in time"), "{log}");
    gone(&mut stream, "the call that was kept open").await;
}

#[tokio::test]
async fn a_peer_that_reads_no_answer_is_disconnected() {
    let broker = Broker::start(&Account::new().await).await;
    let mut stream = broker.h2().await;
    ask_without_a_window(&mut stream, "/metrics").await;
    tokio::join!(gone(&mut stream, "zero window"), broker.is_served());
}

#[tokio::test]
async fn a_message_over_the_bound_is_not_read() {
    let broker = Broker::start(&Account::new().await).await;
    let client = broker.client(broker.admin_token()).await;
    let revoke = RevokeServiceRequest {
        service: "x".repeat(64 * 1024),
        reason: String::new(),
    };
    let refused = client.revocation().revoke_service(revoke).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    assert!(refused.message().contains("65536"), "{refused:?}");
}

#[tokio::test]
async fn an_outage_of_aws_changes_issuing_health_and_not_readiness() {
    let world = World::new().await;
    let health = HealthClient::new(channel(&world.broker.env).await);
    let told = async |service: &str| {
        let service = service.to_owned();
        let told = health.clone().check(HealthCheckRequest { service }).await;
        told.unwrap().into_inner().status()
    };
    let issuing = credential_service_server::SERVICE_NAME;
    assert_eq!(told(issuing).await, ServingStatus::Serving);
    world.proxy.inject("AssumeRole", Fault::Cut);
    for _ in 0..5 {
        world.issue(&["role"]).await;
    }
    let paused = async || (told(issuing).await == ServingStatus::NotServing).then_some(());
    eventually("issuing pauses", paused).await;
    assert_eq!(told("").await, ServingStatus::Serving);
}
