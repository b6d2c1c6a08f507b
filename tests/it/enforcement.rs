//! Enforcement by AWS of issued credentials. Every refusal stands beside a call that must succeed;
//! `without_enforcement_every_refusal_test_fails` runs the refusals against an emulator that
//! enforces nothing, where each must fail.

use std::process::Stdio;

use aws_sdk_sts::error::ProvideErrorMetadata;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Account, Broker, Key, emulator::ENFORCEMENT, stored::skipped_over_postgres};

/// The tests below whose point is a refusal by AWS.
const REFUSALS: [&str; 9] = [
    "an_assume_role_grant_reaches_its_scope_and_no_further",
    "a_federation_grant_reaches_its_scope_and_no_further",
    "an_iam_user_grant_reaches_its_scope_and_no_further",
    "a_session_policy_cannot_widen_its_role",
    "a_wrong_secret_is_refused",
    "a_released_key_is_refused",
    "the_boundary_holds_against_a_policy_that_allows_iam",
    "an_unnarrowed_role_session_cannot_mint_credentials",
    "revoking_one_service_leaves_its_neighbours_working",
];

/// A bucket, a queue and a table in scope, and one of each out of scope.
pub(crate) struct World {
    pub(crate) account: Account,
    pub(crate) broker: Broker,
    pub(crate) bucket: String,
    other_bucket: String,
    pub(crate) queue: String,
    other_queue: String,
    pub(crate) table: String,
    other_table: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        let account = Account::new().await;
        let root = &account.root;
        let (bucket, other_bucket) = (account.unique("inside"), account.unique("outside"));
        let (table, other_table) = (account.unique("orders"), account.unique("salaries"));
        for name in [&bucket, &other_bucket] {
            root.create_bucket(name).await.unwrap();
            root.put_object(name, b"v").await.unwrap();
        }
        let queue = root.create_queue(&account.unique("jobs")).await.unwrap();
        let other_queue = root.create_queue(&account.unique("payroll")).await.unwrap();
        for name in [&table, &other_table] {
            root.create_table(name).await.unwrap();
        }
        let broker = Broker::start(&account).await;
        Self {
            account,
            broker,
            bucket,
            other_bucket,
            queue,
            other_queue,
            table,
            other_table,
        }
    }

    /// Policy that allows reads of the bucket, sends to the queue and reads of the table alone.
    pub(crate) fn narrow_policy(&self) -> Value {
        let (account, queue) = (&self.account.id, self.account.unique("jobs"));
        json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": format!("arn:aws:s3:::{}/*", self.bucket)},
            {"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": format!("arn:aws:sqs:us-east-1:{account}:{queue}")},
            {"Effect": "Allow", "Action": "dynamodb:GetItem", "Resource": format!("arn:aws:dynamodb:us-east-1:{account}:table/{}", self.table)},
        ]})
    }

    /// Policy that allows all of S3, SQS and DynamoDB.
    pub(crate) fn wide_policy() -> Value {
        json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": ["s3:*", "sqs:*", "dynamodb:*"], "Resource": "*"},
        ]})
    }

    /// Asserts that everything inside the narrow policy works, and the nearest outside does not.
    async fn assert_narrow(&self, key: &Key) {
        assert!(self.reaches_all(key).await);
        refused("another bucket", key.get_object(&self.other_bucket).await);
        let written = key.put_object(&self.bucket, b"w").await;
        refused("writing to the bucket", written);
        refused("another queue", key.send_message(&self.other_queue).await);
        let received = key.receive_message(&self.queue).await;
        refused("receiving from the queue", received);
        refused("another table", key.get_item(&self.other_table).await);
        refused("writing to the table", key.put_item(&self.table).await);
    }

    /// Returns whether everything inside the narrow policy works.
    pub(crate) async fn reaches_all(&self, key: &Key) -> bool {
        let calls = [
            key.get_object(&self.bucket).await,
            key.send_message(&self.queue).await,
            key.get_item(&self.table).await,
        ];
        calls.iter().all(Result::is_ok)
    }

    async fn assert_dead(&self, key: &Key) {
        refused("reading the bucket", key.get_object(&self.bucket).await);
        refused("sending to the queue", key.send_message(&self.queue).await);
        refused("reading the table", key.get_item(&self.table).await);
    }
}

/// The code of an error that the SDK returned.
fn answer<T, E: ProvideErrorMetadata + std::fmt::Debug>(result: Result<T, E>) -> Result<T, String> {
    let code = |error: &E| error.code().map(ToOwned::to_owned);
    result.map_err(|error| code(&error).unwrap_or_else(|| format!("{error:?}")))
}

/// Asserts that AWS refused because of permissions or an invalid key, not for another reason.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, String>) {
    let code = answer.expect_err(&format!("REFUSAL EXPECTED: {what}"));
    let denials = [
        "AccessDenied",
        "AccessDeniedException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
        "InvalidSignatureException",
    ];
    assert!(denials.contains(&code.as_str()), "{what}: {code}");
}

#[tokio::test]
async fn an_assume_role_grant_reaches_its_scope_and_no_further() {
    let world = World::new().await;
    let role = world
        .account
        .role("credbroker-wide", &World::wide_policy())
        .await;
    let token = world.broker.service("payments-api").await;
    world
        .broker
        .grant(
            "payments-api/work",
            &["--role-arn", &role],
            &world.narrow_policy(),
        )
        .await;
    let key = Key::issued(&world.broker.issue(&token, "work").await);
    assert!(key.token.is_some());
    world.assert_narrow(&key).await;
}

#[tokio::test]
async fn a_federation_grant_reaches_its_scope_and_no_further() {
    let world = World::new().await;
    // A federation session can do what the admin user itself can, narrowed.
    world.account.let_admin(&World::wide_policy()).await;
    let token = world.broker.service("payments-api").await;
    world
        .broker
        .grant(
            "payments-api/work",
            &["--kind", "federation_token"],
            &world.narrow_policy(),
        )
        .await;
    let key = Key::issued(&world.broker.issue(&token, "work").await);
    assert!(key.token.is_some());
    world.assert_narrow(&key).await;
}

#[tokio::test]
async fn an_iam_user_grant_reaches_its_scope_and_no_further() {
    let world = World::new().await;
    let token = world.broker.service("payments-api").await;
    world
        .broker
        .grant(
            "payments-api/work",
            &["--kind", "iam_user"],
            &world.narrow_policy(),
        )
        .await;
    let key = Key::issued(&world.broker.issue(&token, "work").await);
    assert!(key.token.is_none());
    world.assert_narrow(&key).await;
}

#[tokio::test]
async fn managed_policies_and_groups_grant_their_permissions() {
    let world = World::new().await;
    let iam = world.account.root.iam();
    let made = iam
        .create_policy()
        .policy_name("reads")
        .policy_document(world.narrow_policy().to_string());
    let arn = made.send().await.unwrap().policy.unwrap().arn.unwrap();
    iam.create_group()
        .group_name("readers")
        .path("/credbroker/")
        .send()
        .await
        .unwrap();
    iam.attach_group_policy()
        .group_name("readers")
        .policy_arn(&arn)
        .send()
        .await
        .unwrap();
    let role = world
        .account
        .role("credbroker-wide", &World::wide_policy())
        .await;
    let token = world.broker.service("payments-api").await;
    let grants: [(&str, Vec<&str>); 3] = [
        ("user", vec!["--kind", "iam_user", "--managed-policy", &arn]),
        ("member", vec!["--kind", "iam_user", "--group", "readers"]),
        (
            "session",
            vec!["--role-arn", &role, "--managed-policy", &arn],
        ),
    ];
    for (grant, flags) in grants {
        let name = format!("payments-api/{grant}");
        let args: Vec<&str> = ["grant", "put", name.as_str()]
            .into_iter()
            .chain(flags)
            .collect();
        world.broker.run(&args).await.ok();
        world
            .assert_narrow(&Key::issued(&world.broker.issue(&token, grant).await))
            .await;
    }
}

#[tokio::test]
async fn a_session_policy_cannot_widen_its_role() {
    let world = World::new().await;
    let role = world
        .account
        .role("credbroker-narrow", &world.narrow_policy())
        .await;
    let token = world.broker.service("payments-api").await;
    world
        .broker
        .grant(
            "payments-api/work",
            &["--role-arn", &role],
            &World::wide_policy(),
        )
        .await;
    world
        .assert_narrow(&Key::issued(&world.broker.issue(&token, "work").await))
        .await;
}

#[tokio::test]
async fn a_wrong_secret_is_refused() {
    let world = World::new().await;
    let role = world
        .account
        .role("credbroker-wide", &World::wide_policy())
        .await;
    let token = world.broker.service("payments-api").await;
    world
        .broker
        .grant(
            "payments-api/user",
            &["--kind", "iam_user"],
            &world.narrow_policy(),
        )
        .await;
    world
        .broker
        .grant(
            "payments-api/session",
            &["--role-arn", &role],
            &world.narrow_policy(),
        )
        .await;
    for grant in ["user", "session"] {
        let key = Key::issued(&world.broker.issue(&token, grant).await);
        assert!(world.reaches_all(&key).await);
        let forged = Key {
            secret: key.secret.chars().rev().collect(),
            ..key
        };
        world.assert_dead(&forged).await;
    }
}

#[tokio::test]
async fn a_released_key_is_refused() {
    let world = World::new().await;
    let token = world.broker.service("payments-api").await;
    world
        .broker
        .grant(
            "payments-api/work",
            &["--kind", "iam_user"],
            &world.narrow_policy(),
        )
        .await;
    let issued = world.broker.issue(&token, "work").await;
    let (key, kept) = (
        Key::issued(&issued),
        Key::issued(&world.broker.issue(&token, "work").await),
    );
    assert!(world.reaches_all(&key).await);
    // A session made from the key ends with it.
    let child = key
        .sts()
        .get_session_token()
        .send()
        .await
        .unwrap()
        .credentials
        .unwrap();
    let child = Key {
        id: child.access_key_id,
        secret: child.secret_access_key,
        token: Some(child.session_token),
    };
    assert!(world.reaches_all(&child).await);

    let lease = issued["lease_id"].as_str().unwrap();
    let released = world
        .broker
        .json_as(Some(&token), &["release", lease])
        .await;
    assert_eq!(released["state"], "revoked");
    world.assert_dead(&key).await;
    world.assert_dead(&child).await;
    assert!(world.reaches_all(&kept).await);
    assert_eq!(world.account.issued_users().await.len(), 1);
}

#[tokio::test]
async fn the_boundary_holds_against_a_policy_that_allows_iam() {
    let world = World::new().await;
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": ["iam:*", "sts:*", "s3:GetObject", "sqs:SendMessage", "dynamodb:GetItem"], "Resource": "*"},
    ]});
    let token = world.broker.service("payments-api").await;
    world
        .broker
        .grant(
            "payments-api/work",
            &["--kind", "iam_user", "--allow-broad"],
            &policy,
        )
        .await;
    let key = Key::issued(&world.broker.issue(&token, "work").await);
    assert!(world.reaches_all(&key).await);
    refused(
        "making a user",
        answer(
            key.iam()
                .create_user()
                .user_name(world.account.unique("mallory"))
                .send()
                .await,
        ),
    );
    refused("listing users", answer(key.iam().list_users().send().await));
    let own = world.account.issued_users().await.remove(0);
    refused(
        "making itself a key",
        answer(key.iam().create_access_key().user_name(&own).send().await),
    );
    let lift = key.iam().delete_user_permissions_boundary().user_name(&own);
    refused("lifting its boundary", answer(lift.send().await));
    let role = world
        .account
        .role("credbroker-open", &World::wide_policy())
        .await;
    let assume = key
        .sts()
        .assume_role()
        .role_arn(role)
        .role_session_name("mallory");
    refused("assuming a role", answer(assume.send().await));
    let federate = key
        .sts()
        .get_federation_token()
        .name("mallory")
        .policy(World::wide_policy().to_string());
    refused("federating", answer(federate.send().await));
}

#[tokio::test]
async fn an_unnarrowed_role_session_cannot_mint_credentials() {
    let world = World::new().await;
    let all = json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}});
    // The role has no boundary: the session's own policy is what refuses.
    let unbounded = world.account.unbounded_role("credbroker-everything", &all);
    let role = unbounded.await;
    let token = world.broker.service("payments-api").await;
    world
        .broker
        .run(&["grant", "put", "payments-api/work", "--role-arn", &role])
        .await
        .ok();
    let key = Key::issued(&world.broker.issue(&token, "work").await);
    assert!(world.reaches_all(&key).await);
    refused(
        "making a user",
        answer(
            key.iam()
                .create_user()
                .user_name(world.account.unique("mallory"))
                .send()
                .await,
        ),
    );
    let assume = key
        .sts()
        .assume_role()
        .role_arn(role)
        .role_session_name("mallory");
    refused("assuming a role", answer(assume.send().await));
}

#[tokio::test]
async fn revoking_one_service_leaves_its_neighbours_working() {
    let world = World::new().await;
    let (token, neighbour) = (
        world.broker.service("payments-api").await,
        world.broker.service("billing").await,
    );
    for grant in ["payments-api/work", "billing/work"] {
        world
            .broker
            .grant(grant, &["--kind", "iam_user"], &world.narrow_policy())
            .await;
    }
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(Key::issued(&world.broker.issue(&token, "work").await));
    }
    let kept = Key::issued(&world.broker.issue(&neighbour, "work").await);
    assert!(world.reaches_all(&keys[0]).await);

    let revoked = world
        .broker
        .revoked(&["payments-api", "--reason", "leaked"])
        .await;
    assert_eq!(revoked["confirmed"], true, "{revoked}");
    assert_eq!(revoked["leases"].as_array().unwrap().len(), 3);
    for key in &keys {
        world.assert_dead(key).await;
    }
    assert!(world.reaches_all(&kept).await);
    assert!(
        world
            .reaches_all(&Key::issued(&world.broker.issue(&neighbour, "work").await))
            .await
    );
}

/// A suite that stays green where nothing is enforced proves nothing.
#[tokio::test]
async fn without_enforcement_every_refusal_test_fails() {
    if skipped_over_postgres() {
        return;
    }
    let refusals = REFUSALS.map(|name| format!("enforcement::{name}"));
    assert_each_fails_unenforced(&refusals).await;
}

/// Runs these tests against an emulator that enforces nothing: each must fail because a refusal is
/// missing.
pub async fn assert_each_fails_unenforced(refusals: &[String]) {
    if std::env::var_os(ENFORCEMENT).is_some() {
        return;
    }
    let mut control = Command::new(std::env::current_exe().unwrap());
    control.args(refusals);
    control
        .args(["--exact", "--test-threads", "2"])
        .env(ENFORCEMENT, "off");
    let output = control.stdin(Stdio::null()).output().await.unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    for name in refusals {
        let failed = format!("test {name} ... FAILED");
        assert!(
            told.contains(&failed),
            "{name} does not fail without enforcement:\n{told}"
        );
    }
    assert_eq!(
        told.matches("REFUSAL EXPECTED").count(),
        refusals.len(),
        "{told}"
    );
}
