//! Enrolment: a host exchanges a one-time token for a certificate of a key that it makes itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use credbroker::proto::{EnrollRequest, RenewCertificateRequest};
use tonic::Code;

use super::Ca;
use crate::harness::{
    Account, Broker, Run,
    broker::credbroker,
    eventually,
    site::{Site, stop},
};

/// A host with a directory for its key and certificate.
struct Host<'a> {
    broker: &'a Broker,
    directory: TempDir,
}

impl<'a> Host<'a> {
    fn of(broker: &'a Broker) -> Self {
        Self {
            broker,
            directory: TempDir::new().unwrap(),
        }
    }

    fn cert(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// Runs a command with the host's files, and with this token if there is one.
    async fn run(&self, token: Option<&str>, args: &[&str]) -> Run {
        let mut command = credbroker(args);
        command.envs(self.broker.env.iter().cloned());
        command.env_remove("CREDBROKER_TOKEN");
        command.envs(token.map(|token| ("CREDBROKER_TOKEN", token)));
        command.env("CREDBROKER_CLIENT_CERT_FILE", self.cert());
        command.env("CREDBROKER_CLIENT_KEY_FILE", self.key());
        Run::of(command, "").await
    }
}

async fn broker() -> Broker {
    let broker = Broker::start(&Account::new().await).await;
    broker.run(&["service", "create", "pay"]).await.ok();
    broker
}

async fn token(broker: &Broker) -> String {
    let made = broker
        .json(&["service", "enroll-token", "create", "pay"])
        .await;
    made["token"].as_str().unwrap().to_owned()
}

async fn bindings(broker: &Broker) -> Vec<Value> {
    let list = broker.json(&["service", "binding", "list", "pay"]).await;
    list.as_array().unwrap().clone()
}

#[tokio::test]
async fn a_host_enrols_once_and_authenticates_by_its_certificate() {
    let broker = broker().await;
    let host = Host::of(&broker);
    let token = token(&broker).await;
    assert!(token.starts_with("cbe_"));
    let enrolled = host
        .run(Some(&token), &["enroll", "-o", "json"])
        .await
        .ok()
        .json();
    assert_eq!(enrolled["renewed"], true);
    assert!(enrolled["expires_at"].is_string());
    let permissions = fs::metadata(host.key()).unwrap().permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
    let who = host.run(None, &["whoami", "-o", "json"]).await.ok().json();
    assert_eq!(who["actor"], "service:pay", "{who:#}");
    assert_eq!(who["expires_at"], enrolled["expires_at"]);
    assert!(
        who["evidence"]
            .as_str()
            .unwrap()
            .ends_with(" spiffe://dev.credbroker/service/pay")
    );
    let bound = bindings(&broker).await;
    assert_eq!(bound.len(), 1);
    assert_eq!(bound[0], who["binding"]);
    assert_eq!(bound[0]["enrolled_key_sha256"].as_str().unwrap().len(), 64);
    // The token is used up.
    let other = Host::of(&broker);
    other
        .run(Some(&token), &["enroll"])
        .await
        .fails(3, &["not accepted"]);
    assert!(!other.cert().exists());
    let log = broker.audit().await;
    let made = log
        .iter()
        .find(|r| r["event"] == "enrollment.made")
        .unwrap();
    assert_eq!(
        (&made["actor"], &made["token_id"]),
        (&json!("service:pay"), &json!(&token[4..20]))
    );
    assert!(
        log.iter()
            .all(|record| !record.to_string().contains(&token))
    );
}

#[tokio::test]
async fn concurrent_enrolments_with_one_token_succeed_once() {
    let broker = broker().await;
    let token = token(&broker).await;
    let mut racing = JoinSet::new();
    for _ in 0..16 {
        let client = broker.client(&token).await;
        racing.spawn(async move {
            let key = KeyPair::generate().unwrap();
            let request = CertificateParams::default()
                .serialize_request(&key)
                .unwrap();
            let request = EnrollRequest {
                certificate_request: request.der().to_vec(),
            };
            client.identity().enroll(request).await.map(drop)
        });
    }
    let mut enrolled = 0;
    while let Some(answer) = racing.join_next().await {
        match answer.unwrap() {
            Ok(()) => enrolled += 1,
            Err(refused) => {
                let codes = [Code::Unauthenticated, Code::FailedPrecondition];
                assert!(codes.contains(&refused.code()), "{refused:?}");
            }
        }
    }
    assert_eq!(enrolled, 1);
    assert_eq!(bindings(&broker).await.len(), 1);
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_key_once_half_its_life_is_over() {
    let broker = broker().await;
    let host = Host::of(&broker);
    host.run(Some(&token(&broker).await), &["enroll"])
        .await
        .ok();
    let (first, key) = (
        fs::read(host.cert()).unwrap(),
        fs::read(host.key()).unwrap(),
    );
    let renew = ["enroll", "--renew", "-o", "json"];
    let young = host.run(None, &renew).await.ok().json();
    assert_eq!(young["renewed"], false);
    assert_eq!(fs::read(host.cert()).unwrap(), first);

    // The certificate is about to expire, and has the same authority and key.
    age(&broker, &host.cert(), &host.key());
    host.run(None, &["whoami"]).await.ok();
    let renewed = host.run(None, &renew).await.ok().json();
    assert_eq!(renewed["renewed"], true);
    assert_ne!(fs::read(host.cert()).unwrap(), first);
    assert_eq!(fs::read(host.key()).unwrap(), key);
    let who = host.run(None, &["whoami", "-o", "json"]).await.ok().json();
    assert_eq!(who["expires_at"], renewed["expires_at"]);
    let bound = bindings(&broker).await;
    assert_eq!(bound.len(), 1);
    assert_eq!(bound[0]["expires_at"], renewed["expires_at"]);
    let log = broker.audit().await;
    assert!(
        log.iter()
            .any(|record| record["event"] == "certificate.renewed")
    );
}

/// Replaces the host's certificate with one that began a day ago.
pub(crate) fn age(broker: &Broker, cert: &Path, key: &Path) {
    let pem = |name: &str| fs::read_to_string(broker.state.join(name)).unwrap();
    let ca_key = KeyPair::from_pem(&pem("ca-key.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&pem("ca.pem"), ca_key).unwrap();
    let mut old = super::workload([super::uri("spiffe://dev.credbroker/service/pay")]);
    old.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    let key = KeyPair::from_pem(&fs::read_to_string(key).unwrap()).unwrap();
    fs::write(cert, old.signed_by(&key, &issuer).unwrap().pem()).unwrap();
}

#[tokio::test]
async fn renewal_for_another_key_or_without_enrolment_is_refused() {
    let broker = broker().await;
    let host = Host::of(&broker);
    host.run(Some(&token(&broker).await), &["enroll"])
        .await
        .ok();
    age(&broker, &host.cert(), &host.key());
    // The certificate is of one key, the request of another.
    let other = KeyPair::generate().unwrap();
    let request = CertificateParams::default()
        .serialize_request(&other)
        .unwrap();
    let request = RenewCertificateRequest {
        certificate_request: request.der().to_vec(),
    };
    let by_certificate = host.client().await;
    let refused = by_certificate
        .identity()
        .renew_certificate(request.clone())
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    let by_token = broker.client(&service_token(&broker).await).await;
    let refused = by_token.identity().renew_certificate(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    let rubbish = RenewCertificateRequest {
        certificate_request: b"rubbish".to_vec(),
    };
    let refused = by_certificate.identity().renew_certificate(rubbish).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

async fn service_token(broker: &Broker) -> String {
    let made = broker.json(&["service", "token", "create", "pay"]).await;
    made["token"].as_str().unwrap().to_owned()
}

impl Host<'_> {
    async fn client(&self) -> credbroker::client::Client {
        let settings = credbroker::client::Settings {
            address: self.broker.setting("CREDBROKER_ADDR").to_owned(),
            ca_file: self.broker.setting("CREDBROKER_CA_FILE").into(),
            evidence: credbroker::client::Evidence::Certificate {
                cert_file: self.cert(),
                key_file: self.key(),
            },
        };
        credbroker::client::Client::connect(&settings)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn an_enrolled_host_of_a_revoked_service_stays_refused() {
    let broker = broker().await;
    let (host, late) = (Host::of(&broker), Host::of(&broker));
    host.run(Some(&token(&broker).await), &["enroll"])
        .await
        .ok();
    let unused = token(&broker).await;
    broker.run(&["service", "suspend", "pay"]).await.ok();
    host.run(None, &["whoami"]).await.fails(4, &["suspended"]);
    late.run(Some(&unused), &["enroll"])
        .await
        .fails(4, &["suspended"]);
    broker.run(&["service", "reinstate", "pay"]).await.ok();
    host.run(None, &["whoami"]).await.ok();

    broker.run(&["revoke", "pay"]).await.ok();
    broker.run(&["service", "reinstate", "pay"]).await.ok();
    assert_eq!(bindings(&broker).await, Vec::<Value>::new());
    host.run(None, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
    host.run(None, &["enroll", "--renew"]).await.ok();
    late.run(Some(&unused), &["enroll"])
        .await
        .fails(3, &["not accepted"]);
    late.run(Some(&token(&broker).await), &["enroll"])
        .await
        .ok();
    late.run(None, &["whoami"]).await.ok();
}

#[tokio::test]
async fn an_enrolment_token_lives_ten_minutes_and_permits_enrolment_alone() {
    let broker = broker().await;
    let host = Host::of(&broker);
    let long = ["service", "enroll-token", "create", "pay", "--ttl", "11m"];
    broker.run(&long).await.fails(2, &["ten minutes at most"]);
    let nobody = ["service", "enroll-token", "create", "nobody"];
    broker.run(&nobody).await.fails(5, &["service nobody"]);
    let token = token(&broker).await;
    for args in [&["whoami"][..], &["issue", "work"], &["status"]] {
        host.run(Some(&token), args)
            .await
            .fails(4, &["`credbroker enroll` alone"]);
    }
    let of_service = service_token(&broker).await;
    host.run(Some(&of_service), &["enroll"])
        .await
        .fails(4, &["takes an enrolment token"]);
    // The enrolment token is not one of the service's tokens.
    let listed = broker.json(&["service", "token", "list", "pay"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
    broker
        .write_store("UPDATE tokens SET expires_at = 1 WHERE enrolls")
        .await;
    host.run(Some(&token), &["enroll"])
        .await
        .fails(3, &["not accepted"]);
    let record = broker
        .audit()
        .await
        .into_iter()
        .rfind(|r| r["event"] == "login.failed");
    assert_eq!(record.unwrap()["reason"], "TOKEN_EXPIRED");
}

#[tokio::test]
async fn an_enrolment_that_fails_can_be_repeated_with_the_key_that_is_there() {
    let broker = broker().await;
    let host = Host::of(&broker);
    host.run(Some("cbe_wrong"), &["enroll"])
        .await
        .fails(3, &["not accepted"]);
    host.run(None, &["enroll", "--renew"])
        .await
        .fails(2, &["cert.pem"]);
    fs::write(host.key(), "rubbish").unwrap();
    let good = token(&broker).await;
    host.run(Some(&good), &["enroll"])
        .await
        .fails(2, &["key.pem"]);
    fs::remove_file(host.key()).unwrap();
    host.run(Some(&good), &["enroll"]).await.ok();
    let key = fs::read(host.key()).unwrap();
    host.run(Some(&token(&broker).await), &["enroll"])
        .await
        .ok();
    assert_eq!(fs::read(host.key()).unwrap(), key);
    assert_eq!(bindings(&broker).await.len(), 1);
}

#[tokio::test]
async fn another_ca_signs_once_its_files_are_there_and_the_old_ones_certificates_end() {
    let account = Account::new().await;
    let site = Site::with_audit(|site| {
        format!(
            "[enrollment]\ntrust_domain = \"broker.example\"\nca_cert_file = {:?}\nca_key_file = {:?}",
            site.text("ca.pem"),
            site.text("ca.key")
        )
    });
    let install = |ca: &Ca| {
        fs::write(site.path("ca.key"), &ca.key).unwrap();
        fs::write(site.path("ca.pem"), &ca.pem).unwrap();
    };
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    install(&old);
    let child = site.serving(&account.admin).await;
    site.create("pay").await;
    let run = async |host: &str, token: Option<&str>, args: &[&str]| {
        let mut command = credbroker(args);
        command.envs(site.env()).env_remove("CREDBROKER_TOKEN_FILE");
        command.envs(token.map(|token| ("CREDBROKER_TOKEN", token)));
        command.env(
            "CREDBROKER_CLIENT_CERT_FILE",
            site.path(&format!("{host}.pem")),
        );
        command.env(
            "CREDBROKER_CLIENT_KEY_FILE",
            site.path(&format!("{host}.key")),
        );
        Run::of(command, "").await
    };
    let signed_by = async |host: &str| {
        let args = ["service", "enroll-token", "create", "pay", "-o", "json"];
        let made = site.run(&args).await.ok().json();
        run(host, made["token"].as_str(), &["enroll"]).await.ok();
        fs::read_to_string(site.path(&format!("{host}.pem"))).unwrap()
    };
    assert!(signed_by("first").await.contains(&old.pem));
    run("first", None, &["whoami"]).await.ok();
    install(&new);
    let taken = async || signed_by("second").await.contains(&new.pem).then_some(());
    eventually("the new one signs", taken).await;
    run("second", None, &["whoami"]).await.ok();
    run("first", None, &["whoami"]).await.fails(3, &[]);
    // A file that cannot be used changes nothing.
    fs::write(site.path("ca.key"), "rubbish").unwrap();
    let told = async || {
        let log = fs::read_to_string(site.path("log")).unwrap();
        log.contains("stay as they were").then_some(())
    };
    eventually("the mistake is told", told).await;
    assert!(signed_by("third").await.contains(&new.pem));
    stop(child).await;
}
