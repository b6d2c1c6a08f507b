//! Calls that reach AWS at an issue: the broker chooses everything, and everything leads back to
//! the lease.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{narrow, put};
use crate::harness::{Key, World, form::Form, proxy::Fault};

impl World {
    /// Creates a managed policy in the account.
    async fn managed(&self, name: &str) -> String {
        let iam = self.account.root.iam();
        let made = iam
            .create_policy()
            .policy_name(name)
            .policy_document(narrow().to_string());
        made.send().await.unwrap().policy.unwrap().arn.unwrap()
    }

    /// Issues under `payments-api/work`. Returns the JSON and the call of `action`.
    async fn issue_and_see(&self, action: &str, flags: &[&str]) -> (Value, Form) {
        let args = [&["issue", "work"], flags].concat();
        let issued = self.broker.json_as(Some(&self.token), &args).await;
        (issued, Form::of(&self.sent(action).pop().unwrap()))
    }

    fn sent(&self, action: &str) -> Vec<String> {
        self.proxy.calls(action)
    }
}

fn lease_id(issued: &Value) -> &str {
    issued["lease_id"].as_str().unwrap()
}

/// The three tags that the broker sets.
fn own_tags(lease: &str) -> [(&str, &str); 3] {
    [
        ("credbroker:service", "payments-api"),
        ("credbroker:grant", "work"),
        ("credbroker:lease", lease),
    ]
}

#[track_caller]
fn assert_guarded(policy: &Value) {
    let guard = policy["Statement"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&guard["Effect"], &guard["Resource"]),
        (&json!("Deny"), &json!("*"))
    );
    for action in ["iam:*", "sts:Assume*", "sts:Get*Token"] {
        assert!(
            guard["Action"].as_array().unwrap().contains(&json!(action)),
            "{guard}"
        );
    }
}

#[tokio::test]
async fn an_assumed_session_is_named_tagged_and_narrowed_as_the_grant_says() {
    let world = World::new().await;
    let role = world.account.role("credbroker-app", &narrow()).await;
    let managed = [world.managed("one").await, world.managed("two").await];
    let flags = [
        "--role-arn",
        &role,
        "--external-id",
        "acme-1",
        "--source-identity",
        "--tag",
        "team=core",
        "--transitive-tag",
        "project=atlas",
        "--managed-policy",
        &managed[0],
        "--managed-policy",
        &managed[1],
        "--ttl",
        "20m",
    ];
    put(&world.broker, &flags, Some(&narrow())).await.ok();
    let (issued, sent) = world.issue_and_see("AssumeRole", &[]).await;
    let lease = lease_id(&issued);
    assert_eq!(sent.get("RoleArn"), Some(role.as_str()));
    assert_eq!(
        sent.get("RoleSessionName"),
        Some(format!("payments-api.{lease}").as_str())
    );
    assert_eq!(sent.get("ExternalId"), Some("acme-1"));
    assert_eq!(sent.get("SourceIdentity"), Some("payments-api"));
    assert_eq!(sent.get("DurationSeconds"), Some("1200"));
    assert_eq!(sent.members("PolicyArns", ".arn"), managed);
    assert_eq!(sent.members("TransitiveTagKeys", ""), ["project"]);
    let tags = [
        &own_tags(lease)[..],
        &[("team", "core"), ("project", "atlas")],
    ]
    .concat();
    assert_eq!(sent.tags(), tags);
    let policy = sent.document("Policy");
    assert_eq!(policy["Statement"][0], narrow()["Statement"][0]);
    assert_guarded(&policy);
}

#[tokio::test]
async fn a_session_has_no_setting_beyond_its_grant() {
    let world = World::new().await;
    let role = world.account.role("credbroker-app", &narrow()).await;
    put(
        &world.broker,
        &["--role-arn", &role, "--max-ttl", "2h"],
        None,
    )
    .await
    .ok();
    let (issued, sent) = world.issue_and_see("AssumeRole", &["--ttl", "15m"]).await;
    for absent in [
        "ExternalId",
        "SourceIdentity",
        "TransitiveTagKeys.member.1",
        "PolicyArns.member.1.arn",
    ] {
        assert_eq!(sent.get(absent), None, "{absent}");
    }
    assert_eq!(sent.tags(), own_tags(lease_id(&issued)));
    assert_eq!(sent.get("DurationSeconds"), Some("900"));
    // The session has all permissions of the role, except those that make credentials.
    assert_eq!(sent.document("Policy")["Statement"][0]["Action"], "*");
    assert_guarded(&sent.document("Policy"));
    let (_, sent) = world.issue_and_see("AssumeRole", &[]).await;
    assert_eq!(sent.get("DurationSeconds"), Some("3600"));

    let calls = world.sent("AssumeRole").len();
    let issue = ["issue", "work", "--ttl", "7201s"];
    let refused = world.broker.run_as(Some(&world.token), &issue).await;
    refused.fails(
        2,
        &[
            "ttl",
            "2h1s is above the maximum of grant payments-api/work, 2h",
        ],
    );
    assert_eq!(world.sent("AssumeRole").len(), calls);
}

#[tokio::test]
async fn a_grant_with_managed_policies_alone_is_sent_with_the_guard_alone() {
    let world = World::new().await;
    let role = world.account.role("credbroker-app", &narrow()).await;
    let managed = world.managed("one").await;
    put(
        &world.broker,
        &["--role-arn", &role, "--managed-policy", &managed],
        None,
    )
    .await
    .ok();
    let (_, sent) = world.issue_and_see("AssumeRole", &[]).await;
    assert_eq!(sent.members("PolicyArns", ".arn"), [managed]);
    let policy = sent.document("Policy");
    assert_eq!(policy["Statement"].as_array().unwrap().len(), 1);
    assert_guarded(&policy);
}

#[tokio::test]
async fn a_federated_session_is_named_within_its_bound_and_guarded() {
    let world = World::new().await;
    let flags = [
        "--kind",
        "federation_token",
        "--ttl",
        "30m",
        "--tag",
        "team=core",
    ];
    put(&world.broker, &flags, Some(&narrow())).await.ok();
    let (issued, sent) = world.issue_and_see("GetFederationToken", &[]).await;
    let lease = lease_id(&issued);
    let name = sent.get("Name").unwrap();
    assert_eq!(name, format!("payments-api.{}", &lease[13..]));
    assert!(name.len() <= 32);
    assert_eq!(sent.get("DurationSeconds"), Some("1800"));
    assert_eq!(
        sent.tags(),
        [&own_tags(lease)[..], &[("team", "core")]].concat()
    );
    assert_guarded(&sent.document("Policy"));
}

#[tokio::test]
async fn a_user_is_made_with_path_boundary_and_tags_in_one_call() {
    let world = World::new().await;
    let managed = world.managed("one").await;
    let flags = [
        "--kind",
        "iam_user",
        "--path",
        "/apps/",
        "--tag",
        "team=core",
        "--managed-policy",
        &managed,
    ];
    put(&world.broker, &flags, Some(&narrow())).await.ok();
    let (issued, sent) = world.issue_and_see("CreateUser", &[]).await;
    let lease = lease_id(&issued);
    let user = format!("payments-api.{lease}");
    assert_eq!(sent.get("UserName"), Some(user.as_str()));
    let path = sent.get("Path").unwrap();
    let deployment = path.strip_prefix("/credbroker/").unwrap();
    let deployment = deployment.strip_suffix("/apps/").unwrap();
    assert_eq!(deployment.len(), 10);
    assert!(deployment.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let boundary = format!(
        "arn:aws:iam::{}:policy/credbroker/credbroker-boundary",
        world.account.id
    );
    assert_eq!(sent.get("PermissionsBoundary"), Some(boundary.as_str()));
    assert_eq!(
        sent.tags(),
        [&own_tags(lease)[..], &[("team", "core")]].concat()
    );
    for never in ["TagUser", "PutUserPermissionsBoundary", "UpdateUser"] {
        assert!(world.sent(never).is_empty(), "{never}");
    }
    for once in [
        "CreateUser",
        "PutUserPolicy",
        "AttachUserPolicy",
        "CreateAccessKey",
    ] {
        assert_eq!(world.sent(once).len(), 1, "{once}");
    }
    let put = Form::of(&world.sent("PutUserPolicy")[0]);
    assert_eq!(
        put.document("PolicyDocument")["Statement"],
        narrow()["Statement"]
    );
}

#[tokio::test]
async fn a_grants_own_boundary_replaces_the_brokers() {
    let world = World::new().await;
    let other = world.managed("other-boundary").await;
    let flags = [
        "--kind",
        "iam_user",
        "--permissions-boundary",
        &other,
        "--allow-broad",
    ];
    put(&world.broker, &flags, Some(&narrow())).await.ok();
    // The admin policy knows one boundary alone; the emulator does not distinguish them.
    let (_, sent) = world.issue_and_see("CreateUser", &[]).await;
    assert_eq!(sent.get("PermissionsBoundary"), Some(other.as_str()));
}

#[tokio::test]
async fn a_key_that_may_have_been_made_is_removed_before_another_is_asked_for() {
    let world = World::new().await;
    put(&world.broker, &["--kind", "iam_user"], Some(&narrow()))
        .await
        .ok();
    world.proxy.inject("CreateAccessKey", Fault::LoseAnswer);
    let issue = async || {
        world
            .broker
            .run_as(Some(&world.token), &["issue", "work"])
            .await
    };
    issue().await.fails(7, &[]);
    assert_eq!(world.sent("CreateAccessKey").len(), 2);
    assert_eq!(world.sent("DeleteAccessKey").len(), 1);
    world.proxy.heal();

    // Another call, which is safe to repeat, is repeated.
    let failure = Fault::Answer(500, "ServiceFailure", "try later");
    world.proxy.inject_in_turn("PutUserPolicy", [failure]);
    let before = world.sent("PutUserPolicy").len();
    issue().await.ok();
    assert_eq!(world.sent("PutUserPolicy").len(), before + 2);
    assert_eq!(world.sent("CreateAccessKey").len(), 3);
}

#[tokio::test]
async fn a_session_policy_with_ends_by_policy_denies_after_the_end() {
    let world = World::new().await;
    let role = world.account.role("credbroker-app", &narrow()).await;
    for policy in [Some(&narrow()), None] {
        let flags = ["--role-arn", &role, "--end-by-policy", "--ttl", "20m"];
        put(&world.broker, &flags, policy).await.ok();
        let (issued, sent) = world.issue_and_see("AssumeRole", &[]).await;
        let document = sent.document("Policy");
        let last = document["Statement"].as_array().unwrap().last().unwrap();
        assert_eq!(
            [&last["Effect"], &last["Action"], &last["Resource"]],
            [&json!("Deny"), &json!("*"), &json!("*")]
        );
        let ends = last["Condition"]["DateGreaterThan"]["aws:CurrentTime"].as_str();
        let ends: Timestamp = ends.unwrap().parse().unwrap();
        let expires: Timestamp = issued["expiration"].as_str().unwrap().parse().unwrap();
        let later = ends.duration_since(expires).as_secs();
        assert!((30..=60).contains(&later), "{later}");
        // The session works until then.
        assert!(Key::issued(&issued).works().await);
    }
    let user = ["--kind", "iam_user", "--end-by-policy"];
    let refused = put(&world.broker, &user, Some(&narrow())).await;
    refused.fails(2, &["--end-by-policy does not go with this kind of grant"]);
}
