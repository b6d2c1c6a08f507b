//! Kill switch: one service is revoked, live sessions included, and no other service.

mod crowd;
mod doubt;
mod hands;
mod offline;
mod outlived;
mod placements;
mod proof;
mod scale;
mod sizes;
mod verdict;
mod watch;

use std::{collections::BTreeMap, time::Duration};

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    enforcement::{World, assert_each_fails_unenforced, refused},
    harness::{Account, Key, aws::ADMIN_USER, emulator::enforces},
};

/// The tests below whose point is a refusal by AWS.
const REFUSALS: [&str; 4] = [
    "revoking_one_service_ends_all_it_holds_and_leaves_its_neighbour_working",
    "a_reinstated_service_gets_sessions_that_work_and_its_old_ones_stay_dead",
    "revoking_a_grant_ends_what_was_issued_under_it_alone",
    "hands::a_changed_denial_policy_is_rewritten",
];

/// Two services that share a role, each with a session on it, a federation session and a
/// user.
struct Neighbours {
    world: World,
    role: String,
    tokens: BTreeMap<&'static str, String>,
}

const GRANTS: [&str; 3] = ["work", "federated", "user"];

impl Neighbours {
    async fn new() -> Self {
        let world = World::new().await;
        let wide = World::wide_policy();
        world.account.let_admin(&wide).await;
        let role = world.account.role("credbroker-shared", &wide).await;
        let mut tokens = BTreeMap::new();
        for service in ["payments-api", "billing"] {
            tokens.insert(service, world.broker.service(service).await);
            let put = async |grant: &str, flags: &[&str]| {
                let grant = format!("{service}/{grant}");
                world
                    .broker
                    .grant(&grant, flags, &world.narrow_policy())
                    .await;
            };
            put("work", &["--role-arn", &role]).await;
            put("federated", &["--kind", "federation_token"]).await;
            put("user", &["--kind", "iam_user"]).await;
        }
        Self {
            world,
            role,
            tokens,
        }
    }

    /// Issues one credential under each grant.
    async fn hold(&self, service: &str) -> Vec<(String, Key)> {
        let mut held = Vec::new();
        for grant in GRANTS {
            held.push(self.issue(service, grant).await);
        }
        held
    }

    /// Issues under a grant. Returns the lease and its key.
    async fn issue(&self, service: &str, grant: &str) -> (String, Key) {
        let issued = self.world.broker.issue(&self.tokens[service], grant).await;
        let lease = issued["lease_id"].as_str().unwrap().to_owned();
        (lease, Key::issued(&issued))
    }

    async fn revoke(&self, target: &str) -> Value {
        let args = [target, "--reason", "leaked"];
        let revoking = self.world.broker.revoked(&args);
        // Without enforcement the broker waits in vain.
        let limit = Duration::from_secs(if enforces() { 30 } else { 5 });
        let revoked = timeout(limit, revoking).await;
        revoked.expect("REFUSAL EXPECTED: AWS is seen to refuse")
    }

    async fn reinstate(&self, service: &str) {
        self.world
            .broker
            .run(&["service", "reinstate", service])
            .await
            .ok();
    }

    async fn works(&self, key: &Key) -> bool {
        self.world.reaches_all(key).await
    }

    async fn dead(&self, key: &Key) {
        let (bucket, queue) = (&self.world.bucket, &self.world.queue);
        refused("reading the bucket", key.get_object(bucket).await);
        refused("sending to the queue", key.send_message(queue).await);
        refused("reading the table", key.get_item(&self.world.table).await);
    }

    /// Issues sessions of the service under `work` and under another grant on the same role.
    async fn sessions_of_two_grants(&self) -> (Key, Key) {
        let flags = ["--role-arn", &self.role];
        let policy = self.world.narrow_policy();
        let other = "payments-api/other";
        self.world.broker.grant(other, &flags, &policy).await;
        let (_, work) = self.issue("payments-api", "work").await;
        let (_, other) = self.issue("payments-api", "other").await;
        (work, other)
    }

    /// Names of the policies of denials at the role and at the broker's user.
    async fn policies(&self) -> Vec<String> {
        self.inline("credbroker-denials-").await
    }

    /// Names of inline policies of both that begin like this.
    async fn inline(&self, beginning: &str) -> Vec<String> {
        let iam = self.world.account.root.iam();
        let role = self.role.rsplit('/').next().unwrap();
        let of_role = iam
            .list_role_policies()
            .role_name(role)
            .send()
            .await
            .unwrap();
        let of_user = iam
            .list_user_policies()
            .user_name(ADMIN_USER)
            .send()
            .await
            .unwrap();
        let all = of_role.policy_names.into_iter().chain(of_user.policy_names);
        all.filter(|name| name.starts_with(beginning)).collect()
    }
}

/// Policy of denials on a role: its name and its document.
async fn denials_of_role(account: &Account, role: &str) -> Option<(String, Value)> {
    let (iam, role) = (account.root.iam(), role.rsplit('/').next().unwrap());
    let names = iam.list_role_policies().role_name(role).send().await;
    let name = ours(names.unwrap().policy_names)?;
    let policy = iam.get_role_policy().role_name(role).policy_name(&name);
    let policy = policy.send().await.ok()?.policy_document;
    Some((name, decoded(&policy)))
}

/// Policy of denials on the broker's user.
async fn denials_of_user(account: &Account) -> Option<(String, Value)> {
    let iam = account.root.iam();
    let names = iam.list_user_policies().user_name(ADMIN_USER).send().await;
    let name = ours(names.unwrap().policy_names)?;
    let policy = iam.get_user_policy().user_name(ADMIN_USER);
    let policy = policy.policy_name(&name).send().await.ok()?;
    Some((name, decoded(&policy.policy_document)))
}

/// Finds the broker's own name: a deployment is ten hexadecimal digits.
fn ours(names: Vec<String>) -> Option<String> {
    let ours = |name: &String| {
        let deployment = name.strip_prefix("credbroker-denials-");
        deployment.is_some_and(|id| id.len() == 10 && id.chars().all(|c| c.is_ascii_hexdigit()))
    };
    names.into_iter().find(ours)
}

fn decoded(document: &str) -> Value {
    let text = percent_decode_str(document).decode_utf8().unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Size as AWS counts it: without white space.
fn size(document: &Value) -> usize {
    document.to_string().len()
}

#[tokio::test]
async fn without_enforcement_every_test_of_a_refusal_fails() {
    if crate::harness::stored::skipped_over_postgres() {
        return;
    }
    let refusals = REFUSALS.map(|name| format!("revocation::{name}"));
    assert_each_fails_unenforced(&refusals).await;
}

#[tokio::test]
async fn revoking_one_service_ends_all_it_holds_and_leaves_its_neighbour_working() {
    let two = Neighbours::new().await;
    let (ours, theirs) = (two.hold("payments-api").await, two.hold("billing").await);
    for (_, key) in ours.iter().chain(&theirs) {
        assert!(two.works(key).await);
    }
    let probing = async {
        let mut answers = 0;
        while answers < 200 {
            for (_, key) in &theirs {
                assert!(two.works(key).await, "after {answers} answers");
                answers += 1;
            }
        }
    };
    let (revoked, ()) = tokio::join!(two.revoke("payments-api"), probing);
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    for (lease, key) in &ours {
        let told = revoked["leases"].as_array().unwrap().iter();
        let told = told
            .clone()
            .find(|told| told["lease_id"] == **lease)
            .unwrap();
        assert_eq!(told["state"], "revoked", "{told}");
        let seen = if told["kind"] == "iam_user" {
            ["gone_after_seconds", "refused_after_seconds"]
        } else {
            ["refused_after_seconds", "gone_after_seconds"]
        };
        assert!(told[seen[0]].as_f64().unwrap() > 0.0, "{told}");
        assert_eq!(told[seen[1]], Value::Null, "{told}");
        two.dead(key).await;
    }
    let holders = revoked["sessions"].as_array().unwrap();
    assert_eq!(holders.len(), 2, "{revoked:#}");
    for (_, key) in &theirs {
        assert!(two.works(key).await);
    }
    assert_eq!(two.policies().await.len(), 2);
}

#[tokio::test]
async fn a_reinstated_service_gets_sessions_that_work_and_its_old_ones_stay_dead() {
    let two = Neighbours::new().await;
    let old = two.hold("payments-api").await;
    two.revoke("payments-api").await;
    two.reinstate("payments-api").await;
    let new = two.hold("payments-api").await;
    for (_, key) in &new {
        assert!(two.works(key).await);
    }
    for (_, key) in &old {
        two.dead(key).await;
    }
    // A second revocation covers both generations.
    let revoked = two.revoke("payments-api").await;
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    for (_, key) in old.iter().chain(&new) {
        two.dead(key).await;
    }
}

#[tokio::test]
async fn a_revocation_with_an_unreadable_lease_is_not_confirmed() {
    let two = Neighbours::new().await;
    let (spoilt, _) = two.issue("payments-api", "work").await;
    let spoil = "UPDATE leases SET state = 'spoilt' WHERE state = 'active'";
    two.world.broker.write_store(spoil).await;
    let (lease, key) = two.issue("payments-api", "work").await;
    let revoked = two.revoke("payments-api").await;
    assert_eq!(revoked["confirmed"], false, "{revoked:#}");
    let notice = revoked["notice"].as_str().unwrap();
    assert!(notice.contains("cannot be read: 1"), "{notice}");
    // The other lease does not wait for the unreadable one.
    two.dead(&key).await;
    let leases = revoked["leases"].as_array().unwrap();
    let told = |id: &String| leases.iter().any(|told| told["lease_id"] == **id);
    assert!(told(&lease) && !told(&spoilt), "{revoked:#}");
}

#[tokio::test]
async fn revoking_a_lease_ends_its_session_alone() {
    let two = Neighbours::new().await;
    for grant in ["work", "federated"] {
        let (lease, key) = two.issue("payments-api", grant).await;
        let (_, other) = two.issue("payments-api", grant).await;
        let revoked = two.world.broker.json(&["lease", "revoke", &lease]).await;
        assert_eq!(revoked["state"], "revoked", "{revoked:#}");
        assert!(revoked["refused_after_seconds"].as_f64().is_some());
        two.dead(&key).await;
        assert!(two.works(&other).await);
        let (_, next) = two.issue("payments-api", grant).await;
        assert!(two.works(&next).await);
    }
}

#[tokio::test]
async fn revoking_a_grant_ends_what_was_issued_under_it_alone() {
    let two = Neighbours::new().await;
    let (ended, other) = two.sessions_of_two_grants().await;
    let revoked = two.revoke("payments-api/work").await;
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    assert_eq!(revoked["grant"], "payments-api/work");
    two.dead(&ended).await;
    assert!(two.works(&other).await);
    // The grant stays.
    let (_, next) = two.issue("payments-api", "work").await;
    assert!(two.works(&next).await);
    two.dead(&ended).await;
}

#[tokio::test]
async fn a_repeated_or_partial_revocation_is_confirmed_each_time() {
    let two = Neighbours::new().await;
    let held = two.hold("payments-api").await;
    for target in ["payments-api/work", "payments-api", "payments-api"] {
        let revoked = two.revoke(target).await;
        assert_eq!(revoked["confirmed"], true, "{target}: {revoked:#}");
    }
    for (_, key) in &held {
        two.dead(key).await;
    }
    let late = "SELECT count(*) FROM audit WHERE event = 'denial.postponed'";
    assert_eq!(two.world.broker.count(late).await, 0);
}

#[tokio::test]
async fn each_step_of_a_revocation_is_recorded_with_its_seconds() {
    let two = Neighbours::new().await;
    two.hold("payments-api").await;
    two.revoke("payments-api").await;
    let log = two.world.broker.audit().await;
    let of = |event: &str| -> Vec<&Value> {
        let of = |record: &&Value| record["event"] == event;
        log.iter().filter(of).collect()
    };
    for event in ["canary.issued", "denial.written", "denial.confirmed"] {
        let holders: Vec<&Value> = of(event).iter().map(|record| &record["holder"]).collect();
        assert_eq!(holders.len(), 2, "{event}");
        assert!(holders.contains(&&json!(two.role)), "{event}: {holders:?}");
    }
    for event in ["denial.confirmed", "lease.revoked"] {
        for record in of(event) {
            let seen = if record["kind"] == "iam_user" {
                "gone_after_seconds"
            } else {
                "refused_after_seconds"
            };
            assert!(record[seen].as_f64().is_some(), "{record}");
            assert_eq!(record["service"], "payments-api");
        }
    }
    assert_eq!(of("lease.revoked").len(), 3);
    assert!(
        of("denial.written")
            .iter()
            .all(|record| record["aws_request_id"].is_string())
    );
    assert!(
        of("canary.issued")
            .iter()
            .all(|record| record["access_key_id"].is_string())
    );
}
