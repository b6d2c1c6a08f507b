//! Token review: the broker asks a cluster whether its tokens are still valid.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use credbroker::{
    domain::connection_limits::ConnectionLimits,
    http::{
        listener::{ListenerConfig, serve},
        tls::{self, ClientCertificates},
    },
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    sync::{broadcast::Sender, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::streams::end_with_the_token, AUDIENCE, Issuer, SUBJECT, Signs, binding, configured, good,
};
use crate::harness::{
    Account,
    site::{Site, stop},
};

const OWN_TOKEN: &str = "the-brokers-own";

/// Answer of the cluster to every token, and the requests that it got.
#[derive(Clone, Default)]
struct Cluster {
    says: Arc<Mutex<Value>>,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Cluster {
    fn start(site: &Site, listener: TcpListener) -> Self {
        let (cert, key) = (site.path("tls.pem"), site.path("tls.key"));
        let tls = tls::from_files(&cert, &key, ClientCertificates::NotAsked).unwrap();
        let cluster = Self::default();
        let router = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .with_state(cluster.clone());
        let listening = ListenerConfig {
            listener,
            tls: watch::channel(tls).1,
            bounds: ConnectionLimits::default(),
        };
        let (nobody, never) = (Sender::new(1), CancellationToken::new());
        tokio::spawn(serve(listening, router, nobody, never));
        cluster
    }

    fn says(&self, status: Value) {
        *self.says.lock().unwrap() = status;
    }
}

async fn review(
    State(cluster): State<Cluster>,
    headers: HeaderMap,
    asked: String,
) -> (StatusCode, String) {
    assert_eq!(headers["authorization"], format!("Bearer {OWN_TOKEN}"));
    let asked = serde_json::from_str(&asked).unwrap();
    cluster.asked.lock().unwrap().push(asked);
    match cluster.says.lock().unwrap().clone() {
        Value::Null => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        status => (StatusCode::CREATED, json!({"status": status}).to_string()),
    }
}

/// Site that asks the cluster at this port about the tokens of an issuer.
fn asking(port: u16, issuer: &Issuer) -> Site {
    let site = Site::sealed(|site| {
        configured(&format!(
            "jwks_file = {:?}\nca_file = {:?}\ntoken_review_url = \"https://localhost:{port}\"\n\
             token_review_token_file = {:?}",
            site.text("keys.json"),
            site.text("tls.pem"),
            site.text("own-token"),
        ))
    });
    fs::write(site.path("keys.json"), issuer.keys().to_string()).unwrap();
    fs::write(site.path("own-token"), format!("{OWN_TOKEN}\n")).unwrap();
    site
}

#[tokio::test]
async fn tokens_of_a_silent_cluster_are_refused_without_delay_for_others() {
    let issuer = Issuer::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let site = asking(listener.local_addr().unwrap().port(), &issuer);
    let asked = tokio::spawn(async move {
        let (mut asked, _) = listener.accept().await.unwrap();
        // The cluster reads and does not answer, until the broker closes the connection.
        let mut said = Vec::new();
        asked.read_to_end(&mut said).await.map(|_| said.len())
    });
    let account = Account::new().await;
    let child = site.serving(&account.admin).await;
    let own = site.payments_api().await;
    site.run(&binding("payments-api", SUBJECT, &[])).await.ok();
    let token = issuer.sign(Signs::Es256, &good());
    let whoami = async || site.run_as(&token, &["whoami"]).await;
    // A caller that needs no review is served meanwhile.
    let (refused, served) = tokio::join!(whoami(), site.run_as(&own, &["whoami"]));
    served.ok();
    // The error is not the time-out of the call, which comes after twenty seconds.
    refused.fails(3, &["the token was not accepted"]);
    assert!(asked.await.unwrap().unwrap() > 0);
    let query = ["audit", "query", "--event", "login.failed", "-o", "json"];
    let records = site.run(&query).await.ok().json();
    let newest = records.as_array().unwrap().last().unwrap().clone();
    assert_eq!(newest["reason"], "TOKEN_REVIEW_FAILED");
    let log = fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("it does not answer"), "{log}");
    stop(child).await;
}

#[tokio::test]
async fn a_token_revoked_by_its_cluster_is_refused_at_each_call() {
    let issuer = Issuer::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let site = asking(listener.local_addr().unwrap().port(), &issuer);
    let cluster = Cluster::start(&site, listener);
    let account = Account::new().await;
    let child = site.serving(&account.admin).await;
    site.payments_api().await;
    site.run(&binding("payments-api", SUBJECT, &[])).await.ok();
    let token = issuer.sign(Signs::Es256, &good());
    let reason = async || {
        site.run_as(&token, &["whoami"])
            .await
            .fails(3, &["the token was not accepted"]);
        let query = ["audit", "query", "--event", "login.failed", "-o", "json"];
        let records = site.run(&query).await.ok().json();
        let newest = records.as_array().unwrap().last().unwrap().clone();
        newest["reason"].as_str().unwrap().to_owned()
    };

    cluster.says(json!({"authenticated": true, "audiences": [AUDIENCE, "other"]}));
    site.run_as(&token, &["whoami"]).await.ok();
    let asked = cluster.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0]["kind"], "TokenReview");
    let spec = json!({"token": token, "audiences": [AUDIENCE]});
    assert_eq!(asked[0]["spec"], spec);

    for refusal in [
        json!({"authenticated": false, "error": "the pod is gone"}),
        json!({}),
        json!({"authenticated": true}),
        json!({"authenticated": true, "audiences": ["other"]}),
    ] {
        cluster.says(refusal);
        assert_eq!(reason().await, "TOKEN_REVIEW_DENIED");
    }
    cluster.says(Value::Null);
    assert_eq!(reason().await, "TOKEN_REVIEW_FAILED");

    // An invalid token is not sent to the cluster.
    let before = cluster.asked.lock().unwrap().len();
    site.run_as(&format!("{token}x"), &["whoami"])
        .await
        .fails(3, &[]);
    assert_eq!(cluster.asked.lock().unwrap().len(), before);

    cluster.says(json!({"authenticated": true, "audiences": [AUDIENCE]}));
    site.run_as(&token, &["whoami"]).await.ok();
    stop(child).await;
}

#[tokio::test]
async fn streams_end_when_the_cluster_revokes_their_token() {
    let issuer = Issuer::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let site = asking(listener.local_addr().unwrap().port(), &issuer);
    let cluster = Cluster::start(&site, listener);
    let account = Account::new().await;
    let child = site.serving(&account.admin).await;
    site.payments_api().await;
    site.run(&binding("payments-api", SUBJECT, &[])).await.ok();
    let token = issuer.sign(Signs::Es256, &good());
    cluster.says(json!({"authenticated": true, "audiences": [AUDIENCE]}));
    let ends = async || cluster.says(json!({"authenticated": false}));
    end_with_the_token(&site, &token, "TOKEN_REVIEW_DENIED", ends).await;
    stop(child).await;
}
