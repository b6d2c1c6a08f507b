//! `credbroker credential-process`, which the AWS CLI starts for every command.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use jiff::SignedDuration;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::harness::{Key, Run, World, broker::credbroker, proxy::Fault};

/// A service's host, with a cache of its own.
struct Host<'a> {
    world: &'a World,
    home: TempDir,
}

impl<'a> Host<'a> {
    fn new(world: &'a World) -> Self {
        let home = TempDir::new().unwrap();
        Self { world, home }
    }

    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = credbroker(&[&["credential-process"], args].concat());
        command
            .envs(self.world.broker.env.iter().cloned())
            .env("CREDBROKER_TOKEN", &self.world.token)
            .env("XDG_CACHE_HOME", self.home.path());
        command
    }

    async fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args), "").await
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join("credbroker/credentials")
    }

    /// Cached credentials, with their paths.
    fn kept(&self) -> Vec<(PathBuf, Value)> {
        let entries = fs::read_dir(self.directory()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let kept = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
        kept.map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, serde_json::from_str(&text).unwrap())
        })
        .collect()
    }

    /// Changes the cache so that its credentials end this many seconds from now.
    fn ends_in(&self, seconds: i64) {
        for (path, mut kept) in self.kept() {
            let at = |seconds| {
                let now = credbroker::domain::clock::wall_time();
                json!((now + SignedDuration::from_secs(seconds)).to_string())
            };
            kept["issued_at"] = at(-3600);
            kept["expires_at"] = at(seconds);
            fs::write(path, kept.to_string()).unwrap();
        }
    }

    async fn issued(&self) -> usize {
        let leases = self.world.leases().await;
        leases.len()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_hundred_concurrent_processes_share_one_request() {
    let world = World::new().await;
    let host = Host::new(&world);
    let mut asking = JoinSet::new();
    for _ in 0..100 {
        asking.spawn(Run::of(host.command(&["role"]), ""));
    }
    let answers: Vec<Value> = asking
        .join_all()
        .await
        .into_iter()
        .map(|run| run.ok().json())
        .collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(host.issued().await, 1);
    let answer = &answers[0];
    let keys: Vec<_> = answer.as_object().unwrap().keys().collect();
    let contract = [
        "Version",
        "AccessKeyId",
        "SecretAccessKey",
        "Expiration",
        "SessionToken",
    ];
    assert_eq!(keys, contract);
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    let key = Key {
        id: text("AccessKeyId"),
        secret: text("SecretAccessKey"),
        token: Some(text("SessionToken")),
    };
    assert!(key.works().await);
    assert_eq!(mode(&host.directory()), 0o700);
    for entry in fs::read_dir(host.directory()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        // The file's name reveals nothing.
        assert!(!path.display().to_string().contains(&world.token[4..20]));
    }
}

#[tokio::test]
async fn a_process_with_other_settings_gets_other_credentials() {
    let world = World::new().await;
    let host = Host::new(&world);
    let asked = [
        &["role"][..],
        &["role", "--ttl", "30m"],
        &["federation"],
        &["user"],
    ];
    for (number, args) in (1..).zip(asked) {
        host.run(args).await.ok();
        host.run(args).await.ok();
        assert_eq!(host.issued().await, number, "{args:?}");
    }
    // An IAM user's key has no session token.
    let user = host.run(&["user"]).await.ok().json();
    assert_eq!(user.get("SessionToken"), None);
}

#[tokio::test]
async fn cached_credentials_are_renewed_near_the_end_and_kept_through_an_outage() {
    let world = World::new().await;
    let host = Host::new(&world);
    let first = host.run(&["role"]).await.ok().json();
    host.ends_in(15 * 60);
    let second = host.run(&["role"]).await.ok().json();
    assert_ne!(first["AccessKeyId"], second["AccessKeyId"]);

    host.ends_in(15 * 60);
    world.proxy.inject("AssumeRole", Fault::Cut);
    let last = host.run(&["role"]).await.ok();
    assert!(last.stderr.contains("at the moment"), "{last:?}");
    assert_eq!(last.json(), second);
    host.ends_in(1);
    let none = host.run(&["role"]).await;
    none.fails(7, &[]);
    world.proxy.heal();
}

#[tokio::test]
async fn a_suspended_service_loses_its_cache_at_the_next_call() {
    let world = World::new().await;
    let host = Host::new(&world);
    let issued = host.run(&["role"]).await.ok().json();
    world
        .broker
        .run(&["service", "suspend", "payments-api"])
        .await
        .ok();
    host.ends_in(15 * 60);
    let refused = host.run(&["role"]).await.fails(4, &["is suspended"]);
    assert_eq!(refused.stdout, "");
    let secret = issued["SecretAccessKey"].as_str().unwrap();
    assert!(!refused.stderr.contains(secret) && !refused.stderr.contains(&world.token));
    assert_eq!(host.kept(), []);
}

#[tokio::test]
async fn a_cache_directory_readable_by_others_is_not_used() {
    let world = World::new().await;
    let host = Host::new(&world);
    fs::create_dir_all(host.directory()).unwrap();
    fs::set_permissions(host.directory(), PermissionsExt::from_mode(0o755)).unwrap();
    let run = host.run(&["role"]).await.ok();
    assert!(run.stderr.contains("chmod 700"), "{run:?}");
    assert_eq!(run.json()["Version"], 1);
    assert_eq!(host.kept(), []);
}
