//! Reconciliation of AWS with the broker's leases: users that no lease knows are removed if they
//! have the broker's tags, and missing users are reported.

use aws_sdk_iam::types::{Tag, User};
use credbroker::domain::lease::Lease;

use crate::harness::{
    Account, Broker, Key,
    stepped::{self, Stepped, policy},
};

const STRAY: &str = "06h0ok5eb825gp7ppaq3aluqkc";

/// Creates a user like the broker's, or almost like it.
async fn make_user(account: &Account, name: &str, path: &str, tags: &[(&str, &str)]) {
    let tags = tags.iter().map(|(key, value)| {
        let tag = Tag::builder()
            .key(format!("credbroker:{key}"))
            .value(*value);
        tag.build().unwrap()
    });
    let iam = account.root.iam();
    let make = iam.create_user().user_name(name).path(path);
    make.set_tags(Some(tags.collect())).send().await.unwrap();
    iam.create_access_key()
        .user_name(name)
        .send()
        .await
        .unwrap();
}

/// Path of the users of the broker that made this lease's user.
async fn path_of(account: &Account, lease: &Lease) -> String {
    let user = account
        .root
        .iam()
        .get_user()
        .user_name(&lease.binding.aws_name);
    user.send().await.unwrap().user.unwrap().path
}

#[tokio::test]
async fn a_user_of_ours_that_no_live_lease_knows_is_removed_and_no_other() {
    let world = Stepped::new().await;
    let kept = world.issue("user").await.unwrap();
    let ours = path_of(&world.account, &kept.lease).await;
    let name = |service: &str| format!("{service}.{STRAY}");
    let marked = [("service", "payments-api"), ("lease", STRAY)];
    let account = &world.account;
    make_user(account, &name("payments-api"), &ours, &marked).await;
    // Each user lacks a part of the mark.
    let strangers = [
        (
            "elsewhere",
            "/elsewhere/",
            &[("service", "elsewhere"), ("lease", STRAY)][..],
        ),
        (
            "other-broker",
            "/credbroker/0123456789/",
            &[("service", "other-broker"), ("lease", STRAY)],
        ),
        (
            "no-broker",
            "/credbroker/",
            &[("service", "no-broker"), ("lease", STRAY)],
        ),
        ("without-tags", &ours, &[]),
        ("half-tagged", &ours, &[("service", "half-tagged")]),
        (
            "wrong-lease",
            &ours,
            &[
                ("service", "wrong-lease"),
                ("lease", "06h0ok5eb825gp7ppaq3aluqkd"),
            ],
        ),
        (
            "wrong-service",
            &ours,
            &[("service", "payments-api"), ("lease", STRAY)],
        ),
    ];
    for (service, path, tags) in strangers {
        make_user(account, &name(service), path, tags).await;
    }
    make_user(account, "alice", &ours, &marked).await;

    let found = world.reconcile().await;
    assert_eq!(found.orphans_removed, 1);
    let told: Vec<&str> = found.strangers.iter().map(String::as_str).collect();
    let expected = [
        "half-tagged",
        "without-tags",
        "wrong-lease",
        "wrong-service",
    ]
    .map(name);
    assert_eq!(told, [&["alice".to_owned()][..], &expected].concat());
    let all = account.root.iam().list_users().send().await.unwrap().users;
    let names: Vec<&str> = all.iter().map(User::user_name).collect();
    assert!(!names.contains(&name("payments-api").as_str()));
    assert!(names.contains(&"alice"));
    for (service, ..) in strangers {
        assert!(names.contains(&name(service).as_str()), "{service}");
    }
    assert!(stepped::key(&kept).works().await);
    assert_eq!(world.reconcile().await.orphans_removed, 0);
}

#[tokio::test]
async fn a_key_that_no_lease_knows_is_removed_and_the_recorded_one_stays() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    let user = &issued.lease.binding.aws_name;
    let iam = world.account.root.iam();
    iam.create_access_key()
        .user_name(user)
        .send()
        .await
        .unwrap();
    // A lease that is being issued may have any key for a while.
    assert_eq!(world.reconcile().await.keys_removed, 0);
    world.wait(300);
    assert_eq!(world.reconcile().await.keys_removed, 1);
    let recorded = issued.lease.issued().unwrap().access_key_id.clone();
    assert_eq!(world.account.keys_of(user).await, [recorded]);
    assert!(stepped::key(&issued).works().await);
}

#[tokio::test]
async fn a_vanished_user_or_key_is_recorded_once() {
    let world = Stepped::new().await;
    let [gone, without_key, kept] = [
        world.issue("user").await.unwrap(),
        world.issue("user").await.unwrap(),
        world.issue("user").await.unwrap(),
    ];
    let iam = world.account.root.iam();
    for (issued, user_too) in [(&gone, true), (&without_key, false)] {
        let user = &issued.lease.binding.aws_name;
        let key = &issued.credentials.access_key_id;
        let delete = iam.delete_access_key().user_name(user).access_key_id(key);
        delete.send().await.unwrap();
        if user_too {
            let managed = iam
                .list_attached_user_policies()
                .user_name(user)
                .send()
                .await;
            for policy in managed.unwrap().attached_policies.unwrap() {
                let detach = iam.detach_user_policy().user_name(user);
                let detach = detach.policy_arn(policy.policy_arn.unwrap());
                detach.send().await.unwrap();
            }
            iam.delete_user().user_name(user).send().await.unwrap();
        }
    }
    // The removal may not be visible everywhere yet.
    assert!(world.reconcile().await.vanished.is_empty());
    world.wait(300);
    for _ in 0..2 {
        let found = world.reconcile().await;
        let vanished: Vec<_> = found.vanished.iter().collect();
        let mut expected = [&gone, &without_key].map(|issued| &issued.lease.binding.lease_id);
        expected.sort();
        assert_eq!(vanished, expected);
    }
    let told = world.records("lease.vanished").await;
    let reasons: Vec<_> = told
        .iter()
        .filter_map(|event| event.reason.as_deref())
        .collect();
    assert_eq!(reasons, ["USER_VANISHED", "KEY_VANISHED"]);
    assert!(stepped::key(&kept).works().await);
    // Leases without user or key end at their time like all others.
    world.step(3600).await;
    for lease in [&gone, &without_key, &kept] {
        assert_eq!(world.lease(&lease.lease).await.state.as_str(), "expired");
    }
}

#[tokio::test]
async fn a_starting_broker_reconciles_and_reports_the_result() {
    let account = Account::new().await;
    let mut broker = Broker::start(&account).await;
    let token = broker.service("payments-api").await;
    let flags = ["--kind", "iam_user"];
    broker.grant("payments-api/user", &flags, &policy()).await;
    let kept = broker.issue(&token, "user").await;
    let lost = broker.issue(&token, "user").await;
    // The store is like a backup from before the second issue.
    broker.kill().await;
    broker
        .write_store("DELETE FROM leases WHERE lease_id = (SELECT max(lease_id) FROM leases)")
        .await;
    let endpoint = &crate::harness::emulator::emulator().endpoint;
    let broker = broker.start_again(&account.admin, endpoint).await;
    let status = broker.reconciled().await;
    assert_eq!(
        (&status["users_in_aws"], &status["orphans_removed"]),
        (&2.into(), &1.into())
    );
    assert!(!Key::issued(&lost).works().await);
    assert!(Key::issued(&kept).works().await);
    let records = broker.audit().await;
    let removed = records
        .iter()
        .find(|record| record["event"] == "orphan.removed");
    assert_eq!(removed.unwrap()["lease_id"], lost["lease_id"]);
    broker.counts("credbroker_orphans_removed_total 1").await;
}

#[tokio::test]
async fn two_brokers_in_one_account_leave_each_others_users_alone() {
    let account = Account::new().await;
    let mut kept = Vec::new();
    let mut brokers = Vec::new();
    for _ in 0..2 {
        let broker = Broker::start(&account).await;
        let token = broker.service("payments-api").await;
        let flags = ["--kind", "iam_user"];
        broker.grant("payments-api/user", &flags, &policy()).await;
        kept.push(broker.issue(&token, "user").await);
        brokers.push(broker);
    }
    let endpoint = &crate::harness::emulator::emulator().endpoint;
    for mut broker in brokers {
        assert!(broker.stop().await);
        let broker = broker.start_again(&account.admin, endpoint).await;
        let status = broker.reconciled().await;
        assert_eq!(
            (&status["users_in_aws"], &status["orphans_removed"]),
            (&1.into(), &0.into())
        );
    }
    for issued in kept {
        assert!(Key::issued(&issued).works().await);
    }
}
