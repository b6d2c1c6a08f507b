//! `GET /v1/credentials/GRANT`, in the form that AWS SDKs send.

use std::path::Path;

use credbroker::domain::clock::wall_time;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::harness::{Broker, Key, World, proxy::Fault, stepped::policy, wire::tls_ask};

/// Answer: the status, the head in lower case, and the document.
struct Answered {
    status: u16,
    head: String,
    document: Value,
}

impl Answered {
    /// Asserts a refusal with a document that SDKs read in either spelling.
    fn refuses(&self, status: u16, code: &str, words: &str) {
        let document = &self.document;
        assert_eq!(self.status, status, "{document}");
        for (upper, lower) in [("Code", "code"), ("Message", "message")] {
            assert_eq!(document[upper], document[lower], "{document}");
        }
        assert_eq!(document["Code"], code, "{document}");
        let message = document["Message"].as_str().unwrap();
        assert!(message.contains(words), "{document}");
        assert!(document.get("AccessKeyId").is_none(), "{document}");
    }
}

async fn ask(broker: &Broker, method: &str, grant: &str, token: &str) -> Answered {
    let ca = broker.setting("CREDBROKER_CA_FILE");
    let request = format!(
        "{method} /v1/credentials/{grant} HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n\
         authorization: {token}\r\nconnection: close\r\n\r\n"
    );
    let answer = tls_ask(broker.address(), Path::new(ca), &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answered {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        document: serde_json::from_str(body).unwrap_or(Value::Null),
    }
}

#[tokio::test]
async fn an_sdk_gets_the_document_of_the_container_credentials_contract() {
    let world = World::new().await;
    for grant in ["role", "federation"] {
        // SDKs send the content of the token file unchanged.
        for token in [world.token.clone(), format!("Bearer {}", world.token)] {
            let answered = ask(&world.broker, "GET", grant, &token).await;
            let document = &answered.document;
            assert_eq!(answered.status, 200, "{document}");
            assert!(answered.head.contains("content-type: application/json"));
            assert!(answered.head.contains("cache-control: no-store"));
            let keys: Vec<_> = document.as_object().unwrap().keys().collect();
            let contract = ["AccessKeyId", "SecretAccessKey", "Token", "Expiration"];
            assert_eq!(keys, contract);
            let text = |name: &str| document[name].as_str().unwrap().to_owned();
            let key = Key {
                id: text("AccessKeyId"),
                secret: text("SecretAccessKey"),
                token: Some(text("Token")),
            };
            assert!(key.works().await);
            let expires: Timestamp = text("Expiration").parse().unwrap();
            let life = expires.duration_since(wall_time());
            assert!(life > SignedDuration::from_mins(19), "{document}");
        }
    }
    let records = world.broker.audit().await;
    let issued = records.iter().filter(|r| r["event"] == "lease.issued");
    assert_eq!(issued.count(), 4);
}

#[tokio::test]
async fn endpoint_credentials_live_twenty_minutes_under_a_shorter_default() {
    let world = World::new().await;
    let short = ["--role-arn", &world.role, "--ttl", "15m", "--max-ttl", "1h"];
    world
        .broker
        .grant("payments-api/short", &short, &policy())
        .await;
    let answered = ask(&world.broker, "GET", "short", &world.token).await;
    let expires: Timestamp = answered.document["Expiration"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let life = expires.duration_since(wall_time());
    assert!(
        life > SignedDuration::from_mins(19),
        "{}",
        answered.document
    );
    let shorter = [
        "--role-arn",
        &world.role,
        "--ttl",
        "15m",
        "--max-ttl",
        "15m",
    ];
    world
        .broker
        .grant("payments-api/shorter", &shorter, &policy())
        .await;
    let answered = ask(&world.broker, "GET", "shorter", &world.token).await;
    answered.refuses(403, "AccessDenied", "less than the 20 minutes");
}

#[tokio::test]
async fn a_shared_session_is_returned_at_once_without_a_call_to_aws() {
    let world = World::new().await;
    let shared = ["--role-arn", &world.role, "--reuse", "per-service"];
    world
        .broker
        .grant("payments-api/shared", &shared, &policy())
        .await;
    let first = ask(&world.broker, "GET", "shared", &world.token).await;
    world.proxy.inject("AssumeRole", Fault::Hold);
    let again = ask(&world.broker, "GET", "shared", &world.token).await;
    assert_eq!(again.status, 200, "{}", again.document);
    assert_eq!(again.document, first.document);
    world.proxy.heal();
}

#[tokio::test]
async fn an_endpoint_refusal_is_final_and_an_outage_is_retryable() {
    let world = World::new().await;
    let (broker, token) = (&world.broker, &world.token);
    let denied = async |grant: &str, token: &str, words: &str| {
        ask(broker, "GET", grant, token)
            .await
            .refuses(403, "AccessDenied", words);
    };
    denied("role", "rubbish", "the token was not accepted").await;
    denied("nothing", token, "there is no grant").await;
    denied("..%2Fadmin", token, "").await;
    denied("user", token, "no session token").await;
    denied("role", broker.admin_token(), "for services").await;
    // HEAD is refused: it would issue credentials that the caller never gets.
    let head = ask(broker, "HEAD", "role", token).await;
    assert_eq!(head.status, 405);

    world.proxy.inject("AssumeRole", Fault::Cut);
    let away = ask(broker, "GET", "role", token).await;
    away.refuses(503, "ServiceUnavailable", "");
    assert!(away.head.contains("retry-after: "), "{}", away.head);
    world.proxy.heal();

    broker
        .run(&["service", "suspend", "payments-api"])
        .await
        .ok();
    denied("federation", token, "is suspended").await;
    assert!(
        world
            .leases()
            .await
            .iter()
            .all(|lease| lease["state"] != "active")
    );
}
