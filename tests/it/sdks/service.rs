//! Services that use an SDK and do not know the broker, each in a process of its own.

use std::{fs, process::Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};

use crate::harness::{
    World,
    aws::REGION,
    broker::{BINARY, credbroker},
    emulator::emulator,
    node::node_modules,
};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdks");

/// SDK of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sdk {
    /// The AWS CLI, started for each call.
    Cli,
    /// boto3.
    Python,
    /// Version 3.
    JavaScript,
    /// aws-sdk-rust.
    Rust,
}

pub(super) const ALL: [Sdk; 4] = [Sdk::Cli, Sdk::Python, Sdk::JavaScript, Sdk::Rust];
/// SDKs that keep their credentials.
pub(super) const LASTING: [Sdk; 3] = [Sdk::Python, Sdk::JavaScript, Sdk::Rust];

impl Sdk {
    /// Program of a service that uses this SDK.
    fn program(self) -> Vec<String> {
        let python = || emulator().bin.join("python").display().to_string();
        let script = |name: &str| format!("{SCRIPTS}/{name}");
        match self {
            Self::Cli => vec![python(), script("cli.py")],
            Self::Python => vec![python(), script("sdk.py")],
            Self::JavaScript => vec!["node".to_owned(), script("sdk.js")],
            Self::Rust => {
                let itself = std::env::current_exe().unwrap().display().to_string();
                let test = "sdks::rust::rust_sdk_service_calls_aws_for_each_line";
                [&itself, test, "--exact", "--ignored", "--nocapture"]
                    .map(ToOwned::to_owned)
                    .to_vec()
            }
        }
    }
}

/// Way in which a service gets its credentials.
pub(super) enum Way {
    /// Environment with these variables, and no others.
    Variables(Vec<(&'static str, String)>),
    /// `credential_process` in the AWS config file.
    Process,
    /// `credbroker exec role` with these flags.
    Exec(&'static [&'static str]),
}

/// A service's host, with a home of its own.
pub(super) struct Host {
    home: TempDir,
    token: String,
    broker: Vec<(String, String)>,
}

impl Host {
    pub(super) fn new(world: &World) -> Self {
        let home = TempDir::new().unwrap();
        let config =
            format!("[default]\ncredential_process = \"{BINARY}\" credential-process role\n");
        fs::write(home.path().join("config"), config).unwrap();
        fs::write(home.path().join("token"), &world.token).unwrap();
        // Some systems are like this: Python uses the machine's list.
        let ca = world.broker.setting("CREDBROKER_CA_FILE");
        let certifi = format!("def where():\n    return {ca:?}\n");
        fs::create_dir(home.path().join("python")).unwrap();
        fs::write(home.path().join("python/certifi.py"), certifi).unwrap();
        Self {
            token: world.token.clone(),
            broker: world.broker.env.clone(),
            home,
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    /// Command for this way; the caller appends the program.
    fn led(&self, way: &Way) -> Command {
        let mut command = match way {
            Way::Exec(flags) => credbroker(&[&["exec", "role"], *flags, &["--", "env"]].concat()),
            _ => Command::new("env"),
        };
        let path = std::env::var("PATH").unwrap();
        command
            .env_clear()
            .env("PATH", format!("{}:{path}", emulator().bin.display()))
            .env("HOME", self.home.path())
            .env("AWS_REGION", REGION)
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_ENDPOINT_URL", &emulator().endpoint)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NODE_PATH", node_modules())
            .env("NODE_NO_WARNINGS", "1")
            .kill_on_drop(true);
        match way {
            Way::Variables(variables) => {
                command.envs(variables.iter().cloned());
            }
            Way::Process => {
                command.env("AWS_CONFIG_FILE", self.path("config"));
                self.knows_the_broker(&mut command);
            }
            Way::Exec(_) => self.knows_the_broker(&mut command),
        }
        command
    }

    fn knows_the_broker(&self, command: &mut Command) {
        let env = self.broker.iter().cloned();
        command.envs(env).env("CREDBROKER_TOKEN", &self.token);
    }

    /// `aws ARGS`, not yet started.
    pub(super) fn aws(&self, way: &Way, args: &[&str]) -> Command {
        let mut command = self.led(way);
        command.arg("aws").args(args);
        command
    }

    pub(super) fn start(&self, sdk: Sdk, way: &Way) -> Service {
        let mut command = self.led(way);
        command.args(sdk.program());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Service {
            sdk,
            ask: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }

    /// Starts a service with each of these SDKs.
    pub(super) fn start_each(&self, sdks: &[Sdk], way: &Way) -> Services {
        Services(sdks.iter().map(|sdk| self.start(*sdk, way)).collect())
    }
}

/// A running service.
pub(super) struct Service {
    pub(super) sdk: Sdk,
    ask: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Service {
    /// Makes the service call AWS: once within its grant, and once outside, which AWS must refuse.
    /// Returns the session, or the reason why there was none or AWS refused both.
    pub(super) async fn call(&mut self) -> Result<String, String> {
        self.ask.write_all(b"\n").await.unwrap();
        let told = loop {
            let line = self.lines.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("{:?} has ended", self.sdk));
            // The Rust test prints a line before.
            if let Some(at) = line.find('{') {
                break serde_json::from_str::<Value>(&line[at..]).unwrap();
            }
        };
        if let Some(why) = told["failed"].as_str() {
            return Err(why.to_owned());
        }
        let denied = told["denied"].as_str().unwrap();
        assert!(denied.contains("AccessDenied"), "{:?}: {told}", self.sdk);
        Ok(told["as"].as_str().unwrap().to_owned())
    }
}

pub(super) struct Services(Vec<Service>);

impl Services {
    /// Makes all services call at the same time.
    pub(super) async fn call(&mut self) -> Vec<(Sdk, Result<String, String>)> {
        let mut calling = JoinSet::new();
        for mut service in self.0.drain(..) {
            calling.spawn(async move {
                let told = service.call().await;
                (service, told)
            });
        }
        let mut told = calling.join_all().await;
        told.sort_by_key(|(service, _)| service.sdk);
        let mut results = Vec::new();
        for (service, result) in told {
            results.push((service.sdk, result));
            self.0.push(service);
        }
        results
    }

    /// Asserts that all work. Returns the session of each.
    pub(super) async fn work(&mut self) -> Vec<String> {
        let told = self.call().await.into_iter();
        told.map(|(sdk, told)| told.unwrap_or_else(|why| panic!("{sdk:?}: {why}")))
            .collect()
    }

    /// Asserts that none works. Returns the reasons.
    pub(super) async fn fail(&mut self) -> Vec<(Sdk, String)> {
        let told = self.call().await.into_iter();
        told.map(|(sdk, told)| (sdk, told.expect_err(&format!("{sdk:?} works"))))
            .collect()
    }

    pub(super) fn into_each(self) -> impl Iterator<Item = Service> {
        self.0.into_iter()
    }
}
