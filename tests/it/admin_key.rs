//! Admin key of the broker: import, sealed storage, rotation.

mod stolen;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{
    Account, Key, Run, World,
    aws::ADMIN_USER,
    broker::dev,
    emulator::emulator,
    eventually,
    proxy::Fault,
    stepped::{Stepped, Ways},
};

const CONTAINS: fn(&[u8], &str) -> bool = |bytes, part| {
    bytes
        .windows(part.len())
        .any(|window| window == part.as_bytes())
};

/// Output of `aws iam create-access-key`.
fn as_printed(key: &Key) -> String {
    json!({"AccessKey": {
        "UserName": ADMIN_USER, "AccessKeyId": key.id, "SecretAccessKey": key.secret,
        "Status": "Active", "CreateDate": "2026-01-01T00:00:00Z",
    }})
    .to_string()
}

/// Key that works nowhere: every call that succeeds uses another key.
fn dead(account: &Account) -> Key {
    Key {
        secret: "forgotten".to_owned(),
        ..account.admin.clone()
    }
}

async fn second_key(account: &Account, user: &str) -> Key {
    let call = account.root.iam().create_access_key().user_name(user);
    let made = call.send().await.unwrap().access_key.unwrap();
    Key {
        id: made.access_key_id,
        secret: made.secret_access_key,
        token: None,
    }
}

impl World {
    async fn import(&self, input: &str) -> Run {
        let args = ["admin-key", "import", "-o", "json"];
        self.broker.run_in(None, &args, input).await
    }

    async fn status(&self) -> Value {
        self.broker.json(&["admin-key", "status"]).await
    }

    async fn start_again(mut self, command: impl FnOnce(&mut Command)) -> Self {
        assert!(self.broker.stop().await);
        let (admin, endpoint) = (dead(&self.account), self.proxy.endpoint.clone());
        let broker = self.broker.start_again_by(|state| {
            let mut dev = dev(state, &admin, &endpoint);
            command(&mut dev);
            dev
        });
        Self {
            broker: broker.await,
            ..self
        }
    }

    /// Waits until grace and retirement of the old key have passed.
    async fn steady(&self) -> Value {
        let steady = async || {
            self.broker
                .write_store("UPDATE admin_key SET due_at = due_at - 3600000000")
                .await;
            Some(self.status().await).filter(|status| status["phase"] == "steady")
        };
        eventually("steady", steady).await
    }
}

#[tokio::test]
async fn an_imported_key_is_stored_sealed_and_outlives_the_key_of_the_chain() {
    let world = World::new().await;
    let before = world.status().await;
    assert_eq!(
        (&before["source"], &before["phase"]),
        (&json!("chain"), &Value::Null)
    );
    let admin = world.account.admin.clone();
    let imported = world.import(&as_printed(&admin)).await.ok();
    assert!(!imported.stderr.contains(&admin.secret) && !imported.stdout.contains(&admin.secret));
    let imported = imported.json();
    assert_eq!(
        (
            &imported["source"],
            &imported["phase"],
            &imported["access_key_id"]
        ),
        (&json!("kept"), &json!("steady"), &json!(admin.id))
    );
    let arn = imported["arn"].as_str().unwrap();
    assert!(arn.ends_with(":user/credbroker-admin"), "{arn}");

    let world = world.start_again(|_| {}).await;
    world.assert_issues("role").await;
    let status = world.status().await;
    assert_eq!(status["access_key_id"], admin.id.as_str());
    assert!(status["age_seconds"].as_i64().unwrap() < 60);
    for file in std::fs::read_dir(&world.broker.state).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!CONTAINS(&bytes, &admin.secret), "{}", path.display());
    }
    assert!(!world.broker.log.lock().unwrap().contains(&admin.secret));
    let records = world.broker.audit().await;
    let record = records
        .iter()
        .find(|record| record["event"] == "admin_key.imported");
    let record = record.unwrap();
    assert_eq!(
        (&record["actor"], &record["access_key_id"]),
        (&json!("operator:admin"), &json!(admin.id))
    );
}

#[tokio::test]
async fn a_rotation_replaces_the_key_and_deactivates_and_deletes_the_old_one() {
    let world = World::new().await;
    let admin = world.account.admin.clone();
    world.import(&as_printed(&admin)).await.ok();
    let rotated = world.broker.json(&["admin-key", "rotate"]).await;
    let new = rotated["access_key_id"].as_str().unwrap();
    assert_ne!(new, admin.id);
    assert_eq!(rotated["phase"], "grace");
    assert_eq!(rotated["other_access_key_ids"], json!([admin.id]));
    // The old key works until calls that began with it have ended.
    assert!(admin.works().await);
    world.assert_issues("role").await;
    let again = world.broker.run(&["admin-key", "rotate"]).await;
    again.fails(
        6,
        &[
            "is grace; it cannot be rotated again",
            "reason: ADMIN_KEY_ROTATING",
        ],
    );

    let steady = world.steady().await;
    assert_eq!(steady["access_key_id"], new);
    assert!(!admin.works().await);
    assert_eq!(world.account.keys_of(ADMIN_USER).await, [new]);
    world.assert_issues("role").await;
    let world = world.start_again(|_| {}).await;
    world.assert_issues("role").await;
    let told: Vec<Value> = world.broker.audit().await;
    let told = told.iter().filter_map(|record| record["event"].as_str());
    let told: Vec<&str> = told
        .filter(|event| event.starts_with("admin_key."))
        .collect();
    let told: Vec<&str> = told
        .into_iter()
        .filter(|event| *event != "admin_key.read")
        .collect();
    let expected = [
        "admin_key.imported",
        "admin_key.rotating",
        "admin_key.created",
        "admin_key.switched",
        "admin_key.deactivated",
        "admin_key.rotated",
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_key_is_read_in_every_form_and_other_text_is_refused() {
    let world = World::new().await;
    let Key { id, secret, .. } = &world.account.admin;
    let nothing = world.import("hush, I am no key").await;
    assert!(!nothing.stderr.contains("hush"));
    nothing.fails(2, &["holds no access key id and secret", "next: give what"]);
    let session =
        format!("AWS_ACCESS_KEY_ID=ASIAIOSFODNN7EXAMPLE\nAWS_SECRET_ACCESS_KEY={secret}\n");
    let session = world.import(&session).await;
    session.fails(2, &["access_key_id: this is the key of a session"]);
    let file = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    world.import(&file).await.ok();
    let again = world.import(&file).await;
    again.fails(6, &["works with this key already"]);
}

#[tokio::test]
async fn a_key_refused_by_aws_or_of_another_user_is_not_imported() {
    let world = World::new().await;
    let admin = world.account.admin.clone();
    let mistyped = Key {
        secret: admin.secret.chars().rev().collect(),
        ..admin.clone()
    };
    let wrong = world.import(&as_printed(&mistyped)).await;
    assert!(!wrong.stderr.contains(&mistyped.secret));
    let words = ["AWS does not accept this key", "nothing was changed"];
    wrong.fails(6, &words);

    let stranger = Account::new().await;
    let foreign = world.import(&as_printed(&stranger.admin)).await;
    foreign.fails(6, &["reason: OTHER_ACCOUNT", "next: "]);
    assert_eq!(world.status().await["source"], "chain");

    world.import(&as_printed(&admin)).await.ok();
    let iam = world.account.root.iam();
    iam.create_user().user_name("alice").send().await.unwrap();
    let alice = second_key(&world.account, "alice").await;
    let other = world.import(&as_printed(&alice)).await;
    other.fails(6, &["reason: OTHER_USER", "user/alice"]);
    let records = world.broker.audit().await;
    let told = records
        .iter()
        .filter(|record| record["method"] == "credbroker.v1.AdminService/ImportAdminKey");
    let told: Vec<_> = told
        .map(|record| ["event", "outcome", "reason"].map(|field| &record[field]))
        .collect();
    let [imported, denied] = [json!("admin_key.imported"), json!("request.denied")];
    let expected = [
        [&imported, &json!("failure"), &json!("ADMIN_KEY_REFUSED")],
        [&denied, &json!("denied"), &json!("OTHER_ACCOUNT")],
        [&imported, &json!("success"), &Value::Null],
        [&denied, &json!("denied"), &json!("OTHER_USER")],
    ];
    assert_eq!(told, expected);
    assert_eq!(world.status().await["access_key_id"], admin.id.as_str());
    world.assert_issues("role").await;
}

#[tokio::test]
async fn a_second_import_replaces_the_stored_key() {
    let world = World::new().await;
    let admin = world.account.admin.clone();
    world.import(&as_printed(&admin)).await.ok();
    let second = second_key(&world.account, ADMIN_USER).await;
    // The stored key is dead, in the middle of its rotation.
    world
        .proxy
        .inject("CreateAccessKey", Fault::Answer(403, "AccessDenied", "no"));
    world
        .broker
        .run(&["admin-key", "rotate"])
        .await
        .fails(6, &["has another access key"]);
    let iam = world.account.root.iam();
    let delete = iam
        .delete_access_key()
        .user_name(ADMIN_USER)
        .access_key_id(&second.id);
    delete.send().await.unwrap();
    // AWS has certainly made no key, so no rotation is in progress and no key is deleted.
    let rotate = world.broker.run(&["admin-key", "rotate"]).await;
    rotate.fails(6, &["reason: ADMIN_NOT_ALLOWED"]);
    let status = world.status().await;
    assert_eq!(
        (&status["phase"], &status["failure"]),
        (&json!("steady"), &json!("ADMIN_NOT_ALLOWED"))
    );
    let third = second_key(&world.account, ADMIN_USER).await;
    let imported = world.import(&as_printed(&third)).await.ok().json();
    assert_eq!(imported["access_key_id"], third.id.as_str());
    assert_eq!(imported["other_access_key_ids"], json!([admin.id]));
    world.proxy.heal();
    world.steady().await;
    assert_eq!(world.account.keys_of(ADMIN_USER).await, [third.id]);
    world.assert_issues("role").await;
}

#[tokio::test]
async fn a_key_of_the_chain_cannot_be_rotated_and_the_error_says_what_to_do() {
    let world = World::new().await;
    let rotate = world.broker.run(&["admin-key", "rotate"]).await;
    let words = [
        "comes from the standard AWS chain",
        "next: give it to the broker first: `credbroker admin-key import`",
    ];
    rotate.fails(6, &words);
}

#[tokio::test]
async fn without_its_sealing_key_a_broker_starts_only_with_another_admin_key() {
    let world = World::new().await;
    world.import(&as_printed(&world.account.admin)).await.ok();
    let mut broker = world.broker;
    assert!(broker.stop().await);
    let seal = broker.state.join("seal.key");
    let kept = std::fs::read(&seal).unwrap();
    std::fs::remove_file(&seal).unwrap();
    let endpoint = &emulator().endpoint;
    let mut closed = dev(&broker.state, &dead(&world.account), endpoint);
    broker.store.given_to(&mut closed);
    let closed = Run::of(closed, "").await;
    let words = [
        "the kept admin key cannot be opened: it was sealed with another key",
        "next: give the broker the sealing key that it had",
    ];
    closed.fails(6, &words);

    // With a good key in the chain the broker starts, and another key can be imported. The rotation
    // in progress does not take the chain's key for an orphan.
    broker
        .write_store("UPDATE admin_key SET phase = 'creating', due_at = 0")
        .await;
    let chain = second_key(&world.account, ADMIN_USER).await;
    let mut broker = broker.start_again(&chain, endpoint).await;
    let stuck = async || {
        let status = broker.json(&["admin-key", "status"]).await;
        (status["failure"] == "ADMIN_KEY_SEALED").then_some(())
    };
    eventually("a failed step", stuck).await;
    broker.issue(&world.token, "role").await;
    let args = ["admin-key", "import"];
    broker.run_in(None, &args, &as_printed(&chain)).await.ok();
    assert!(broker.stop().await);
    let mut broker = broker.start_again(&dead(&world.account), endpoint).await;
    broker.issue(&world.token, "role").await;
    assert!(broker.stop().await);
    // The old sealing key opens nothing any more.
    std::fs::write(&seal, kept).unwrap();
    let mut closed = dev(&broker.state, &dead(&world.account), endpoint);
    broker.store.given_to(&mut closed);
    let closed = Run::of(closed, "").await;
    closed.fails(6, &["sealed with another key"]);
}

#[tokio::test]
async fn a_key_past_its_rotation_age_is_rotated_automatically() {
    let world = Stepped::with(Ways {
        rotate_every: Some(Duration::from_hours(24)),
        ..Ways::default()
    })
    .await;
    let admin = world.account.admin.clone();
    let imported = world.import(&admin).await.unwrap();
    let rotates_at = imported.rotates_at.unwrap();
    assert_eq!(rotates_at.duration_since(imported.now).as_hours(), 24);
    let tend = async |seconds| {
        world.wait(seconds);
        world.broker.maintain_admin_key_once().await.unwrap();
        let status = world.admin_key().await.kept.unwrap();
        (status.phase.as_str(), status.current.id.as_str().to_owned())
    };
    assert_eq!(tend(86_399).await, ("steady", admin.id.clone()));
    let (phase, new) = tend(1).await;
    assert_eq!(phase, "grace");
    assert_ne!(new, admin.id);
    assert_eq!(tend(299).await.0, "grace");
    assert!(admin.works().await);
    assert_eq!(tend(1).await.0, "retiring");
    assert!(!admin.works().await);
    assert_eq!(world.account.keys_of(ADMIN_USER).await.len(), 2);
    assert_eq!(tend(299).await.0, "retiring");
    assert_eq!(tend(1).await, ("steady", new.clone()));
    assert_eq!(world.account.keys_of(ADMIN_USER).await, [new.as_str()]);
    // The next rotation follows in the same way.
    assert_ne!(tend(86_400).await.1, new);
}

#[tokio::test]
async fn a_rotation_never_leaves_the_broker_without_a_working_key() {
    let world = Stepped::with(Ways::quick()).await;
    world.import(&world.account.admin).await.unwrap();
    world.issue("role").await.unwrap();
    // AWS makes a key and does not accept it for a long time.
    let unknown = Fault::Answer(403, "InvalidClientTokenId", "not yet");
    world.proxy.inject("GetCallerIdentity", unknown);
    for _ in 0..3 {
        let _ = world.rotate().await;
        world.wait(301);
        let _ = world.broker.maintain_admin_key_once().await;
        let kept = world.admin_key().await.kept.unwrap();
        assert_eq!(kept.phase.as_str(), "proving");
        assert_eq!(kept.current.id.as_str(), world.account.admin.id);
        world.issue("role").await.unwrap();
    }
    world.proxy.heal();
    world.recover().await;
    let kept = world.admin_key().await.kept.unwrap();
    assert_eq!(kept.phase.as_str(), "steady");
    assert_eq!(
        world.account.keys_of(ADMIN_USER).await,
        [kept.current.id.as_str()]
    );
}

#[tokio::test]
async fn a_key_that_aws_makes_late_is_deleted_by_the_end_of_the_rotation() {
    let world = Stepped::with(Ways::quick()).await;
    world.import(&world.account.admin).await.unwrap();
    world.rotate().await.unwrap();
    let kept = world.admin_key().await.kept.unwrap();
    assert_eq!(kept.phase.as_str(), "grace");
    // The old key is deleted, and AWS makes a key of an earlier, late request.
    let (iam, old) = (world.account.root.iam(), &world.account.admin.id);
    let delete = iam.delete_access_key().user_name(ADMIN_USER);
    delete.access_key_id(old).send().await.unwrap();
    let create = iam.create_access_key().user_name(ADMIN_USER);
    create.send().await.unwrap();
    assert_eq!(world.account.keys_of(ADMIN_USER).await.len(), 2);
    for _ in 0..2 {
        world.wait(301);
        world.broker.maintain_admin_key_once().await.unwrap();
    }
    let kept = world.admin_key().await.kept.unwrap();
    assert_eq!(kept.phase.as_str(), "steady");
    let left = world.account.keys_of(ADMIN_USER).await;
    assert_eq!(left, [kept.current.id.as_str()]);
}

#[tokio::test]
async fn a_store_belongs_to_one_account() {
    let mut world = World::new().await;
    world.assert_issues("user").await;
    let held = world.account.issued_users().await;
    assert!(world.broker.stop().await);
    let stranger = Account::new().await;
    let words = [
        "everything in the store is in account",
        "next: use a key of that account",
    ];
    let mut other = dev(&world.broker.state, &stranger.admin, &world.proxy.endpoint);
    world.broker.store.given_to(&mut other);
    Run::of(other, "").await.fails(6, &words);

    // AWS did not answer at the start: once it does, the broker stops.
    world.proxy.inject("GetCallerIdentity", Fault::Cut);
    let (endpoint, key) = (world.proxy.endpoint.clone(), stranger.admin);
    let mut broker = world.broker.start_again(&key, &endpoint).await;
    world.proxy.heal();
    assert!(!broker.ended().await, "it ended well");
    // The last log lines may still be on their way.
    let told = async || {
        let log = broker.log.lock().unwrap();
        words.iter().all(|word| log.contains(word)).then_some(())
    };
    eventually("why the broker has ended", told).await;
    assert_eq!(world.account.issued_users().await, held);
    let live = "SELECT count(*) FROM leases WHERE state = 'active'";
    assert_eq!(broker.count(live).await, 1);
}

#[tokio::test]
async fn a_scheduled_rotation_that_cannot_begin_records_the_reason() {
    let world = Stepped::with(Ways {
        rotate_every: Some(Duration::from_hours(24)),
        ..Ways::default()
    })
    .await;
    world.import(&world.account.admin).await.unwrap();
    let other = second_key(&world.account, ADMIN_USER).await;
    world.wait(86_400);
    for failed in 1..=2 {
        world.broker.maintain_admin_key_once().await.unwrap_err();
        // The next attempt does not come before its time.
        world.broker.maintain_admin_key_once().await.unwrap();
        let kept = world.admin_key().await.kept.unwrap();
        assert_eq!(kept.failure.as_deref(), Some("SECOND_ADMIN_KEY"));
        let told = world.records("admin_key.postponed").await;
        assert_eq!(told.len(), failed, "{told:?}");
        world.wait(300);
    }
    let iam = world.account.root.iam();
    let delete = iam.delete_access_key().user_name(ADMIN_USER);
    delete.access_key_id(other.id).send().await.unwrap();
    world.broker.maintain_admin_key_once().await.unwrap();
    let kept = world.admin_key().await.kept.unwrap();
    assert_eq!((kept.phase.as_str(), kept.failure), ("grace", None));
}
