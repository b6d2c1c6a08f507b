//! Errors that a person can act on: each says what happened, why and what to do next, has its exit
//! status and its audit record, leaves nothing in AWS, and ends once its cause is fixed.

mod aws;
mod emergency;
mod store;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Broker, Run, World, aws::ADMIN_USER, proxy::Fault};

/// Permissions of the service in AWS.
fn policy() -> Value {
    json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::uploads/*"},
    ]})
}

impl World {
    /// Asserts that an issue fails for a reported and recorded reason, and leaves nothing.
    async fn assert_refused(&self, args: &[&str], code: i32, reason: &str, words: &[&str]) {
        let run = self.issue(args).await;
        assert_told(run, code, reason, words);
        let record = self.recorded("lease.denied", reason).await;
        assert_eq!(record["actor"], "service:payments-api");
        assert_eq!(
            record["grant"],
            format!("payments-api/{}", args[0]).as_str()
        );
        self.assert_nothing_left().await;
    }

    /// Returns the newest audit record of an event; it must have this reason.
    async fn recorded(&self, event: &str, reason: &str) -> Value {
        recorded(&self.broker, event, reason).await
    }

    async fn trust(&self, trust: &Value) {
        let name = self.role.rsplit_once('/').unwrap().1;
        let iam = self.account.root.iam();
        let update = iam.update_assume_role_policy().role_name(name);
        let update = update.policy_document(trust.to_string());
        update.send().await.unwrap();
    }
}

async fn recorded(broker: &Broker, event: &str, reason: &str) -> Value {
    let records = broker.audit().await;
    let record = records.iter().rfind(|record| record["event"] == event);
    let record = record.unwrap_or_else(|| panic!("no {event} in {records:#?}"));
    assert_eq!(record["reason"], reason, "{record}");
    assert_ne!(record["outcome"], "success");
    record.clone()
}

/// Asserts that the error has the reason code, these words, and the next step.
#[track_caller]
fn assert_told(run: Run, code: i32, reason: &str, words: &[&str]) {
    let reason = format!("reason: {reason}");
    let words = [&["error: ", &reason, "next: "], words].concat();
    let run = run.fails(code, &words);
    assert_eq!(run.stdout, "");
}

/// Runs a broker that does not start.
async fn not_started(command: Command) -> Run {
    let run = Run::of(command, "").await;
    assert_eq!(run.stdout, "", "{run:#?}");
    run
}

#[tokio::test]
async fn a_wrong_token_is_refused_without_a_hint_and_without_a_call_to_aws() {
    let world = World::new().await;
    let other = Broker::start(&world.account).await;
    let unknown = other.service("payments-api").await;
    let mistyped: String = world.token.chars().rev().collect();
    let mut told = Vec::new();
    for (token, reason) in [
        ("", "TOKEN_MALFORMED"),
        (&mistyped, "TOKEN_MALFORMED"),
        (&unknown, "TOKEN_UNKNOWN"),
    ] {
        let run = world
            .broker
            .run_as(Some(token), &["issue", "role"])
            .await
            .fails(3, &["the token was not accepted", "CREDBROKER_TOKEN"]);
        let record = world.recorded("login.failed", reason).await;
        assert_eq!(record["actor"], "unknown");
        assert!(token.is_empty() || !record.to_string().contains(token));
        told.push(run.stderr.clone());
        assert_told(run, 3, "UNAUTHENTICATED", &["service token create"]);
    }
    assert!(told.iter().all(|text| *text == told[0]), "{told:#?}");
    assert!(world.proxy.calls("AssumeRole").is_empty());
    world.assert_issues("role").await;
}

#[tokio::test]
async fn a_token_that_was_deleted_or_has_expired_or_differs_is_refused() {
    let world = World::new().await;
    let args = ["service", "token", "create", "payments-api"];
    let second = world.broker.json(&args).await;
    let text = second["token"].as_str().unwrap();
    let issue = ["issue", "role"];
    world.broker.run_as(Some(text), &issue).await.ok();

    let id = second["token_id"].as_str().unwrap();
    let expire = "UPDATE tokens SET expires_at = created_at WHERE service IS NOT NULL";
    let zeros = world.broker.store.zeros("32");
    let differ =
        format!("UPDATE tokens SET expires_at = NULL, digest = {zeros} WHERE service IS NOT NULL");
    for (sql, reason) in [(expire, "TOKEN_EXPIRED"), (&differ, "TOKEN_SECRET_WRONG")] {
        world.broker.write_store(sql).await;
        // Any record that is not of a lease clears the broker's cache of token owners.
        world.broker.run(&["whoami"]).await.ok();
        let run = world.broker.run_as(Some(text), &issue).await;
        assert_told(run, 3, "UNAUTHENTICATED", &["expired"]);
        world.recorded("login.failed", reason).await;
    }
    let delete = ["service", "token", "delete", "payments-api", id];
    world.broker.run(&delete).await.ok();
    let run = world.broker.run_as(Some(text), &issue).await;
    assert_told(run, 3, "UNAUTHENTICATED", &["deleted"]);
    world.recorded("login.failed", "TOKEN_UNKNOWN").await;

    let third = world.broker.json(&args).await;
    let third = third["token"].as_str();
    world.broker.run_as(third, &issue).await.ok();
}

#[tokio::test]
async fn a_suspended_service_is_refused_until_it_is_reinstated() {
    let world = World::new().await;
    let neighbour = world.broker.service("billing").await;
    let flags = ["--role-arn", &world.role];
    world.broker.grant("billing/role", &flags, &policy()).await;

    let suspend = ["service", "suspend", "payments-api", "--reason", "leaked"];
    world.broker.run(&suspend).await.ok();
    let run = world.issue(&["role"]).await;
    let words = [
        "service payments-api is suspended",
        "credbroker service reinstate payments-api",
    ];
    assert_told(run, 4, "SERVICE_SUSPENDED", &words);
    let record = world.recorded("login.failed", "SERVICE_SUSPENDED").await;
    assert_eq!(record["service"], "payments-api");
    assert!(world.proxy.calls("AssumeRole").is_empty());
    world.assert_nothing_left().await;

    world.broker.issue(&neighbour, "role").await;
    let reinstate = ["service", "reinstate", "payments-api"];
    world.broker.run(&reinstate).await.ok();
    world.assert_issues("role").await;
}

#[tokio::test]
async fn a_grant_that_is_unknown_or_another_services_is_refused_in_the_same_words() {
    let world = World::new().await;
    let flags = ["--role-arn", &world.role];
    world.broker.service("billing").await;
    world
        .broker
        .grant("billing/theirs", &flags, &policy())
        .await;
    let grants = [
        ("theirs", "payments-api/theirs"),
        ("billing/theirs", "billing/theirs"),
        ("billing/none", "billing/none"),
    ];
    for (asked, name) in grants {
        let run = world.issue(&[asked]).await;
        let words = [
            &format!("there is no grant {name} for this service"),
            "credbroker grant list --service",
        ];
        assert_told(run, 5, "NO_SUCH_GRANT", &words);
        let record = world.recorded("lease.denied", "NO_SUCH_GRANT").await;
        assert_eq!(record["grant"], name);
    }
    assert!(world.proxy.calls("AssumeRole").is_empty());
    world.assert_nothing_left().await;
    world.assert_issues("role").await;
}

#[tokio::test]
async fn a_lifetime_out_of_bounds_is_refused_with_the_bound_and_never_clamped() {
    let world = World::new().await;
    let above = [
        "above the maximum of grant payments-api/role, 2h",
        "--max-ttl",
    ];
    let args = ["role", "--ttl", "7201s"];
    world
        .assert_refused(&args, 2, "TTL_ABOVE_MAXIMUM", &above)
        .await;
    let below = ["below the minimum of kind assume_role, 15m"];
    let args = ["role", "--ttl", "899s"];
    world
        .assert_refused(&args, 2, "TTL_BELOW_MINIMUM", &below)
        .await;
    assert!(world.proxy.calls("AssumeRole").is_empty());
    for ttl in ["900", "7200"] {
        let args = ["role", "--ttl", &format!("{ttl}s")];
        world.issue(&args).await.ok();
        let sent = world.proxy.calls("AssumeRole").pop().unwrap();
        assert!(sent.contains(&format!("DurationSeconds={ttl}")), "{sent}");
    }
}

#[tokio::test]
async fn a_role_that_does_not_trust_the_broker_is_named_with_the_way_to_mend_it() {
    let world = World::new().await;
    let mut stranger = world.account.trust_policy().to_string();
    stranger = stranger.replace(ADMIN_USER, "somebody-else");
    world.trust(&serde_json::from_str(&stranger).unwrap()).await;
    let arn = format!("arn:aws:iam::{}:user/{ADMIN_USER}", world.account.id);
    let words = [
        &format!("role {} does not let the broker assume it", world.role),
        "deploy/aws/trust-policy.json",
        &arn,
    ];
    world
        .assert_refused(&["role"], 6, "ROLE_DOES_NOT_TRUST_BROKER", &words)
        .await;
    world.assert_issues("user").await;
    world.trust(&world.account.trust_policy()).await;
    world.assert_issues("role").await;
}

#[tokio::test]
async fn a_role_that_lacks_tag_session_is_named_with_the_permission() {
    let world = World::new().await;
    let words = [
        "does not let the broker tag its sessions",
        "allow sts:TagSession",
    ];
    // Error text of AWS.
    let said = "User: arn:aws:iam::123456789012:user/credbroker-admin is not authorized to perform: \
                sts:TagSession on resource: arn:aws:iam::123456789012:role/credbroker/uploads";
    let denied = Fault::Answer(403, "AccessDenied", said);
    world.proxy.inject("AssumeRole", denied);
    world
        .assert_refused(&["role"], 6, "ROLE_LACKS_TAG_SESSION", &words)
        .await;
    let record = world
        .recorded("lease.denied", "ROLE_LACKS_TAG_SESSION")
        .await;
    let detail = record["detail"].as_str().unwrap();
    assert!(detail.contains("not authorized to perform"), "{detail}");
    world.proxy.heal();
    world.assert_issues("role").await;

    // The emulator judges it, with its own text.
    let mut untagged = world.account.trust_policy();
    untagged["Statement"].as_array_mut().unwrap().truncate(1);
    world.trust(&untagged).await;
    let run = world.issue(&["role"]).await;
    run.fails(6, &[&format!("role {}", world.role), "sts:TagSession"]);
    world.trust(&world.account.trust_policy()).await;
    world.assert_issues("role").await;
}

#[tokio::test]
async fn a_policy_too_large_is_refused_at_put_and_one_that_aws_cannot_pack_at_issue() {
    let world = World::new().await;
    let large = |bytes: usize| {
        let mut policy = policy();
        let resource = format!("arn:aws:s3:::uploads/{}", "x".repeat(bytes));
        policy["Statement"][0]["Resource"] = resource.into();
        policy.to_string()
    };
    let args = [
        "grant",
        "put",
        "payments-api/role",
        "--role-arn",
        &world.role,
        "--policy-file",
        "-",
    ];
    let run = world.broker.run_in(None, &args, &large(2000)).await;
    run.fails(2, &["grant.policy: ", "AWS takes 2048", "shorten it"]);
    world.recorded("request.denied", "INVALID_REQUEST").await;
    let shown = world.broker.json(&["grant", "show", "payments-api/role"]);
    assert_eq!(shown.await["version"], 1);
    world.broker.run_in(None, &args, &large(1000)).await.ok();

    let said = "Packed policy consumes 104% of allotted space, please use smaller policy.";
    let packed = Fault::Answer(400, "PackedPolicyTooLarge", said);
    world.proxy.inject("AssumeRole", packed);
    let words = [
        "too large for AWS once packed",
        "shorten the grant's policy",
    ];
    world
        .assert_refused(&["role"], 6, "POLICY_TOO_LARGE", &words)
        .await;
    world.proxy.heal();
    world.assert_issues("role").await;
}
