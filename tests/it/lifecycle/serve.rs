//! `serve`, with a configuration made from the one that is shipped.

use std::{net::TcpListener, path::PathBuf, process::Stdio};

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{address, mode, tls_get};
use crate::harness::{
    Account, Key, Run,
    broker::{aws_env, credbroker},
    emulator::emulator,
    eventually,
};

const EXAMPLE: &str = include_str!("../../../deploy/credbroker.example.toml");

/// A directory with what `serve` needs: certificate, key and configuration.
struct Site {
    directory: TempDir,
    address: String,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let site = Self { directory, address };
        let names = ["localhost", "127.0.0.1"].map(ToOwned::to_owned);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key);
        std::fs::write(site.path("tls.pem"), certificate.unwrap().pem()).unwrap();
        std::fs::write(site.path("tls.key"), key.serialize_pem()).unwrap();
        std::fs::write(site.path("config.toml"), site.config()).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The shipped configuration, moved here.
    fn config(&self) -> String {
        let here = format!("{}/", self.directory.path().display());
        let endpoint = format!("endpoint_url = {:?}", emulator().endpoint);
        EXAMPLE
            .replace("/var/lib/credbroker/", &here)
            .replace("/etc/credbroker/", &here)
            .replace("0.0.0.0:8443", &self.address)
            .replace(
                "# endpoint_url = \"https://sts.example.internal\"",
                &endpoint,
            )
    }

    fn serve(&self, admin: &Key) -> Command {
        let config = self.path("config.toml");
        let mut command = credbroker(&["serve", "--config", config.to_str().unwrap()]);
        command.envs(aws_env(admin));
        command
    }

    /// Starts it and waits until it answers.
    async fn serving(&self, admin: &Key) -> Child {
        let mut command = self.serve(admin);
        let quiet = command.stdin(Stdio::null()).stderr(Stdio::null());
        let child = quiet.spawn().unwrap();
        let answers = async || (self.run(&["status"]).await.code == 0).then_some(());
        eventually("it serves", answers).await;
        child
    }

    fn env(&self) -> Vec<(String, String)> {
        let file = |name| self.path(name).display().to_string();
        [
            ("CREDBROKER_ADDR", format!("https://{}", self.address)),
            ("CREDBROKER_CA_FILE", file("tls.pem")),
            ("CREDBROKER_TOKEN_FILE", file("admin-token")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    async fn run(&self, args: &[&str]) -> Run {
        let mut command = credbroker(args);
        command.envs(self.env());
        Run::of(command, "").await
    }
}

async fn stop(mut child: Child) {
    let pid = child.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(kill.unwrap().success());
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn serve_follows_its_configuration_and_makes_the_first_operator_once() {
    let (site, account) = (Site::new(), Account::new().await);
    let child = site.serving(&account.admin).await;
    assert_eq!(mode(&site.path("admin-token")), 0o600);
    assert_eq!(mode(&site.path("credbroker.db")), 0o600);
    let status = site.run(&["status", "-o", "json"]).await.ok().json();
    assert_eq!(status["region"], "eu-central-1");
    assert!(
        status["admin_arn"]
            .as_str()
            .unwrap()
            .ends_with(":user/credbroker-admin"),
        "{status}"
    );
    site.run(&["service", "create", "payments-api"]).await.ok();
    let answer = tls_get(address(&site.env()), &site.path("tls.pem"), "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    stop(child).await;

    // Moved to a safe place, the token goes on being good and is not made again.
    let safe = site.path("safe");
    std::fs::rename(site.path("admin-token"), &safe).unwrap();
    let mut again = site.serve(&account.admin);
    let again = again.stdin(Stdio::null()).stderr(Stdio::null());
    let child = again.spawn().unwrap();
    let safe = safe.to_str().unwrap();
    let show = ["service", "show", "payments-api", "--token-file", safe];
    let shows = async || (site.run(&show).await.code == 0).then_some(());
    eventually("it serves again", shows).await;
    assert!(!site.path("admin-token").exists());
    stop(child).await;
}

#[tokio::test]
async fn serve_does_not_start_without_the_boundary_and_says_how_to_make_it() {
    let (site, account) = (Site::new(), Account::empty());
    let run = Run::of(site.serve(&account.root), "").await;
    let boundary = format!(
        "arn:aws:iam::{}:policy/credbroker/credbroker-boundary",
        account.id
    );
    let words = [
        &boundary,
        "deploy/aws/bootstrap.sh",
        "aws iam create-policy --path /credbroker/ --policy-name credbroker-boundary",
    ];
    run.fails(6, &words);
    let iam = account.root.iam();
    let make = iam.create_policy().path("/credbroker/");
    let make = make.policy_name("credbroker-boundary");
    let document = include_str!("../../../deploy/aws/boundary-policy.json");
    make.policy_document(document).send().await.unwrap();
    stop(site.serving(&account.root).await).await;
}

#[tokio::test]
async fn every_mistake_of_a_configuration_is_told_at_once() {
    let (site, account) = (Site::new(), Account::new().await);
    let wrong = site
        .config()
        .replace(&site.address, "localhost")
        .replace(
            "region = \"eu-central-1\"",
            "region = \"Europe\"\ncolour = \"blue\"",
        )
        .replace("tls_key_file", "# tls_key_file")
        .replace("format = \"text\"", "format = \"xml\"");
    std::fs::write(site.path("config.toml"), wrong).unwrap();
    let run = Run::of(site.serve(&account.admin), "").await;
    let words = [
        "mistakes: 5",
        "listen.address: ",
        "listen.tls_key_file: is missing",
        "aws.region: write it like eu-central-1",
        "aws.colour: is not a setting",
        "log.format: choose text or json",
    ];
    run.fails(2, &words);
    assert!(!site.path("credbroker.db").exists());

    std::fs::remove_file(site.path("config.toml")).unwrap();
    let run = Run::of(site.serve(&account.admin), "").await;
    run.fails(2, &["cannot read", "config.toml"]);

    std::fs::write(site.path("config.toml"), site.config()).unwrap();
    stop(site.serving(&account.admin).await).await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_told_before_anything_is_made() {
    let (site, account) = (Site::new(), Account::new().await);
    let key = std::fs::read(site.path("tls.key")).unwrap();
    let foreign = KeyPair::generate().unwrap().serialize_pem();
    for (wrong, words) in [
        (
            foreign.as_str(),
            "the TLS certificate and key cannot be used",
        ),
        ("no key", "cannot read the TLS private key"),
    ] {
        std::fs::write(site.path("tls.key"), wrong).unwrap();
        let run = Run::of(site.serve(&account.admin), "").await;
        run.fails(2, &[words]);
    }
    assert!(!site.path("credbroker.db").exists());
    std::fs::write(site.path("tls.key"), key).unwrap();
    stop(site.serving(&account.admin).await).await;
}
