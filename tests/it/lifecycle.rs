//! Start, stop and restart of `dev` and `serve`, their files and their listener.

mod serve;

use std::{os::unix::fs::PermissionsExt, path::Path};

use credbroker::proto::{GetStatusRequest, admin_service_client::AdminServiceClient};
use serde_json::json;
use tokio::net::TcpStream;
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{
    Account, Broker, Key, Run,
    broker::{credbroker, dev},
    emulator::emulator,
    stored::skipped_over_postgres,
    wire::{exchange, tls_get},
};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn setting<'a>(env: &'a [(String, String)], name: &str) -> &'a str {
    &env.iter().find(|(key, _)| key == name).unwrap().1
}

/// `127.0.0.1:PORT`.
fn address(env: &[(String, String)]) -> &str {
    let url = setting(env, "CREDBROKER_ADDR");
    url.strip_prefix("https://").unwrap()
}

/// Answer of the port to a GET over plain HTTP.
async fn plain_get(address: &str, path: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    exchange(stream, path).await
}

pub(crate) async fn channel(env: &[(String, String)]) -> Channel {
    let ca = std::fs::read(setting(env, "CREDBROKER_CA_FILE")).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    let url = setting(env, "CREDBROKER_ADDR").to_owned();
    let endpoint = Channel::from_shared(url).unwrap().tls_config(tls).unwrap();
    endpoint.connect().await.unwrap()
}

#[tokio::test]
async fn files_of_dev_are_readable_by_their_owner_alone() {
    if skipped_over_postgres() {
        return;
    }
    let account = Account::new().await;
    let in_a_new_directory = |state: &Path| {
        std::fs::remove_dir_all(state).unwrap();
        dev(state, &account.admin, &emulator().endpoint)
    };
    let broker = Broker::start_by(in_a_new_directory).await;
    broker.run(&["status"]).await.ok();
    assert_eq!(mode(&broker.state), 0o700);
    let mut secret = 0;
    for entry in std::fs::read_dir(&broker.state).unwrap() {
        let path = entry.unwrap().path();
        // The CA's certificate is public.
        if path.file_name().unwrap() != "ca.pem" {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            secret += 1;
        }
    }
    assert!(secret >= 4, "{secret} files");
    for name in ["env", "credbroker.db", "credbroker.db-wal", "ca-key.pem"] {
        assert!(broker.state.join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn a_second_start_resumes_the_first_with_the_same_address_ca_and_token() {
    let account = Account::new().await;
    let mut broker = Broker::start(&account).await;
    let token = broker.service("payments-api").await;
    let (env, ca) = (broker.env.clone(), broker.state.join("ca.pem"));
    let certificate = std::fs::read(&ca).unwrap();
    assert!(broker.stop().await, "SIGTERM ends it with status 0");
    // The graceful stop leaves everything in the one file.
    assert!(!broker.state.join("credbroker.db-wal").exists());

    let broker = broker
        .start_again(&account.admin, &emulator().endpoint)
        .await;
    assert_eq!(broker.env, env);
    assert_eq!(std::fs::read(&ca).unwrap(), certificate);
    let records = broker.audit().await;
    let events = records.iter().map(|record| record["event"].as_str());
    let life: Vec<_> = events
        .flatten()
        .filter(|event| event.starts_with("broker."))
        .collect();
    assert_eq!(life, ["broker.started", "broker.stopped", "broker.started"]);
    let run = broker.run_as(Some(&token), &["issue", "none"]).await;
    run.fails(5, &["there is no grant"]);
}

#[tokio::test]
async fn a_second_broker_on_the_same_directory_is_refused_and_the_first_goes_on() {
    if skipped_over_postgres() {
        return;
    }
    let account = Account::new().await;
    let mut broker = Broker::start(&account).await;
    let second = || dev(&broker.state, &account.admin, &emulator().endpoint);
    let run = Run::of(second(), "").await;
    assert_eq!(run.stdout, "");
    run.fails(6, &["another broker is using", "stop the other"]);
    broker
        .run(&["service", "create", "payments-api"])
        .await
        .ok();

    // Once the first has stopped, the second may start.
    assert!(broker.stop().await);
    let broker = broker
        .start_again(&account.admin, &emulator().endpoint)
        .await;
    broker.run(&["service", "show", "payments-api"]).await.ok();
}

#[tokio::test]
async fn a_broker_killed_at_work_starts_again_and_knows_its_leases() {
    let account = Account::new().await;
    let mut broker = Broker::start(&account).await;
    let token = broker.service("payments-api").await;
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"},
    ]});
    let flags = ["--kind", "iam_user"];
    broker.grant("payments-api/user", &flags, &policy).await;
    let issued = broker.issue(&token, "user").await;
    broker.kill().await;

    let broker = broker
        .start_again(&account.admin, &emulator().endpoint)
        .await;
    let lease = issued["lease_id"].as_str().unwrap();
    let shown = broker.json(&["lease", "show", lease]).await;
    assert_eq!(shown["state"], "active");
    assert_eq!(shown["access_key_id"], issued["access_key_id"]);
    let key = Key::issued(&issued);
    key.sts().get_caller_identity().send().await.unwrap();
    broker.run(&["revoke", "payments-api"]).await.ok();
    assert!(account.issued_users().await.is_empty());
    key.sts().get_caller_identity().send().await.unwrap_err();
}

#[tokio::test]
async fn nothing_is_served_without_tls() {
    let broker = Broker::start(&Account::new().await).await;
    let (address, ca) = (address(&broker.env), broker.state.join("ca.pem"));
    for path in ["/livez", "/readyz"] {
        let answer = plain_get(address, path).await;
        assert!(!answer.contains("HTTP/"), "{answer:?}");
        let answer = tls_get(address, &ca, path).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    }
    let answer = tls_get(address, &ca, "/credbroker.v1.AdminService/GetStatus").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer:?}");
}

#[tokio::test]
async fn a_broker_whose_ca_is_not_the_clients_is_not_trusted() {
    let account = Account::new().await;
    let (broker, other) = (Broker::start(&account).await, Broker::start(&account).await);
    let foreign = setting(&other.env, "CREDBROKER_CA_FILE").to_owned();
    let run = broker.run(&["status", "--ca-file", &foreign]).await;
    let words = [
        "cannot reach the broker",
        "invalid peer certificate",
        "next: ",
        "CREDBROKER_CA_FILE",
    ];
    run.fails(7, &words);
    broker.run(&["status"]).await.ok();

    let mut nobody = credbroker(&["status"]);
    nobody.envs(broker.env.iter().cloned());
    nobody.env("CREDBROKER_ADDR", "https://127.0.0.1:1");
    let run = Run::of(nobody, "").await;
    run.fails(
        7,
        &["cannot reach the broker at https://127.0.0.1:1", "next: "],
    );
}

#[tokio::test]
async fn health_is_the_only_answer_without_a_token() {
    let broker = Broker::start(&Account::new().await).await;
    let channel = channel(&broker.env).await;
    let mut health = HealthClient::new(channel.clone());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);

    let mut admin = AdminServiceClient::new(channel);
    let refused = admin.get_status(GetStatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let records = broker.audit().await;
    let record = records
        .iter()
        .rfind(|record| record["event"] == "login.failed");
    assert_eq!(record.unwrap()["reason"], "TOKEN_ABSENT");
}
