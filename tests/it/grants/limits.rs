//! Limits of grants: the broker refuses at `put` everything that AWS would refuse at issue, names
//! field and bound, and accepts the nearest value that AWS accepts.

use serde_json::{Value, json};

use super::{GRANT, allow, broker, narrow, put};
use crate::harness::Broker;

const ROLE: &str = "arn:aws:iam::123456789012:role/credbroker/app";
const MANAGED: &str = "arn:aws:iam::aws:policy/ReadOnly";

/// Flags that a kind requires.
type Kind = &'static [&'static str];
const ASSUME_ROLE: Kind = &["--role-arn", ROLE];
const FEDERATION: Kind = &["--kind", "federation_token"];
const IAM_USER: Kind = &["--kind", "iam_user"];

struct Limits(Broker);

impl Limits {
    async fn new() -> Self {
        Self(broker().await.0)
    }

    async fn refuses(&self, kind: Kind, flags: &[&str], field: &str, words: &[&str]) {
        self.refuses_with(kind, flags, Some(&narrow()), field, words)
            .await;
    }

    async fn refuses_with(
        &self,
        kind: Kind,
        flags: &[&str],
        policy: Option<&Value>,
        field: &str,
        words: &[&str],
    ) {
        let run = put(&self.0, &[kind, flags].concat(), policy).await;
        let run = run.fails(2, &[&format!("grant.{field}:")]);
        run.fails(2, words);
        self.0.run(&["grant", "show", GRANT]).await.fails(5, &[]);
    }

    async fn takes(&self, kind: Kind, flags: &[&str]) {
        self.takes_with(kind, flags, Some(&narrow())).await;
    }

    async fn takes_with(&self, kind: Kind, flags: &[&str], policy: Option<&Value>) {
        put(&self.0, &[kind, flags].concat(), policy).await.ok();
        self.0.run(&["grant", "delete", GRANT]).await.ok();
    }
}

/// `FLAG VALUE` for each value.
fn each<'a>(flag: &'a str, values: &'a [String]) -> Vec<&'a str> {
    values
        .iter()
        .flat_map(|value| [flag, value.as_str()])
        .collect()
}

fn numbered(count: usize, text: &str) -> Vec<String> {
    (1..=count)
        .map(|number| text.replace('#', &number.to_string()))
        .collect()
}

#[tokio::test]
async fn a_lifetime_outside_the_bounds_of_its_kind_is_refused() {
    let limits = Limits::new().await;
    let bounds = [
        (ASSUME_ROLE, "15m to 12h", "899s", "900s", "12h", "43201s"),
        (FEDERATION, "15m to 1d12h", "899s", "900s", "36h", "129601s"),
        (IAM_USER, "1s to 90d", "0s", "1s", "90d", "7776001s"),
    ];
    for (kind, bounds, below, shortest, longest, above) in bounds {
        let words = if below == "0s" { "above 0" } else { bounds };
        limits
            .refuses(kind, &["--ttl", below], "default_ttl", &[words])
            .await;
        limits
            .takes(kind, &["--ttl", shortest, "--max-ttl", longest])
            .await;
        limits
            .refuses(kind, &["--max-ttl", above], "max_ttl", &[bounds])
            .await;
    }
    let crossed = ["--ttl", "2h", "--max-ttl", "1h"];
    limits
        .refuses(
            IAM_USER,
            &crossed,
            "default_ttl",
            &["2h is above the maximum 1h"],
        )
        .await;
    limits
        .takes(IAM_USER, &["--ttl", "1h", "--max-ttl", "1h"])
        .await;
}

#[tokio::test]
async fn more_managed_policies_groups_or_tags_than_aws_takes_are_refused() {
    let limits = Limits::new().await;
    let policies = numbered(11, "arn:aws:iam::aws:policy/P#");
    for kind in [ASSUME_ROLE, FEDERATION, IAM_USER] {
        let eleven = each("--managed-policy", &policies);
        let words = ["11 managed policies", "10 at most"];
        limits
            .refuses(kind, &eleven, "managed_policy_arns", &words)
            .await;
        limits
            .takes(kind, &each("--managed-policy", &policies[..10]))
            .await;
        let tags = numbered(48, "k#=v");
        limits
            .refuses(kind, &each("--tag", &tags), "tags", &["48 tags", "50"])
            .await;
        limits.takes(kind, &each("--tag", &tags[..47])).await;
    }
    let groups = numbered(11, "group-#");
    let words = ["11 groups", "10 at most"];
    limits
        .refuses(
            IAM_USER,
            &each("--group", &groups),
            "iam_user.groups",
            &words,
        )
        .await;
    limits
        .takes(IAM_USER, &each("--group", &groups[..10]))
        .await;
    let twice = ["--managed-policy", MANAGED, "--managed-policy", MANAGED];
    limits
        .refuses(IAM_USER, &twice, "managed_policy_arns", &["twice"])
        .await;
    let twice = ["--group", "readers", "--group", "Readers"];
    limits
        .refuses(IAM_USER, &twice, "iam_user.groups", &["twice"])
        .await;
}

/// A policy whose document is `size` characters longer than the shortest of its kind.
fn padded(size: usize) -> Value {
    allow(
        "s3:GetObject",
        &format!("arn:aws:s3:::b/{}", "x".repeat(size)),
    )
}

/// Length of the smallest policy as AWS gets it.
async fn smallest(broker: &Broker, flags: &[&str]) -> usize {
    put(broker, flags, Some(&padded(0))).await.ok();
    let shown = broker.json(&["grant", "show", GRANT]).await;
    broker.run(&["grant", "delete", GRANT]).await.ok();
    shown["effective_policy"].to_string().len()
}

#[tokio::test]
async fn a_policy_one_character_over_the_limit_of_aws_is_refused() {
    let limits = Limits::new().await;
    let managed: Kind = &["--role-arn", ROLE, "--managed-policy", MANAGED];
    // The broker ends a user with one more inline policy, which needs room as well.
    let cases = [
        (ASSUME_ROLE, 2048),
        (FEDERATION, 2048),
        (managed, 2048 - MANAGED.len()),
        (IAM_USER, 2048 - r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}"#.len()),
    ];
    for (kind, most) in cases {
        let room = most - smallest(&limits.0, kind).await;
        limits.takes_with(kind, &[], Some(&padded(room))).await;
        let over = (if kind == managed { 2049 } else { most + 1 }).to_string();
        let words = [
            format!("has {over} characters"),
            (over.parse::<usize>().unwrap() - 1).to_string(),
        ];
        let words = words.each_ref().map(String::as_str);
        limits
            .refuses_with(kind, &[], Some(&padded(room + 1)), "policy", &words)
            .await;
    }
}

#[tokio::test]
async fn a_tag_that_aws_would_refuse_is_refused() {
    let limits = Limits::new().await;
    let (key, value) = ("k".repeat(128), "v".repeat(256));
    let wrong = [
        ("=v".to_owned(), "\"\" is no tag key"),
        (format!("{key}k=v"), "is no tag key: 1 to 128"),
        ("a#b=v".to_owned(), "\"a#b\" is no tag key"),
        ("AWS:team=v".to_owned(), "is no tag key"),
        (
            "credbroker:service=billing".to_owned(),
            "are the broker's own",
        ),
        ("CredBroker:lease=x".to_owned(), "are the broker's own"),
        (
            format!("team={value}v"),
            "the value of \"team\" must be up to 256",
        ),
        ("team=a;b".to_owned(), "the value of \"team\""),
    ];
    for kind in [ASSUME_ROLE, IAM_USER] {
        for (tag, words) in &wrong {
            limits
                .refuses(kind, &["--tag", tag], "tags", &[words])
                .await;
        }
        let twice = ["--tag", "team=a", "--tag", "Team=b"];
        limits
            .refuses(kind, &twice, "tags", &["the same tag key twice"])
            .await;
    }
    let (longest, odd) = (format!("{key}={value}"), "Größe 2 _.:/=+-@=é _.:/+-@");
    limits
        .takes(
            IAM_USER,
            &["--tag", &longest, "--tag", odd, "--tag", "empty="],
        )
        .await;
}

#[tokio::test]
async fn a_role_or_policy_that_is_not_this_brokers_to_use_is_refused() {
    let limits = Limits::new().await;
    let wrong = [
        ("app", "is not the ARN of a role"),
        (
            "arn:aws:iam::123456789012:user/app",
            "is not the ARN of a role",
        ),
        ("arn:aws:iam::1234:role/app", "is not an AWS account number"),
        ("arn:aws:iam::123456789012:role/", "is not allowed"),
        ("arn:aws:iam::123456789012:role/a b", "is not allowed"),
        (
            "arn:aws:iam::123456789012:role/aws-service-role/x.amazonaws.com/X",
            "service-linked",
        ),
        (
            "arn:aws-cn:iam::123456789012:role/app",
            "not in partition aws",
        ),
    ];
    for (arn, words) in wrong {
        let flags = ["--kind", "assume_role", "--role-arn", arn];
        limits
            .refuses(&[], &flags, "assume_role.role_arn", &[words])
            .await;
    }
    limits.takes(ASSUME_ROLE, &[]).await;
    let elsewhere = [
        "--managed-policy",
        "arn:aws-us-gov:iam::aws:policy/ReadOnly",
    ];
    limits
        .refuses(
            ASSUME_ROLE,
            &elsewhere,
            "managed_policy_arns",
            &["not in partition aws"],
        )
        .await;
    let other = ["--managed-policy", "arn:aws:iam::999999999999:policy/P"];
    limits
        .refuses(
            ASSUME_ROLE,
            &other,
            "managed_policy_arns",
            &["own account, 123456789012"],
        )
        .await;
    limits
        .refuses(
            ASSUME_ROLE,
            &["--managed-policy", ROLE],
            "managed_policy_arns",
            &["ARN of a managed policy"],
        )
        .await;
    limits
        .takes(
            ASSUME_ROLE,
            &["--managed-policy", "arn:aws:iam::123456789012:policy/P"],
        )
        .await;
}

#[tokio::test]
async fn a_name_path_or_region_that_aws_would_refuse_is_refused() {
    let limits = Limits::new().await;
    let long_id = "x".repeat(1225);
    for id in ["x", "a b", &long_id] {
        let words = ["2 to 1,224"];
        limits
            .refuses(
                ASSUME_ROLE,
                &["--external-id", id],
                "assume_role.external_id",
                &words,
            )
            .await;
    }
    limits
        .takes(ASSUME_ROLE, &["--external-id", &long_id[..1224]])
        .await;
    for (region, words) in [
        ("Europe", "is no region"),
        ("cn-north-1", "not in partition aws"),
    ] {
        limits
            .refuses(
                ASSUME_ROLE,
                &["--region", region],
                "assume_role.region",
                &[words],
            )
            .await;
        limits
            .refuses(
                FEDERATION,
                &["--region", region],
                "federation_token.region",
                &[words],
            )
            .await;
    }
    limits
        .takes(FEDERATION, &["--region", "eu-central-1"])
        .await;
    for path in ["apps", "/apps", "/a//b/", "/a b/"] {
        limits
            .refuses(IAM_USER, &["--path", path], "iam_user.path", &["/name/…/"])
            .await;
    }
    limits.takes(IAM_USER, &["--path", "/apps/team/"]).await;
    let long_group = "g".repeat(129);
    for group in ["a b", "a/b", "", &long_group] {
        limits
            .refuses(
                IAM_USER,
                &["--group", group],
                "iam_user.groups",
                &["is no group name"],
            )
            .await;
    }
    limits
        .takes(IAM_USER, &["--group", &long_group[..128]])
        .await;
    let boundary = [
        "--permissions-boundary",
        "arn:aws:iam::123456789012:policy/B",
    ];
    limits
        .refuses(
            IAM_USER,
            &boundary,
            "allow_broad",
            &["takes the place of the broker's"],
        )
        .await;
    limits
        .takes(IAM_USER, &[&boundary[..], &["--allow-broad"]].concat())
        .await;
}

#[tokio::test]
async fn a_grant_without_policies_that_permits_nothing_is_refused() {
    let limits = Limits::new().await;
    for kind in [FEDERATION, IAM_USER] {
        let words = ["without any policy can do nothing"];
        limits.refuses_with(kind, &[], None, "policy", &words).await;
        limits
            .takes_with(kind, &["--managed-policy", MANAGED], None)
            .await;
    }
    limits
        .takes_with(IAM_USER, &["--group", "readers"], None)
        .await;
    limits.takes_with(ASSUME_ROLE, &[], None).await;
}

#[tokio::test]
async fn a_document_that_aws_would_not_take_is_refused_with_its_fault() {
    let limits = Limits::new().await;
    let with = |field: &str, value: Value| {
        let mut policy = narrow();
        policy["Statement"][0][field] = value;
        policy.to_string()
    };
    let faults = [
        ("{".to_owned(), "is not valid JSON"),
        ("[]".to_owned(), "must be"),
        (r#"{"Version":"2012-10-17"}"#.to_owned(), "has no Statement"),
        (
            narrow().to_string().replace("2012-10-17", "2008-10-17"),
            "Version",
        ),
        (with("Principal", json!("*")), "Principal"),
        (with("Effect", json!("allow")), "Effect"),
        (with("Action", json!("GetObject")), "Action"),
        (with("Action", json!([])), "Action: is empty"),
        (with("Resource", json!("my-bucket")), "Resource"),
        (with("Sid", json!("a b")), "Sid"),
        (with("Actions", json!("s3:GetObject")), "unknown key"),
        (
            with(
                "Condition",
                json!({"StringIs": {"aws:PrincipalTag/a": "b"}}),
            ),
            "condition operator",
        ),
        (format!("{}{}", narrow(), " ".repeat(70_000)), "too"),
    ];
    let args = [
        "grant",
        "put",
        GRANT,
        "--kind",
        "iam_user",
        "--policy-file",
        "-",
    ];
    for (document, words) in faults {
        let run = limits.0.run_in(None, &args, &document).await;
        run.fails(2, &[words]);
        limits.0.run(&["grant", "show", GRANT]).await.fails(5, &[]);
    }
    limits.takes(IAM_USER, &[]).await;
}

#[tokio::test]
async fn a_grant_with_an_invalid_name_or_unknown_service_is_refused() {
    let limits = Limits::new().await;
    for name in [
        "work",
        "payments-api/",
        "Payments/work",
        "payments-api/a/b",
        "payments-api/-w",
    ] {
        let args = [
            "grant",
            "put",
            "--kind",
            "iam_user",
            "--managed-policy",
            MANAGED,
            "--",
            name,
        ];
        limits.0.run(&args).await.fails(2, &["grant.name"]);
    }
    let nobody = [
        "grant",
        "put",
        "nobody/work",
        "--kind",
        "iam_user",
        "--managed-policy",
        MANAGED,
    ];
    limits
        .0
        .run(&nobody)
        .await
        .fails(5, &["there is no service nobody"]);
}
