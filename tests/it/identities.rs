//! Identities of services, besides their tokens.

mod certificates;
pub(crate) mod enrollment;
mod forgeries;
mod streams;
mod tokens;

use std::fs;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use tokio::process::Child;

use crate::harness::{Account, Run, broker::credbroker, site::Site};

/// An authority for client certificates.
pub(crate) struct Ca {
    pem: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        let key_pem = key.serialize_pem();
        let issuer = Issuer::new(params, key);
        Self {
            pem,
            key: key_pem,
            issuer,
        }
    }

    /// Issues a certificate with these parameters. Returns it in PEM, and its key.
    fn issue(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Revocation list of these serials, valid from now for this long.
    fn revoked(&self, serials: &[u64], lasts: Duration) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - Duration::days(2),
            next_update: now + lasts,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// Parameters of a workload's certificate with these names, valid for a day.
fn workload(names: impl IntoIterator<Item = SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = called("workload");
    params.subject_alt_names = names.into_iter().collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(1);
    params.serial_number = Some(SerialNumber::from(7));
    params
}

/// A broker that trusts the authority `prod`, with its revocation list, for
/// `spiffe://prod.example`, and `names` for DNS names; `payments-api` has a binding to a name of
/// either.
struct Known {
    site: Site,
    prod: Ca,
    names: Ca,
    _child: Child,
    _account: Account,
}

const SPIFFE_ID: &str = "spiffe://prod.example/ns/shop/sa/pay";
const DNS_NAME: &str = "pay.shop.example";

impl Known {
    async fn new() -> Self {
        let account = Account::new().await;
        let (prod, names) = (Ca::new("prod"), Ca::new("names"));
        let site = Site::sealed(|site| {
            let authority = |ca: &str, more: &str| {
                format!(
                    "[[client_certificates.authorities]]\nca_file = {:?}\n{more}\n",
                    site.text(ca)
                )
            };
            let domain = format!(
                "trust_domain = \"prod.example\"\ncrl_file = {:?}",
                site.text("prod.crl")
            );
            authority("prod.pem", &domain) + &authority("names.pem", "")
        });
        fs::write(site.path("prod.pem"), &prod.pem).unwrap();
        fs::write(site.path("names.pem"), &names.pem).unwrap();
        fs::write(site.path("prod.crl"), prod.revoked(&[], Duration::days(1))).unwrap();
        let child = site.serving(&account.admin).await;
        site.payments_api().await;
        for (flag, name) in [("--spiffe-id", SPIFFE_ID), ("--dns-name", DNS_NAME)] {
            site.run(&["service", "bind", "payments-api", flag, name])
                .await
                .ok();
        }
        Self {
            site,
            prod,
            names,
            _child: child,
            _account: account,
        }
    }

    /// Runs a command with this certificate and key.
    async fn run_by(&self, (certificate, key): &(String, String), args: &[&str]) -> Run {
        let files = tempfile::tempdir().unwrap();
        let (cert_file, key_file) = (files.path().join("cert.pem"), files.path().join("key.pem"));
        fs::write(&cert_file, certificate).unwrap();
        fs::write(&key_file, key).unwrap();
        let mut command = credbroker(args);
        command
            .envs(self.site.env())
            .env_remove("CREDBROKER_TOKEN_FILE")
            .env("CREDBROKER_CLIENT_CERT_FILE", cert_file)
            .env("CREDBROKER_CLIENT_KEY_FILE", key_file);
        Run::of(command, "").await
    }

    async fn log(&self, event: &str) -> Vec<Value> {
        let query = ["audit", "query", "--event", event, "-o", "json"];
        let records = self.site.run(&query).await.ok().json();
        records.as_array().unwrap().clone()
    }
}
