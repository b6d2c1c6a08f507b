//! A broker that serves, with a stand-in for AWS: TLS, the embedded store with full durability, a
//! signed log. The limits of one service are set out of the way.

use std::time::Duration;

use credbroker::client::{Evidence, Settings};
use serde_json::{Value, json};
use tokio::process::Child as Process;

use crate::{
    child::{Child, cpu},
    harness::{
        Key,
        site::{Site, stop},
        stored::Engine,
    },
};

pub const ROLE: &str = "arn:aws:iam::123456789012:role/credbroker-bench";
/// Settings with limits that no load reaches.
const BOUNDS: &str = "[bounds]\nconnections = 20000\nconnections_per_address = 20000\n\
                      connections_per_service = 20000\ncalls = 8192\n";
const LIMITS: &str =
    "[limits]\nlive_sessions = 1000000\nissues_per_second = 100000\ncalls_per_second = 100000\n";
const BUDGET: &str = "[aws]\niam_calls_per_second = 100000\nsts_calls_per_second = 100000\n";

pub fn policy() -> Value {
    json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*"},
    ]})
}

pub struct World {
    pub site: Site,
    pub aws: Child,
    pub endpoint: String,
    pub process: Process,
    /// Token of the service `bench`, which has the grants `fresh` and `shared`.
    token: String,
}

impl World {
    /// Creates a world in which AWS answers after `delay`.
    pub async fn new(delay: Duration) -> Self {
        let mut aws = Child::start(&["stub", &delay.as_millis().to_string()]);
        let endpoint = aws.line().await;
        let site = Site::at(&endpoint, Engine::Sqlite);
        site.seal();
        for settings in [BOUNDS, LIMITS, BUDGET] {
            let (section, _) = settings.split_once('\n').unwrap();
            site.set(&format!("\n{section}\n"), &format!("\n{settings}"));
        }
        let process = site.serving(&admin()).await;
        site.create("bench").await;
        let create = ["service", "token", "create", "bench", "-o", "json"];
        let token = site.run(&create).await.ok().json();
        let fresh = ["--role-arn", ROLE];
        site.put("bench/fresh", &fresh, &policy()).await.ok();
        let shared = ["--role-arn", ROLE, "--reuse", "per-service"];
        site.put("bench/shared", &shared, &policy()).await.ok();
        Self {
            token: token["token"].as_str().unwrap().to_owned(),
            site,
            aws,
            endpoint,
            process,
        }
    }

    pub fn settings(&self) -> Settings {
        Settings {
            address: format!("https://{}", self.site.address),
            ca_file: self.site.path("tls.pem"),
            evidence: Evidence::Token(self.token.clone().into()),
        }
    }

    pub fn id(&self) -> u32 {
        self.process.id().unwrap()
    }

    /// CPU seconds of the broker.
    pub fn cpu(&self) -> f64 {
        cpu(self.id())
    }

    /// Stops the broker gracefully. Returns the rest of the world, which can start it again.
    pub async fn stopped(self) -> Stopped {
        stop(self.process).await;
        Stopped {
            site: self.site,
            aws: self.aws,
            endpoint: self.endpoint,
            token: self.token,
        }
    }
}

/// A world without its broker.
pub struct Stopped {
    pub site: Site,
    aws: Child,
    endpoint: String,
    token: String,
}

impl Stopped {
    /// Starts the broker; the caller checks that it answers.
    pub fn start(self) -> World {
        let process = self.site.serve(&admin()).spawn().unwrap();
        World {
            site: self.site,
            aws: self.aws,
            endpoint: self.endpoint,
            process,
            token: self.token,
        }
    }
}

fn admin() -> Key {
    Key {
        id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
        secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
        token: None,
    }
}
