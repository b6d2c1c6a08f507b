//! `credbroker doctor` on a service's host: on a healthy host, and with each fault.

mod broker;

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    Run, World,
    broker::{BINARY, credbroker},
    proxy::Fault,
    stepped::policy,
};

const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
/// Secret that no answer may contain.
const HUSH: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY";

/// A service's host: its variables and its home.
struct Host {
    home: TempDir,
    env: BTreeMap<&'static str, String>,
    token: String,
}

/// Output of the doctor.
struct Said {
    run: Run,
    findings: Vec<Value>,
}

impl Host {
    fn new(token: &str) -> Self {
        let home = TempDir::new().unwrap();
        let env = BTreeMap::from([("HOME", home.path().display().to_string())]);
        fs::create_dir(home.path().join(".aws")).unwrap();
        let token = token.to_owned();
        Self { home, env, token }
    }

    /// Creates a host whose SDKs call the broker's endpoint; the machine trusts the broker's CA.
    fn by_endpoint(world: &World, grant: &str) -> Self {
        let mut host = Self::new(&world.token);
        let broker = &world.broker;
        let uri = format!(
            "{}/v1/credentials/{grant}",
            broker.setting("CREDBROKER_ADDR")
        );
        let token = host.write("token", &world.token);
        host.set("SSL_CERT_FILE", broker.setting("CREDBROKER_CA_FILE"));
        host.set(FULL_URI, &uri);
        host.set(TOKEN_FILE, &token);
        host
    }

    /// Creates a host whose SDKs start this program.
    fn by_process(world: &World, grant: &str) -> Self {
        let mut host = Self::new(&world.token);
        for name in ["CREDBROKER_ADDR", "CREDBROKER_CA_FILE"] {
            host.set(name, world.broker.setting(name));
        }
        host.set("CREDBROKER_TOKEN", &world.token);
        let process =
            format!("[default]\ncredential_process = \"{BINARY}\" credential-process {grant}\n");
        host.write(".aws/config", &process);
        host
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.env.insert(name, value.to_owned());
    }

    /// Writes a file that the service alone can read.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    async fn run(&self, args: &[&str]) -> Run {
        let mut command = credbroker(&[&["doctor"], args].concat());
        command.envs(&self.env);
        let run = Run::of(command, "").await;
        for secret in [&self.token, HUSH, "SecretAccessKey"] {
            assert!(!run.stdout.contains(secret) && !run.stderr.contains(secret));
        }
        run
    }

    async fn asks(&self, args: &[&str]) -> Said {
        let run = self.run(&[args, &["-o", "json"]].concat()).await;
        let findings = run.json().as_array().unwrap().clone();
        for found in &findings {
            let sick = ["warning", "problem"].contains(&found["state"].as_str().unwrap());
            assert_eq!(found["cure"].is_string(), sick, "{found}");
        }
        Said { run, findings }
    }
}

impl Said {
    fn of(&self, check: &str) -> &Value {
        let mut found = self.findings.iter().filter(|found| found["check"] == check);
        found
            .next()
            .unwrap_or_else(|| panic!("{check} in {:#?}", self.findings))
    }

    /// Names of the findings in this state.
    fn all(&self, state: &str) -> Vec<&str> {
        let found = self.findings.iter().filter(|found| found["state"] == state);
        found
            .map(|found| found["check"].as_str().unwrap())
            .collect()
    }

    /// Asserts that this is the only finding in its state, with these words.
    #[track_caller]
    fn finds(&self, state: &str, check: &str, code: i32, words: &str) {
        let found = self.of(check);
        assert_eq!(self.all(state), [check], "{:#?}", self.findings);
        let told = format!("{} {}", found["what"], found["cure"]);
        assert!(told.contains(words), "{words} in {told}");
        assert_eq!(self.run.code, code, "{:#?}", self.run);
    }

    #[track_caller]
    fn is_healthy(&self) {
        let sick = [self.all("problem"), self.all("warning")].concat();
        assert!(sick.is_empty(), "{:#?}", self.findings);
        assert_eq!((self.run.code, self.run.stderr.as_str()), (0, ""));
        assert_eq!(self.of("grant")["state"], "ok");
    }
}

async fn handed_back(world: &World) -> usize {
    let leases = world.leases().await;
    assert!(
        leases.iter().all(|lease| lease["state"] != "active"),
        "{leases:?}"
    );
    leases.len()
}

#[tokio::test]
async fn doctor_on_a_healthy_host_succeeds_and_releases_its_lease() {
    let world = World::new().await;
    let host = Host::by_endpoint(&world, "role");
    let said = host.asks(&[]).await;
    said.is_healthy();
    let order: Vec<_> = said.findings.iter().map(|found| &found["check"]).collect();
    let checks = json!([
        "environment_keys",
        "profile_variable",
        "web_identity",
        "container_uri",
        "container_token",
        "profile",
        "profile_sources",
        "credential_process",
        "way_to_broker",
        "endpoint_url",
        "endpoint_token",
        "broker_settings",
        "broker_name",
        "broker_tcp",
        "broker_tls",
        "endpoint_trust",
        "caller",
        "endpoint_caller",
        "clock",
        "grant",
    ]);
    assert_eq!(json!(order), checks);
    let keys: Vec<_> = said.findings[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["check", "state", "what", "cure"]);
    assert_eq!(said.all("skipped"), ["credential_process"]);
    Host::by_process(&world, "user")
        .asks(&[])
        .await
        .is_healthy();
    assert_eq!(handed_back(&world).await, 2);
    let records = world.broker.audit().await;
    assert!(
        records
            .iter()
            .any(|record| record["event"] == "lease.released")
    );
}

#[tokio::test]
async fn doctor_prints_a_line_for_each_finding_with_its_fix() {
    let world = World::new().await;
    let mut host = Host::by_endpoint(&world, "role");
    let well = host.run(&[]).await.ok();
    assert_eq!(well.stdout.lines().count(), 20, "{well:#?}");
    assert!(!well.stdout.contains("cure: "));
    host.set("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
    host.set("AWS_SECRET_ACCESS_KEY", HUSH);
    let ill = host
        .run(&[])
        .await
        .fails(2, &["error: there is a problem with environment_keys"]);
    assert!(
        ill.stdout.starts_with("problem  environment_keys"),
        "{ill:#?}"
    );
    assert!(
        ill.stdout
            .contains("\n         cure: unset AWS_ACCESS_KEY_ID"),
        "{ill:#?}"
    );
    assert!(ill.stdout.contains("(AKIAIOSFODNN7EXAMPLE)"), "{ill:#?}");
}

#[tokio::test]
async fn credentials_that_sdks_prefer_over_the_broker_are_found() {
    let world = World::new().await;
    let keys =
        format!("aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = {HUSH}\n");
    let problem = async |change: &dyn Fn(&mut Host), check: &str, words: &str| {
        let mut host = Host::by_endpoint(&world, "role");
        change(&mut host);
        host.asks(&[]).await.finds("problem", check, 2, words);
    };
    let web = |host: &mut Host| {
        host.set("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token");
        host.set("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod");
    };
    problem(&web, "web_identity", "eks.amazonaws.com").await;
    let relative = |host: &mut Host| host.set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2");
    problem(&relative, "container_uri", "Go takes the latter").await;
    let token = |host: &mut Host| host.set("AWS_CONTAINER_AUTHORIZATION_TOKEN", HUSH);
    problem(&token, "container_token", "Java").await;
    let profile = |host: &mut Host| host.set("AWS_PROFILE", "prod");
    problem(&profile, "profile", "no profile prod").await;
    let stale = |host: &mut Host| {
        host.write(".aws/credentials", &format!("[default]\n{keys}"));
    };
    problem(&stale, "profile_sources", "(AKIAIOSFODNN7EXAMPLE)").await;
    let named = |host: &mut Host| {
        let path = host.write("elsewhere", "[profile prod]\nsso_session = corp\n");
        host.set("AWS_CONFIG_FILE", &path);
        host.set("AWS_PROFILE", "prod");
    };
    problem(&named, "profile_sources", "single sign-on").await;

    // Another profile is not checked.
    let host = Host::by_endpoint(&world, "role");
    host.write(".aws/credentials", &format!("[other]\n{keys}"));
    host.asks(&[]).await.is_healthy();
    let mut host = Host::by_process(&world, "role");
    let process = fs::read_to_string(host.path(".aws/config")).unwrap();
    let process = process.replace("[default]", "[profile prod]");
    host.write(".aws/config", &process);
    host.set("AWS_PROFILE", "prod");
    host.asks(&[]).await.is_healthy();
}

#[tokio::test]
async fn a_credential_process_that_not_every_sdk_starts_is_found() {
    let world = World::new().await;
    for (program, state, code, words) in [
        ("/nowhere/credbroker", "problem", 2, "not there"),
        ("~/credbroker", "problem", 2, "expands"),
        ("$HOME/credbroker", "problem", 2, "expands"),
        ("/etc", "problem", 2, "cannot be run"),
        ("credbroker", "warning", 0, "PATH"),
        ("/bin/cat", "warning", 0, "another source"),
    ] {
        let host = Host::by_process(&world, "role");
        let process =
            format!("[default]\ncredential_process = {program} credential-process role\n");
        host.write(".aws/config", &process);
        let said = host.asks(&[]).await;
        said.finds(state, "credential_process", code, words);
    }
}

#[tokio::test]
async fn a_token_file_that_sdks_refuse_is_found() {
    let world = World::new().await;
    let mut host = Host::by_endpoint(&world, "role");
    for (text, words) in [
        (format!("{}\n", world.token), "line end"),
        (String::new(), "is empty"),
        (format!("{0}\n{0}", world.token), "no token has"),
    ] {
        host.write("token", &text);
        let said = host.asks(&[]).await;
        said.finds("problem", "endpoint_token", 2, words);
        // The checks get as far as without a token.
        assert_eq!(said.of("broker_tls")["state"], "ok");
        for later in ["caller", "endpoint_caller", "clock", "grant"] {
            assert_eq!(said.of(later)["state"], "skipped");
        }
    }
    host.write("token", &world.token);
    let open = PermissionsExt::from_mode(0o644);
    fs::set_permissions(host.path("token"), open).unwrap();
    host.asks(&[])
        .await
        .finds("warning", "endpoint_token", 0, "chmod o-r");
    fs::remove_file(host.path("token")).unwrap();
    let gone = host.asks(&[]).await;
    gone.finds("problem", "endpoint_token", 2, "No such file");
    host.env.remove(TOKEN_FILE);
    let none = host.asks(&[]).await;
    none.finds("problem", "endpoint_token", 2, "no token to send");
    host.set("AWS_CONTAINER_AUTHORIZATION_TOKEN", &world.token);
    host.asks(&[]).await.is_healthy();
}

#[tokio::test]
async fn a_url_that_leads_to_no_broker_is_found() {
    let world = World::new().await;
    let address = world.broker.setting("CREDBROKER_ADDR").to_owned();
    let mut host = Host::by_process(&world, "role");
    host.write(".aws/config", "");
    let token = host.write("token", &world.token);
    host.set(TOKEN_FILE, &token);
    let away = address.replace("https://127.0.0.1", "http://broker.example");
    for (url, words) in [
        (format!("{away}/v1/credentials/role"), "loopback alone"),
        (
            format!("{address}/v1/credentials/payments-api/role"),
            "without its service",
        ),
        (format!("{address}/creds"), "the broker has nothing"),
        (
            format!("https://me:{HUSH}@127.0.0.1/v1/credentials/role"),
            "leave that out",
        ),
    ] {
        host.set(FULL_URI, &url);
        let said = host.asks(&[]).await;
        said.finds("problem", "endpoint_url", 2, words);
        assert_eq!(said.of("endpoint_caller")["state"], "skipped");
    }
    let none = Host::new(&world.token).asks(&[]).await;
    let what = none.of("way_to_broker")["what"].as_str().unwrap();
    assert!(what.contains("nothing leads SDKs to the broker"), "{what}");
    // A host with only the URL gets no findings that follow from the other settings.
    for name in ["CREDBROKER_ADDR", "CREDBROKER_CA_FILE", "CREDBROKER_TOKEN"] {
        host.env.remove(name);
    }
    let said = host.asks(&[]).await;
    said.finds("problem", "endpoint_url", 2, "leave that out");
    host.set(FULL_URI, &format!("{address}/v1/credentials/role"));
    host.set("SSL_CERT_FILE", world.broker.setting("CREDBROKER_CA_FILE"));
    host.asks(&[]).await.is_healthy();
}

#[tokio::test]
async fn a_grant_that_the_endpoint_does_not_serve_is_found() {
    let world = World::new().await;
    let short = [
        "--role-arn",
        &world.role,
        "--ttl",
        "15m",
        "--max-ttl",
        "15m",
    ];
    world
        .broker
        .grant("payments-api/short", &short, &policy())
        .await;
    for (grant, code, words) in [
        ("user", 6, "iam_user"),
        ("short", 6, "--max-ttl"),
        ("nothing", 5, "no grant payments-api/nothing"),
    ] {
        let said = Host::by_endpoint(&world, grant).asks(&[]).await;
        said.finds("problem", "grant", code, words);
    }
    for grant in ["user", "short"] {
        // With `credential_process` these grants are healthy.
        Host::by_process(&world, grant).asks(&[]).await.is_healthy();
    }
    let given = Host::by_endpoint(&world, "role");
    given.asks(&["user"]).await.is_healthy();
    handed_back(&world).await;
}

#[tokio::test]
async fn a_grant_that_cannot_be_issued_is_reported_with_the_brokers_error() {
    let world = World::new().await;
    let host = Host::by_endpoint(&world, "role");
    world.proxy.inject("AssumeRole", Fault::Cut);
    let said = host.asks(&[]).await;
    said.finds("problem", "grant", 7, "try again");
    world.proxy.heal();

    let name = world.role.rsplit_once('/').unwrap().1;
    let trust = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "arn:aws:iam::123456789012:root"}},
    ]});
    let iam = world.account.root.iam();
    let update = iam.update_assume_role_policy().role_name(name);
    let update = update.policy_document(trust.to_string());
    update.send().await.unwrap();
    let said = host.asks(&[]).await;
    let words = said.of("grant")["what"].as_str().unwrap().to_owned();
    assert!(words.contains(&world.role), "{words}");
    said.finds("problem", "grant", said.run.code, "trust");
    Host::by_endpoint(&world, "federation")
        .asks(&[])
        .await
        .is_healthy();

    let suspend = ["service", "suspend", "payments-api"];
    world.broker.run(&suspend).await.ok();
    let said = Host::by_endpoint(&world, "federation").asks(&[]).await;
    assert_eq!(said.run.code, 4, "{:#?}", said.findings);
    let told = json!(said.findings).to_string();
    assert!(told.contains("is suspended"), "{told}");
}
