//! Streams end with the proof of their caller: each way in which a proof ends, each streaming
//! method.

use std::{fs, time::Duration as Time};

use credbroker::{
    client::{Client, Evidence, Settings},
    proto::{
        RevocationNotice, TailAuditRecordsRequest, WatchCredentialsRequest,
        WatchCredentialsResponse, WatchRevocationsRequest, WhoAmIRequest,
        watch_credentials_response::What,
    },
};
use time::Duration;
use tokio::time::timeout;
use tonic::{Code, Streaming};

use super::{Ca, Known, SPIFFE_ID, uri, workload};
use crate::harness::{eventually, site::Site};

/// Time within which a stream ends; a limit, not a measure.
const LIMIT: Time = Time::from_secs(20);

impl Site {
    /// Connects a client with this evidence.
    async fn client_by(&self, evidence: Evidence) -> Client {
        let settings = Settings {
            address: format!("https://{}", self.address),
            ca_file: self.path("tls.pem"),
            evidence,
        };
        Client::connect(&settings).await.unwrap()
    }
}

/// Streams of a service that has the grant `user`.
pub(super) struct Streams {
    credentials: Streaming<WatchCredentialsResponse>,
    revocations: Streaming<RevocationNotice>,
}

impl Streams {
    /// Begins both streams, and receives the first credentials.
    pub(super) async fn begin(client: &Client) -> Self {
        let watch = WatchCredentialsRequest {
            grant: "user".to_owned(),
            ..WatchCredentialsRequest::default()
        };
        let credentials = client.credentials().watch_credentials(watch).await;
        let mut credentials = credentials.unwrap().into_inner();
        let issued = credentials.message().await.unwrap().unwrap();
        assert!(matches!(issued.what, Some(What::Issued(_))));
        let watch = WatchRevocationsRequest::default();
        let revocations = client.credentials().watch_revocations(watch).await;
        Self {
            credentials,
            revocations: revocations.unwrap().into_inner(),
        }
    }

    /// Asserts that both streams end without another message, with the caller unknown.
    pub(super) async fn end(mut self, why: &str) {
        let told = timeout(LIMIT, self.credentials.message()).await;
        assert_unknown(told.expect(why), why);
        let told = timeout(LIMIT, self.revocations.message()).await;
        assert_unknown(told.expect(why), why);
    }
}

fn assert_unknown<T: std::fmt::Debug>(told: Result<Option<T>, tonic::Status>, why: &str) {
    let status = told.expect_err(why);
    assert_eq!(status.code(), Code::Unauthenticated, "{why}: {status:?}");
}

/// Asserts that streams end once their token is refused; `ends` makes it so.
pub(super) async fn end_with_the_token(
    site: &Site,
    token: &str,
    why: &str,
    ends: impl AsyncFnOnce(),
) {
    let streams = Streams::begin(&site.client(token).await).await;
    ends().await;
    streams.end(why).await;
}

/// Asserts the same for a tail of the log, with an operator's token.
pub(super) async fn tail_ends_with_the_token(
    site: &Site,
    token: &str,
    why: &str,
    ends: impl AsyncFnOnce(),
) {
    let client = site.client(token).await;
    let tail = TailAuditRecordsRequest {
        lines: 0,
        follow: true,
    };
    let told = client.audit().tail_audit_records(tail).await;
    let mut told = told.unwrap().into_inner();
    ends().await;
    let ended = async {
        loop {
            if let Err(status) = told.message().await {
                return status;
            }
        }
    };
    let status = timeout(LIMIT, ended).await.expect(why);
    assert_eq!(status.code(), Code::Unauthenticated, "{why}: {status:?}");
}

#[tokio::test]
async fn streams_end_when_their_certificate_is_revoked_or_its_authority_is_gone() {
    let known = Known::new().await;
    let (certificate, key) = known.prod.issue(&workload([uri(SPIFFE_ID)]));
    let file = |name: &str, pem: String| {
        fs::write(known.site.path(name), pem).unwrap();
        known.site.path(name)
    };
    let evidence = Evidence::Certificate {
        cert_file: file("own.pem", certificate),
        key_file: file("own.key", key),
    };
    let revoked = || {
        let list = known.prod.revoked(&[7], Duration::days(1));
        fs::write(known.site.path("prod.crl"), list).unwrap();
    };
    let out_of_date = || {
        let list = known.prod.revoked(&[], -Duration::hours(1));
        fs::write(known.site.path("prod.crl"), list).unwrap();
    };
    let gone = || fs::write(known.site.path("prod.pem"), Ca::new("next").pem).unwrap();
    let ways: [(&str, &dyn Fn()); 3] = [
        ("CERTIFICATE_REVOKED", &revoked),
        ("REVOCATION_LIST_EXPIRED", &out_of_date),
        ("CERTIFICATE_ISSUER_UNKNOWN", &gone),
    ];
    for (reason, ends) in ways {
        let good = known.prod.revoked(&[], Duration::days(1));
        fs::write(known.site.path("prod.crl"), good).unwrap();
        let let_in = async || {
            let client = known.site.client_by(evidence.clone()).await;
            client.identity().who_am_i(WhoAmIRequest {}).await.ok()
        };
        eventually("it is let in", let_in).await;
        let streams = Streams::begin(&known.site.client_by(evidence.clone()).await).await;
        ends();
        streams.end(reason).await;
        let refused = known.log("login.failed").await.pop().unwrap();
        assert_eq!(refused["reason"], reason);
    }
}
