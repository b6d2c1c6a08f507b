//! Answers of AWS to a session that makes one harmless call, by the adapter itself.

use std::{collections::BTreeMap, sync::Arc};

use aws_sdk_sts::types::{Credentials as Session, Tag};
use aws_smithy_async::rt::sleep::SharedAsyncSleep;
use credbroker::{
    aws::{AwsAccount, AwsSettings, Clients},
    broker::ports::{AwsFailure, DenyPolicyApi, FailureClass, ProbeOutcome, RefusalCause},
    domain::{
        arn::Partition,
        clock::{SteadyClock, wall_time},
        credential::Credentials,
        policy,
        probe::Probe,
    },
};
use serde_json::{Value, json};

use crate::{
    enforcement::assert_each_fails_unenforced,
    harness::{
        Account,
        aws::{ADMIN_USER, REGION},
        emulator::emulator,
        eventually,
        proxy::{Fault, Proxy},
    },
};

/// The tests below whose point is a refusal by AWS.
const REFUSALS: [&str; 5] = [
    "a_session_without_permission_is_refused_and_not_for_a_denial",
    "a_denial_on_the_role_is_told_for_one_and_met_by_every_probe",
    "a_denial_on_the_admin_user_meets_its_federation_sessions",
    "a_session_that_has_ended_or_was_never_made_is_dead",
    "a_wrong_secret_is_a_failure_and_no_verdict",
];

/// An adapter without a key of its own.
async fn adapter(endpoint: &str, timer: Option<SharedAsyncSleep>) -> AwsAccount {
    let settings = AwsSettings {
        region: Some(REGION.to_owned()),
        endpoint_url: Some(endpoint.to_owned()),
        timer,
        ..AwsSettings::default()
    };
    let clock = Arc::new(SteadyClock::starting_at(wall_time()));
    let clients = Clients::new(&settings, &clock).await;
    AwsAccount::new(clients, Partition::Aws, "1", BTreeMap::new())
}

async fn probe(session: &Credentials, probe: Probe) -> ProbeOutcome {
    let adapter = adapter(&emulator().endpoint, None).await;
    adapter.probe(session, probe, None).await.unwrap()
}

async fn failing(adapter: &AwsAccount, session: &Credentials, probe: Probe) -> AwsFailure {
    let probed = adapter.probe(session, probe, None).await;
    probed.expect_err("REFUSAL EXPECTED: no verdict")
}

#[track_caller]
fn refused(verdict: ProbeOutcome, because_of_denial: bool) {
    let ProbeOutcome::Refused { cause, said } = verdict else {
        panic!("REFUSAL EXPECTED: {verdict:?}");
    };
    let is_denied = cause == RefusalCause::IdentityDenial;
    assert_eq!(is_denied, because_of_denial, "{said}");
    assert!(said.starts_with("AccessDenied"), "{said}");
}

fn credentials(session: Session) -> Credentials {
    Credentials {
        access_key_id: session.access_key_id,
        secret_access_key: session.secret_access_key.into(),
        session_token: Some(session.session_token.into()),
        expires_at: None,
        usable_after: None,
        aws_request_id: None,
    }
}

async fn assume(account: &Account, role: &str, seconds: i32) -> Credentials {
    let service = Tag::builder().key("credbroker:service").value("canary");
    let assume = account.admin.sts().assume_role().role_arn(role);
    let assume = assume.role_session_name("canary").duration_seconds(seconds);
    let assume = assume.tags(service.build().unwrap());
    credentials(assume.send().await.unwrap().credentials.unwrap())
}

fn statement(effect: &str, action: &str) -> Value {
    let statement = json!({"Effect": effect, "Action": action, "Resource": "*"});
    json!({"Version": "2012-10-17", "Statement": [statement]})
}

fn all_probes() -> Value {
    let actions = Probe::ALL.map(Probe::as_str);
    let statement = json!({"Effect": "Allow", "Action": actions, "Resource": "*"});
    json!({"Version": "2012-10-17", "Statement": [statement]})
}

/// A role that may make every probe's call, and a session of it.
async fn probed_role(account: &Account) -> (String, Credentials) {
    let role = account.role("credbroker-probed", &all_probes()).await;
    let session = assume(account, &role, 900).await;
    (role, session)
}

async fn deny_role(account: &Account) {
    let put = account.root.iam().put_role_policy();
    let put = put.role_name(account.unique("credbroker-probed"));
    let put = put.policy_name("deny");
    let denial = statement("Deny", "*").to_string();
    put.policy_document(denial).send().await.unwrap();
}

#[tokio::test]
async fn a_session_without_permission_is_refused_and_not_for_a_denial() {
    let account = Account::new().await;
    let nothing = statement("Allow", "sts:GetCallerIdentity");
    let role = account.role("credbroker-none", &nothing).await;
    let session = assume(&account, &role, 900).await;
    for harmless in Probe::ALL {
        refused(probe(&session, harmless).await, false);
    }
}

#[tokio::test]
async fn a_denial_on_the_role_is_told_for_one_and_met_by_every_probe() {
    let account = Account::new().await;
    let (_, session) = probed_role(&account).await;
    for harmless in Probe::ALL {
        assert_eq!(probe(&session, harmless).await, ProbeOutcome::Allowed);
    }
    deny_role(&account).await;
    for harmless in Probe::ALL {
        refused(probe(&session, harmless).await, true);
    }
}

#[tokio::test]
async fn a_denial_on_the_admin_user_meets_its_federation_sessions() {
    let account = Account::new().await;
    account.let_admin(&all_probes()).await;
    let mut sessions = Vec::new();
    for harmless in Probe::ALL {
        let federate = account.admin.sts().get_federation_token().name("canary");
        let federate = federate.policy(policy::canary(&[harmless]).to_json());
        let session = federate.send().await.unwrap().credentials.unwrap();
        sessions.push((harmless, credentials(session)));
    }
    for (harmless, session) in &sessions {
        assert_eq!(probe(session, *harmless).await, ProbeOutcome::Allowed);
        let other = Probe::ALL.into_iter().find(|other| other != harmless);
        refused(probe(session, other.unwrap()).await, false);
    }
    let put = account.root.iam().put_user_policy().user_name(ADMIN_USER);
    let denial = statement("Deny", "*").to_string();
    let put = put.policy_name("deny").policy_document(denial);
    put.send().await.unwrap();
    for (harmless, session) in &sessions {
        refused(probe(session, *harmless).await, true);
    }
}

#[tokio::test]
async fn a_session_that_has_ended_or_was_never_made_is_dead() {
    let account = Account::new().await;
    let (role, living) = probed_role(&account).await;
    let short = assume(&account, &role, 1).await;
    let unknown = Credentials {
        access_key_id: "ASIAUNKNOWNUNKNOWN00".to_owned(),
        ..living.clone()
    };
    for harmless in Probe::ALL {
        assert_eq!(probe(&living, harmless).await, ProbeOutcome::Allowed);
        for session in [&short, &unknown] {
            let ended =
                async || (probe(session, harmless).await == ProbeOutcome::Dead).then_some(());
            eventually("REFUSAL EXPECTED: it is dead", ended).await;
        }
    }
}

#[tokio::test]
async fn a_wrong_secret_is_a_failure_and_no_verdict() {
    let account = Account::new().await;
    let (_, session) = probed_role(&account).await;
    let wrong = Credentials {
        secret_access_key: "wrong".to_owned().into(),
        ..session
    };
    let adapter = adapter(&emulator().endpoint, None).await;
    for harmless in Probe::ALL {
        let failure = failing(&adapter, &wrong, harmless).await;
        assert_eq!(
            (failure.class, failure.reason),
            (FailureClass::Refused, "AWS_REFUSED")
        );
        assert!(failure.aws_said.contains("ignature"), "{failure:?}");
    }
}

/// A suite that stays green where nothing is enforced proves nothing.
#[tokio::test]
async fn without_enforcement_every_refusal_test_fails() {
    let refusals = REFUSALS.map(|name| format!("probes::{name}"));
    assert_each_fails_unenforced(&refusals).await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_gives_no_verdict() {
    let account = Account::new().await;
    let (_, session) = probed_role(&account).await;
    let adapter = adapter("http://127.0.0.1:1", None).await;
    for harmless in Probe::ALL {
        let failure = failing(&adapter, &session, harmless).await;
        assert_eq!(
            (failure.class, failure.reason),
            (FailureClass::Unavailable, "AWS_UNREACHABLE")
        );
    }
}

#[tokio::test]
async fn an_answer_not_from_the_service_gives_no_verdict() {
    let account = Account::new().await;
    let (_, session) = probed_role(&account).await;
    let proxy = Proxy::start().await;
    let faults = [
        (Fault::Garble, FailureClass::Uncertain, "AWS_NO_ANSWER"),
        (Fault::Cut, FailureClass::Uncertain, "AWS_NO_ANSWER"),
        (Fault::Hold, FailureClass::Uncertain, "AWS_NO_ANSWER"),
        (
            Fault::Answer(400, "ThrottlingException", "Rate exceeded"),
            FailureClass::Throttled,
            "AWS_THROTTLED",
        ),
        (
            Fault::Answer(503, "AccessDenied", "with an explicit deny"),
            FailureClass::Uncertain,
            "AWS_FAULT",
        ),
        (
            Fault::Answer(403, "AccountProblem", "call us"),
            FailureClass::Refused,
            "AWS_REFUSED",
        ),
    ];
    let adapter = adapter(&proxy.endpoint, Some(proxy.timer())).await;
    for (fault, class, reason) in faults {
        for (harmless, action) in [
            (Probe::SqsListQueues, "ListQueues"),
            (Probe::S3ListAllMyBuckets, ""),
        ] {
            proxy.inject(action, fault.clone());
            let failure = failing(&adapter, &session, harmless).await;
            assert_eq!((failure.class, failure.reason), (class, reason));
        }
    }
    proxy.heal();
    let probed = adapter.probe(&session, Probe::SqsListQueues, Some("eu-central-1"));
    assert_eq!(probed.await, Ok(ProbeOutcome::Allowed));
}
