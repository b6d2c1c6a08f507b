//! Cost of the parts that compute and do not wait: `cargo bench --bench parts`.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on stops"
)]

use std::{hint::black_box, sync::Arc};

use credbroker::{
    audit::{
        leaf,
        tree::{Frontier, inclusion_proof, leaf_hash},
    },
    authn::token::authenticate,
    broker::ports::{Identities, Store},
    domain::{
        access::{Caller, Surface, admit},
        arn::Partition,
        audit::{AuditEvent, AuditRecord, Event},
        decide::{IssueRequest, decide},
        grant::{Grant, GrantSpec, validate::violations},
        policy::Document,
        principal::Origin,
        random::SystemRandom,
        service::Service,
        token::{StoredToken, Token, TokenKind},
    },
    proto::{IssueCredentialsResponse, Lease, Receipt},
    store::sqlite::SqliteStore,
};
use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use prost::Message;
use secrecy::ExposeSecret;
use serde_json::json;

/// Leaves of the log that is grown and proven.
const SIZE: u64 = 10_000_000;
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn policy() -> String {
    let statement = |number: u32| {
        json!({
            "Sid": format!("Read{number}"), "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [format!("arn:aws:s3:::bucket-{number}"), format!("arn:aws:s3:::bucket-{number}/*")],
        })
    };
    let statements: Vec<_> = (0..8).map(statement).collect();
    json!({"Version": "2012-10-17", "Statement": statements}).to_string()
}

fn grant() -> Grant {
    let role = json!({
        "role_arn": "arn:aws:iam::123456789012:role/payments", "external_id": null,
        "source_identity": false, "region": null, "tags": [],
    });
    let document: serde_json::Value = serde_json::from_str(&policy()).unwrap();
    let spec: GrantSpec = serde_json::from_value(json!({
        "kind": {"assume_role": role},
        "policy": {"document": document, "template": null},
        "managed_policies": [],
        "default_ttl": 900, "max_ttl": 3600, "allow_broad": false,
    }))
    .unwrap();
    Grant {
        name: "payments-api/read".parse().unwrap(),
        version: 3,
        spec,
        created_at: NOW,
        created_by: "admin".parse().unwrap(),
    }
}

/// Returns a service that has proven its identity by a token: there is no other way to make a
/// caller.
async fn caller() -> Caller {
    let home = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&home.path().join("credbroker.db")).await;
    let store = store.unwrap();
    let service = Service {
        name: "payments-api".parse().unwrap(),
        created_at: NOW,
        suspension: None,
    };
    let event = || AuditEvent::by_broker(Event::ServiceCreated, NOW);
    store.create_service(&service, event()).await.unwrap();
    let token = Token::new(TokenKind::Service, &SystemRandom);
    let stored = StoredToken {
        id: token.id().clone(),
        digest: token.digest(),
        created_at: NOW,
        expires_at: None,
    };
    store
        .create_token(&service.name, &stored, event())
        .await
        .unwrap();
    let origin = Origin {
        peer: None,
        method: "credbroker.v1.CredentialService/IssueCredentials".to_owned(),
    };
    let shown = format!("Bearer {}", token.text().expose_secret());
    let proven = authenticate(&store, NOW, origin, Some(&shown)).await;
    admit(proven.unwrap(), Surface::Whole).unwrap()
}

fn deciding(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (caller, grant, policy) = (runtime.block_on(caller()), Arc::new(grant()), policy());
    let request = IssueRequest::new(grant.name.clone(), None, None);
    c.bench_function("decide", |b| {
        b.iter(|| decide(&caller, &request, Some(Arc::clone(&grant))).unwrap());
    });
    c.bench_function("policy: parse eight statements", |b| {
        b.iter(|| Document::parse(black_box(&policy)).unwrap());
    });
    c.bench_function("policy: check a grant of eight statements", |b| {
        b.iter(|| assert!(violations(black_box(&grant.spec), Partition::Aws).is_empty()));
    });
    c.bench_function("policy: what a session is given", |b| {
        b.iter(|| black_box(&grant.spec).effective_policy().unwrap().to_json());
    });
}

fn recording(c: &mut Criterion) {
    let event = AuditEvent::by_broker(Event::LeaseIssued, NOW);
    let event = event
        .grant(&grant())
        .permits(&grant())
        .access_key("ASIAIOSFODNN7EXAMPLE");
    let record = AuditRecord { seq: SIZE, event };
    let bytes = leaf::encode(&record).unwrap();
    c.bench_function("log: encode a record", |b| {
        b.iter(|| leaf::encode(black_box(&record)).unwrap());
    });
    let mut edge = Frontier::default();
    (0..SIZE).for_each(|_| drop(edge.push(leaf_hash(b"leaf"))));
    c.bench_function("log: append a record to ten million", |b| {
        b.iter_batched_ref(
            || edge.clone(),
            |edge| {
                let nodes = edge.push(leaf_hash(black_box(&bytes)));
                (nodes, edge.root())
            },
            criterion::BatchSize::SmallInput,
        );
    });
    c.bench_function("log: which hashes prove a record of ten million", |b| {
        b.iter(|| inclusion_proof(black_box(SIZE / 3), SIZE).unwrap());
    });
}

fn answering(c: &mut Criterion) {
    let issued = IssueCredentialsResponse {
        lease: Some(Lease {
            lease_id: "01jqkz8w4x5y6z7a8b9c0d1e2f".to_owned(),
            service: "payments-api".to_owned(),
            grant: "read".to_owned(),
            access_key_id: Some("ASIAIOSFODNN7EXAMPLE".to_owned()),
            ..Lease::default()
        }),
        secret_access_key: "s".repeat(40),
        session_token: Some("t".repeat(700)),
        receipt: Some(Receipt::default()),
        ..IssueCredentialsResponse::default()
    };
    c.bench_function("encode an issued session", |b| {
        b.iter(|| black_box(&issued).encode_to_vec());
    });
}

criterion_group!(parts, deciding, recording, answering);
criterion_main!(parts);
