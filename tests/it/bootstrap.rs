//! `deploy/aws/bootstrap.sh` on an empty account, with the AWS CLI, and a broker on the
//! account that it leaves.

use std::{os::unix::fs::PermissionsExt, path::Path};

use aws_sdk_s3::error::ProvideErrorMetadata;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::{
    Account, Broker, Key, Run,
    aws::{REGION, admin_policy, name_scoped_admin_policy},
    broker::credbroker,
    emulator::emulator,
    stepped::{self, Stepped},
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/aws/bootstrap.sh");

async fn bootstrap(account: &Account, args: &[&str]) -> Run {
    let mut command = Command::new("sh");
    let path = std::env::var("PATH").unwrap();
    command
        .arg(SCRIPT)
        .args(args)
        .env_clear()
        .env("PATH", format!("{}:{path}", emulator().bin.display()))
        .env("AWS_ACCESS_KEY_ID", &account.root.id)
        .env("AWS_SECRET_ACCESS_KEY", &account.root.secret)
        .env("AWS_REGION", REGION)
        .env("AWS_ENDPOINT_URL", &emulator().endpoint);
    Run::of(command, "").await
}

fn decoded(document: &str) -> Value {
    let text = percent_encoding::percent_decode_str(document)
        .decode_utf8()
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The default version of a policy under the broker's path.
async fn policy(account: &Account, name: &str) -> Value {
    let iam = account.root.iam();
    let arn = format!("arn:aws:iam::{}:policy/credbroker/{name}", account.id);
    let policy = iam
        .get_policy()
        .policy_arn(&arn)
        .send()
        .await
        .unwrap()
        .policy
        .unwrap();
    let version = iam
        .get_policy_version()
        .policy_arn(arn)
        .version_id(policy.default_version_id.unwrap());
    decoded(
        &version
            .send()
            .await
            .unwrap()
            .policy_version
            .unwrap()
            .document
            .unwrap(),
    )
}

async fn assert_made(account: &Account) {
    let iam = account.root.iam();
    assert_eq!(
        policy(account, "credbroker-admin").await,
        admin_policy(&account.id)
    );
    let boundary = serde_json::to_value(credbroker::domain::policy::boundary()).unwrap();
    assert_eq!(policy(account, "credbroker-boundary").await, boundary);
    let attached = iam
        .list_attached_user_policies()
        .user_name("credbroker-admin");
    let attached = attached
        .send()
        .await
        .unwrap()
        .attached_policies
        .unwrap_or_default();
    let names: Vec<_> = attached
        .iter()
        .filter_map(|policy| policy.policy_name())
        .collect();
    assert_eq!(names, ["credbroker-admin"]);
    let role = iam
        .get_role()
        .role_name("credbroker-example")
        .send()
        .await
        .unwrap()
        .role
        .unwrap();
    assert_eq!(role.path, "/credbroker/");
    assert_eq!(
        decoded(&role.assume_role_policy_document.unwrap()),
        account.trust_policy()
    );
}

/// Gives the admin user the rendering that the emulator can judge.
async fn scope_by_name(account: &Account) {
    let arn = format!(
        "arn:aws:iam::{}:policy/credbroker/credbroker-admin",
        account.id
    );
    let version = account.root.iam().create_policy_version().policy_arn(arn);
    let version = version.policy_document(name_scoped_admin_policy(&account.id));
    version.set_as_default(true).send().await.unwrap();
}

async fn broker_with(key_file: &Path) -> Broker {
    Broker::start_by(|state| {
        let (state, endpoint) = (state.to_str().unwrap(), &emulator().endpoint);
        let mut command = credbroker(&["dev", "--state-dir", state, "--aws-endpoint", endpoint]);
        command
            .env("AWS_SHARED_CREDENTIALS_FILE", key_file)
            .env("AWS_REGION", REGION);
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command
    })
    .await
}

/// Two buckets with an object each, of which the role may read the first.
async fn buckets(account: &Account) -> [String; 2] {
    let names = [account.unique("reports"), account.unique("payroll")];
    for name in &names {
        let s3 = account.root.s3();
        s3.create_bucket().bucket(name).send().await.unwrap();
        s3.put_object()
            .bucket(name)
            .key("k")
            .body(b"v".to_vec().into())
            .send()
            .await
            .unwrap();
    }
    names
}

/// What it makes, it finds made, and a file that is there it leaves alone.
async fn assert_a_second_run_changes_nothing(account: &Account, key_file: &str, bucket: &str) {
    let second = bootstrap(account, &["--example-bucket", bucket]).await.ok();
    assert!(second.stdout.contains("Nothing was changed"), "{second:#?}");
    let key = std::fs::read(key_file).unwrap();
    let refused = bootstrap(account, &["--key-file", key_file]).await;
    refused.fails(1, &["exists already: nothing was changed"]);
    assert_eq!(std::fs::read(key_file).unwrap(), key);
}

/// The example role reads the one bucket, by the broker's hands.
async fn assert_works(account: &Account, key_file: &Path, [inside, outside]: [String; 2]) {
    scope_by_name(account).await;
    let broker = broker_with(key_file).await;
    let token = broker.service("reporting").await;
    let arn = |what: &str| format!("arn:aws:iam::{}:{what}", account.id);
    let role = arn("role/credbroker/credbroker-example");
    broker
        .run(&["grant", "put", "reporting/read", "--role-arn", &role])
        .await
        .ok();
    let key = Key::issued(&broker.issue(&token, "read").await);
    let get = async |bucket: &str| key.s3().get_object().bucket(bucket).key("k").send().await;
    get(&inside).await.unwrap();
    assert_eq!(
        get(&outside).await.unwrap_err().code(),
        Some("AccessDenied")
    );
    let put = key.s3().put_object().bucket(&inside).key("k").send().await;
    assert_eq!(put.unwrap_err().code(), Some("AccessDenied"));
    let status = broker.json(&["status"]).await;
    assert_eq!(status["admin_arn"], json!(arn("user/credbroker-admin")));
}

/// Slow for its thirty starts of the AWS CLI.
#[tokio::test]
async fn bootstrap_makes_what_it_says_once_and_the_broker_works_with_its_key() {
    let (account, home) = (Account::empty(), TempDir::new().unwrap());
    let buckets = buckets(&account).await;
    let key_file = home.path().join("key");
    let key_arg = key_file.to_str().unwrap();
    let args = ["--key-file", key_arg, "--example-bucket", &buckets[0]];
    let first = bootstrap(&account, &args).await.ok();
    for said in [
        "made policy",
        "made user",
        "attached policy",
        "made role",
        "made access key",
        "changes made: 7",
    ] {
        assert!(first.stdout.contains(said), "{said} in {first:#?}");
    }
    assert_made(&account).await;
    let mode = std::fs::metadata(&key_file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let key = std::fs::read_to_string(&key_file).unwrap();
    let secret = key
        .lines()
        .find_map(|line| line.strip_prefix("aws_secret_access_key = "))
        .unwrap();
    assert!(!(first.stdout + &first.stderr).contains(secret));
    assert_a_second_run_changes_nothing(&account, key_arg, &buckets[0]).await;
    assert_works(&account, &key_file, buckets).await;
}

#[tokio::test]
async fn a_mistyped_option_changes_nothing() {
    let account = Account::empty();
    bootstrap(&account, &["--bucket"])
        .await
        .fails(2, &["unknown option: --bucket"]);
    let users = account.root.iam().list_users().send().await.unwrap().users;
    assert!(users.is_empty());
}

#[tokio::test]
async fn no_user_is_made_before_the_boundary_has_been_seen_to_bound() {
    let (world, kept) = (Stepped::new().await, "credbroker-boundary");
    let iam = world.account.root.iam();
    let boundary = format!("arn:aws:iam::{}:policy/credbroker/{kept}", world.account.id);
    let delete = async || {
        iam.delete_policy()
            .policy_arn(&boundary)
            .send()
            .await
            .unwrap()
    };
    let make = async |document: &str| {
        let make = iam.create_policy().path("/credbroker/").policy_name(kept);
        make.policy_document(document).send().await.unwrap();
    };
    delete().await;
    let missing = world.issue("user").await.unwrap_err();
    assert_eq!(missing.reason(), "BOUNDARY_MISSING");
    make(&stepped::policy().to_string()).await;
    let weak = world.issue("user").await.unwrap_err();
    assert_eq!(weak.reason(), "BOUNDARY_WEAK");
    assert!(world.proxy.calls("CreateUser").is_empty());
    delete().await;
    make(include_str!("../../deploy/aws/boundary-policy.json")).await;
    world.issue("user").await.unwrap();
}
