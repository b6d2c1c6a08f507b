//! AWS SDKs and the AWS CLI, unchanged, directed to the broker by their environment alone.

mod refresh;
mod rust;
mod service;

use std::{collections::BTreeSet, fs};

use tokio::task::JoinSet;

use self::service::{ALL, Host, LASTING, Sdk, Way};
use crate::{
    agent::Agent,
    harness::{Run, World, eventually_within},
};

/// The broker's own endpoint, and the settings with which each SDK trusts its certificate.
fn broker_itself(world: &World, host: &Host) -> Way {
    let ca = world.broker.setting("CREDBROKER_CA_FILE").to_owned();
    let trust = [
        ("NODE_EXTRA_CA_CERTS", ca.clone()),
        ("SSL_CERT_FILE", ca),
        // Python has a list of its own, and reads no variable for another.
        ("PYTHONPATH", host.path("python")),
    ];
    Way::Variables(endpoint(world, host).into_iter().chain(trust).collect())
}

fn endpoint(world: &World, host: &Host) -> [(&'static str, String); 2] {
    let address = world.broker.address().replace("127.0.0.1", "localhost");
    let url = format!("https://{address}/v1/credentials/role");
    let token = host.path("token");
    [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
    ]
}

fn served_by(agent: &Agent) -> Way {
    Way::Variables(vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url(0))])
}

/// Counts how often a follower has subscribed to a grant.
async fn followed(world: &World) -> i64 {
    let followed = "SELECT count(*) FROM audit WHERE event = 'lease.watched'";
    world.broker.count(followed).await
}

/// Asserts that running services that `keep` their sessions work through an outage and a restart of
/// the broker, that services that start work once it is back (or, with `spared`, before), and that
/// no session works once the service is revoked. The broker notifies `followers` of that.
async fn lives_through_what_happens(
    mut world: World,
    host: &Host,
    way: &Way,
    keep: &[Sdk],
    spared: bool,
    followers: i64,
) -> World {
    let mut running = host.start_each(keep, way);
    let sessions = running.work().await;

    let (admin, emulator) = (world.account.admin.clone(), world.proxy.endpoint.clone());
    world.broker.kill().await;
    let before = followed(&world).await;
    assert_eq!(running.work().await, sessions, "the broker is dead");
    if spared {
        host.start_each(&ALL, way).work().await;
    }
    world.broker = world.broker.start_again(&admin, &emulator).await;
    if !spared {
        host.start_each(&ALL, way).work().await;
    }
    assert_eq!(running.work().await, sessions, "it is back");
    let back = async || (followed(&world).await >= before + followers).then_some(());
    // A follower pauses for a minute at most, after a long outage.
    eventually_within(120, "each follower is back", back).await;

    world.broker.run(&["revoke", "payments-api"]).await.ok();
    for (sdk, why) in running.fail().await {
        assert!(why.contains("AccessDenied"), "{sdk:?}: {why}");
    }
    world
}

/// Asserts the error that a starting service shows when the broker refuses, as in docs/guide/services.md.
fn assert_shown(sdk: Sdk, why: &str, rust: &str, java_script: &str) {
    let words = match sdk {
        Sdk::Cli | Sdk::Python => "service payments-api is suspended",
        Sdk::Rust => rust,
        Sdk::JavaScript => java_script,
    };
    assert!(why.contains(words), "{sdk:?}: {why}");
}

/// Error of the JavaScript SDK for every reason.
const NONE: &str = "Could not load credentials from any providers";
/// Error of the JavaScript SDK for an https endpoint, which its last resort cannot call.
const NO_HTTPS: &str = "Protocol \"https:\" not supported";

#[tokio::test]
async fn sdks_that_trust_the_certificate_call_the_broker_directly() {
    let world = World::new().await;
    let host = Host::new(&world);
    let way = broker_itself(&world, &host);
    let _world = lives_through_what_happens(world, &host, &way, &LASTING, false, 0).await;
    for (sdk, why) in host.start_each(&ALL, &way).fail().await {
        assert_shown(sdk, &why, "StatusCode(403)", NO_HTTPS);
    }
}

#[tokio::test]
async fn ca_variables_for_other_requests_do_not_make_an_sdk_trust_the_broker() {
    let world = World::new().await;
    let host = Host::new(&world);
    let ca = world.broker.setting("CREDBROKER_CA_FILE");
    let bundles = ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
    let bundles = bundles.map(|variable| (variable, ca.to_owned()));
    let mut variables: Vec<_> = endpoint(&world, &host).into_iter().chain(bundles).collect();
    let way = Way::Variables(variables.clone());
    let mut told = host.start_each(&[Sdk::JavaScript, Sdk::Rust], &way);
    let told = told.fail().await;
    assert!(told[0].1.contains(NO_HTTPS), "{told:?}");
    assert!(told[1].1.contains("UnknownIssuer"), "{told:?}");
    variables.push(("SSL_CERT_FILE", ca.to_owned()));
    let mut python = host.start_each(&[Sdk::Cli, Sdk::Python], &Way::Variables(variables));
    for (sdk, why) in python.fail().await {
        let words = "CERTIFICATE_VERIFY_FAILED";
        assert!(why.contains(words), "{sdk:?}: {why}");
    }
    assert_eq!(world.leases().await.len(), 0);
}

#[tokio::test]
async fn an_agent_serves_every_sdk_through_an_outage() {
    let world = World::new().await;
    let host = Host::new(&world);
    let agent = Agent::start(&world, &["role"], &[]).await;
    let way = served_by(&agent);
    let world = lives_through_what_happens(world, &host, &way, &ALL, true, 1).await;
    assert_eq!(world.leases().await.len(), 1);
    for (sdk, why) in host.start_each(&ALL, &way).fail().await {
        assert_shown(sdk, &why, "StatusCode(403)", NONE);
    }
}

#[tokio::test]
async fn a_credential_process_serves_every_sdk_through_an_outage() {
    let world = World::new().await;
    let host = Host::new(&world);
    let world = lives_through_what_happens(world, &host, &Way::Process, &ALL, true, 0).await;
    assert_eq!(world.leases().await.len(), 1);
    // The cached credentials are dead, and are replaced when their end is near: here, at once.
    fs::remove_dir_all(host.path(".cache")).unwrap();
    for (sdk, why) in host.start_each(&ALL, &Way::Process).fail().await {
        assert_shown(sdk, &why, "service payments-api is suspended", NONE);
    }
}

#[tokio::test]
async fn a_command_under_exec_uses_its_credentials_with_every_sdk() {
    for (flags, followers) in [(&[][..], 0), (&["--refresh"], 8)] {
        let world = World::new().await;
        let host = Host::new(&world);
        let way = Way::Exec(flags);
        let _world = lives_through_what_happens(world, &host, &way, &ALL, false, followers).await;
        let refused = Run::of(host.aws(&way, &["--version"]), "").await;
        refused.fails(4, &["service payments-api is suspended"]);
    }
}

#[tokio::test]
async fn twenty_aws_commands_at_a_time_take_one_lease() {
    let world = World::new().await;
    let host = Host::new(&world);
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let asked = host.aws(&Way::Process, &["sts", "get-caller-identity"]);
        asking.spawn(Run::of(asked, ""));
    }
    let told = asking.join_all().await.into_iter();
    let sessions: BTreeSet<String> = told.map(|run| run.ok().stdout).collect();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    assert_eq!(world.leases().await.len(), 1);
}
