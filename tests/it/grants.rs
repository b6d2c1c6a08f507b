//! Grants: put, listed, shown, deleted, in versions; and their policy catalogue.

mod limits;
mod sent;

use credbroker::{
    domain::probe::Probe,
    proto::{self, grant::Kind, inline_policy::Source},
};
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{Account, Broker, Run};

const GRANT: &str = "payments-api/work";

/// A broker with the service `payments-api`, and its token.
async fn broker() -> (Broker, String) {
    let broker = Broker::start(&Account::new().await).await;
    let token = broker.service("payments-api").await;
    (broker, token)
}

/// A policy of one statement that allows `action` on `resource`.
fn allow(action: &str, resource: &str) -> Value {
    let statement = json!({"Effect": "Allow", "Action": action, "Resource": resource});
    json!({"Version": "2012-10-17", "Statement": [statement]})
}

fn narrow() -> Value {
    allow("s3:GetObject", "arn:aws:s3:::acme-invoices/*")
}

/// `grant put payments-api/work FLAGS`, with a policy document if one is given.
async fn put(broker: &Broker, flags: &[&str], policy: Option<&Value>) -> Run {
    let mut args = vec!["grant", "put", GRANT];
    args.extend(flags);
    if policy.is_some() {
        args.extend(["--policy-file", "-"]);
    }
    let document = policy.map(ToString::to_string).unwrap_or_default();
    broker.run_in(None, &args, &document).await
}

async fn version(broker: &Broker) -> u64 {
    let shown = broker.json(&["grant", "show", GRANT]).await;
    shown["version"].as_u64().unwrap()
}

#[tokio::test]
async fn an_unchanged_put_adds_no_version_and_a_changed_put_adds_one() {
    let (broker, _) = broker().await;
    let user = ["--kind", "iam_user"];
    let first = put(&broker, &user, Some(&narrow())).await.ok();
    assert!(!first.stderr.contains("nothing to change"), "{first:?}");
    assert_eq!(version(&broker).await, 1);
    let same = put(&broker, &user, Some(&narrow())).await.ok();
    assert!(
        same.stderr.contains("nothing to change: version 1"),
        "{same:?}"
    );
    assert_eq!(version(&broker).await, 1);
    let longer = ["--kind", "iam_user", "--max-ttl", "2h"];
    let changed = put(&broker, &longer, Some(&narrow())).await.ok();
    assert!(!changed.stderr.contains("nothing to change"), "{changed:?}");
    assert_eq!(version(&broker).await, 2);
}

#[tokio::test]
async fn a_deleted_grant_that_is_put_again_gets_a_new_version() {
    let (broker, token) = broker().await;
    put(&broker, &["--kind", "iam_user"], Some(&narrow()))
        .await
        .ok();
    let lease = broker.issue(&token, "work").await["lease_id"].clone();
    broker.run(&["grant", "delete", GRANT]).await.ok();
    broker
        .run(&["grant", "show", GRANT])
        .await
        .fails(5, &["there is no grant"]);
    broker
        .run(&["grant", "delete", GRANT])
        .await
        .fails(5, &["there is no grant"]);
    let issue = broker.run_as(Some(&token), &["issue", "work"]).await;
    issue.fails(5, &["there is no grant payments-api/work for this service"]);
    // The issued credentials continue.
    let lease = broker
        .json(&["lease", "show", lease.as_str().unwrap()])
        .await;
    assert_eq!(
        (&lease["state"], &lease["grant_version"]),
        (&json!("active"), &json!(1))
    );
    // The deletion has a number of its own, so no version means two things.
    put(&broker, &["--kind", "iam_user"], Some(&narrow()))
        .await
        .ok();
    assert_eq!(version(&broker).await, 3);
    assert_eq!(
        broker
            .json(&["grant", "list"])
            .await
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn grants_are_listed_by_name_of_one_service_or_of_all() {
    let (broker, _) = broker().await;
    broker.service("billing").await;
    for grant in ["payments-api/work", "payments-api/audit", "billing/work"] {
        broker
            .grant(grant, &["--kind", "iam_user"], &narrow())
            .await;
    }
    let names = async |args: &[&str]| -> Vec<String> {
        let grants = broker.json(args).await;
        let grants = grants.as_array().unwrap().iter();
        grants
            .map(|g| g["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = ["billing/work", "payments-api/audit", "payments-api/work"];
    assert_eq!(names(&["grant", "list"]).await, all);
    assert_eq!(
        names(&["grant", "list", "--service", "billing"]).await,
        all[..1]
    );
    assert!(
        names(&["grant", "list", "--service", "nobody"])
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn a_grant_shows_what_was_put_and_the_policy_as_aws_gets_it() {
    let (broker, _) = broker().await;
    let role = "arn:aws:iam::123456789012:role/credbroker/app";
    let managed = "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess";
    let flags = [
        "--role-arn",
        role,
        "--external-id",
        "acme-1",
        "--source-identity",
        "--region",
        "eu-central-1",
        "--tag",
        "team=core",
        "--transitive-tag",
        "project=atlas",
        "--managed-policy",
        managed,
        "--ttl",
        "20m",
        "--max-ttl",
        "2h",
        "--probe",
        "kms:ListKeys",
        "--probe",
        "sqs:ListQueues",
        "--probe-region",
        "us-east-1",
        "--probe-region",
        "eu-west-1",
        "--reuse",
        "per-service",
    ];
    put(&broker, &flags, Some(&narrow())).await.ok();
    let mut shown = broker.json(&["grant", "show", GRANT]).await;
    let effective = shown["effective_policy"].take();
    assert!(shown["created_at"].take().as_str().unwrap().ends_with('Z'));
    let expected = json!({
        "name": GRANT, "version": 1, "kind": "assume_role", "role_arn": role,
        "external_id": "acme-1", "source_identity": true, "region": "eu-central-1",
        "tags": [
            {"key": "team", "value": "core", "transitive": false},
            {"key": "project", "value": "atlas", "transitive": true},
        ],
        "managed_policy_arns": [managed], "default_ttl_seconds": 1200, "max_ttl_seconds": 7200,
        "allow_broad": false, "breadth": [], "probe": "kms:ListKeys", "further_probes": ["sqs:ListQueues"], "probe_regions": ["us-east-1", "eu-west-1"], "ends_by_policy": false, "reuse": "per-service", "created_by": "admin",
        "policy": {"Version": "2012-10-17", "Statement": [narrow()["Statement"][0]]},
        "effective_policy": null, "created_at": null,
    });
    assert_eq!(shown, expected);
    assert_eq!(effective["Statement"][0], narrow()["Statement"][0]);
    assert_eq!(effective["Statement"][1]["Sid"], "CredbrokerGuard");
    assert_eq!(effective["Statement"][1]["Effect"], "Deny");
}

#[tokio::test]
async fn a_broad_grant_needs_allow_broad_and_is_marked_in_every_view() {
    let (broker, _) = broker().await;
    for (action, words) in [("*", "allows every action"), ("iam:*", "reaches IAM")] {
        let broad = allow(action, "*");
        let refused = put(&broker, &["--kind", "iam_user"], Some(&broad)).await;
        refused.fails(2, &["grant.allow_broad: too broad", words, "--allow-broad"]);
        let leave = ["--kind", "iam_user", "--allow-broad"];
        let run = put(&broker, &leave, Some(&broad)).await.ok();
        assert!(
            run.stderr.contains("warning: broad: Statement[0]"),
            "{run:?}"
        );
        assert!(run.stderr.contains(words), "{run:?}");
        assert!(run.stdout.contains(words), "{run:?}");
        for args in [&["grant", "show", GRANT][..], &["grant", "list"]] {
            let told = broker.run(args).await.ok();
            assert!(told.stdout.contains(words), "{told:?}");
        }
        let listed = &broker.json(&["grant", "list"]).await[0];
        assert!(listed["breadth"][0].as_str().unwrap().contains(words));
        assert_eq!(listed["allow_broad"], true);
    }
    let narrowed = put(&broker, &["--kind", "iam_user"], Some(&narrow()))
        .await
        .ok();
    assert!(!narrowed.stderr.contains("warning"), "{narrowed:?}");
    assert_eq!(
        broker.json(&["grant", "show", GRANT]).await["breadth"],
        json!([])
    );
}

#[tokio::test]
async fn a_flag_of_another_kind_is_refused() {
    let (broker, _) = broker().await;
    let role = "arn:aws:iam::123456789012:role/credbroker/app";
    let strangers = [
        ("iam_user", vec!["--role-arn", role]),
        ("iam_user", vec!["--external-id", "acme-1"]),
        ("iam_user", vec!["--source-identity"]),
        ("iam_user", vec!["--transitive-tag", "a=b"]),
        ("iam_user", vec!["--region", "eu-central-1"]),
        ("iam_user", vec!["--probe", "sqs:ListQueues"]),
        ("federation_token", vec!["--role-arn", role]),
        ("federation_token", vec!["--group", "readers"]),
        ("federation_token", vec!["--transitive-tag", "a=b"]),
        (
            "assume_role",
            vec!["--role-arn", role, "--group", "readers"],
        ),
        ("assume_role", vec!["--role-arn", role, "--path", "/apps/"]),
        (
            "assume_role",
            vec![
                "--role-arn",
                role,
                "--permissions-boundary",
                "arn:aws:iam::aws:policy/X",
            ],
        ),
    ];
    for (kind, flags) in strangers {
        let stranger = flags.iter().rfind(|flag| flag.starts_with("--")).unwrap();
        let args = [&["--kind", kind], &flags[..]].concat();
        let run = put(&broker, &args, Some(&narrow())).await;
        run.fails(2, &[stranger, "does not go with this kind of grant"]);
    }
    let run = put(&broker, &[], Some(&narrow())).await;
    run.fails(2, &["--kind", "--role-arn"]);
    let run = put(&broker, &["--kind", "assume_role"], Some(&narrow())).await;
    run.fails(2, &["assume_role needs --role-arn"]);
    broker.run(&["grant", "show", GRANT]).await.fails(5, &[]);
    put(
        &broker,
        &["--kind", "assume_role", "--role-arn", role],
        None,
    )
    .await
    .ok();
}

#[tokio::test]
async fn a_session_grant_shows_its_probe() {
    let (broker, _) = broker().await;
    let federation = ["--kind", "federation_token"];
    put(&broker, &federation, Some(&narrow())).await.ok();
    let probe = async || broker.json(&["grant", "show", GRANT]).await["probe"].clone();
    assert_eq!(probe().await, Value::Null);
    for probed in Probe::ALL {
        let flags = [&federation[..], &["--probe", probed.as_str()]].concat();
        put(&broker, &flags, Some(&narrow())).await.ok();
        assert_eq!(probe().await, probed.as_str());
    }
    // AWS cannot deny this call.
    let flags = [&federation[..], &["--probe", "sts:GetCallerIdentity"]].concat();
    let refused = put(&broker, &flags, Some(&narrow())).await;
    refused.fails(2, &["--probe", "sqs:ListQueues", "ssm:DescribeParameters"]);
    assert_eq!(version(&broker).await, 7);
}

#[tokio::test]
async fn the_broker_itself_refuses_a_probe_that_does_not_fit() {
    let (broker, _) = broker().await;
    let client = broker.client(broker.admin_token()).await;
    let session = Kind::FederationToken(proto::FederationToken::default());
    let user = Kind::IamUser(proto::IamUser::default());
    for (kind, probe, words) in [
        (session, "sts:GetCallerIdentity", "choose sqs:ListQueues, "),
        (user, "sqs:ListQueues", "deleted, not probed"),
    ] {
        let grant = proto::Grant {
            name: GRANT.to_owned(),
            kind: Some(kind),
            policy: Some(proto::InlinePolicy {
                source: Some(Source::Document(narrow().to_string())),
            }),
            probe: Some(probe.to_owned()),
            ..proto::Grant::default()
        };
        let request = proto::PutGrantRequest { grant: Some(grant) };
        let refused = client.grants().put_grant(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let details = refused.get_details_bad_request().unwrap();
        let violation = &details.field_violations[0];
        assert_eq!(violation.field, "grant.probe");
        assert!(violation.description.contains(words), "{violation:?}");
    }
}

#[tokio::test]
async fn a_catalogue_parameter_cannot_inject_policy_text() {
    let (broker, _) = broker().await;
    let from =
        async |flags: &[&str]| put(&broker, &[&["--kind", "iam_user"], flags].concat(), None).await;
    let bucket = [
        "--policy",
        "s3-read-only",
        "--param",
        "bucket=acme-invoices",
    ];
    from(&bucket).await.ok();
    let shown = broker.json(&["grant", "show", GRANT]).await;
    let used = json!({"template": "s3-read-only", "parameters": {"bucket": "acme-invoices"}});
    assert_eq!(shown["policy"], used);
    let rendered = broker
        .json(&[
            "policy",
            "show",
            "s3-read-only",
            "--param",
            "bucket=acme-invoices",
        ])
        .await;
    assert_eq!(shown["effective_policy"], rendered);
    assert!(rendered.to_string().contains("arn:aws:s3:::acme-invoices"));
    let refusals: [(&[&str], &str); 5] = [
        (
            &["--policy", "s3-everything"],
            "\"s3-everything\" is not in the catalogue",
        ),
        (&["--policy", "s3-read-only"], "bucket is missing"),
        (
            &["--policy", "s3-read-only", "--param", "bucket=*"],
            "bucket is not",
        ),
        (
            &["--policy", "s3-read-only", "--param", "bucket=a/*\",\"x"],
            "bucket is not",
        ),
        (
            &[
                "--policy",
                "s3-read-only",
                "--param",
                "bucket=acme",
                "--param",
                "zone=Z1",
            ],
            "no parameter \"zone\"",
        ),
    ];
    for (flags, words) in refusals {
        from(flags)
            .await
            .fails(2, &["grant.policy.template", words]);
    }
    from(&["--policy", "s3-read-only", "--policy-file", "-"])
        .await
        .fails(2, &["cannot be used with"]);
    from(&["--param", "bucket=acme"])
        .await
        .fails(2, &["--policy"]);
    from(&["--policy", "s3-read-only", "--param", "bucket"])
        .await
        .fails(2, &["NAME=VALUE"]);
    from(&bucket).await.ok();
    assert_eq!(version(&broker).await, 1);
}

#[tokio::test]
async fn the_catalogue_is_shown_in_words_and_in_json() {
    let (broker, _) = broker().await;
    let listed = broker.json(&["policy", "list"]).await;
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    let table = broker.run(&["policy", "list"]).await.ok().stdout;
    for wanted in [
        "route53-read-only",
        "route53-full",
        "ec2-snapshot-create",
        "ec2-image-create",
        "s3-read-only",
        "s3-read-write",
        "sqs-consumer",
        "sqs-producer",
        "dynamodb-reader",
        "dynamodb-writer",
        "ses-send",
        "ecr-pull",
        "cloudwatch-put-metrics",
        "kms-use-key",
    ] {
        assert!(names.contains(&wanted), "{wanted} in {names:?}");
        assert!(
            table.lines().any(|line| line.starts_with(wanted)),
            "{wanted} in {table}"
        );
    }
    let shown = broker.json(&["policy", "show", "sqs-consumer"]).await;
    let parameter = &shown["parameters"][0];
    assert_eq!(
        (&parameter["name"], &parameter["required"]),
        (&json!("queue"), &json!(true))
    );
    let example = format!("queue={}", parameter["example"].as_str().unwrap());
    let words = broker
        .run(&["policy", "show", "sqs-consumer"])
        .await
        .ok()
        .stdout;
    assert!(words.contains(&example), "{words}");
    let filled = ["policy", "show", "sqs-consumer", "--param", &example];
    let text: Value = serde_json::from_str(&broker.run(&filled).await.ok().stdout).unwrap();
    assert_eq!(text, broker.json(&filled).await);
    broker
        .run(&["policy", "show", "none"])
        .await
        .fails(5, &["there is no policy none"]);
    let wrong = broker
        .run(&["policy", "show", "sqs-consumer", "--param", "queue=x"])
        .await;
    wrong.fails(2, &["queue is not"]);
}
