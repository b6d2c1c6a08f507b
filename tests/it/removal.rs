//! Removal always finishes: access ends first, every obstacle is deleted, and a removal that AWS
//! keeps refusing stays visible.

use credbroker::domain::lease::{Lease, LeaseState};
use serde_json::Value;

use crate::harness::{
    Account, Broker, Key,
    form::Form,
    proxy::{Fault, Proxy},
    stepped::{self, Stepped, Ways, policy},
};

const CONFLICT: Fault = Fault::Answer(
    409,
    "DeleteConflict",
    "Cannot delete entity, must remove referenced objects first.",
);

#[tokio::test]
async fn access_ends_first_and_the_user_goes_last() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    let already = world.proxy.actions().len();
    world.revoke(&issued.lease).await.unwrap();
    let calls = world.proxy.actions().split_off(already);
    let expected = [
        "GetUser",
        "PutUserPolicy",
        "ListAccessKeys",
        "UpdateAccessKey",
        "DeleteAccessKey",
        "DeleteLoginProfile",
        "ListMFADevices",
        "ListSigningCertificates",
        "ListSSHPublicKeys",
        "ListServiceSpecificCredentials",
        "ListAttachedUserPolicies",
        "DetachUserPolicy",
        "ListGroupsForUser",
        "RemoveUserFromGroup",
        "ListUserPolicies",
        "DeleteUserPolicy",
        "DeleteUserPolicy",
        "DeleteUser",
        "GetUser",
    ];
    assert_eq!(calls, expected);
    let denial = Form::of(&world.proxy.calls("PutUserPolicy")[1]);
    let statement = &denial.document("PolicyDocument")["Statement"][0];
    assert_eq!(
        (&statement["Effect"], &statement["Action"]),
        (&"Deny".into(), &"*".into())
    );
    // The denial is the last of the policies to be deleted.
    let last = world.proxy.calls("DeleteUserPolicy").pop().unwrap();
    assert_eq!(Form::of(&last).get("PolicyName"), denial.get("PolicyName"));
}

#[tokio::test]
async fn a_user_with_foreign_attachments_is_removed_with_them() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    let (user, iam) = (&issued.lease.binding.aws_name, world.account.root.iam());
    let login = iam
        .create_login_profile()
        .user_name(user)
        .password("Correct-horse-9");
    login.send().await.unwrap();
    let device = iam
        .create_virtual_mfa_device()
        .virtual_mfa_device_name(user);
    let serial = device
        .send()
        .await
        .unwrap()
        .virtual_mfa_device
        .unwrap()
        .serial_number;
    let enable = iam
        .enable_mfa_device()
        .user_name(user)
        .serial_number(serial);
    let enable = enable
        .authentication_code1("123456")
        .authentication_code2("654321");
    enable.send().await.unwrap();
    for number in 0..3 {
        let more = world
            .account
            .managed_policy(&format!("more-{number}"))
            .await;
        let attach = iam.attach_user_policy().user_name(user).policy_arn(more);
        attach.send().await.unwrap();
        let group = world.account.group(&format!("more-{number}")).await;
        let join = iam.add_user_to_group().user_name(user).group_name(group);
        join.send().await.unwrap();
        let inline = iam
            .put_user_policy()
            .user_name(user)
            .policy_name(format!("more-{number}"));
        inline
            .policy_document(policy().to_string())
            .send()
            .await
            .unwrap();
    }
    iam.create_access_key()
        .user_name(user)
        .send()
        .await
        .unwrap();

    let taken = world.revoke(&issued.lease).await.unwrap();
    assert_eq!(taken.lease.state.as_str(), "revoked");
    assert!(world.account.issued_users().await.is_empty());
    for (action, times) in [
        ("DeleteLoginProfile", 1),
        ("DeactivateMFADevice", 1),
        ("DetachUserPolicy", 4),
        ("RemoveUserFromGroup", 4),
        ("DeleteUserPolicy", 5),
        ("DeleteAccessKey", 2),
    ] {
        assert_eq!(world.proxy.calls(action).len(), times, "{action}");
    }
}

/// A page of a list in AWS's shape.
fn page(list: &str, members: &str, marker: Option<&str>) -> Fault {
    let marker = marker.map_or("<IsTruncated>false</IsTruncated>".to_owned(), |marker| {
        format!("<IsTruncated>true</IsTruncated><Marker>{marker}</Marker>")
    });
    Fault::Say(format!(
        "<{list}Response xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\"><{list}Result>{members}{marker}\
         </{list}Result><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></{list}Response>"
    ))
}

/// The entries of a list, from an id.
type Members<'a> = &'a dyn Fn(&str) -> String;

/// The emulator knows none of these: the proxy answers as AWS documents, twice each, since lists
/// come in pages.
#[tokio::test]
async fn certificates_ssh_keys_and_passwords_of_single_services_are_removed_page_by_page() {
    let certificate = |id: &str| {
        format!(
            "<Certificates><member><UserName>u</UserName><CertificateId>{id}</CertificateId>\
             <CertificateBody>x</CertificateBody><Status>Active</Status></member></Certificates>"
        )
    };
    let ssh = |id: &str| {
        format!(
            "<SSHPublicKeys><member><UserName>u</UserName><SSHPublicKeyId>{id}</SSHPublicKeyId>\
             <Status>Active</Status><UploadDate>2026-01-01T00:00:00Z</UploadDate></member></SSHPublicKeys>"
        )
    };
    let password = |id: &str| {
        format!(
            "<ServiceSpecificCredentials><member><UserName>u</UserName><Status>Active</Status>\
             <ServiceUserName>u</ServiceUserName><CreateDate>2026-01-01T00:00:00Z</CreateDate>\
             <ServiceSpecificCredentialId>{id}</ServiceSpecificCredentialId><ServiceName>codecommit.amazonaws.com\
             </ServiceName></member></ServiceSpecificCredentials>"
        )
    };
    let done = |delete: &str| {
        Fault::Say(format!(
            "<{delete}Response xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\"><ResponseMetadata>\
             <RequestId>r</RequestId></ResponseMetadata></{delete}Response>"
        ))
    };
    let sorts: [(&str, &str, &str, Members<'_>); 3] = [
        (
            "ListSigningCertificates",
            "DeleteSigningCertificate",
            "CertificateId",
            &certificate,
        ),
        (
            "ListSSHPublicKeys",
            "DeleteSSHPublicKey",
            "SSHPublicKeyId",
            &ssh,
        ),
        (
            "ListServiceSpecificCredentials",
            "DeleteServiceSpecificCredential",
            "ServiceSpecificCredentialId",
            &password,
        ),
    ];
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    for (list, delete, _, members) in &sorts {
        let (first, second) = (members("APKAONE"), members("APKATWO"));
        world.proxy.inject_in_turn(
            list,
            [page(list, &first, Some("m")), page(list, &second, None)],
        );
        world.proxy.inject(delete, done(delete));
    }
    let taken = world.revoke(&issued.lease).await.unwrap();
    assert_eq!(taken.lease.state.as_str(), "revoked");
    for (list, delete, id, _) in &sorts {
        let asked = world.proxy.calls(list);
        assert_eq!(Form::of(&asked[1]).get("Marker"), Some("m"), "{list}");
        let deleted = world.proxy.calls(delete);
        let ids: Vec<_> = deleted.iter().map(|body| Form::of(body)).collect();
        let ids: Vec<_> = ids.iter().filter_map(|form| form.get(id)).collect();
        assert_eq!(ids, ["APKAONE", "APKATWO"], "{delete}");
    }
}

/// Returns the lease after `attempts` failed attempts.
async fn refused(world: &Stepped, lease: &Lease, attempts: u32) -> Lease {
    world.proxy.inject("DeleteUser", CONFLICT);
    world.revoke(lease).await.unwrap();
    for _ in 1..attempts {
        world.step(300).await;
    }
    let now = world.lease(lease).await;
    assert_eq!(now.removal().unwrap().attempts, attempts);
    now
}

#[tokio::test]
async fn a_removal_refused_ten_times_is_quarantined_and_retried_for_ever() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    let lease = refused(&world, &issued.lease, 6).await;
    assert_eq!(lease.state.as_str(), "revoking");
    // Half an hour of failures is enough.
    world.step(301).await;
    assert_eq!(world.lease(&lease).await.state.as_str(), "quarantined");
    assert!(
        !stepped::key(&issued).works().await,
        "access has ended long ago"
    );
    let attempts = async || world.lease(&lease).await.removal().unwrap().attempts;
    while attempts().await < 11 {
        world.step(512).await;
    }
    // Later attempts come every quarter of an hour.
    for tried in 11..20 {
        world.step(899).await;
        assert_eq!(attempts().await, tried);
        world.step(1).await;
        assert_eq!(attempts().await, tried + 1);
    }
    world.proxy.heal();
    world.step(900).await;
    let gone = world.lease(&lease).await;
    assert_eq!(gone.state.as_str(), "revoked");
    assert!(world.account.issued_users().await.is_empty());
}

#[tokio::test]
async fn a_quarantined_lease_does_not_delay_other_removals() {
    let world = Stepped::new().await;
    let stuck = world.issue("user").await.unwrap().lease;
    refused(&world, &stuck, 10).await;
    world.proxy.heal();
    let others = [
        world.issue("user").await.unwrap(),
        world.issue("user").await.unwrap(),
    ];
    // AWS does not answer one removal for a long time.
    world.proxy.strike(0, Fault::Hold, false);
    world.wait(2 * 3600);
    let reaped = world.broker.clean_up_once();
    let healed = async {
        let rest = async || {
            let users = world.account.issued_users().await.len();
            (users <= 1).then_some(())
        };
        crate::harness::eventually("the others' end", rest).await;
        world.proxy.heal();
    };
    let (reaped, ()) = tokio::join!(reaped, healed);
    reaped.unwrap();
    for other in &others {
        assert_eq!(world.lease(&other.lease).await.state.as_str(), "expired");
    }
}

#[tokio::test]
async fn a_quarantined_lease_is_shown_in_lists_status_and_metrics() {
    let (account, proxy) = (Account::new().await, Proxy::start().await);
    let broker = Broker::start_with(&account.admin, &proxy.endpoint).await;
    let token = broker.service("payments-api").await;
    let flags = ["--kind", "iam_user"];
    broker.grant("payments-api/user", &flags, &policy()).await;
    let issued = broker.issue(&token, "user").await;
    let id = issued["lease_id"].as_str().unwrap();
    proxy.inject("DeleteUser", CONFLICT);
    broker.run(&["lease", "revoke", id]).await.ok();
    // Nine attempts have failed already.
    broker
        .write_store("UPDATE leases SET attempts = 9, due_at = requested_at")
        .await;
    let quarantined = async || {
        let shown = broker.json(&["lease", "show", id]).await;
        (shown["state"] == "quarantined").then_some(())
    };
    crate::harness::eventually("quarantine", quarantined).await;
    let list = ["lease", "list", "--state", "quarantined"];
    let listed = broker.json(&list).await;
    assert_eq!(listed[0]["lease_id"], issued["lease_id"]);
    let status = broker.run(&["status", "-o", "json"]).await.ok();
    assert_eq!(status.json()["quarantined_leases"], 1);
    assert!(status.stderr.contains("lease list --state quarantined"));
    broker
        .counts("credbroker_leases{state=\"quarantined\"} 1")
        .await;
    let records = broker.audit().await;
    let record = records
        .iter()
        .find(|record| record["event"] == "lease.quarantined");
    let record = record.unwrap();
    assert_eq!(
        (&record["lease_id"], &record["outcome"]),
        (&issued["lease_id"], &"failure".into())
    );
    assert!(!Key::issued(&issued).works().await);

    // An operator may try at any time, and succeeds as soon as AWS accepts the deletion.
    proxy.heal();
    let revoked: Value = broker.json(&["lease", "revoke", id]).await;
    assert_eq!(revoked["state"], "revoked");
    assert!(account.issued_users().await.is_empty());
}

#[tokio::test]
async fn not_found_counts_as_gone_only_outside_the_consistency_window() {
    let world = Stepped::with(Ways::impatient()).await;
    // The call arrives and takes effect long after the broker gave it up.
    world.proxy.inject("CreateUser", Fault::Hold);
    world.issue("user").await.unwrap_err();
    let lease = world.newest().await;
    world.step(61).await;
    let waiting = world.lease(&lease).await;
    assert_eq!(waiting.state.as_str(), "revoking");
    assert!(matches!(&waiting.state, LeaseState::Revoking(removal) if removal.attempts == 0));
    world.step(120).await;
    assert_eq!(world.lease(&lease).await.state.as_str(), "revoking");
    world.proxy.heal();
    let arrived = async || world.account.issued_users().await.pop();
    crate::harness::eventually("the late user", arrived).await;
    world.step(30).await;
    assert_eq!(world.lease(&lease).await.state.as_str(), "revoked");
    assert!(world.account.issued_users().await.is_empty());

    // The end of the window ends the lease of a user that never existed.
    world.proxy.inject("CreateUser", Fault::Cut);
    world.issue("user").await.unwrap_err();
    world.proxy.heal();
    let lease = world.newest().await;
    for _ in 0..12 {
        world.step(29).await;
        assert_ne!(world.lease(&lease).await.state.as_str(), "revoked");
    }
    world.step(60).await;
    assert_eq!(world.lease(&lease).await.state.as_str(), "revoked");
}

#[tokio::test]
async fn a_live_user_that_aws_does_not_show_for_a_moment_is_not_taken_for_gone() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    let unknown = Fault::Answer(404, "NoSuchEntity", "The user cannot be found.");
    world.proxy.inject("GetUser", unknown);
    let taken = world.revoke(&issued.lease).await.unwrap();
    assert!(taken.notice.unwrap().contains("looks again"));
    assert_eq!(taken.lease.state.as_str(), "revoking");
    world.proxy.heal();
    world.step(30).await;
    assert_eq!(world.lease(&issued.lease).await.state.as_str(), "revoked");
    assert!(world.account.issued_users().await.is_empty());
}

#[tokio::test]
async fn a_removal_succeeds_although_aws_refuses_the_denial() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    let refused = Fault::Answer(403, "AccessDenied", "not allowed");
    world.proxy.inject("PutUserPolicy", refused);
    let taken = world.revoke(&issued.lease).await.unwrap();
    assert_eq!(taken.lease.state.as_str(), "revoked");
    assert!(world.account.issued_users().await.is_empty());
}

#[tokio::test]
async fn a_release_during_a_removal_gets_a_notice_without_a_call_to_aws() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    world.proxy.inject("DeleteUser", CONFLICT);
    world.revoke(&issued.lease).await.unwrap();
    let calls = world.proxy.actions().len();
    let released = world.release(&issued.lease).await.unwrap();
    assert_eq!(released.lease.state.as_str(), "revoking");
    assert!(released.notice.unwrap().contains("already"));
    assert_eq!(world.proxy.actions().len(), calls);
}

#[tokio::test]
async fn a_key_that_cannot_be_switched_off_is_deleted_and_so_are_the_others() {
    let world = Stepped::new().await;
    let issued = world.issue("user").await.unwrap();
    let iam = world.account.root.iam();
    let more = iam
        .create_access_key()
        .user_name(&issued.lease.binding.aws_name);
    more.send().await.unwrap();
    let refused = Fault::Answer(403, "AccessDenied", "not allowed");
    world.proxy.inject("UpdateAccessKey", refused);
    let taken = world.revoke(&issued.lease).await.unwrap();
    assert_eq!(taken.lease.state.as_str(), "revoking");
    assert_eq!(world.proxy.calls("DeleteAccessKey").len(), 2);
    assert!(!stepped::key(&issued).works().await);
    world.step(300).await;
    assert_eq!(world.lease(&taken.lease).await.state.as_str(), "revoked");
}
