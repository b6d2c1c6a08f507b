//! Changes of the policies of denials by others: the broker rewrites its own part, and leaves the
//! rest alone.

use aws_sdk_iam::Client as Iam;
use serde_json::{Value, json};

use super::{Neighbours, decoded, denials_of_role, denials_of_user, ours};
use crate::{
    enforcement::refused,
    harness::{
        Account, Broker,
        emulator::emulator,
        eventually, eventually_within,
        proxy::{Fault, Proxy},
        stepped::{ALL_OVER, Stepped},
        stored::{on_postgres, skipped_over_postgres},
    },
};

/// Change of a policy on a role.
enum Hand {
    Deletes,
    TakesAStatement,
    PutsRubbish,
    Allows,
}

const HANDS: [Hand; 4] = [
    Hand::Deletes,
    Hand::TakesAStatement,
    Hand::PutsRubbish,
    Hand::Allows,
];

impl Hand {
    async fn lie_on(&self, iam: &Iam, role: &str, (name, policy): (String, Value)) {
        let instead = match self {
            Self::Deletes => {
                let delete = iam.delete_role_policy().role_name(role);
                delete.policy_name(name).send().await.unwrap();
                return;
            }
            Self::TakesAStatement => {
                let mut statements = policy["Statement"].as_array().unwrap().iter();
                let kept = statements.find(|kept| kept.to_string().contains("billing"));
                json!({"Version": "2012-10-17", "Statement": [kept]})
            }
            Self::PutsRubbish => {
                let rubbish = json!({"Effect": "Deny", "Action": "sqs:Rubbish", "Resource": "*"});
                json!({"Version": "2008-10-17", "Id": "rubbish", "Statement": rubbish})
            }
            Self::Allows => {
                let all = json!({"Effect": "Allow", "Action": "*", "Resource": "*"});
                json!({"Version": "2012-10-17", "Statement": all})
            }
        };
        put(iam, role, &name, &instead).await;
    }
}

async fn put(iam: &Iam, role: &str, name: &str, policy: &Value) {
    let put = iam.put_role_policy().role_name(role).policy_name(name);
    let put = put.policy_document(policy.to_string());
    put.send().await.unwrap();
}

pub(super) async fn repairs(broker: &Broker) -> i64 {
    let repairs = "SELECT count(*) FROM audit WHERE event = 'denial.repaired'";
    broker.count(repairs).await
}

impl Neighbours {
    fn role_name(&self) -> &str {
        self.role.rsplit('/').next().unwrap()
    }
}

/// Seconds until another replica has taken over the locks of a killed one, which last for ten.
const TAKEN_OVER: u64 = 30;

/// Restarts the broker, which looks at AWS when it starts, and every five minutes.
pub(super) async fn restarted(mut two: Neighbours, endpoint: &str) -> Neighbours {
    let again = two
        .world
        .broker
        .start_again(&two.world.account.admin, endpoint);
    two.world.broker = again.await;
    two
}

#[tokio::test]
async fn a_changed_denial_policy_is_rewritten() {
    let mut two = Neighbours::new().await;
    let iam = two.world.account.root.iam();
    let (_, theirs) = two.issue("billing", "work").await;
    two.revoke("billing").await;
    // The cutoff gives it a statement of its own.
    two.reinstate("billing").await;
    let (_, key) = two.issue("payments-api", "work").await;
    let (_, new) = two.issue("billing", "work").await;
    two.revoke("payments-api").await;
    for (number, hand) in (1..).zip(HANDS) {
        // A running broker may still write.
        assert!(two.world.broker.stop().await);
        let standing = denials_of_role(&two.world.account, &two.role).await;
        let standing = standing.unwrap();
        hand.lie_on(&iam, two.role_name(), standing.clone()).await;
        assert!(two.works(&key).await, "somebody has let it work again");
        two = restarted(two, &emulator().endpoint).await;
        let repaired = async || (repairs(&two.world.broker).await == number).then_some(());
        eventually_within(TAKEN_OVER, "the repair is recorded", repaired).await;
        let stands = denials_of_role(&two.world.account, &two.role).await;
        assert_eq!(stands, Some(standing));
        two.dead(&key).await;
        two.dead(&theirs).await;
        assert!(two.works(&new).await);
    }
    // Unchanged policies are left alone.
    two = restarted(two, &emulator().endpoint).await;
    two.world.broker.reconciled().await;
    assert_eq!(repairs(&two.world.broker).await, 4);
}

#[tokio::test]
async fn an_unfinished_write_of_the_broker_is_not_recorded_as_drift() {
    let proxy = Proxy::start().await;
    let mut two = restarted(Neighbours::new().await, &proxy.endpoint).await;
    let (_, theirs) = two.issue("billing", "work").await;
    let (_, key) = two.issue("payments-api", "work").await;
    two.revoke("billing").await;
    two.revoke("payments-api").await;
    let statements = async |two: &Neighbours| {
        let (_, policy) = denials_of_role(&two.world.account, &two.role)
            .await
            .unwrap();
        policy["Statement"].as_array().map_or(1, Vec::len)
    };
    assert_eq!(statements(&two).await, 1, "both share a statement");

    // The reinstated service no longer shares the statement, but the broker dies before it writes
    // that.
    proxy.inject("PutRolePolicy", Fault::Answer(503, "Slow", "not now"));
    two.reinstate("billing").await;
    two = restarted(two, &emulator().endpoint).await;
    let apart = async || (statements(&two).await == 2).then_some(());
    eventually_within(TAKEN_OVER, "each has its own", apart).await;
    two.world.broker.reconciled().await;
    assert_eq!(repairs(&two.world.broker).await, 0);
    two.dead(&theirs).await;
    two.dead(&key).await;
}

#[tokio::test]
async fn a_late_write_of_a_killed_broker_is_overwritten() {
    let proxy = Proxy::start().await;
    let mut two = restarted(Neighbours::new().await, &proxy.endpoint).await;
    let (_, key) = two.issue("payments-api", "work").await;
    let (_, theirs) = two.issue("billing", "work").await;
    proxy.inject("PutRolePolicy", Fault::Hold);
    let is_asked = async || (!proxy.calls("PutRolePolicy").is_empty()).then_some(());
    tokio::select! {
        run = two.world.broker.run(&["revoke", "billing"]) => panic!("{run:?}"),
        () = eventually("AWS is asked to deny", is_asked) => {}
    }
    two.world.broker.kill().await;
    let asked = &proxy.calls("PutRolePolicy")[0];
    assert!(asked.contains("billing") && !asked.contains("payments-api"));

    let later = Proxy::start().await;
    two = restarted(two, &later.endpoint).await;
    two.revoke("payments-api").await;
    let open = "SELECT count(*) FROM denials WHERE refused_at IS NULL";
    let none = async || (two.world.broker.count(open).await == 0).then_some(());
    eventually("the one that was killed has nothing left", none).await;
    two.dead(&key).await;
    if !on_postgres() {
        // The late call comes before a look at AWS, not between that and the following write.
        next_look(&later).await;
    }
    proxy.heal();
    proxy.caught_up().await;
    assert_eq!(proxy.abandoned(&["PutRolePolicy"]), 1);
    later.heal();
    let refused = async || (!two.works(&key).await).then_some(());
    eventually_within(40, "it is refused again", refused).await;
    two.dead(&key).await;
    two.dead(&theirs).await;
    if !on_postgres() {
        assert_recorded_as_either(&two.world.broker).await;
    }
}

/// Covers SQLite alone: each of several replicas skips the look at a policy that it has just
/// written.
#[tokio::test]
async fn a_policy_change_right_after_a_start_is_recorded() {
    if skipped_over_postgres() {
        return;
    }
    let mut two = Neighbours::new().await;
    let iam = two.world.account.root.iam();
    let (_, key) = two.issue("payments-api", "work").await;
    two.revoke("payments-api").await;
    let standing = denials_of_role(&two.world.account, &two.role).await;
    let (name, _) = standing.clone().unwrap();
    let proxy = Proxy::start().await;
    two = restarted(two, &proxy.endpoint).await;
    let written = async || (!proxy.calls("PutRolePolicy").is_empty()).then_some(());
    eventually_within(TAKEN_OVER, "it is written once more", written).await;
    next_look(&proxy).await;
    let delete = iam.delete_role_policy().role_name(two.role_name());
    delete.policy_name(name).send().await.unwrap();
    assert!(two.works(&key).await, "somebody has let it work again");
    proxy.heal();
    assert_recorded_as_either(&two.world.broker).await;
    let stands = denials_of_role(&two.world.account, &two.role).await;
    assert_eq!(stands, standing);
    two.dead(&key).await;
}

/// Waits until the broker is about to look at the denials; it continues once this is healed.
async fn next_look(proxy: &Proxy) {
    let looks = || proxy.calls("GetRolePolicy").len();
    proxy.inject("GetRolePolicy", Fault::Hold);
    let before = looks();
    let another = async || (looks() > before).then_some(());
    eventually_within(40, "it looks again", another).await;
}

/// Asserts that the repair is recorded, a moment after the write.
async fn assert_recorded_as_either(broker: &Broker) {
    let recorded = async || (repairs(broker).await > 0).then_some(());
    eventually("the repair is recorded", recorded).await;
    let query = ["audit", "query", "--event", "denial.repaired", "-o", "json"];
    let records = broker.run(&query).await.ok();
    assert_eq!(repairs(broker).await, 1, "{records:?}");
    assert!(
        records.stdout.contains("changed by hand, or AWS applied"),
        "{records:?}"
    );
}

#[tokio::test]
async fn a_repeated_revocation_is_not_confirmed_by_an_earlier_write() {
    let proxy = Proxy::start().await;
    let two = restarted(Neighbours::new().await, &proxy.endpoint).await;
    let broker = &two.world.broker;
    let (_, key) = two.issue("payments-api", "work").await;
    two.issue("billing", "work").await;
    proxy.inject("PutRolePolicy", Fault::Hold);
    let other = broker.run(&["revoke", "billing"]);
    let first = broker.run(&["revoke", "payments-api"]);
    let again = async {
        // Both must be written; one is, and the other waits for it.
        let ready = "SELECT count(*) FROM denials WHERE denied_before = issued_before";
        let both = async || (broker.count(ready).await == 2).then_some(());
        eventually("both are to be written", both).await;
        let again =
            "UPDATE denials SET asked_at = asked_at + 1, revision = revision + 1, due_at = 1,
                                        issued_before = issued_before + 3000000
                     WHERE refused_at IS NULL";
        broker.write_store(again).await;
        proxy.heal();
    };
    let (other, first, ()) = tokio::join!(other, first, again);
    for run in [other, first] {
        assert!(run.stdout.contains("another replica"), "{run:?}");
    }
    let open =
        "SELECT count(*) FROM denials WHERE refused_at IS NULL OR denied_before <> issued_before";
    let none = async || (broker.count(open).await == 0).then_some(());
    eventually_within(30, "both are seen to hold as asked for last", none).await;
    two.dead(&key).await;
}

#[tokio::test]
async fn a_policy_of_another_name_is_never_touched() {
    let two = Neighbours::new().await;
    let (iam, role) = (two.world.account.root.iam(), two.role_name().to_owned());
    let stranger = json!({"Version": "2012-10-17", "Statement": {
        "Effect": "Deny", "Action": "s3:DeleteBucket", "Resource": "*",
    }});
    let names = [
        "credbroker-denials-boundary",
        "credbroker-denials-other00000",
    ];
    for name in names {
        put(&iam, &role, name, &stranger).await;
    }
    let (_, key) = two.issue("payments-api", "work").await;
    two.revoke("payments-api").await;
    refused("sending", key.send_message(&two.world.queue).await);
    let broker = &two.world.broker;
    broker
        .write_store("UPDATE denials SET lasts_until = 1, due_at = 1")
        .await;
    let lifted = async || {
        let names = iam.list_role_policies().role_name(&role).send().await;
        ours(names.unwrap().policy_names).is_none().then_some(())
    };
    eventually("the denial is lifted", lifted).await;
    for name in names {
        let kept = iam.get_role_policy().role_name(&role).policy_name(name);
        let kept = kept.send().await.unwrap().policy_document;
        assert_eq!(decoded(&kept), stranger);
    }
}

#[tokio::test]
async fn a_denial_that_cannot_be_lifted_is_retried_and_blocks_no_other() {
    let world = Stepped::new().await;
    let role = world.issue("role").await.unwrap();
    let federated = world.issue("federation").await.unwrap();
    for issued in [&role, &federated] {
        world.revoke(&issued.lease).await.unwrap();
    }
    let denied = Fault::Answer(403, "AccessDenied", "the boundary is gone");
    world.proxy.inject("DeleteRolePolicy", denied);
    world.wait(ALL_OVER);
    world.broker.maintain_denials_once().await.unwrap();
    let account = &world.account;
    let name = account.unique("credbroker-any");
    assert_eq!(denials_of_user(account).await, None);
    assert!(denials_of_role(account, &name).await.is_some());

    // The removal waits for a while before the next attempt.
    world.broker.maintain_denials_once().await.unwrap();
    assert_eq!(world.proxy.calls("DeleteRolePolicy").len(), 1);
    world.proxy.heal();
    world.wait(120);
    world.broker.maintain_denials_once().await.unwrap();
    assert_eq!(denials_of_role(account, &name).await, None);
    assert_eq!(world.records("denial.lifted").await.len(), 2);
}

#[tokio::test]
async fn a_service_with_ambiguous_federated_names_is_refused() {
    let broker = Broker::start(&Account::new().await).await;
    let (one, other) = ("payments-yvqb43nwuhwrhz", "payments-lw1l6vfs7ji8z6");
    broker.run(&["service", "create", one]).await.ok();
    let alike = broker.run(&["service", "create", other]).await;
    alike.fails(6, &["NAME_NOT_TOLD_APART", one, "18 characters or fewer"]);
    broker
        .run(&["service", "create", "payments-yvqb43nwuhwrh1"])
        .await
        .ok();
    broker.run(&["service", "delete", one]).await.ok();
    broker.run(&["service", "create", other]).await.ok();
}
