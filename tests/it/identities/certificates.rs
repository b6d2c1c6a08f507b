//! Client certificates that are valid, and the end of their validity.

use std::fs;

use serde_json::json;
use time::Duration;

use super::{Ca, DNS_NAME, Known, SPIFFE_ID, dns, uri, workload};
use crate::harness::eventually;

#[tokio::test]
async fn a_service_authenticates_by_the_name_in_its_certificate() {
    let known = Known::new().await;
    let svid = known.prod.issue(&workload([uri(SPIFFE_ID)]));
    let plain = known.names.issue(&workload([dns(DNS_NAME)]));
    for (holder, field, name) in [
        (&svid, "spiffe_id", SPIFFE_ID),
        (&plain, "dns_name", DNS_NAME),
    ] {
        let who = known
            .run_by(holder, &["whoami", "-o", "json"])
            .await
            .ok()
            .json();
        assert_eq!(who["actor"], "service:payments-api", "{who:#}");
        assert_eq!(who["binding"][field], name, "{who:#}");
        let evidence = who["evidence"].as_str().unwrap();
        assert!(
            evidence.starts_with("certificate sha256:") && evidence.ends_with(name),
            "{evidence}"
        );
        assert_eq!(who["token_id"], json!(null));
        assert!(who["expires_at"].is_string());
        let issued = known.run_by(holder, &["issue", "user", "-o", "json"]).await;
        let lease = issued.ok().json()["lease_id"].clone();
        let records = known.log("lease.issued").await;
        let record = records
            .iter()
            .find(|record| record["lease_id"] == lease)
            .unwrap();
        assert_eq!(record["actor"], "service:payments-api");
        assert_eq!(record["evidence"], evidence);
        assert_eq!(record["token_id"], json!(null));
    }
    // A certificate that has DNS names beside its one URI is an SVID all the same.
    let both = known
        .prod
        .issue(&workload([uri(SPIFFE_ID), dns("other.example")]));
    known.run_by(&both, &["whoami"]).await.ok();
}

#[tokio::test]
async fn whoami_returns_role_for_operators_and_token_id_for_services() {
    let known = Known::new().await;
    let operator = known.site.run(&["whoami", "-o", "json"]).await.ok().json();
    assert_eq!(operator["actor"], "operator:admin");
    assert_eq!(operator["role"], "admin");
    let create = [
        "service",
        "token",
        "create",
        "payments-api",
        "--ttl",
        "1h",
        "-o",
        "json",
    ];
    let token = known.site.run(&create).await.ok().json();
    let text = token["token"].as_str().unwrap();
    let who = known
        .site
        .run_as(text, &["whoami", "-o", "json"])
        .await
        .ok()
        .json();
    assert_eq!(who["actor"], "service:payments-api");
    assert_eq!(who["token_id"], token["token_id"]);
    assert_eq!(who["expires_at"], token["expires_at"]);
    assert_eq!(
        (&who["binding"], &who["evidence"]),
        (&json!(null), &json!(null))
    );
}

#[tokio::test]
async fn a_certificate_name_bound_to_one_service_is_refused_to_others() {
    let known = Known::new().await;
    let site = &known.site;
    site.create("billing").await;
    let bind = ["service", "bind", "billing", "--spiffe-id", SPIFFE_ID];
    let taken = site.run(&bind).await;
    taken.fails(
        6,
        &[
            "service payments-api is known by SPIFFE ID",
            "IDENTITY_TAKEN",
            "binding delete payments-api",
        ],
    );
    for (wrong, words) in [
        (
            ["--spiffe-id", "spiffe://prod.example/"],
            "spiffe://TRUST-DOMAIN/PATH",
        ),
        (["--dns-name", "*.shop.example"], "no wildcard"),
    ] {
        let bind = [&["service", "bind", "billing"], &wrong[..]].concat();
        site.run(&bind).await.fails(2, &[words]);
    }
    site.run(&["service", "bind", "nobody", "--dns-name", "a.b"])
        .await
        .fails(5, &["service nobody"]);
    let list = ["service", "binding", "list", "payments-api", "-o", "json"];
    let bindings = site.run(&list).await.ok().json();
    let bindings = bindings.as_array().unwrap().clone();
    assert_eq!(bindings.len(), 2);

    let svid = known.prod.issue(&workload([uri(SPIFFE_ID)]));
    let id = bindings
        .iter()
        .find(|b| b["spiffe_id"] == SPIFFE_ID)
        .unwrap()["binding_id"]
        .as_str()
        .unwrap();
    let delete = ["service", "binding", "delete", "payments-api", id];
    site.run(&delete).await.ok();
    site.run(&delete).await.fails(5, &["binding"]);
    known
        .run_by(&svid, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
    site.run(&bind).await.ok();
    let who = known
        .run_by(&svid, &["whoami", "-o", "json"])
        .await
        .ok()
        .json();
    assert_eq!(who["actor"], "service:billing");
    // The names are removed with the service.
    site.run(&["service", "delete", "billing"]).await.ok();
    known
        .run_by(&svid, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
}

#[tokio::test]
async fn a_service_has_twenty_bindings_at_most() {
    let known = Known::new().await;
    let site = &known.site;
    let bind = async |number: u32| {
        let name = format!("n{number}.example");
        site.run(&["service", "bind", "payments-api", "--dns-name", &name])
            .await
    };
    for number in 2..20 {
        bind(number).await.ok();
    }
    bind(20)
        .await
        .fails(6, &["TOO_MANY_BINDINGS", "binding list payments-api"]);
}

#[tokio::test]
async fn a_suspended_service_is_refused_by_its_certificate_too() {
    let known = Known::new().await;
    let svid = known.prod.issue(&workload([uri(SPIFFE_ID)]));
    known.run_by(&svid, &["whoami"]).await.ok();
    known
        .site
        .run(&["service", "suspend", "payments-api"])
        .await
        .ok();
    known
        .run_by(&svid, &["whoami"])
        .await
        .fails(4, &["suspended"]);
    let record = known.log("login.failed").await.pop().unwrap();
    assert_eq!(record["reason"], "SERVICE_SUSPENDED");
    assert!(record["evidence"].as_str().unwrap().ends_with(SPIFFE_ID));
    known
        .site
        .run(&["service", "reinstate", "payments-api"])
        .await
        .ok();
    known.run_by(&svid, &["whoami"]).await.ok();
}

#[tokio::test]
async fn changed_authorities_and_revocation_lists_are_read_without_a_restart() {
    let known = Known::new().await;
    let svid = known.prod.issue(&workload([uri(SPIFFE_ID)]));
    known.run_by(&svid, &["whoami"]).await.ok();
    let becomes = async |code: i32, reason: &str| {
        let is_so = async || {
            let code_is = known.run_by(&svid, &["whoami"]).await.code == code;
            let told = code == 0
                || known
                    .log("login.failed")
                    .await
                    .pop()
                    .is_some_and(|record| record["reason"] == reason);
            (code_is && told).then_some(())
        };
        eventually(reason, is_so).await;
    };
    let crl = known.site.path("prod.crl");
    let list = |serials: &[u64]| known.prod.revoked(serials, Duration::days(1));
    fs::write(&crl, list(&[7])).unwrap();
    becomes(3, "CERTIFICATE_REVOKED").await;
    // A file that cannot be used changes nothing.
    fs::write(
        &crl,
        "-----BEGIN X509 CRL-----\nrubbish\n-----END X509 CRL-----\n",
    )
    .unwrap();
    let told = async || {
        let log = fs::read_to_string(known.site.path("log")).unwrap();
        log.contains("stay as they were").then_some(())
    };
    eventually("the mistake is told", told).await;
    known
        .run_by(&svid, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
    fs::write(&crl, list(&[8])).unwrap();
    becomes(0, "let in again").await;
    // An outdated list does not show later revocations.
    fs::write(&crl, known.prod.revoked(&[], -Duration::hours(1))).unwrap();
    becomes(3, "REVOCATION_LIST_EXPIRED").await;
    fs::write(&crl, Ca::new("other").revoked(&[], Duration::days(1))).unwrap();
    becomes(3, "REVOCATION_LIST_MISSING").await;
    fs::write(&crl, list(&[])).unwrap();
    becomes(0, "let in again").await;
    fs::write(known.site.path("prod.pem"), Ca::new("next").pem).unwrap();
    becomes(3, "CERTIFICATE_ISSUER_UNKNOWN").await;
}
