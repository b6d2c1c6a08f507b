//! Findings of `parliament`, a linter with AWS's own lists of actions and resources, on every
//! policy document that the broker ships or makes.

use std::process::Stdio;

use credbroker::domain::{
    denial::{self, AffectedSessions, Denial, DenialSubject, Scope},
    policy, templates,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use super::ACCOUNT;
use crate::harness::{
    aws::{admin_boundary_policy, admin_policy, revoker_policy},
    emulator::emulator,
};

/// Findings that stand, each with its reason: `DOCUMENT ISSUE` and words of its detail.
const KNOWN: &[(&str, &str)] = &[
    // Newer than the linter's data; `outliving` compares them with AWS's list of today.
    ("boundary-policy UNKNOWN_ACTION", "Unknown action"),
    ("boundary-policy UNKNOWN_PREFIX", "bedrock-agentcore"),
    // An ARN without wildcards is compared as text, as in AWS's own examples.
    ("admin-policy MISMATCHED_TYPE_BUT_USABLE", "StringEquals"),
    (
        "admin-boundary-policy MISMATCHED_TYPE_BUT_USABLE",
        "StringEquals",
    ),
    ("revoker-policy MISMATCHED_TYPE_BUT_USABLE", "StringEquals"),
    // The linter takes the exceptions of a NotAction for its permissions.
    ("admin-boundary-policy RESOURCE_STAR", "iam:PassRole"),
];

const SHIPPED_BOUNDARY: &str = include_str!("../../../deploy/aws/boundary-policy.json");

/// A line `DOCUMENT ISSUE DETAIL` per finding.
async fn findings(documents: &Map<String, Value>) -> Vec<String> {
    let mut lint = Command::new(emulator().bin.join("python"))
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/lint_policies.py"
        ))
        .env("PYTHONWARNINGS", "ignore")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = lint.stdin.take().unwrap();
    let input = Value::Object(documents.clone()).to_string();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = lint.wait_with_output().await.unwrap();
    assert!(output.status.success());
    let told = String::from_utf8(output.stdout).unwrap();
    told.lines().map(ToOwned::to_owned).collect()
}

/// Denials of a lease, a grant and a service with a source identity, at a role and at the broker's
/// user.
fn denials() -> Value {
    let role = "arn:aws:iam::123456789012:role/credbroker/app";
    let user = "arn:aws:iam::123456789012:user/credbroker-admin";
    let (at, lease) = (Timestamp::UNIX_EPOCH, "06h0tl5t6oruvrhg1fhm2dfkdg");
    let mut denials = Vec::new();
    for holder in [role, user] {
        for (service, scope) in [
            ("pay", Scope::Service),
            ("log", Scope::Grant("work".parse().unwrap())),
            ("reports", Scope::Lease(lease.parse().unwrap())),
        ] {
            let concerned = AffectedSessions {
                against: DenialSubject {
                    holder: holder.parse().unwrap(),
                    service: service.parse().unwrap(),
                    scope,
                },
                grant: format!("{service}/work").parse().unwrap(),
                grant_version: 1,
                source_identity: true,
                access_ends: at,
            };
            denials.push(Denial::request(concerned, None, at).ready());
        }
    }
    let document = denial::document(&denials).unwrap().unwrap();
    serde_json::from_str(&document.to_json()).unwrap()
}

#[tokio::test]
async fn the_linter_reports_only_known_findings() {
    let mut documents = Map::new();
    for (name, document) in [
        ("admin-policy", admin_policy(ACCOUNT)),
        ("admin-boundary-policy", admin_boundary_policy(ACCOUNT)),
        ("revoker-policy", revoker_policy(ACCOUNT)),
    ] {
        documents.insert(name.to_owned(), document);
    }
    let boundary = serde_json::from_str(SHIPPED_BOUNDARY).unwrap();
    documents.insert("boundary-policy".to_owned(), boundary);
    for (name, document) in templates::examples() {
        let document = serde_json::to_value(document.unwrap()).unwrap();
        documents.insert(name.to_owned(), document);
    }
    documents.insert("denials".to_owned(), denials());
    // The control document has a finding, so the linter works.
    let wrong = json!({"Effect": "Allow", "Action": "s3:GetObjekt", "Resource": "*"});
    let wrong = json!({"Version": "2012-10-17", "Statement": [wrong]});
    documents.insert("control".to_owned(), wrong);

    let (control, found): (Vec<_>, Vec<_>) = findings(&documents)
        .await
        .into_iter()
        .partition(|line| line.starts_with("control "));
    assert!(control[0].contains("UNKNOWN_ACTION"), "{control:?}");
    let is = |line: &str, known: &(&str, &str)| line.starts_with(known.0) && line.contains(known.1);
    let new = found
        .iter()
        .filter(|line| !KNOWN.iter().any(|known| is(line, known)));
    assert_eq!(new.collect::<Vec<_>>(), [""; 0]);
    let gone = KNOWN
        .iter()
        .filter(|known| !found.iter().any(|line| is(line, known)));
    assert_eq!(
        gone.count(),
        0,
        "a known finding is found no longer: take it out"
    );
}

#[test]
fn the_shipped_boundary_is_the_one_that_the_broker_makes() {
    let shipped: Value = serde_json::from_str(SHIPPED_BOUNDARY).unwrap();
    assert_eq!(shipped, serde_json::to_value(policy::boundary()).unwrap());
}
