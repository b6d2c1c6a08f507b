//! Access over the wire: the closed table of methods, the roles, and the proof of identity that
//! every call needs.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest;
use credbroker::{
    domain::{
        access::{Access, TABLE},
        operator::Role,
        random::SystemRandom,
        token::{Token, TokenKind},
    },
    proto::{
        CreateServiceTokenRequest, DeleteServiceTokenRequest, GetLeaseRequest,
        IssueCredentialsRequest, ReleaseLeaseRequest,
    },
};
use data_encoding::BASE32_NOPAD;
use prost::Message;
use prost_types::FileDescriptorSet;
use secrecy::ExposeSecret;
use serde_json::json;
use tonic::{Code, Request, Status};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::harness::{Account, Broker};

const ISSUE: &str = "credbroker.v1.CredentialService/IssueCredentials";
const STATUS: &str = "credbroker.v1.AdminService/GetStatus";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const NOT_A_METHOD: &str = "credbroker.v1.AdminService/Shutdown";
/// Position in a token at which its secret begins.
const SECRET_AT: usize = 21;

async fn broker() -> Broker {
    Broker::start(&Account::new().await).await
}

/// Creates an operator of each role. Returns their tokens.
async fn operators(broker: &Broker) -> BTreeMap<&'static str, String> {
    let mut tokens = BTreeMap::new();
    for role in Role::ALL {
        let (role, name) = (role.as_str(), format!("the-{role}"));
        let made = broker
            .json(&["operator", "create", &name, "--role", role])
            .await;
        tokens.insert(role, made["token"].as_str().unwrap().to_owned());
    }
    tokens
}

/// Returns whether the gate let the call through to its method, whatever the method answered.
fn let_in(answer: &Result<(), Status>) -> bool {
    let refusals = [
        Code::PermissionDenied,
        Code::Unauthenticated,
        Code::Unimplemented,
    ];
    !matches!(answer, Err(status) if refusals.contains(&status.code()))
}

#[track_caller]
fn refused(answer: Result<(), Status>, code: Code, words: &str) {
    let status = answer.expect_err("a refusal");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{status:?}");
}

#[test]
fn the_table_names_every_rpc_of_the_proto_files_and_nothing_else() {
    let files = FileDescriptorSet::decode(credbroker::proto::DESCRIPTORS).unwrap();
    let ours = files
        .file
        .iter()
        .filter(|file| file.package() == "credbroker.v1");
    let services = ours.flat_map(|file| &file.service);
    let methods: BTreeSet<String> = services
        .flat_map(|service| {
            let name = |method: &str| format!("credbroker.v1.{}/{method}", service.name());
            service.method.iter().map(move |m| name(m.name()))
        })
        .collect();
    let table: BTreeSet<String> = TABLE.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(table.len(), TABLE.len(), "a method stands there twice");
    let others: Vec<&String> = table.difference(&methods).collect();
    assert_eq!(others, [REFLECTION]);
    assert!(table.is_superset(&methods));
}

#[tokio::test]
async fn reflection_by_an_operator_lists_the_served_methods() {
    let broker = broker().await;
    let asked = |token: &str| {
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut request = Request::new(tonic::codegen::tokio_stream::once(ask));
        let header = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", header);
        request
    };
    let mut reflection = ServerReflectionClient::new(broker.wire().await.channel());
    let told = reflection
        .server_reflection_info(asked(broker.admin_token()))
        .await;
    let told = told.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(told)) = told.message_response else {
        panic!("{told:?}");
    };
    let served: BTreeSet<String> = told.service.into_iter().map(|one| one.name).collect();
    for (method, _) in TABLE {
        let (service, _) = method.split_once('/').unwrap();
        assert!(served.contains(service), "{service}");
    }
    let token = broker.service("payments-api").await;
    let refusal = reflection.server_reflection_info(asked(&token)).await;
    refused(
        refusal.map(drop),
        Code::PermissionDenied,
        "is for operators",
    );
}

#[tokio::test]
async fn each_role_reaches_what_the_table_says_and_is_refused_elsewhere() {
    let broker = broker().await;
    let (operators, wire) = (operators(&broker).await, broker.wire().await);
    for role in Role::ALL {
        for (method, access) in TABLE {
            let answer = wire.call_as(&operators[role.as_str()], method).await;
            match access {
                Access::Operators(allowed) if allowed.contains(&role) => {
                    assert!(let_in(&answer), "{role} {method}: {answer:?}");
                }
                Access::Operators(_) => {
                    let words = format!("role {role} may not do this; it takes");
                    refused(answer, Code::PermissionDenied, &words);
                }
                Access::Enrollees => refused(answer, Code::PermissionDenied, "enrolment token"),
                Access::Anyone => assert!(let_in(&answer), "{role} {method}: {answer:?}"),
                Access::Services => refused(answer, Code::PermissionDenied, "is for services"),
            }
        }
    }
}

#[tokio::test]
async fn a_service_call_to_an_operator_rpc_is_refused() {
    let broker = broker().await;
    let (token, wire) = (broker.service("payments-api").await, broker.wire().await);
    for (method, access) in TABLE {
        let answer = wire.call_as(&token, method).await;
        if matches!(access, Access::Services | Access::Anyone) {
            assert!(let_in(&answer), "{method}: {answer:?}");
        } else if *access == Access::Enrollees {
            refused(answer, Code::PermissionDenied, "enrolment token");
        } else {
            refused(answer, Code::PermissionDenied, "is for operators");
        }
    }
}

#[tokio::test]
async fn a_method_that_is_not_in_the_table_cannot_be_called() {
    let broker = broker().await;
    let (service, wire) = (broker.service("payments-api").await, broker.wire().await);
    let admin = broker.admin_token();
    for token in [admin, &service] {
        let answer = wire.call_as(token, NOT_A_METHOD).await;
        refused(answer, Code::PermissionDenied, "is not a method");
    }
    wire.call_as(admin, STATUS).await.unwrap();
    let denied: Vec<_> = broker
        .audit()
        .await
        .into_iter()
        .filter(|r| r["method"] == NOT_A_METHOD)
        .collect();
    assert_eq!(denied.len(), 2);
    assert!(denied.iter().all(|r| r["reason"] == "NOT_PERMITTED"));
}

/// Returns a token like `token` with another secret and the right checksum.
fn with_another_secret(token: &str) -> String {
    let other = Token::new(TokenKind::Service, &SystemRandom);
    let other = other.text().expose_secret();
    let end = other.len() - 7;
    let body = format!("{}{}", &token[..SECRET_AT], &other[SECRET_AT..end]);
    let sum = digest::digest(&digest::SHA256, body.as_bytes());
    let checksum = BASE32_NOPAD.encode(&sum.as_ref()[..4]).to_ascii_lowercase();
    format!("{body}{checksum}")
}

#[tokio::test]
async fn an_invalid_token_gets_the_same_answer_whatever_is_wrong() {
    let broker = broker().await;
    let good = broker.service("payments-api").await;
    let expired = broker.service("billing").await;
    broker
        .write_store("UPDATE tokens SET expires_at = 1 WHERE service = 'billing'")
        .await;
    let deleted = broker
        .json(&["service", "token", "create", "payments-api"])
        .await;
    let id = deleted["token_id"].as_str().unwrap();
    broker
        .run(&["service", "token", "delete", "payments-api", id])
        .await
        .ok();
    let operator = broker
        .json(&["operator", "create", "ann", "--role", "viewer"])
        .await;
    broker.run(&["operator", "delete", "ann"]).await.ok();
    let unknown = Token::new(TokenKind::Service, &SystemRandom);
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let wrong = [
        ("TOKEN_ABSENT", None),
        ("NOT_A_BEARER_TOKEN", Some(good.clone())),
        ("NOT_A_BEARER_TOKEN", Some(format!("Basic {good}"))),
        ("TOKEN_MALFORMED", bearer("")),
        ("TOKEN_MALFORMED", bearer(&good[..79])),
        ("TOKEN_UNKNOWN", bearer(unknown.text().expose_secret())),
        ("TOKEN_SECRET_WRONG", bearer(&with_another_secret(&good))),
        ("TOKEN_EXPIRED", bearer(&expired)),
        ("TOKEN_UNKNOWN", bearer(deleted["token"].as_str().unwrap())),
        ("TOKEN_UNKNOWN", bearer(operator["token"].as_str().unwrap())),
    ];
    let wire = broker.wire().await;
    let mut answers = BTreeSet::new();
    for (_, header) in &wrong {
        let status = wire.call(ISSUE, header.as_deref()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{header:?}");
        answers.insert((status.message().to_owned(), status.details().to_vec()));
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(let_in(&wire.call_as(&good, ISSUE).await));
    let recorded = broker
        .json(&["audit", "query", "--event", "login.failed"])
        .await;
    let recorded = recorded.as_array().unwrap().iter();
    let reasons: Vec<_> = recorded.map(|r| r["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, wrong.each_ref().map(|(reason, _)| *reason));
}

#[tokio::test]
async fn a_suspended_service_is_refused_until_it_is_reinstated() {
    let broker = broker().await;
    let (token, wire) = (broker.service("payments-api").await, broker.wire().await);
    let neighbour = broker.service("billing").await;
    broker
        .run(&["service", "suspend", "payments-api"])
        .await
        .ok();
    let answer = wire.call_as(&token, ISSUE).await;
    refused(
        answer,
        Code::PermissionDenied,
        "service payments-api is suspended",
    );
    assert!(let_in(&wire.call_as(&neighbour, ISSUE).await));
    broker
        .run(&["service", "reinstate", "payments-api"])
        .await
        .ok();
    assert!(let_in(&wire.call_as(&token, ISSUE).await));
}

#[tokio::test]
async fn a_lease_or_grant_of_another_service_is_not_found() {
    let broker = broker().await;
    let (owner, stranger) = (
        broker.service("payments-api").await,
        broker.service("billing").await,
    );
    let policy = json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"}});
    broker
        .grant("payments-api/work", &["--kind", "iam_user"], &policy)
        .await;
    let lease = broker.issue(&owner, "work").await["lease_id"].clone();
    let lease = lease.as_str().unwrap();
    let stranger = broker.client(&stranger).await;

    let release = async |lease_id: &str| {
        let request = ReleaseLeaseRequest {
            lease_id: lease_id.to_owned(),
        };
        let status = stranger
            .credentials()
            .release_lease(request)
            .await
            .unwrap_err();
        (
            status.code(),
            status.message().replace(lease_id, "…"),
            String::from_utf8_lossy(status.details()).replace(lease_id, "…"),
        )
    };
    let others = release(lease).await;
    assert_eq!(others.0, Code::NotFound);
    assert_eq!(others, release("00000000000000000000000000").await);

    let issue = async |grant: &str| {
        let request = IssueCredentialsRequest {
            grant: grant.to_owned(),
            ttl: None,
            request_id: String::new(),
        };
        let status = stranger
            .credentials()
            .issue_credentials(request)
            .await
            .unwrap_err();
        (status.code(), status.message().replace(grant, "…"))
    };
    let others = issue("payments-api/work").await;
    assert_eq!(others.0, Code::NotFound);
    assert_eq!(others, issue("payments-api/none").await);
    assert_eq!(others, issue("nobody/work").await);

    let seen = GetLeaseRequest {
        lease_id: lease.to_owned(),
    };
    let status = stranger.leases().get_lease(seen).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        broker.json(&["lease", "show", lease]).await["state"],
        "active"
    );
    let released = broker.json_as(Some(&owner), &["release", lease]).await;
    assert_eq!(released["state"], "revoked");
}

#[tokio::test]
async fn ten_tokens_of_a_service_work_at_a_time_and_the_eleventh_is_refused() {
    let broker = broker().await;
    let (first, wire) = (broker.service("payments-api").await, broker.wire().await);
    let mut registry = broker.client(broker.admin_token()).await.services();
    let request = CreateServiceTokenRequest {
        service: "payments-api".to_owned(),
        ttl: None,
    };
    let mut tokens = Vec::new();
    for _ in 0..9 {
        tokens.push(
            registry
                .create_service_token(request.clone())
                .await
                .unwrap()
                .into_inner(),
        );
    }
    let eleventh = registry.create_service_token(request.clone()).await;
    refused(eleventh.map(drop), Code::FailedPrecondition, "10 tokens");
    for made in &tokens {
        assert!(let_in(&wire.call_as(&made.token, ISSUE).await));
    }
    let old = tokens[0].service_token.clone().unwrap();
    let delete = DeleteServiceTokenRequest {
        service: old.service,
        token_id: old.token_id,
    };
    registry.delete_service_token(delete).await.unwrap();
    let rolled = registry
        .create_service_token(request)
        .await
        .unwrap()
        .into_inner();
    let answer = wire.call_as(&tokens[0].token, ISSUE).await;
    refused(answer, Code::Unauthenticated, "not accepted");
    for token in [&rolled.token, &tokens[1].token, &first] {
        assert!(let_in(&wire.call_as(token, ISSUE).await));
    }
}
