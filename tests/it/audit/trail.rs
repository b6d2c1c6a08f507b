//! Reconciliation of the log with CloudTrail. The test builds the CloudTrail files from the real
//! calls to AWS.

use std::{fs, io::Write, path::Path};

use flate2::{Compression, write::GzEncoder};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::export::export;
use crate::harness::{
    Account, Broker, Key, Run, World, aws::ADMIN_USER, broker::credbroker, form::Form,
    proxy::Fault, stepped::policy,
};

/// Users and sessions that the broker had AWS create, as CloudTrail reports them.
struct Issued {
    world: World,
    /// Approximate time of the calls.
    time: Timestamp,
    events: Vec<Value>,
}

/// Actions in CloudTrail with the request field that has the name, and CloudTrail's name for that
/// field.
const ACTIONS: [(&str, &str, &str); 4] = [
    ("CreateUser", "UserName", "userName"),
    ("CreateAccessKey", "UserName", "userName"),
    ("AssumeRole", "RoleSessionName", "roleSessionName"),
    ("GetFederationToken", "Name", "name"),
];

const REQUESTS: [&str; 2] = [
    "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10",
    "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f11",
];

fn admin_arn(account: &str) -> String {
    format!("arn:aws:iam::{account}:user/{ADMIN_USER}")
}

fn event(arn: &str, time: Timestamp, action: &str, id: &str) -> Value {
    let service = match action {
        "CreateUser" | "CreateAccessKey" => "iam",
        "ListBuckets" => "s3",
        _ => "sts",
    };
    json!({
        "eventVersion": "1.08", "eventTime": format!("{time:.0}"), "awsRegion": "us-east-1",
        "eventSource": format!("{service}.amazonaws.com"), "eventName": action,
        "userIdentity": {"type": "IAMUser", "arn": arn, "accessKeyId": "AKIANEVERTOLD"},
        "requestID": format!("r-{id}"), "eventID": id, "eventType": "AwsApiCall",
        "requestParameters": null, "responseElements": null,
    })
}

/// Event by the admin user that created this key, for a user or session of this name.
fn made(arn: &str, time: Timestamp, action: &str, name: &str, key: &str) -> Value {
    let (.., field) = ACTIONS.iter().find(|(known, ..)| *known == action).unwrap();
    let mut event = event(arn, time, action, &format!("{action}-{name}-{key}"));
    event["requestParameters"] = json!({ *field: name });
    event["responseElements"] = match action {
        "CreateUser" => json!({"user": {"userName": name}}),
        "CreateAccessKey" => json!({"accessKey": {"accessKeyId": key, "userName": name}}),
        _ => json!({"credentials": {"accessKeyId": key, "sessionToken": "…"}}),
    };
    event
}

impl Issued {
    /// Issues all three kinds, repeats two, loses an answer, revokes, so that canary sessions are
    /// created, and rotates the admin key.
    async fn new() -> Self {
        let world = World::new().await;
        let grant = "payments-api/federated";
        let kind = ["--kind", "federation_token"];
        world.broker.grant(grant, &kind, &policy()).await;
        let (mut sessions, mut keys) = (Vec::new(), Vec::new());
        for _ in ["first", "again"] {
            let role = world.issued(&["role", "--request-id", REQUESTS[0]]).await;
            sessions.push(Key::issued(&role).id);
            let user = world.issued(&["user", "--request-id", REQUESTS[1]]).await;
            keys.push(Key::issued(&user).id);
        }
        world
            .proxy
            .inject_in_turn("AssumeRole", [Fault::LoseAnswer]);
        sessions.push("ASIANOBODYKNOWS".to_owned());
        sessions.push(Key::issued(&world.issued(&["role"]).await).id);
        let mut federated = vec![Key::issued(&world.issued(&["federated"]).await).id];
        world
            .broker
            .run(&["revoke", "payments-api/role"])
            .await
            .ok();
        sessions.push(world.canary().await);
        world.broker.run(&["revoke", grant]).await.ok();
        federated.push(world.canary().await);
        keys.push(world.rotated().await);
        let made = [vec![String::new()], keys, sessions, federated];
        Self::of(world, &made).await
    }

    /// Events of the recorded calls, with the keys that AWS created.
    async fn of(world: World, keys: &[Vec<String>; 4]) -> Self {
        let records = world.broker.audit().await;
        let time = records.last().unwrap()["time"].as_str().unwrap();
        let time: Timestamp = time.parse().unwrap();
        let (arn, mut events) = (admin_arn(&world.account.id), Vec::new());
        for ((action, name, _), keys) in ACTIONS.iter().zip(keys) {
            let calls = world.proxy.calls(action);
            assert_eq!(calls.len(), keys.len(), "{action}");
            for (call, key) in calls.iter().zip(keys) {
                let form = Form::of(call);
                events.push(made(&arn, time, action, form.get(name).unwrap(), key));
            }
        }
        Self {
            world,
            time,
            events,
        }
    }

    fn arn(&self) -> String {
        admin_arn(&self.world.account.id)
    }

    /// Events of other users, and impossible ones, from an hour before until an hour after.
    fn others(&self) -> Vec<Value> {
        let (ci, hour) = (
            "arn:aws:iam::111122223333:user/ci",
            SignedDuration::from_hours(1),
        );
        let mut failed = made(&self.arn(), self.time, "AssumeRole", "x", "");
        failed["errorCode"] = "AccessDenied".into();
        vec![
            event(ci, self.time - hour, "ListBuckets", "before"),
            event(ci, self.time + hour, "ListBuckets", "after"),
            made(ci, self.time, "AssumeRole", "build", "ASIACI"),
            failed,
        ]
    }

    /// Writes one plain file and one compressed file, with one event in both.
    fn trail(&self, events: &[Value]) -> TempDir {
        let dir = TempDir::new().unwrap();
        let (some, more) = events.split_at(events.len() / 2);
        let day = dir.path().join("us-east-1/2026/01/31");
        fs::create_dir_all(&day).unwrap();
        fs::write(day.join("a.json"), file(&[some, &self.others()].concat())).unwrap();
        pack(&day.join("b.json.gz"), &file(&[more, &some[..1]].concat()));
        dir
    }

    async fn reconcile(&self, trail: &Path, more: &[&str]) -> Run {
        let trail = [
            "audit",
            "reconcile",
            "--cloudtrail",
            trail.to_str().unwrap(),
        ];
        self.world.broker.run(&[&trail, more].concat()).await
    }

    /// Returns the findings for a trail with an error.
    async fn findings(&self, events: &[Value]) -> Vec<Value> {
        let trail = self.trail(events);
        let run = self.reconcile(trail.path(), &["-o", "json"]).await;
        let told = run.json();
        run.fails(8, &["used beside the broker"]);
        told["findings"].as_array().unwrap().clone()
    }
}

impl World {
    /// Key of the last canary session.
    async fn canary(&self) -> String {
        let query = ["audit", "query", "--event", "canary.issued"];
        let made = self.broker.json(&query).await;
        let last = made.as_array().unwrap().last().unwrap();
        last["access_key_id"].as_str().unwrap().to_owned()
    }

    /// Imports the broker's key and rotates it. Returns the new key's id.
    async fn rotated(&self) -> String {
        let Key { id, secret, .. } = &self.account.admin;
        let key = format!("aws_access_key_id={id}\naws_secret_access_key={secret}\n");
        let import = ["admin-key", "import"];
        self.broker.run_in(None, &import, &key).await.ok();
        let rotated = self.broker.json(&["admin-key", "rotate"]).await;
        rotated["access_key_id"].as_str().unwrap().to_owned()
    }
}

fn file(records: &[Value]) -> String {
    json!({ "Records": records }).to_string()
}

fn pack(path: &Path, text: &str) {
    let mut packed = GzEncoder::new(fs::File::create(path).unwrap(), Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap();
}

#[tokio::test]
async fn reconciliation_matches_the_brokers_calls_and_ignores_other_calls() {
    let issued = Issued::new().await;
    let trail = issued.trail(&issued.events);
    let told = issued.reconcile(trail.path(), &["-o", "json"]).await;
    let expected = json!({"checked_events": 11, "checked_records": 8, "findings": []});
    assert_eq!(told.ok().json(), expected);
    // An auditor may reconcile, and a copy of the log gives the same result without a broker.
    let create = ["operator", "create", "eve", "--role", "auditor"];
    let auditor = issued.world.broker.json(&create).await;
    let args = [
        "audit",
        "reconcile",
        "--cloudtrail",
        trail.path().to_str().unwrap(),
    ];
    let token = auditor["token"].as_str();
    issued.world.broker.run_as(token, &args).await.ok();
    let log = TempDir::new().unwrap();
    export(&issued.world.broker, log.path()).await;
    let offline = [&args[..], &["--log", log.path().to_str().unwrap()]].concat();
    let told = Run::of(credbroker(&offline), "").await.ok();
    assert_eq!(
        told.stdout,
        "11 calls in CloudTrail and 8 records compared, 0 do not match\n"
    );
    assert!(told.stderr.contains("the export ends at"), "{told:?}");
}

#[tokio::test]
async fn a_call_with_the_admin_key_outside_the_broker_is_listed() {
    let issued = Issued::new().await;
    let session = |name: &str, after: i64| {
        let time = issued.time + SignedDuration::from_mins(after);
        made(&issued.arn(), time, "AssumeRole", name, "ASIABESIDE")
    };
    let same_name = issued.events[4]["requestParameters"]["roleSessionName"].as_str();
    for beside in [
        session("mallory", 0),
        session(same_name.unwrap(), 10),
        made(&issued.arn(), issued.time, "CreateUser", "mallory", ""),
        made(
            &issued.arn(),
            issued.time,
            "CreateAccessKey",
            ADMIN_USER,
            "AKIATHIRD",
        ),
    ] {
        let events = [&issued.events[..], std::slice::from_ref(&beside)].concat();
        let found = issued.findings(&events).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["kind"], "unrecorded_call");
        assert_eq!(found[0]["event"], beside["eventName"]);
        assert_eq!(found[0]["event_id"], beside["eventID"]);
        assert_eq!(found[0]["caller_arn"], json!(issued.arn()));
    }
}

#[tokio::test]
async fn a_record_that_cloudtrail_has_not_seen_is_listed() {
    let issued = Issued::new().await;
    let made = |event: &Value| {
        let answer = &event["responseElements"];
        let key = ["accessKey", "credentials"].map(|field| answer[field]["accessKeyId"].clone());
        key.into_iter().find(Value::is_string)
    };
    let records = issued.world.broker.audit().await;
    let mut missed = 0;
    for (at, event) in issued.events.iter().enumerate() {
        let Some(key) = made(event) else { continue };
        let Some(record) = records.iter().find(|record| {
            let handed_out =
                ["lease.issued", "lease.redelivered", "canary.issued"].map(Value::from);
            handed_out.contains(&record["event"]) && record["access_key_id"] == key
        }) else {
            continue;
        };
        let mut events = issued.events.clone();
        events.remove(at);
        let found = issued.findings(&events).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["kind"], "unseen_record");
        assert_eq!(found[0]["seq"], record["seq"]);
        assert_eq!(found[0]["access_key_id"], key);
        missed += 1;
    }
    assert_eq!(missed, 8);
}

#[tokio::test]
async fn an_invalid_file_of_the_trail_is_refused() {
    let broker = Broker::start(&Account::new().await).await;
    let refused = async |name: &str, contents: &[u8], words: &str| {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, contents).unwrap();
        let args = [
            "audit",
            "reconcile",
            "--cloudtrail",
            dir.path().to_str().unwrap(),
        ];
        let run = broker.run(&args).await;
        run.fails(2, &[path.to_str().unwrap(), words]);
    };
    let whole = file(&[event("arn", Timestamp::UNIX_EPOCH, "ListBuckets", "1")]);
    refused("a.json", b"{\"Records\": [", "no log file of CloudTrail's").await;
    refused("a.json", b"{\"logFiles\": []}", "missing field `Records`").await;
    refused("a.json.gz", whole.as_bytes(), "it cannot be unpacked").await;
    refused("notes.txt", b"", "its name ends neither in .json").await;
    let dir = TempDir::new().unwrap();
    let packed = dir.path().join("a.json.gz");
    pack(&packed, &whole);
    let packed = fs::read(packed).unwrap();
    refused(
        "cut.json.gz",
        &packed[..packed.len() - 9],
        "it cannot be unpacked",
    )
    .await;
    let empty = TempDir::new().unwrap();
    let args = [
        "audit",
        "reconcile",
        "--cloudtrail",
        empty.path().to_str().unwrap(),
    ];
    broker
        .run(&args)
        .await
        .fails(2, &["no event of CloudTrail's is there"]);
}

#[tokio::test]
async fn reconciliation_without_a_known_principal_is_refused() {
    let broker = Broker::start(&Account::new().await).await;
    let (log, trail) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    export(&broker, log.path()).await;
    let arn = "arn:aws:sts::111122223333:assumed-role/broker/i-0abc";
    let beside = made(arn, Timestamp::UNIX_EPOCH, "AssumeRole", "mallory", "ASIA1");
    fs::write(trail.path().join("a.json"), file(&[beside])).unwrap();
    let dirs = [&trail, &log].map(|dir| dir.path().to_str().unwrap());
    let args = [
        "audit",
        "reconcile",
        "--cloudtrail",
        dirs[0],
        "--log",
        dirs[1],
    ];
    let unknown = Run::of(credbroker(&args), "").await;
    unknown.fails(2, &["--principal"]);
    let role = "arn:aws:iam::111122223333:role/ec2/broker";
    let told = [&args[..], &["--principal", role]].concat();
    let run = Run::of(credbroker(&told), "").await;
    assert!(run.stdout.contains("name=mallory"), "{run:?}");
    run.fails(8, &[]);
    // A modified copy is not compared with anything.
    fs::remove_file(log.path().join("checkpoint")).unwrap();
    Run::of(credbroker(&told), "")
        .await
        .fails(8, &["missing: "]);
}
