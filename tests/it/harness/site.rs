//! A broker of `serve`, with a configuration derived from the shipped one.

use std::{fs::File, net::Ipv4Addr, path::PathBuf, process::Stdio};

use credbroker::client::{Client, Evidence, Settings};
use data_encoding::BASE64;
use rcgen::{CertificateParams, KeyPair};
use secrecy::ExposeSecret;
use serde_json::Value;
use sqlx::AnyConnection;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{
    Key, Run,
    attacks::{Attack, Attacker},
    broker::{aws_env, credbroker},
    emulator::emulator,
    eventually_within, free_address,
    stepped::policy,
    stored::{Engine, Stored},
    wire::tls_get,
};

const EXAMPLE: &str = include_str!("../../../deploy/credbroker.example.toml");

/// Directory with the files that `serve` needs: certificate, key and configuration.
pub struct Site {
    pub directory: TempDir,
    pub address: String,
    pub stored: Stored,
    /// Endpoint of AWS.
    endpoint: String,
}

impl Site {
    pub fn new() -> Self {
        Self::on(Engine::chosen())
    }

    /// Creates a site with a store of this engine.
    pub fn on(engine: Engine) -> Self {
        Self::at(&emulator().endpoint, engine)
    }

    /// Creates a site that reaches AWS at `endpoint`.
    pub fn at(endpoint: &str, engine: Engine) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address().to_string();
        let stored = Stored::fresh(engine, directory.path().join("credbroker.db"));
        let site = Self {
            directory,
            address,
            stored,
            endpoint: endpoint.to_owned(),
        };
        let names = ["localhost", "127.0.0.1"].map(ToOwned::to_owned);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key);
        std::fs::write(site.path("tls.pem"), certificate.unwrap().pem()).unwrap();
        std::fs::write(site.path("tls.key"), key.serialize_pem()).unwrap();
        std::fs::write(site.path("config.toml"), site.config()).unwrap();
        site
    }

    /// Creates another site on the same database, with the same operators, once the first serves.
    pub fn beside(&self) -> Self {
        let mut site = Self::at(&self.endpoint, Engine::Sqlite);
        site.stored = self.stored.clone();
        std::fs::write(site.path("config.toml"), site.config()).unwrap();
        std::fs::copy(self.path("admin-token"), site.path("admin-token")).unwrap();
        site
    }

    /// Creates such a site with a sealing key, so that the log is signed.
    pub fn sealed(settings: impl FnOnce(&Self) -> String) -> Self {
        let site = Self::with_audit(settings);
        site.seal();
        site
    }

    /// Adds a sealing key to the site.
    pub fn seal(&self) {
        std::fs::write(self.path("seal.key"), BASE64.encode(&[7; 32])).unwrap();
        let setting = "# sealing_key_file = \"/run/credentials/credbroker.service/seal.key\"";
        let sealed = format!("sealing_key_file = {:?}", self.text("seal.key"));
        self.set(setting, &sealed);
    }

    /// Replaces `these` with `others` in the configuration.
    pub fn set(&self, these: &str, others: &str) {
        let config = std::fs::read_to_string(self.path("config.toml")).unwrap();
        assert!(config.contains(these), "{these}");
        let config = config.replacen(these, others, 1);
        std::fs::write(self.path("config.toml"), config).unwrap();
    }

    /// Creates a site with more settings of the audit log.
    pub fn with_audit(settings: impl FnOnce(&Self) -> String) -> Self {
        let site = Self::new();
        let settings = settings(&site);
        site.set("\n[limits]", &format!("\n{settings}\n[limits]"));
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Returns the shipped configuration, adapted to this directory.
    pub fn config(&self) -> String {
        let here = format!("{}/", self.directory.path().display());
        let endpoint = format!("endpoint_url = {:?}", self.endpoint);
        let file = "\nstore = \"/var/lib/credbroker/credbroker.db\"";
        let store = match &self.stored {
            Stored::File(_) => file.to_owned(),
            Stored::Database(url) => format!(
                "\nstore = {:?}\nemergency_file = {:?}",
                url.expose_secret(),
                self.text("emergency")
            ),
        };
        EXAMPLE
            .replace(file, &store)
            .replace("/var/lib/credbroker/", &here)
            .replace("/etc/credbroker/", &here)
            .replace("0.0.0.0:8443", &self.address)
            .replace("# shutdown_delay = \"5s\"", "shutdown_delay = \"0s\"")
            .replace(
                "# endpoint_url = \"https://sts.example.internal\"",
                &endpoint,
            )
    }

    pub fn serve(&self, admin: &Key) -> Command {
        let config = self.path("config.toml");
        let mut command = credbroker(&["serve", "--config", config.to_str().unwrap()]);
        command.envs(aws_env(admin));
        command
    }

    /// Starts the broker and waits until it answers. Its standard error is in `log`.
    pub async fn serving(&self, admin: &Key) -> Child {
        self.serving_by(self.serve(admin)).await
    }

    pub async fn serving_by(&self, mut command: Command) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"));
        let quiet = command.stdin(Stdio::null()).stderr(log.unwrap());
        let child = quiet.spawn().unwrap();
        let answers = async || (self.run(&["status"]).await.code == 0).then_some(());
        // The start waits for a witness that does not answer.
        eventually_within(30, "it serves", answers).await;
        child
    }

    pub fn env(&self) -> Vec<(String, String)> {
        let file = |name| self.path(name).display().to_string();
        [
            ("CREDBROKER_ADDR", format!("https://{}", self.address)),
            ("CREDBROKER_CA_FILE", file("tls.pem")),
            ("CREDBROKER_TOKEN_FILE", file("admin-token")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    pub async fn run(&self, args: &[&str]) -> Run {
        let mut command = credbroker(args);
        command.envs(self.env());
        Run::of(command, "").await
    }

    /// Runs a command as the service with this token.
    pub async fn run_as(&self, token: &str, args: &[&str]) -> Run {
        let mut command = credbroker(args);
        command.envs(self.env()).env_remove("CREDBROKER_TOKEN_FILE");
        command.env("CREDBROKER_TOKEN", token);
        Run::of(command, "").await
    }

    pub async fn create(&self, service: &str) {
        self.run(&["service", "create", service]).await.ok();
    }

    /// Registers a service. Returns its token.
    pub async fn service(&self, name: &str) -> String {
        self.create(name).await;
        let create = ["service", "token", "create", name, "-o", "json"];
        let token = self.run(&create).await.ok().json();
        token["token"].as_str().unwrap().to_owned()
    }

    pub async fn client(&self, token: &str) -> Client {
        let settings = Settings {
            address: format!("https://{}", self.address),
            ca_file: self.path("tls.pem"),
            evidence: Evidence::Token(token.to_owned().into()),
        };
        Client::connect(&settings).await.unwrap()
    }

    pub async fn admin_client(&self) -> Client {
        let token = std::fs::read_to_string(self.path("admin-token")).unwrap();
        self.client(&token).await
    }

    /// Attacker of this broker from an address of the loopback network.
    pub fn attacker(&self, number: u8, token: &str, attack: Attack) -> Attacker {
        Attacker::new(self, Ipv4Addr::new(127, 0, 0, number), token, attack)
    }

    /// Registers `payments-api` with the grant `user`. Returns its token.
    pub async fn payments_api(&self) -> String {
        let token = self.service("payments-api").await;
        let user = ["--kind", "iam_user"];
        self.put("payments-api/user", &user, &policy()).await.ok();
        token
    }

    /// Puts a grant with an inline policy.
    pub async fn put(&self, grant: &str, flags: &[&str], policy: &Value) -> Run {
        let put = ["grant", "put", grant, "--policy-file", "-"];
        let mut put = credbroker(&[&put[..], flags].concat());
        put.envs(self.env());
        Run::of(put, &policy.to_string()).await
    }

    /// Asserts that an issue to the service with this token succeeds. Returns the lease.
    pub async fn assert_issues(&self, token: &str) -> String {
        let issue = self.run_as(token, &["issue", "user", "-o", "json"]).await;
        let issued = issue.ok().json();
        assert!(Key::issued(&issued).works().await);
        issued["lease_id"].as_str().unwrap().to_owned()
    }

    /// Changes the store behind the broker's back.
    pub async fn write_store(&self, sql: &str) {
        self.stored.write(sql).await;
    }

    /// Opens the store for reading.
    pub async fn store(&self) -> AnyConnection {
        self.stored.connect().await
    }

    /// Returns a metric, with the labels in its name.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = tls_get(&self.address, &self.path("tls.pem"), "/metrics").await;
        let begin = format!("{name} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&begin));
        line.map(|value| value.parse().unwrap())
    }
}

/// Stops the broker gracefully.
pub async fn stop(mut child: Child) {
    let pid = child.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(kill.unwrap().success());
    assert!(child.wait().await.unwrap().success());
}
