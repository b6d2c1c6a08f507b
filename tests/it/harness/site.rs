//! A broker of `serve`, with a configuration made from the one that is shipped.

use std::{fs::File, net::TcpListener, path::PathBuf, process::Stdio};

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{
    Key, Run,
    broker::{aws_env, credbroker},
    emulator::emulator,
    eventually,
};

const EXAMPLE: &str = include_str!("../../../deploy/credbroker.example.toml");

/// A directory with what `serve` needs: certificate, key and configuration.
pub struct Site {
    pub directory: TempDir,
    pub address: String,
}

impl Site {
    pub fn new() -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The shipped configuration, moved here.
    pub fn config(&self) -> String {
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

    pub fn serve(&self, admin: &Key) -> Command {
        let config = self.path("config.toml");
        let mut command = credbroker(&["serve", "--config", config.to_str().unwrap()]);
        command.envs(aws_env(admin));
        command
    }

    /// Starts it and waits until it answers. What it tells on standard error is in `log`.
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
        eventually("it serves", answers).await;
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
}

/// Ends it in good order.
pub async fn stop(mut child: Child) {
    let pid = child.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(kill.unwrap().success());
    assert!(child.wait().await.unwrap().success());
}
