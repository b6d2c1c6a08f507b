//! `deploy/aws/bootstrap.sh` with the AWS CLI, on an empty account, on one that an earlier version
//! has prepared and on another than the broker's, and a broker with its result.

use std::{os::unix::fs::PermissionsExt, path::Path};

use aws_sdk_iam::types::Role;
use aws_sdk_sts::error::ProvideErrorMetadata;
use aws_sdk_sts::types::Tag;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::{
    Account, Broker, Key, Run,
    aws::{REGION, admin_boundary_policy, admin_policy, name_scoped, revoker_policy},
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

/// Default version of a policy under the broker's path.
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
    let boundary = serde_json::to_value(credbroker::domain::policy::boundary()).unwrap();
    assert_eq!(policy(account, "credbroker-boundary").await, boundary);
    let made = policy(account, "credbroker-admin").await;
    assert_eq!(made, admin_policy(&account.id));
    let made = policy(account, "credbroker-admin-boundary").await;
    assert_eq!(made, admin_boundary_policy(&account.id));
    let user = iam.get_user().user_name("credbroker-admin").send().await;
    let bound = user.unwrap().user.unwrap().permissions_boundary.unwrap();
    assert_eq!(
        bound.permissions_boundary_arn.unwrap(),
        account.boundary().replace("-boundary", "-admin-boundary")
    );
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
    let role = role(account, "credbroker-example").await;
    assert_eq!(role.path, "/credbroker/");
    let bound = role.permissions_boundary.unwrap();
    assert_eq!(bound.permissions_boundary_arn.unwrap(), account.boundary());
    assert_eq!(
        decoded(&role.assume_role_policy_document.unwrap()),
        account.trust_policy()
    );
}

async fn role(account: &Account, name: &str) -> Role {
    let role = account.root.iam().get_role().role_name(name).send().await;
    role.unwrap().role.unwrap()
}

/// Replaces a policy with a rendering that the emulator can judge.
async fn scope_by_name(account: &Account, name: &str, shipped: Value) {
    let arn = format!("arn:aws:iam::{}:policy/credbroker/{name}", account.id);
    let version = account.root.iam().create_policy_version().policy_arn(arn);
    let version = version.policy_document(name_scoped(shipped, &account.id).to_string());
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

/// Creates two buckets with an object each; the role may read the first.
async fn buckets(account: &Account) -> [String; 2] {
    let names = [account.unique("reports"), account.unique("payroll")];
    for name in &names {
        account.root.create_bucket(name).await.unwrap();
        account.root.put_object(name, b"v").await.unwrap();
    }
    names
}

/// Asserts that a second run finds everything in place, and keeps an existing file.
async fn assert_a_second_run_changes_nothing(account: &Account, key_file: &str, bucket: &str) {
    let second = bootstrap(account, &["--example-bucket", bucket]).await.ok();
    assert!(second.stdout.contains("Nothing was changed"), "{second:#?}");
    let key = std::fs::read(key_file).unwrap();
    let refused = bootstrap(account, &["--key-file", key_file]).await;
    refused.fails(1, &["exists already: nothing was changed"]);
    assert_eq!(std::fs::read(key_file).unwrap(), key);
}

/// Asserts that a session of the example role, issued by the broker, reads the one bucket.
async fn assert_works(account: &Account, key_file: &Path, [inside, outside]: [String; 2]) {
    let (policy, bound) = (
        admin_policy(&account.id),
        admin_boundary_policy(&account.id),
    );
    scope_by_name(account, "credbroker-admin", policy).await;
    scope_by_name(account, "credbroker-admin-boundary", bound).await;
    let broker = broker_with(key_file).await;
    let token = broker.service("reporting").await;
    let arn = |what: &str| format!("arn:aws:iam::{}:{what}", account.id);
    let role = arn("role/credbroker/credbroker-example");
    broker
        .run(&["grant", "put", "reporting/read", "--role-arn", &role])
        .await
        .ok();
    let key = Key::issued(&broker.issue(&token, "read").await);
    key.get_object(&inside).await.unwrap();
    let denied = Err("AccessDenied".to_owned());
    assert_eq!(key.get_object(&outside).await, denied);
    assert_eq!(key.put_object(&inside, b"").await, denied);
    let status = broker.json(&["status"]).await;
    assert_eq!(status["admin_arn"], json!(arn("user/credbroker-admin")));
}

/// Slow for its forty starts of the AWS CLI.
#[tokio::test]
async fn bootstrap_prepares_an_account_once_and_the_broker_works_with_its_key() {
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
        "changes made: 8",
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

/// Prepares an account like the first version of the script: with the boundary of issued users
/// alone.
async fn prepare_as_before(account: &Account) {
    let iam = account.root.iam();
    let make = async |name: &str, document: &str| {
        let make = iam.create_policy().path("/credbroker/").policy_name(name);
        let answer = make.policy_document(document).send().await.unwrap();
        answer.policy.unwrap().arn.unwrap()
    };
    let boundary = include_str!("../../deploy/aws/boundary-policy.json");
    make("credbroker-boundary", boundary).await;
    let policy = make("credbroker-admin", &stepped::policy().to_string()).await;
    let user = iam.create_user().user_name("credbroker-admin");
    user.send().await.unwrap();
    let attach = iam
        .attach_user_policy()
        .user_name("credbroker-admin")
        .policy_arn(policy);
    attach.send().await.unwrap();
    let role = iam
        .create_role()
        .path("/credbroker/")
        .role_name("credbroker-example");
    let role = role.assume_role_policy_document(account.trust_policy().to_string());
    role.send().await.unwrap();
}

#[tokio::test]
async fn an_account_prepared_by_an_earlier_version_gets_its_boundaries() {
    let account = Account::empty();
    prepare_as_before(&account).await;
    let upgraded = bootstrap(&account, &[]).await.ok();
    for said in [
        "credbroker-admin differed from the file",
        "credbroker-admin-boundary on it: it had none",
        "credbroker-boundary on it: it had none",
        "changes made: 4",
    ] {
        assert!(upgraded.stdout.contains(said), "{said} in {upgraded:#?}");
    }
    assert_made(&account).await;
}

/// Session of the broker's user in the role with which it revokes in another account.
async fn as_revoker(home: &Account, member: &Account) -> Key {
    let role = format!(
        "arn:aws:iam::{}:role/credbroker/credbroker-revoker",
        member.id
    );
    let tag = Tag::builder().key("credbroker:service").value("pay");
    let assume = home.admin.sts().assume_role().role_arn(role);
    let assume = assume.role_session_name("revoker");
    // A session issued to a service would have this tag.
    let tagged = assume.clone().tags(tag.build().unwrap()).send().await;
    assert_eq!(tagged.unwrap_err().code(), Some("AccessDenied"));
    let session = assume.send().await.unwrap().credentials.unwrap();
    Key {
        id: session.access_key_id,
        secret: session.secret_access_key,
        token: Some(session.session_token),
    }
}

/// Asserts that the revoker can deny on roles, manage and attach its policy, and do nothing else.
async fn assert_denies_and_nothing_else(revoker: &Key, member: &Account) {
    let (iam, denials) = (revoker.iam(), "credbroker-denials-0123456789");
    let deny = json!({"Version": "2012-10-17", "Statement": {"Effect": "Deny", "Action": "*", "Resource": "*"}});
    let role = member.unique("credbroker-app");
    let put = iam.put_role_policy().policy_name(denials);
    let put = put.policy_document(deny.to_string());
    put.clone().role_name(&role).send().await.unwrap();
    let elsewhere = put.role_name("another").send().await.unwrap_err();
    assert_eq!(elsewhere.code(), Some("AccessDenied"));
    let make = iam
        .create_policy()
        .path("/credbroker/")
        .policy_name(denials);
    let answer = make.policy_document(deny.to_string()).send().await.unwrap();
    let attach = iam.attach_role_policy().role_name(&role);
    let attach = attach.policy_arn(answer.policy.unwrap().arn.unwrap());
    attach.send().await.unwrap();
    let user = iam.create_user().user_name("mallory").send().await;
    assert_eq!(user.unwrap_err().code(), Some("AccessDenied"));
    let trust = iam.update_assume_role_policy().role_name(&role);
    let trust = trust.policy_document(deny.to_string()).send().await;
    assert_eq!(trust.unwrap_err().code(), Some("AccessDenied"));
}

#[tokio::test]
async fn an_account_beside_the_brokers_gets_a_role_that_denies_sessions_there() {
    let (home, member) = (Account::new().await, Account::empty());
    let user = format!("arn:aws:iam::{}:user/credbroker-admin", home.id);
    let first = bootstrap(&member, &["--member-of", &user]).await.ok();
    assert!(first.stdout.contains("changes made: 4"), "{first:#?}");
    let second = bootstrap(&member, &["--member-of", &user]).await.ok();
    assert!(second.stdout.contains("Nothing was changed"), "{second:#?}");
    let made = policy(&member, "credbroker-revoker").await;
    assert_eq!(made, revoker_policy(&member.id));
    let users = member.root.iam().list_users().send().await.unwrap().users;
    assert!(users.is_empty());

    scope_by_name(&member, "credbroker-revoker", made).await;
    member.role("credbroker-app", &stepped::policy()).await;
    let revoker = as_revoker(&home, &member).await;
    assert_denies_and_nothing_else(&revoker, &member).await;
}

#[tokio::test]
async fn bootstrap_refuses_the_brokers_own_account_as_a_member() {
    let account = Account::empty();
    let own = format!("arn:aws:iam::{}:user/credbroker-admin", account.id);
    let refused = bootstrap(&account, &["--member-of", &own]).await;
    refused.fails(1, &["is of this account", "nothing was changed"]);
    let partition = own.replace("arn:aws:", "arn:aws-cn:");
    let refused = bootstrap(&account, &["--member-of", &partition]).await;
    refused.fails(1, &["is of another partition", "nothing was changed"]);
}

#[tokio::test]
async fn a_mistyped_option_changes_nothing() {
    let account = Account::empty();
    for (args, said) in [
        (&["--bucket"][..], "unknown option: --bucket"),
        (&["--member-of", "someone"], "not the ARN of an IAM user"),
        (
            &[
                "--no-example-role",
                "--member-of",
                "arn:aws:iam::123456789012:user/x",
            ],
            "goes with no other option",
        ),
    ] {
        bootstrap(&account, args).await.fails(2, &[said]);
    }
    let users = account.root.iam().list_users().send().await.unwrap().users;
    assert!(users.is_empty());
}

#[tokio::test]
async fn bootstrap_makes_no_user_before_the_boundary_is_effective() {
    let (world, kept) = (Stepped::new().await, "credbroker-boundary");
    let iam = world.account.root.iam();
    let boundary = world.account.boundary();
    // AWS keeps a boundary that is in use.
    let role = world.account.unique("credbroker-any");
    let lift = iam.delete_role_permissions_boundary().role_name(role);
    lift.send().await.unwrap();
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
