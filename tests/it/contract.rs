//! Contract with scripts: JSON field by field, exit statuses, output streams.

mod settings;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Account, Broker, Run, aws::REGION, broker::BINARY, emulator::emulator};

/// A service with a grant of each kind over one bucket, which holds the object `k`.
struct World {
    account: Account,
    broker: Broker,
    bucket: String,
    token: String,
}

impl World {
    async fn new() -> Self {
        let account = Account::new().await;
        let bucket = account.unique("invoices");
        account.root.create_bucket(&bucket).await.unwrap();
        let put = account.root.put_object(&bucket, b"paid");
        put.await.unwrap();
        let statement = json!({"Effect": "Allow", "Action": "s3:GetObject", "Resource": format!("arn:aws:s3:::{bucket}/*")});
        let policy = json!({"Version": "2012-10-17", "Statement": [statement]});
        account.let_admin(&policy).await;
        let role = account.role("credbroker-app", &policy).await;
        let broker = Broker::start(&account).await;
        let token = broker.service("pay").await;
        broker
            .grant("pay/assume", &["--role-arn", &role], &policy)
            .await;
        broker
            .grant("pay/federate", &["--kind", "federation_token"], &policy)
            .await;
        broker
            .grant("pay/user", &["--kind", "iam_user"], &policy)
            .await;
        Self {
            account,
            broker,
            bucket,
            token,
        }
    }

    async fn run(&self, args: &[&str]) -> Run {
        self.broker.run_as(Some(&self.token), args).await
    }

    async fn issue(&self, grant: &str) -> Value {
        self.broker.issue(&self.token, grant).await
    }

    async fn lease(&self, grant: &str) -> String {
        self.issue(grant).await["lease_id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Runs a shell with `credbroker` and the AWS CLI, like the service has it.
    async fn shell(&self, script: &str) -> Run {
        let (aws, credbroker) = (emulator().bin.display(), BINARY.rsplit_once('/').unwrap().0);
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-euc", script])
            .env_clear()
            .env("PATH", format!("{aws}:{credbroker}:{path}"))
            .envs(self.broker.env.iter().cloned())
            .env("CREDBROKER_TOKEN", &self.token)
            .env("AWS_ENDPOINT_URL", &emulator().endpoint)
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            // Token of an earlier session: a user's key must not be mixed with it.
            .env("AWS_SESSION_TOKEN", "stale");
        Run::of(command, "").await
    }
}

#[track_caller]
fn assert_keys(value: &Value, keys: &[&str]) {
    let found: BTreeSet<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(found, keys.iter().copied().collect(), "{value}");
}

/// Asserts that these keys are present; more may be added.
#[track_caller]
fn assert_has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "{key} in {value}");
    }
}

/// RFC 3339 in UTC.
#[track_caller]
fn assert_time(value: &Value) {
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no time"));
    assert!(text.ends_with('Z') && text.contains('T'), "{text}");
    text.parse::<jiff::Timestamp>().unwrap();
}

#[tokio::test]
async fn a_new_token_prints_its_service_id_text_and_expiry() {
    let world = World::new().await;
    let create = ["service", "token", "create", "pay"];
    let made = world.broker.json(&create).await;
    assert_keys(&made, &["service", "token_id", "token", "expires_at"]);
    assert_eq!(
        (&made["service"], &made["expires_at"]),
        (&json!("pay"), &Value::Null)
    );
    let (id, token) = (
        made["token_id"].as_str().unwrap(),
        made["token"].as_str().unwrap(),
    );
    assert!(token.starts_with(&format!("cbs_{id}_")) && token.len() == 80);
    let made = world
        .broker
        .json(&[&create[..], &["--ttl", "90d"]].concat())
        .await;
    assert_time(&made["expires_at"]);
    let listed = world
        .broker
        .json(&["service", "token", "list", "pay"])
        .await;
    assert_eq!(listed.as_array().unwrap().len(), 3);
    assert_keys(
        &listed[1],
        &["service", "token_id", "created_at", "expires_at"],
    );
    for (ttl, words) in [("59s", "1m to 3650d"), ("3651d", "1m to 3650d")] {
        let run = world
            .broker
            .run(&[&create[..], &["--ttl", ttl]].concat())
            .await;
        run.fails(2, &["ttl", words]);
    }
}

#[tokio::test]
async fn issued_credentials_have_the_fields_of_the_contract() {
    let world = World::new().await;
    let kinds = [
        ("assume", "assume_role", true),
        ("federate", "federation_token", true),
        ("user", "iam_user", false),
    ];
    for (grant, kind, session) in kinds {
        let issued = world.issue(grant).await;
        let keys = [
            "service",
            "grant",
            "kind",
            "lease_id",
            "access_key_id",
            "secret_access_key",
            "session_token",
            "expiration",
            "usable_after_seconds",
            "redelivered",
            "receipt",
        ];
        assert_keys(&issued, &keys);
        assert_eq!(issued["usable_after_seconds"].is_null(), session, "{kind}");
        assert_eq!(issued["redelivered"], false);
        let named = [&issued["service"], &issued["grant"], &issued["kind"]];
        assert_eq!(
            named,
            [&json!("pay"), &json!(format!("pay/{grant}")), &json!(kind)]
        );
        assert_eq!(issued["session_token"].is_null(), !session, "{kind}");
        assert_eq!(issued["lease_id"].as_str().unwrap().len(), 26);
        assert_time(&issued["expiration"]);
        let process = world
            .run(&["issue", grant, "-o", "credential-process"])
            .await
            .ok();
        let process = process.json();
        let mut keys = vec!["Version", "AccessKeyId", "SecretAccessKey", "Expiration"];
        keys.extend(session.then_some("SessionToken"));
        assert_keys(&process, &keys);
        assert_eq!(process["Version"], 1);
        assert_time(&process["Expiration"]);
    }
    let full = world.broker.issue(&world.token, "pay/user").await;
    assert_eq!(full["grant"], "pay/user");
}

#[tokio::test]
async fn a_shell_that_evaluates_the_environment_reaches_the_scope_by_the_aws_cli() {
    let world = World::new().await;
    let copy = format!("aws s3 cp s3://{}/k -", world.bucket);
    let before = world.shell(&copy).await;
    assert_ne!(before.code, 0, "without credentials: {before:?}");
    for grant in ["assume", "user"] {
        let script = format!(
            "credentials=$(credbroker issue {grant} -o env); eval \"$credentials\"; {copy}"
        );
        let run = world.shell(&script).await.ok();
        assert_eq!(run.stdout, "paid", "{run:?}");
    }
}

#[tokio::test]
async fn the_aws_cli_takes_credentials_from_the_process_in_its_config_file() {
    let world = World::new().await;
    let process = format!("\"{BINARY}\" credential-process assume");
    let script = format!(
        "file=$(mktemp); export XDG_CACHE_HOME=$(mktemp -d); printf '[default]\\ncredential_process = {process}\\n' >$file; unset AWS_SESSION_TOKEN; \
         AWS_CONFIG_FILE=$file aws s3 cp s3://{}/k -; rm -r $file $XDG_CACHE_HOME",
        world.bucket
    );
    assert_eq!(world.shell(&script).await.ok().stdout, "paid");
}

#[tokio::test]
async fn listed_leases_show_their_state_and_end() {
    let world = World::new().await;
    let (held, ended) = (world.lease("user").await, world.lease("user").await);
    let keys = [
        "lease_id",
        "service",
        "grant",
        "grant_version",
        "kind",
        "state",
        "access_key_id",
        "issued_at",
        "expires_at",
    ];
    let shown = world.broker.json(&["lease", "show", &held]).await;
    assert_has_keys(&shown, &keys);
    assert_eq!(
        (&shown["state"], &shown["grant_version"]),
        (&json!("active"), &json!(1))
    );
    assert_time(&shown["issued_at"]);
    let revoke = ["lease", "revoke", &ended, "--reason", "leaked"];
    assert_eq!(world.broker.json(&revoke).await["state"], "revoked");
    let shown = world.broker.json(&["lease", "show", &ended]).await;
    assert_eq!(shown["reason"], "revoked: leaked");
    assert_time(&shown["ended_at"]);
    let listed = world
        .broker
        .json(&["lease", "list", "--service", "pay"])
        .await;
    let ids: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|l| &l["lease_id"])
        .collect();
    assert_eq!(ids, [&json!(ended), &json!(held)]);
    assert_has_keys(&listed[0], &keys);
    let active = world
        .broker
        .json(&["lease", "list", "--state", "active"])
        .await;
    assert_eq!(active.as_array().unwrap().len(), 1);
    let again = world.broker.run(&revoke).await;
    again.fails(6, &["reason: LEASE_ENDED"]);
}

#[tokio::test]
async fn a_revocation_reports_each_lease_and_its_refusal() {
    let world = World::new().await;
    let (user, session) = (world.lease("user").await, world.lease("assume").await);
    let revoked = world.broker.revoked(&["pay", "--reason", "leaked"]).await;
    assert_keys(
        &revoked,
        &[
            "service",
            "suspended_at",
            "leases",
            "sessions",
            "confirmed",
            "open",
            "receipt",
        ],
    );
    assert_eq!(revoked["open"], json!([]));
    assert_time(&revoked["suspended_at"]);
    assert_eq!(revoked["confirmed"], true);
    let leases = revoked["leases"].as_array().unwrap();
    let lease = |id: &str| leases.iter().find(|lease| lease["lease_id"] == id).unwrap();
    assert_has_keys(
        lease(&user),
        &[
            "lease_id",
            "kind",
            "state",
            "refused_after_seconds",
            "gone_after_seconds",
        ],
    );
    assert_eq!(
        (&lease(&user)["kind"], &lease(&user)["state"]),
        (&json!("iam_user"), &json!("revoked"))
    );
    // The user's key made no call, so AWS refused none.
    assert_eq!(lease(&user)["refused_after_seconds"], Value::Null);
    assert!(lease(&user)["gone_after_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(lease(&session)["state"], "revoked");
    assert!(lease(&session)["refused_after_seconds"].as_f64().unwrap() > 0.0);
    let sessions = &revoked["sessions"][0];
    assert_keys(
        sessions,
        &[
            "holder",
            "refused_after_seconds",
            "notice",
            "denied_until",
            "seen_by",
        ],
    );
    assert_eq!(sessions["seen_by"], "sqs:ListQueues in us-east-1");
    assert_time(&sessions["denied_until"]);
    let shown = world.broker.json(&["service", "show", "pay"]).await;
    let keys = [
        "name",
        "suspended",
        "created_at",
        "suspended_at",
        "suspend_reason",
        "live_leases",
        "last_issued_at",
    ];
    assert_keys(&shown, &keys);
    assert_eq!(
        (&shown["suspended"], &shown["suspend_reason"]),
        (&json!(true), &json!("leaked"))
    );
    assert_eq!(world.account.issued_users().await, [""; 0]);
}

#[tokio::test]
async fn audit_records_operators_and_status_have_the_fields_of_the_contract() {
    let world = World::new().await;
    let keys = [
        "seq",
        "time",
        "event",
        "outcome",
        "actor",
        "service",
        "grant",
        "lease_id",
        "access_key_id",
        "aws_request_id",
        "reason",
    ];
    for record in world.broker.audit().await {
        assert_has_keys(&record, &keys);
        assert_time(&record["time"]);
        let (noun, verb) = record["event"].as_str().unwrap().split_once('.').unwrap();
        assert!(!noun.is_empty() && !verb.contains('.'), "{record}");
    }
    let create = ["operator", "create", "ann", "--role", "grant-admin"];
    let made = world.broker.json(&create).await;
    assert_keys(&made, &["name", "role", "token_id", "token", "created_at"]);
    assert_eq!(
        (&made["name"], &made["role"]),
        (&json!("ann"), &json!("grant-admin"))
    );
    let listed = world.broker.json(&["operator", "list"]).await;
    assert_keys(&listed[1], &["name", "role", "token_id", "created_at"]);
    let status = world.broker.json(&["status"]).await;
    let keys = [
        "version",
        "started_at",
        "admin_arn",
        "aws_error",
        "region",
        "services",
        "grants",
        "live_leases",
        "revoking_leases",
        "audit_records",
    ];
    assert_has_keys(&status, &keys);
    assert_time(&status["started_at"]);
    assert_eq!(
        (&status["services"], &status["grants"]),
        (&json!(1), &json!(3))
    );
    let deleted = world.broker.json(&["operator", "delete", "ann"]).await;
    assert_eq!(deleted, json!({"deleted": "ann"}));
}

#[tokio::test]
async fn a_list_is_an_array_and_an_empty_one_too() {
    let broker = Broker::start(&Account::new().await).await;
    for list in [
        &["service", "list"][..],
        &["grant", "list"],
        &["lease", "list"],
        &["approval", "list"],
    ] {
        assert_eq!(broker.json(list).await, json!([]), "{list:?}");
        let text = broker.run(list).await.ok();
        assert_eq!(
            (text.stdout.as_str(), text.stderr.as_str()),
            ("", "none\n"),
            "{list:?}"
        );
    }
    assert_eq!(
        broker.json(&["audit", "query", "--service", "none"]).await,
        json!([])
    );
    for list in [
        &["operator", "list"][..],
        &["policy", "list"],
        &["audit", "query"],
    ] {
        assert!(broker.json(list).await.is_array(), "{list:?}");
    }
    let lines = broker
        .run(&["audit", "tail", "-o", "json"])
        .await
        .ok()
        .stdout;
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert!(record["seq"].is_u64());
    }
}

#[tokio::test]
async fn whoami_binding_and_enrolment_print_the_fields_of_the_contract() {
    let world = World::new().await;
    let broker = &world.broker;
    let who = broker.json(&["whoami"]).await;
    let known = [
        "actor",
        "role",
        "token_id",
        "evidence",
        "binding",
        "expires_at",
        "peer",
    ];
    assert_keys(&who, &known);
    let bind = ["service", "bind", "pay", "--dns-name", "pay.example"];
    let bound = broker.json(&bind).await;
    let binding = [
        "service",
        "binding_id",
        "spiffe_id",
        "dns_name",
        "enrolled_key_sha256",
        "oidc",
        "created_at",
        "expires_at",
    ];
    assert_keys(&bound, &binding);
    assert_time(&bound["created_at"]);
    let create = ["service", "enroll-token", "create", "pay"];
    let made = broker.json(&create).await;
    assert_keys(&made, &["service", "token_id", "token", "expires_at"]);
    assert_time(&made["expires_at"]);
    let file = |name: &str| broker.state.join(name).display().to_string();
    let (cert, key) = (file("host.pem"), file("host.key"));
    let enroll = [
        "enroll",
        "--client-cert-file",
        &cert,
        "--client-key-file",
        &key,
    ];
    let enrolled = broker.json_as(made["token"].as_str(), &enroll).await;
    assert_keys(
        &enrolled,
        &["cert_file", "key_file", "expires_at", "renewed"],
    );
    assert_time(&enrolled["expires_at"]);
}
