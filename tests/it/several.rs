//! Several replicas on one database: each serves every caller, and none works against another.

mod chaos;
mod line;

use std::{path::Path, time::Duration};

use credbroker::{
    domain::{random::SystemRandom, request::RequestId},
    proto::{WatchRevocationsRequest, revocation_notice::What},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::codegen::tokio_stream;

use self::line::Line;
use crate::harness::{
    Account, Broker, Key, PACE, Run, World,
    broker::{credbroker, dev},
    emulator::emulator,
    eventually, eventually_within,
    site::Site,
    stepped::policy,
    stored::{Engine, Stored},
};

/// Creates a world and another replica on its database.
async fn two() -> (World, Broker) {
    let world = World::on(Engine::Postgres).await;
    let other = another(&world).await;
    (world, other)
}

async fn another(world: &World) -> Broker {
    let (admin, endpoint) = (&world.account.admin, &world.proxy.endpoint);
    world
        .broker
        .beside_by(|state| dev(state, admin, endpoint))
        .await
}

/// Creates a world, another replica that reaches the database by a line, and the line.
async fn two_of_which_one_is_far_from_the_database() -> (World, Broker, Line) {
    let world = World::on(Engine::Postgres).await;
    let Stored::Database(url) = &world.broker.store else {
        panic!("a file has one broker");
    };
    let url = url.expose_secret();
    let (_, rest) = url.split_once('@').unwrap();
    let (address, _) = rest.split_once('/').unwrap();
    let line = Line::to(address).await;
    let by_line = url.replace(address, &line.address);
    let (admin, endpoint) = (&world.account.admin, &world.proxy.endpoint);
    let command = |state: &Path| dev(state, admin, endpoint);
    let store = Stored::Database(by_line.into());
    let other = world.broker.beside_on(store, command).await;
    becomes(&world.broker, 2).await;
    (world, other, line)
}

/// Number of replicas that count as alive.
async fn living(broker: &Broker) -> i64 {
    broker.count("SELECT count(*) FROM brokers").await
}

async fn becomes(broker: &Broker, count: i64) {
    let are = async || (living(broker).await == count).then_some(());
    eventually_within(30, "so many brokers", are).await;
}

async fn issued(broker: &Broker, token: &str, args: &[&str]) -> Value {
    let args = [&["issue"], args].concat();
    broker.json_as(Some(token), &args).await
}

#[tokio::test]
async fn each_replica_serves_every_request() {
    let (world, other) = two().await;
    let (one, token) = (&world.broker, world.token.as_str());
    becomes(one, 2).await;
    assert_eq!(other.json(&["status"]).await["brokers"], json!(2));
    let request = [
        "user",
        "--request-id",
        "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10",
    ];
    let first = issued(one, token, &request).await;
    let again = issued(&other, token, &request).await;
    assert_eq!(first["lease_id"], again["lease_id"]);
    assert_eq!(again["redelivered"], json!(true));
    assert!(Key::issued(&again).works().await && !Key::issued(&first).works().await);

    let role = issued(&other, token, &["role"]).await;
    one.run(&["revoke", "payments-api"]).await.ok();
    assert!(!Key::issued(&again).works().await);
    assert!(!Key::issued(&role).is_served().await);
    let refused = other.run_as(Some(token), &["issue", "user"]).await;
    refused.fails(4, &["suspended"]);
    other
        .run(&["service", "reinstate", "payments-api"])
        .await
        .ok();
    assert!(
        Key::issued(&issued(one, token, &["user"]).await)
            .works()
            .await
    );
    // Both replicas show the same log; the second shows later records as well.
    let (first, later) = (one.audit().await, other.audit().await);
    assert!(later.starts_with(&first) && later.len() > first.len());
}

#[tokio::test]
async fn a_watcher_is_notified_of_a_revocation_by_another_replica_within_a_second() {
    let (world, other) = two().await;
    let lease = issued(&world.broker, &world.token, &["role"]).await;
    let id = lease["lease_id"].as_str().unwrap();
    let client = world.broker.client(&world.token).await;
    let watch = WatchRevocationsRequest {
        lease_ids: vec![id.to_owned()],
    };
    let told = client.credentials().watch_revocations(watch).await;
    let mut told = told.unwrap().into_inner();
    let watched = "SELECT count(*) FROM audit WHERE event = 'lease.watched'";
    let is_watched = async || (other.count(watched).await == 1).then_some(());
    eventually("it watches", is_watched).await;
    let revoke = async { other.run(&["lease", "revoke", id]).await.ok() };
    let (notice, _) = tokio::join!(told.next(), revoke);
    let what = notice.unwrap().unwrap().what;
    assert_eq!(what, Some(What::LeaseId(id.to_owned())));
}

#[tokio::test]
async fn concurrent_denials_of_two_replicas_do_not_overwrite_each_other() {
    let (world, other) = two().await;
    let mut held = Vec::new();
    for number in 0..12 {
        let name = format!("service-{number}");
        let token = world.service(&name).await;
        let (role, by) = (
            issued(&other, &token, &["role"]),
            issued(&world.broker, &token, &["federation"]),
        );
        let (role, by) = tokio::join!(role, by);
        held.push((name, Key::issued(&role), Key::issued(&by)));
    }
    let mut revoking = JoinSet::new();
    let brokers = [&world.broker, &other];
    for (number, (name, ..)) in held.iter().enumerate() {
        let mut command = credbroker(&["revoke", name, "-o", "json"]);
        command.envs(brokers[number % 2].env.iter().cloned());
        revoking.spawn(Run::of(command, ""));
    }
    while let Some(run) = revoking.join_next().await {
        run.unwrap().ok();
    }
    for (name, role, federated) in &held {
        assert!(!role.is_served().await, "{name}");
        assert!(!federated.is_served().await, "{name}");
    }
    let open = "SELECT count(*) FROM denials WHERE refused_at IS NULL";
    assert_eq!(other.count(open).await, 0);
    let repaired = "SELECT count(*) FROM audit WHERE event = 'denial.repaired'";
    assert_eq!(other.count(repaired).await, 0);
}

#[tokio::test]
async fn work_of_a_dead_replica_is_completed_by_another() {
    let (world, mut other) = two().await;
    becomes(&world.broker, 2).await;
    let lease = issued(&world.broker, &world.token, &["role"]).await;
    let user = issued(&world.broker, &world.token, &["user"]).await;
    // The replica dies when the revocation is durable and nothing else is done.
    other.kill().await;
    let (admin, endpoint) = (&world.account.admin, &world.proxy.endpoint);
    let command = |state: &Path| {
        let mut command = dev(state, admin, endpoint);
        command.env("CREDBROKER_TEST_DEATH", "after:service.revoked");
        command
    };
    let mut other = other.start_again_by(command).await;
    other.run(&["revoke", "payments-api"]).await;
    other.ended().await;
    let refused = async || (!Key::issued(&lease).is_served().await).then_some(());
    eventually_within(30, "the session is denied", refused).await;
    becomes(&world.broker, 1).await;
    world.broker.let_time_pass().await;
    let gone = async || (!Key::issued(&user).works().await).then_some(());
    eventually("the user is gone", gone).await;
}

#[tokio::test]
async fn a_late_write_of_a_dead_replica_is_overwritten() {
    let (world, mut other) = two().await;
    becomes(&world.broker, 2).await;
    let lease = issued(&other, &world.token, &["role"]).await;
    other.run(&["revoke", "payments-api"]).await.ok();
    assert!(!Key::issued(&lease).is_served().await);
    // The policies are gone, like after a late call of the replica that revoked.
    let role = world.role.rsplit('/').next().unwrap();
    let iam = world.account.root.iam();
    let policies = iam.list_role_policies().role_name(role).send().await;
    for policy in policies.unwrap().policy_names {
        if policy != "what-the-role-may" {
            let delete = iam.delete_role_policy().role_name(role);
            delete.policy_name(policy).send().await.unwrap();
        }
    }
    assert!(Key::issued(&lease).is_served().await);
    other.kill().await;
    let refused = async || (!Key::issued(&lease).is_served().await).then_some(());
    eventually_within(30, "it is denied again", refused).await;
}

#[tokio::test]
async fn a_replica_stopped_for_a_while_rejoins() {
    let (world, other) = two().await;
    becomes(&world.broker, 2).await;
    other.signal("STOP");
    becomes(&world.broker, 1).await;
    world.assert_issues("user").await;
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    other.signal("CONT");
    becomes(&world.broker, 2).await;
    let refused = other.run_as(Some(&world.token), &["issue", "user"]).await;
    refused.fails(4, &["suspended"]);
    other
        .run(&["service", "reinstate", "payments-api"])
        .await
        .ok();
    let after = issued(&other, &world.token, &["role"]).await;
    assert!(Key::issued(&after).is_served().await);
    other.run(&["revoke", "payments-api"]).await.ok();
    assert!(!Key::issued(&after).is_served().await);
}

#[tokio::test]
async fn a_replica_cut_off_from_the_database_does_nothing_and_others_continue() {
    let (world, other, line) = two_of_which_one_is_far_from_the_database().await;
    let lease = issued(&other, &world.token, &["role"]).await;
    line.cut();
    let refused = other.run_as(Some(&world.token), &["issue", "user"]).await;
    refused.fails(7, &["STORE_UNAVAILABLE"]);
    // The replica cannot authenticate the caller any more.
    let refused = other.run(&["revoke", "payments-api"]).await;
    refused.fails(7, &["STORE_UNAVAILABLE"]);
    becomes(&world.broker, 1).await;
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    assert!(!Key::issued(&lease).is_served().await);
    line.mend();
    becomes(&world.broker, 2).await;
    let suspended = async || {
        let run = other.run_as(Some(&world.token), &["issue", "user"]).await;
        (run.code == 4).then_some(run)
    };
    let refused = eventually_within(30, "it knows", suspended).await;
    refused.fails(4, &["suspended"]);
    other
        .run(&["service", "reinstate", "payments-api"])
        .await
        .ok();
    let after = issued(&other, &world.token, &["role"]).await;
    assert!(Key::issued(&after).is_served().await && !Key::issued(&lease).is_served().await);
    assert_eq!(world.account.issued_users().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_replica_with_dropped_connections_reconnects() {
    let (world, other, line) = two_of_which_one_is_far_from_the_database().await;
    issued(&other, &world.token, &["role"]).await;
    line.forget();
    let issues = async || {
        let run = other.run_as(Some(&world.token), &["issue", "user"]).await;
        (run.code == 0).then_some(())
    };
    eventually_within(60, "it issues again", issues).await;
    becomes(&world.broker, 2).await;
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    let refused = other.run_as(Some(&world.token), &["issue", "user"]).await;
    refused.fails(4, &["suspended"]);
}

#[tokio::test]
async fn a_revocation_by_a_replica_without_aws_is_completed_by_another() {
    let world = World::on(Engine::Postgres).await;
    let endpoint = &emulator().endpoint;
    let line = Line::to(endpoint.strip_prefix("http://").unwrap()).await;
    let (admin, by_line) = (&world.account.admin, format!("http://{}", line.address));
    let other = world
        .broker
        .beside_by(|state| dev(state, admin, &by_line))
        .await;
    becomes(&world.broker, 2).await;
    let lease = issued(&other, &world.token, &["role"]).await;
    line.cut();
    let refused = other.run_as(Some(&world.token), &["issue", "role"]).await;
    assert_eq!(refused.code, 7, "{refused:?}");
    world.assert_issues("role").await;
    other.run(&["revoke", "payments-api"]).await;
    let refused = async || (!Key::issued(&lease).is_served().await).then_some(());
    eventually_within(60, "the session is denied", refused).await;
    line.mend();
}

#[tokio::test]
async fn a_rotated_admin_key_is_used_by_every_replica() {
    let (world, other) = two().await;
    let admin = &world.account.admin;
    let given = format!(
        "AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n",
        admin.id, admin.secret
    );
    let import = ["admin-key", "import"];
    world.broker.run_in(None, &import, &given).await.ok();
    other.run(&["admin-key", "rotate"]).await.ok();
    let due = "UPDATE admin_key SET due_at = due_at - 3600000000";
    let steady = async || {
        world.broker.write_store(due).await;
        let steady = "SELECT count(*) FROM admin_key WHERE phase = 'steady'";
        (world.broker.count(steady).await == 1).then_some(())
    };
    eventually_within(30, "the old key is deleted", steady).await;
    for broker in [&world.broker, &other] {
        let works = async || {
            let run = broker
                .run_as(Some(&world.token), &["issue", "user", "-o", "json"])
                .await;
            (run.code == 0).then_some(())
        };
        eventually("it issues with the new key", works).await;
    }
}

#[tokio::test]
async fn all_replicas_sign_one_log_with_one_key() {
    let (world, other) = two().await;
    world.assert_issues("user").await;
    let (mine, theirs) = (["audit", "checkpoint"], ["audit", "checkpoint"]);
    let a = world.broker.json(&mine).await;
    let b = other.json(&theirs).await;
    assert_eq!(a["verifier_key"], b["verifier_key"]);
    other.run(&["audit", "rotate-key"]).await.ok();
    let c = world.broker.json(&mine).await;
    assert_ne!(a["verifier_key"], c["verifier_key"]);
    let keys = "SELECT count(*) FROM audit_keys";
    assert_eq!(other.count(keys).await, 2);
}

#[tokio::test]
async fn a_replica_that_stops_gracefully_releases_all_locks() {
    let (world, mut other) = two().await;
    becomes(&world.broker, 2).await;
    assert!(other.stop().await);
    becomes(&world.broker, 1).await;
    let owned =
        "SELECT count(*) FROM claims WHERE owner NOT IN (SELECT id FROM brokers) AND owner <> ''";
    // Everything that the dead replica held is free for the live one.
    let free = async || (world.broker.count(owned).await == 0).then_some(());
    eventually_within(20, "all is taken over", free).await;
}

#[tokio::test]
async fn replicas_on_a_database_that_lost_commits_revoke_and_do_not_issue() {
    let (world, other) = two().await;
    becomes(&other, 2).await;
    let held = [
        issued(&other, &world.token, &["user"]).await,
        issued(&other, &world.token, &["user"]).await,
    ];
    let before = "CREATE TABLE before AS SELECT * FROM audit_edge";
    other.write_store(before).await;
    for broker in [&other, &world.broker] {
        broker.run(&["status"]).await.ok();
    }
    // The state is like after a failover to a copy that lacks the last records.
    let lose = "UPDATE audit_edge SET size = before.size, subtrees = before.subtrees FROM before";
    other.write_store(lose).await;
    for (broker, lease) in [(&world.broker, &held[0]), (&other, &held[1])] {
        let args = ["issue", "user"];
        let refused = async || {
            let run = broker.run_as(Some(&world.token), &args).await;
            let told = run.stderr.contains("has lost what was durable");
            told.then_some(run)
        };
        eventually("it doubts the log", refused).await.fails(6, &[]);
        let id = lease["lease_id"].as_str().unwrap();
        broker.run(&["lease", "revoke", id]).await.ok();
        assert!(!Key::issued(lease).works().await);
    }
}

#[tokio::test]
async fn replicas_continue_after_a_newer_version_migrates_the_tables() {
    let (mut world, other) = two().await;
    let newer = "INSERT INTO _sqlx_migrations VALUES (99, 'later', now(), TRUE, '', 1)";
    other.write_store(newer).await;
    for broker in [&world.broker, &other] {
        issued(broker, &world.token, &["user"]).await;
    }
    // A replica that starts does not know their state.
    assert!(world.broker.stop().await);
    let (admin, endpoint) = (&world.account.admin, &world.proxy.endpoint);
    let mut again = dev(&world.broker.state, admin, endpoint);
    world.broker.store.given_to(&mut again);
    let refused = Run::of(again, "").await;
    refused.fails(6, &["newer than this broker: update it"]);
    issued(&other, &world.token, &["user"]).await;
}

/// Requests a user from one replica, and from the next if it does not answer, like clients do.
async fn ask_one_of(brokers: [Vec<(String, String)>; 2], token: &str, first: usize) {
    let id = RequestId::random(&SystemRandom).to_string();
    let mut told = Vec::new();
    for turn in 0..4 {
        let mut issue = credbroker(&["issue", "role", "--request-id", &id, "-o", "json"]);
        issue.envs(brokers[(first + turn) % 2].iter().cloned());
        issue.env("CREDBROKER_TOKEN", token);
        let run = Run::of(issue, "").await;
        if run.code == 0 {
            return;
        }
        assert_eq!(run.code, 7, "{run:?}");
        told.push(run);
    }
    panic!("{told:?}");
}

#[tokio::test]
async fn a_rolling_update_answers_every_request() {
    let (mut world, mut other) = two().await;
    becomes(&world.broker, 2).await;
    let brokers = [world.broker.env.clone(), other.env.clone()];
    let (token, updating) = (world.token.clone(), CancellationToken::new());
    let mut clients = JoinSet::new();
    for first in 0..4 {
        let (brokers, token, updating) = (brokers.clone(), token.clone(), updating.clone());
        clients.spawn(async move {
            let (mut count, mut pace) = (0, interval(PACE));
            while !updating.is_cancelled() {
                pace.tick().await;
                ask_one_of(brokers.clone(), &token, first).await;
                count += 1;
            }
            count
        });
    }
    let (admin, endpoint) = (world.account.admin.clone(), world.proxy.endpoint.clone());
    let command = |state: &Path| dev(state, &admin, &endpoint);
    for _ in 0..2 {
        assert!(world.broker.stop().await);
        world.broker = world.broker.start_again_by(command).await;
        assert!(other.stop().await);
        other = other.start_again_by(command).await;
    }
    updating.cancel();
    let asked: i64 = clients.join_all().await.into_iter().sum();
    // Each request got exactly one session.
    let issued = "SELECT count(*) FROM audit WHERE event = 'lease.issued'";
    assert_eq!(other.count(issued).await, asked);
    let begun = "SELECT count(*) FROM leases WHERE state NOT IN ('active', 'expired')";
    assert_eq!(other.count(begun).await, 0);
}

/// Requests sessions until the time is over. Returns the number of sessions issued.
async fn given_until(over: Instant, mut env: Vec<(String, String)>, token: String) -> u32 {
    env.retain(|(name, _)| name != "CREDBROKER_TOKEN_FILE");
    env.push(("CREDBROKER_TOKEN".to_owned(), token));
    let (mut given, mut pace) = (0, interval(PACE));
    while Instant::now() < over {
        pace.tick().await;
        let mut issue = credbroker(&["issue", "role", "-o", "json"]);
        issue.envs(env.iter().cloned());
        let run = Run::of(issue, "").await;
        assert!([0, 7].contains(&run.code), "{run:?}");
        given += u32::from(run.code == 0);
    }
    given
}

#[tokio::test]
async fn replicas_share_one_budget_of_aws_calls() {
    let (account, one) = (Account::new().await, Site::on(Engine::Postgres));
    let role = account.role("credbroker-any", &policy()).await;
    let rate = |site: &Site| site.set("# sts_calls_per_second = 400", "sts_calls_per_second = 3");
    rate(&one);
    let _first = one.serving(&account.admin).await;
    let token = one.payments_api().await;
    let grant = ["--role-arn", role.as_str()];
    one.put("payments-api/role", &grant, &policy()).await.ok();
    let other = one.beside();
    rate(&other);
    let _second = other.serving(&account.admin).await;
    let both = async || {
        let status = one.run(&["status", "-o", "json"]).await.ok().json();
        (status["brokers"] == json!(2)).then_some(())
    };
    eventually("they know of each other", both).await;
    let (began, mut asking) = (Instant::now(), JoinSet::new());
    for _ in 0..3 {
        for site in [&one, &other] {
            let over = began + Duration::from_secs(8);
            asking.spawn(given_until(over, site.env(), token.clone()));
        }
    }
    let given: u32 = asking.join_all().await.into_iter().sum();
    // Two thirds of the calls are not reserved for revocation; a burst may have three seconds'
    // worth.
    let most = (began.elapsed().as_secs_f64() + 3.0) * 2.0;
    let given = f64::from(given);
    assert!(
        given <= most + 1.0 && given >= most / 3.0,
        "{given} of {most}"
    );
}

#[tokio::test]
async fn two_replicas_with_one_emergency_file_are_refused() {
    let (world, other) = two().await;
    let (admin, endpoint) = (&world.account.admin, &world.proxy.endpoint);
    let mut same = dev(&other.state, admin, endpoint);
    other.store.given_to(&mut same);
    let refused = Run::of(same, "").await;
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("an emergency file of its own"),
        "{refused:?}"
    );
}
