//! Certificates that prove nothing: each is refused with the same words, and the log has the
//! reason.

use credbroker::proto::{WhoAmIRequest, identity_service_client::IdentityServiceClient};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use tonic::{
    Code, Request,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use super::{Ca, DNS_NAME, Known, SPIFFE_ID, called, dns, uri, workload};

fn changed(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = workload([uri(SPIFFE_ID)]);
    change(&mut params);
    params
}

/// Invalid certificates that the authority has signed, each with the reason of its refusal.
fn signed_by_prod() -> Vec<(CertificateParams, &'static str)> {
    let now = OffsetDateTime::now_utc();
    vec![
        (
            workload([uri(SPIFFE_ID), uri("spiffe://prod.example/other")]),
            "CERTIFICATE_SEVERAL_URIS",
        ),
        (
            workload([uri(SPIFFE_ID), uri(SPIFFE_ID)]),
            "CERTIFICATE_SEVERAL_URIS",
        ),
        (
            workload([uri(SPIFFE_ID), uri("https://prod.example")]),
            "CERTIFICATE_SEVERAL_URIS",
        ),
        (
            workload([uri("https://prod.example/pay")]),
            "SPIFFE_ID_INVALID",
        ),
        (
            workload([uri("spiffe://prod.example")]),
            "SPIFFE_ID_INVALID",
        ),
        (
            workload([uri("spiffe://PROD.example/ns/shop/sa/pay")]),
            "SPIFFE_ID_INVALID",
        ),
        (
            workload([uri("spiffe://prod.example/ns/shop/sa/../sa/pay")]),
            "SPIFFE_ID_INVALID",
        ),
        (
            workload([uri("spiffe://prod.example/ns/shop/sa/p%61y")]),
            "SPIFFE_ID_INVALID",
        ),
        (
            workload([uri("spiffe://other.example/ns/shop/sa/pay")]),
            "AUTHORITY_UNKNOWN",
        ),
        (
            workload([uri("spiffe://prod.example/ns/shop/sa/pay2")]),
            "IDENTITY_UNBOUND",
        ),
        // The authority vouches for SPIFFE IDs alone.
        (workload([dns(DNS_NAME)]), "CERTIFICATE_ISSUER_UNKNOWN"),
        (workload([]), "CERTIFICATE_WITHOUT_NAME"),
        (
            workload([dns("a.example"), dns("b.example")]),
            "CERTIFICATE_SEVERAL_DNS_NAMES",
        ),
        (workload([dns("*.shop.example")]), "DNS_NAME_INVALID"),
        (workload([dns("PAY.shop.example")]), "DNS_NAME_INVALID"),
        (
            changed(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "CERTIFICATE_IS_CA",
        ),
        (
            changed(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            "CERTIFICATE_SIGNS",
        ),
        (
            changed(|params| params.key_usages.push(KeyUsagePurpose::CrlSign)),
            "CERTIFICATE_SIGNS",
        ),
        (
            changed(|params| params.not_after = now - Duration::hours(1)),
            "CERTIFICATE_EXPIRED",
        ),
        (
            changed(|params| params.not_before = now + Duration::hours(1)),
            "CERTIFICATE_NOT_VALID_YET",
        ),
        (
            changed(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            "CERTIFICATE_NOT_FOR_CLIENTS",
        ),
    ]
}

#[tokio::test]
async fn a_forged_certificate_is_refused_with_the_same_words_and_a_precise_record() {
    let known = Known::new().await;
    let mut shown: Vec<_> = signed_by_prod()
        .into_iter()
        .map(|(params, reason)| (known.prod.issue(&params), reason))
        .collect();
    let good = workload([uri(SPIFFE_ID)]);
    // Signed by another authority of the same name, an unknown one, and the authority for DNS
    // names.
    shown.push((Ca::new("prod").issue(&good), "CERTIFICATE_SIGNATURE_WRONG"));
    shown.push((Ca::new("nobody").issue(&good), "CERTIFICATE_ISSUER_UNKNOWN"));
    shown.push((known.names.issue(&good), "CERTIFICATE_ISSUER_UNKNOWN"));
    let own = KeyPair::generate().unwrap();
    let by_itself = good.self_signed(&own).unwrap().pem();
    shown.push((
        (by_itself, own.serialize_pem()),
        "CERTIFICATE_ISSUER_UNKNOWN",
    ));
    shown.push((by_a_workload(&known), "CERTIFICATE_INVALID"));

    let mut told = Vec::new();
    for (holder, reason) in &shown {
        let run = known.run_by(holder, &["issue", "user"]).await;
        assert_eq!(run.code, 3, "{reason}: {run:#?}");
        let record = known.log("login.failed").await.pop().unwrap();
        assert_eq!(record["reason"], *reason, "{record:#}");
        assert_eq!(record["actor"], "unknown");
        let evidence = record["evidence"].as_str().unwrap();
        assert!(evidence.starts_with("certificate sha256:"), "{record:#}");
        told.push(run.stderr);
    }
    assert_eq!(known.log("login.failed").await.len(), shown.len());
    assert!(told.iter().all(|words| *words == told[0]), "{told:#?}");
    known
        .run_by(&known.prod.issue(&good), &["issue", "user"])
        .await
        .ok();
}

/// Certificate that a workload has signed for another with its own key.
fn by_a_workload(known: &Known) -> (String, String) {
    let (key, mut params) = (
        KeyPair::generate().unwrap(),
        workload([uri("spiffe://prod.example/w")]),
    );
    params.distinguished_name = called("a workload");
    let its_own = params.signed_by(&key, &known.prod.issuer).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let mut forged = workload([uri(SPIFFE_ID)]);
    forged.serial_number = Some(SerialNumber::from(8));
    let key = KeyPair::generate().unwrap();
    let forged = forged.signed_by(&key, &issuer).unwrap().pem();
    (format!("{forged}{its_own}"), key.serialize_pem())
}

#[tokio::test]
async fn a_certificate_without_its_key_gets_no_connection() {
    let known = Known::new().await;
    let (certificate, _) = known.prod.issue(&workload([uri(SPIFFE_ID)]));
    let (_, other_key) = known.prod.issue(&workload([uri(SPIFFE_ID)]));
    let run = known.run_by(&(certificate, other_key), &["whoami"]).await;
    assert_ne!(run.code, 0, "{run:#?}");
    assert!(known.log("identity.read").await.is_empty());
}

#[tokio::test]
async fn a_wrong_token_is_refused_despite_a_good_certificate() {
    let known = Known::new().await;
    let (certificate, key) = known.prod.issue(&workload([uri(SPIFFE_ID)]));
    let ca = std::fs::read(known.site.path("tls.pem")).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    let tls = tls.identity(Identity::from_pem(certificate, key));
    let endpoint = Endpoint::from_shared(format!("https://{}", known.site.address)).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let mut client = IdentityServiceClient::new(channel);
    client.who_am_i(WhoAmIRequest {}).await.unwrap();
    for wrong in ["Bearer cbs_wrong", "Bearer ", "Basic eDp5", ""] {
        let mut request = Request::new(WhoAmIRequest {});
        let header = wrong.parse().unwrap();
        request.metadata_mut().insert("authorization", header);
        let refused = client.who_am_i(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{wrong:?}");
    }
}
