//! Errors of AWS: the admin key is refused, AWS cannot be reached, throttles, or its answer is
//! lost.

use tokio::net::TcpSocket;

use super::{World, assert_told, not_started, policy, recorded};
use crate::harness::{
    Account, Broker, Key,
    aws::ADMIN_USER,
    broker::{aws_env, credbroker, dev},
    emulator::emulator,
    proxy::{Fault, Proxy},
};

const GRANTS: [&str; 2] = ["role", "user"];

/// Endpoint without a listener while the socket is held.
fn closed_port() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    (socket, endpoint)
}

#[tokio::test]
async fn a_broker_with_a_wrong_admin_key_does_not_start() {
    let (account, proxy) = (Account::new().await, Proxy::start().await);
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let wrong_secret = Key {
        secret: account.admin.secret.chars().rev().collect(),
        ..account.admin.clone()
    };
    let wrong_id = Key {
        id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
        ..account.admin.clone()
    };
    let words = [
        "error: AWS does not accept the broker's admin key",
        "next: the broker's operator must give it a valid key",
    ];
    for wrong in [wrong_secret, wrong_id] {
        let run = not_started(dev(&state, &wrong, &proxy.endpoint)).await;
        assert!(!run.stderr.contains(&wrong.secret));
        run.fails(6, &words);
    }
    let broker = Broker::start_with(&account.admin, &proxy.endpoint).await;
    World::with(account, proxy, broker)
        .await
        .assert_issues("role")
        .await;
}

#[tokio::test]
async fn a_broker_without_an_admin_key_does_not_start_and_says_where_it_looks() {
    let account = Account::new().await;
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let (_held, endpoint) = closed_port();
    let mut without = dev(&state, &account.admin, &endpoint);
    without.env("HOME", directory.path());
    for (name, _) in aws_env(&account.admin) {
        if name.starts_with("AWS_ACCESS") || name.starts_with("AWS_SECRET") {
            without.env_remove(name);
        }
    }
    let run = not_started(without).await;
    let words = [
        "error: the broker has no AWS admin key",
        "next: ",
        "AWS_ACCESS_KEY_ID",
    ];
    run.fails(6, &words);

    // A profile is another source of the key.
    let file = directory.path().join("credentials");
    let Key { id, secret, .. } = &account.admin;
    let profile = format!("[default]\naws_access_key_id={id}\naws_secret_access_key={secret}\n");
    std::fs::write(&file, profile).unwrap();
    let endpoint = &emulator().endpoint;
    let mut broker = Broker::start_by(|state| {
        let args = ["--state-dir", state.to_str().unwrap()];
        let mut command = credbroker(&["dev", "--aws-endpoint", endpoint]);
        command.args(args).env("AWS_SHARED_CREDENTIALS_FILE", &file);
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command
    })
    .await;
    assert!(broker.stop().await);
}

#[tokio::test]
async fn an_admin_key_that_becomes_invalid_is_reported_and_can_be_replaced() {
    let mut world = World::new().await;
    world.assert_issues("role").await;
    let iam = world.account.root.iam();
    let delete = iam.delete_access_key().user_name(ADMIN_USER);
    let delete = delete.access_key_id(&world.account.admin.id);
    delete.send().await.unwrap();
    for grant in GRANTS {
        let run = world.issue(&[grant]).await;
        let words = ["AWS does not accept the broker's admin key"];
        assert_told(run, 6, "ADMIN_KEY_REFUSED", &words);
        world.recorded("lease.denied", "ADMIN_KEY_REFUSED").await;
    }
    assert!(world.account.issued_users().await.is_empty());
    let status = world.broker.json(&["status"]).await;
    assert!(status["aws_error"].is_string(), "{status}");

    let made = iam.create_access_key().user_name(ADMIN_USER).send().await;
    let made = made.unwrap().access_key.unwrap();
    let admin = Key {
        id: made.access_key_id,
        secret: made.secret_access_key,
        token: None,
    };
    assert!(world.broker.stop().await);
    let endpoint = world.proxy.endpoint.clone();
    world.broker = world.broker.start_again(&admin, &endpoint).await;
    for grant in GRANTS {
        world.assert_issues(grant).await;
    }
}

#[tokio::test]
async fn a_broker_without_aws_starts_and_reports_the_outage_at_issue() {
    let account = Account::new().await;
    let role = account.role("credbroker-uploads", &policy()).await;
    let (_held, endpoint) = closed_port();
    let mut broker = Broker::start_with(&account.admin, &endpoint).await;
    let token = broker.service("payments-api").await;
    let flags = ["--role-arn", &role];
    broker.grant("payments-api/role", &flags, &policy()).await;
    let run = broker.run_as(Some(&token), &["issue", "role"]).await;
    let words = ["the broker cannot reach AWS", "try again after"];
    assert_told(run, 7, "AWS_UNREACHABLE", &words);
    recorded(&broker, "lease.denied", "AWS_UNREACHABLE").await;
    let leases = broker.json(&["lease", "list"]).await;
    assert_eq!(leases, serde_json::json!([]), "nothing has begun");

    assert!(broker.stop().await);
    let endpoint = &emulator().endpoint;
    let broker = broker.start_again(&account.admin, endpoint).await;
    broker.issue(&token, "role").await;
}

async fn assert_throttled(grant: &str, action: &str, most: usize) {
    let world = World::new().await;
    let throttled = Fault::Answer(400, "Throttling", "Rate exceeded");
    world.proxy.inject(action, throttled);
    let words = ["AWS is throttling the broker's account", "try again after"];
    world
        .assert_refused(&[grant], 7, "AWS_THROTTLED", &words)
        .await;
    let calls = world.proxy.calls(action).len();
    assert!((1..=most).contains(&calls), "{calls} calls of {action}");
    world.proxy.heal();
    world.assert_issues(grant).await;
}

#[tokio::test]
async fn throttling_of_a_session_is_answered_with_a_retry_hint_and_no_storm() {
    assert_throttled("role", "AssumeRole", 2).await;
}

#[tokio::test]
async fn throttling_of_a_user_is_answered_with_a_retry_hint_and_no_storm() {
    assert_throttled("user", "CreateUser", 2).await;
}

#[tokio::test]
async fn a_lost_answer_leaves_the_lease_pending_and_reports_uncertainty() {
    // A key that may have been made is removed before another is asked for.
    for (action, asked) in [("CreateUser", 1), ("CreateAccessKey", 2)] {
        let world = World::new().await;
        world.proxy.inject(action, Fault::LoseAnswer);
        let run = world.issue(&["user"]).await;
        let words = [
            &format!("AWS gave no answer to iam:{action}"),
            "try again after",
            "found and removed by the broker",
        ];
        assert_told(run, 7, "AWS_NO_ANSWER", &words);
        let record = world.recorded("lease.uncertain", "AWS_NO_ANSWER").await;
        assert_eq!(world.proxy.calls(action).len(), asked, "{action}");
        let lease = record["lease_id"].as_str().unwrap();
        let lease = world.broker.json(&["lease", "show", lease]).await;
        assert_eq!(lease["state"], "pending");
        // AWS's user is known by the lease's name; `reaping` shows that it is removed.
        assert_eq!(
            world.account.issued_users().await,
            [lease["aws_name"].as_str().unwrap()]
        );
        world.proxy.heal();
        world.assert_issues("user").await;
    }
}
