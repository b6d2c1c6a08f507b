//! Changes that need a second operator, if the configuration says so.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Child;

use crate::{
    audit::fill_store,
    harness::{
        Account, Key, Run,
        broker::credbroker,
        eventually,
        site::{Site, stop},
        stepped::policy,
    },
};

/// A broker that requires two operators for some changes; operators `ann` and `bob` are admins,
/// `carl` is a grant-admin.
struct Pair {
    account: Account,
    site: Site,
    child: Child,
    tokens: Vec<(&'static str, String)>,
}

impl Pair {
    async fn new() -> Self {
        let account = Account::new().await;
        let site = Site::sealed(|_| "keep = \"1s\"".to_owned());
        let child = site.serving(&account.admin).await;
        let mut tokens = Vec::new();
        for (name, role) in [("ann", "admin"), ("bob", "admin"), ("carl", "grant-admin")] {
            let create = ["operator", "create", name, "--role", role, "-o", "json"];
            let made = site.run(&create).await.ok().json();
            tokens.push((name, made["token"].as_str().unwrap().to_owned()));
        }
        site.create("pay").await;
        stop(child).await;
        fill_store(&site.stored, 600).await;
        let config = std::fs::read_to_string(site.path("config.toml")).unwrap();
        let config = config.replace("# two_person", "two_person");
        std::fs::write(site.path("config.toml"), config).unwrap();
        let child = site.serving(&account.admin).await;
        Self {
            account,
            site,
            child,
            tokens,
        }
    }

    async fn run_in(&self, name: &str, args: &[&str], input: &str) -> Run {
        let (_, token) = self
            .tokens
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap();
        let mut command = credbroker(args);
        command
            .envs(self.site.env())
            .env_remove("CREDBROKER_TOKEN_FILE");
        command.env("CREDBROKER_TOKEN", token);
        Run::of(command, input).await
    }

    async fn run(&self, name: &str, args: &[&str]) -> Run {
        self.run_in(name, args, "").await
    }

    /// Open approvals, as `name` sees them.
    async fn open(&self, name: &str) -> Vec<Value> {
        let list = self.run(name, &["approval", "list", "-o", "json"]).await;
        list.ok().json().as_array().unwrap().clone()
    }

    /// The only open approval.
    async fn only_open(&self) -> String {
        let [open] = &self.open("ann").await[..] else {
            panic!("{:?}", self.open("ann").await);
        };
        open["approval_id"].as_str().unwrap().to_owned()
    }

    /// Asserts that the change is refused to one operator, made once with the other's consent, and
    /// then refused again.
    async fn takes_two(&self, args: &[&str], input: &str, summary: &str) -> Value {
        let asked = self.run_in("ann", args, input).await;
        let asked = asked.fails(
            6,
            &["takes a second operator", "APPROVAL_REQUIRED", summary],
        );
        // A repeated request creates no second approval.
        self.run_in("ann", args, input)
            .await
            .fails(6, &["APPROVAL_REQUIRED"]);
        let [open] = &self.open("bob").await[..] else {
            panic!("{summary}: {:?}", self.open("bob").await);
        };
        assert_eq!(
            (&open["summary"], &open["requested_by"]),
            (&json!(summary), &json!("ann"))
        );
        let id = open["approval_id"].as_str().unwrap();
        assert!(asked.stderr.contains(id), "{asked:?}");
        let own = self.run("ann", &["approval", "approve", id]).await;
        own.fails(6, &["APPROVAL_OWN"]);
        let given = self
            .run("bob", &["approval", "approve", id, "-o", "json"])
            .await;
        assert_eq!(given.ok().json()["approved_by"], "bob");
        // Ann alone may make the change.
        self.run_in("bob", args, input)
            .await
            .fails(6, &["APPROVAL_REQUIRED"]);
        let own = self.open("bob").await;
        let own = own
            .iter()
            .find(|open| open["requested_by"] == "bob")
            .unwrap();
        let reject = ["approval", "reject", own["approval_id"].as_str().unwrap()];
        self.run("bob", &reject).await.ok();
        self.run_in("ann", args, input).await.ok();
        assert_eq!(self.open("ann").await, [Value::Null; 0]);
        open.clone()
    }
}

#[tokio::test]
async fn a_sensitive_change_needs_a_second_operator() {
    let pair = Pair::new().await;
    let began = Instant::now();
    let policy = policy().to_string();
    let put = [
        "grant",
        "put",
        "pay/work",
        "--kind",
        "iam_user",
        "--max-ttl",
        "2h",
    ];
    let put = [&put[..], &["--policy-file", "-"]].concat();
    let open = pair.takes_two(&put, &policy, "put grant pay/work").await;
    assert_eq!(open["change"]["spec"]["max_ttl"], 7200, "{open}");
    // The same grant with a shorter life needs one operator, with a longer life two.
    let shorter = [&put[..6], &["1h", "--policy-file", "-"]].concat();
    pair.run_in("ann", &shorter, &policy).await.ok();
    pair.takes_two(&put, &policy, "put grant pay/work").await;
    // Deletion needs one operator.
    pair.run("ann", &["grant", "delete", "pay/work"]).await.ok();

    let create = ["operator", "create", "dora", "--role", "viewer"];
    pair.takes_two(&create, "", "create operator dora as viewer")
        .await;
    let delete = ["operator", "delete", "dora"];
    pair.run("ann", &delete).await.ok();

    let Key { id, secret, .. } = &pair.account.admin;
    let key = format!("aws_access_key_id={id}\naws_secret_access_key={secret}\n");
    let summary = format!("import admin key {id}");
    let open = pair.takes_two(&["admin-key", "import"], &key, &summary);
    assert!(!open.await.to_string().contains(secret.as_str()));

    let archive = TempDir::new().unwrap();
    let archive = archive.path().display().to_string();
    pair.run("ann", &["audit", "export", &archive]).await.ok();
    // A fast machine does all of this in less time.
    let is_old = async || (began.elapsed() > Duration::from_secs(2)).then_some(());
    eventually("the first records are two seconds old", is_old).await;
    let prune = ["audit", "prune", &archive, "--older-than", "1s"];
    pair.takes_two(&prune, "", "prune the first 512 records")
        .await;

    let events = pair.run(
        "ann",
        &["audit", "query", "--event", "approval.used", "-o", "json"],
    );
    let used = events.await.ok().json();
    assert_eq!(used.as_array().unwrap().len(), 5);
    let told = used[1]["detail"].as_str().unwrap();
    assert!(
        told.contains("create operator dora as viewer, for ann, approved by bob")
            || told.contains("put grant pay/work, for ann, approved by bob"),
        "{told}"
    );
    stop(pair.child).await;
}

#[tokio::test]
async fn an_approval_covers_one_change_by_one_operator_for_a_day() {
    let pair = Pair::new().await;
    let create = |role| ["operator", "create", "dora", "--role", role];
    let open = async || {
        let open = pair.open("bob").await;
        open.last()
            .map(|open| open["approval_id"].as_str().unwrap().to_owned())
    };
    pair.run("ann", &create("viewer"))
        .await
        .fails(6, &["APPROVAL_REQUIRED"]);
    let id = open().await.unwrap();
    // An operator whose role could not make the change may not approve it.
    let carl = pair.run("carl", &["approval", "approve", &id]).await;
    carl.fails(6, &["APPROVAL_ROLE"]);
    pair.run("bob", &["approval", "approve", &id]).await.ok();
    pair.run("bob", &["approval", "approve", &id])
        .await
        .fails(6, &["APPROVAL_GIVEN"]);
    // A larger change than the approved one needs another approval.
    pair.run("ann", &create("admin"))
        .await
        .fails(6, &["APPROVAL_REQUIRED"]);
    let more = open().await.unwrap();
    assert_ne!(more, id);
    pair.run("ann", &["approval", "reject", &more]).await.ok();
    let gone = pair.run("bob", &["approval", "approve", &more]).await;
    gone.fails(5, &["there is no approval"]);
    // An expired approval is gone.
    pair.site
        .write_store("UPDATE approvals SET expires_at = 1")
        .await;
    assert_eq!(pair.open("bob").await, [Value::Null; 0]);
    pair.run("ann", &create("viewer"))
        .await
        .fails(6, &["APPROVAL_REQUIRED"]);
    assert_ne!(open().await.unwrap(), id);

    let put = [
        "grant",
        "put",
        "pay/work",
        "--kind",
        "iam_user",
        "--policy-file",
        "-",
    ];
    let put = pair.run_in("ann", &put, &policy().to_string()).await;
    put.fails(6, &["APPROVAL_REQUIRED"]);
    let id = open().await.unwrap();
    pair.run("carl", &["approval", "approve", &id]).await.ok();
    let shown = pair
        .run("carl", &["approval", "show", &id])
        .await
        .ok()
        .stdout;
    assert!(
        shown.contains("sqs:ListQueues") && shown.contains("carl"),
        "{shown}"
    );
    stop(pair.child).await;
}

#[tokio::test]
async fn concurrent_uses_of_one_approval_succeed_once() {
    let pair = Pair::new().await;
    let create = ["operator", "create", "dora", "--role", "viewer"];
    pair.run("ann", &create)
        .await
        .fails(6, &["APPROVAL_REQUIRED"]);
    let open = pair.open("bob").await;
    let id = open[0]["approval_id"].as_str().unwrap();
    pair.run("bob", &["approval", "approve", id]).await.ok();
    let (one, two) = tokio::join!(pair.run("ann", &create), pair.run("ann", &create));
    let done = [&one, &two].iter().filter(|run| run.code == 0).count();
    assert_eq!(done, 1, "{one:?} {two:?}");
    stop(pair.child).await;
}

#[tokio::test]
async fn requests_of_an_operator_at_the_limit_do_not_block_other_operators() {
    let pair = Pair::new().await;
    let create = ["operator", "create", "dora", "--role", "viewer"];
    pair.run("ann", &create)
        .await
        .fails(6, &["APPROVAL_REQUIRED"]);
    let id = pair.only_open().await;
    let reject = ["approval", "reject", &id];
    pair.run("carl", &reject).await.fails(6, &["APPROVAL_ROLE"]);
    // An operator may have a limited number of open requests; other operators are not affected.
    let policy = policy().to_string();
    for number in 0..=20 {
        let grant = format!("pay/grant-{number}");
        let put = [
            "grant",
            "put",
            &grant,
            "--kind",
            "iam_user",
            "--policy-file",
            "-",
        ];
        let asked = pair.run_in("carl", &put, &policy).await;
        if number < 20 {
            asked.fails(6, &["APPROVAL_REQUIRED"]);
        } else {
            asked.fails(7, &["20 changes of yours", "TOO_MANY_APPROVALS"]);
        }
    }
    let other = ["operator", "create", "emil", "--role", "viewer"];
    pair.run("ann", &other)
        .await
        .fails(6, &["APPROVAL_REQUIRED"]);
    // Removal of an operator needs no consent, and ends that operator's requests.
    pair.run("ann", &["operator", "delete", "carl"]).await.ok();
    let open = pair.open("bob").await;
    assert!(open.iter().all(|open| open["requested_by"] == "ann"));
    assert_eq!(open.len(), 2, "{open:?}");
    // The operator who requested a change may withdraw it.
    pair.run("ann", &reject).await.ok();
    stop(pair.child).await;
}

#[tokio::test]
async fn an_approval_ends_when_withdrawn_or_with_its_operator_or_version() {
    let pair = Pair::new().await;
    let policy = policy().to_string();
    let put = |ttl| {
        let flags = ["--kind", "iam_user", "--max-ttl", ttl, "--policy-file", "-"];
        [&["grant", "put", "pay/work"], &flags[..]].concat()
    };
    let (one, two, four) = (put("1h"), put("2h"), put("4h"));
    let consent = async |args: &[&str]| {
        let asked = pair.run_in("ann", args, &policy).await;
        asked.fails(6, &["APPROVAL_REQUIRED"]);
        let id = pair.only_open().await;
        pair.run("bob", &["approval", "approve", &id]).await.ok();
        id
    };
    consent(&two).await;
    pair.run_in("ann", &two, &policy).await.ok();

    // Another operator changes the grant between the approval and the change.
    let id = consent(&four).await;
    pair.run_in("bob", &one, &policy).await.ok();
    let asked = pair.run_in("ann", &four, &policy).await;
    asked.fails(6, &["APPROVAL_REQUIRED"]);
    for open in pair.open("ann").await {
        let id = open["approval_id"].as_str().unwrap();
        pair.run("ann", &["approval", "reject", id]).await.ok();
    }
    let gone = pair.run("bob", &["approval", "reject", &id]).await;
    gone.fails(5, &["there is no approval"]);

    let id = consent(&four).await;
    pair.run("bob", &["approval", "reject", &id]).await.ok();
    consent(&four).await;
    pair.run("ann", &["operator", "delete", "bob"]).await.ok();
    let asked = pair.run_in("ann", &four, &policy).await;
    asked.fails(6, &["APPROVAL_REQUIRED"]);
    stop(pair.child).await;
}
