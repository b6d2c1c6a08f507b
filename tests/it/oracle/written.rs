//! The documents that the broker wrote, read back from AWS and from what it sent.

use jiff::{SignedDuration, Timestamp};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::Layers;
use crate::harness::{Account, Broker, eventually, form::Form, proxy::Proxy};

const INSIDE: &str = "arn:aws:s3:::acme-invoices/2030/1.pdf";
const OUTSIDE: &str = "arn:aws:s3:::acme-salaries/2030/1.pdf";

fn allow(action: &Value, resource: &str) -> Value {
    let statement = json!({"Effect": "Allow", "Action": action, "Resource": resource});
    json!({"Version": "2012-10-17", "Statement": [statement]})
}

fn narrow() -> Value {
    allow(&json!("s3:GetObject"), "arn:aws:s3:::acme-invoices/*")
}

/// Reads a document of the emulator, percent-encoded or not.
fn document(text: &str) -> Value {
    let decoded = percent_decode_str(text).decode_utf8().unwrap();
    serde_json::from_str(&decoded).unwrap()
}

/// Layers over the one user that the broker has made: its policy, its boundary.
async fn layers_of_the_user(account: &Account) -> Layers {
    let iam = account.root.iam();
    let name = account.issued_users().await.remove(0);
    let inline = iam
        .get_user_policy()
        .user_name(&name)
        .policy_name("credbroker-grant");
    let inline = inline.send().await.unwrap().policy_document;
    let user = iam
        .get_user()
        .user_name(&name)
        .send()
        .await
        .unwrap()
        .user
        .unwrap();
    let boundary = user
        .permissions_boundary
        .unwrap()
        .permissions_boundary_arn
        .unwrap();
    let policy = iam
        .get_policy()
        .policy_arn(&boundary)
        .send()
        .await
        .unwrap()
        .policy
        .unwrap();
    let version = iam.get_policy_version().policy_arn(&boundary);
    let version = version
        .version_id(policy.default_version_id.unwrap())
        .send()
        .await
        .unwrap();
    let bound = version.policy_version.unwrap().document.unwrap();
    Layers::of([document(&inline), document(&bound)])
}

/// Asserts that the layers reach their scope and mint nothing.
#[track_caller]
fn assert_narrow(layers: &Layers) {
    assert!(layers.allow("s3:GetObject", INSIDE, &[]));
    assert!(!layers.allow("s3:GetObject", OUTSIDE, &[]));
    assert!(!layers.allow("s3:PutObject", INSIDE, &[]));
    assert_mints_nothing(layers);
}

#[track_caller]
fn assert_mints_nothing(layers: &Layers) {
    let user = "arn:aws:iam::123456789012:user/credbroker/x";
    let role = "arn:aws:iam::123456789012:role/credbroker/x";
    for action in [
        "iam:CreateUser",
        "iam:CreateAccessKey",
        "iam:PutUserPolicy",
        "iam:GetUser",
    ] {
        assert!(!layers.allow(action, user, &[]), "{action}");
    }
    for action in [
        "sts:AssumeRole",
        "sts:AssumeRoleWithWebIdentity",
        "sts:AssumeRoot",
    ] {
        assert!(!layers.allow(action, role, &[]), "{action}");
    }
    for action in [
        "sts:GetFederationToken",
        "sts:GetSessionToken",
        "sts:GetWebIdentityToken",
        "sts:GetDelegatedAccessToken",
        "s3:GetDataAccess",
        "signin:CreateOAuth2Token",
        "sso:CreateAccountAssignment",
        "codeartifact:GetAuthorizationToken",
    ] {
        assert!(!layers.allow(action, user, &[]), "{action}");
    }
}

#[tokio::test]
async fn a_users_policy_and_boundary_reach_the_scope_and_mint_nothing() {
    let account = Account::new().await;
    let broker = Broker::start(&account).await;
    let token = broker.service("pay").await;
    broker
        .grant("pay/work", &["--kind", "iam_user"], &narrow())
        .await;
    broker.issue(&token, "work").await;
    assert_narrow(&layers_of_the_user(&account).await);
}

#[tokio::test]
async fn a_boundary_keeps_a_policy_that_allows_everything_from_minting() {
    let account = Account::new().await;
    let broker = Broker::start(&account).await;
    let token = broker.service("pay").await;
    let everything = allow(&json!(["*", "iam:*"]), "*");
    broker
        .grant(
            "pay/work",
            &["--kind", "iam_user", "--allow-broad"],
            &everything,
        )
        .await;
    broker.issue(&token, "work").await;
    let layers = layers_of_the_user(&account).await;
    assert!(layers.allow("s3:PutObject", OUTSIDE, &[]));
    assert_mints_nothing(&layers);
    // Without its boundary the user could do this.
    let alone = Layers(layers.0[..1].to_vec());
    assert!(alone.allow("iam:CreateUser", "arn:aws:iam::123456789012:user/x", &[]));
}

/// Layers of a session: the policy of its role or issuer, and the session policy sent.
async fn layers_of_the_session(action: &str, flags: &[&str], policy: Option<&Value>) -> Layers {
    let (account, proxy) = (Account::new().await, Proxy::start().await);
    let wide = allow(&json!(["s3:*", "iam:*", "sts:*"]), "*");
    account.let_admin(&wide).await;
    let role = account.role("credbroker-wide", &wide).await;
    let broker = Broker::start_with(&account.admin, &proxy.endpoint).await;
    let token = broker.service("pay").await;
    let mut args = vec!["grant", "put", "pay/work"];
    if flags.is_empty() {
        args.extend(["--role-arn", &role]);
    }
    args.extend(flags);
    if policy.is_some() {
        args.extend(["--policy-file", "-"]);
    }
    let input = policy.map(ToString::to_string).unwrap_or_default();
    broker.run_in(None, &args, &input).await.ok();
    broker.issue(&token, "work").await;
    let sent = Form::of(&proxy.calls(action)[0]);
    Layers::of([wide, sent.document("Policy")])
}

#[tokio::test]
async fn a_session_policy_reaches_the_scope_and_mints_nothing() {
    assert_narrow(&layers_of_the_session("AssumeRole", &[], Some(&narrow())).await);
    let federation = ["--kind", "federation_token"];
    assert_narrow(&layers_of_the_session("GetFederationToken", &federation, Some(&narrow())).await);
}

#[tokio::test]
async fn a_session_without_a_policy_of_its_own_may_what_its_role_may_and_mints_nothing() {
    let layers = layers_of_the_session("AssumeRole", &[], None).await;
    assert!(layers.allow("s3:PutObject", OUTSIDE, &[]));
    assert!(!layers.allow(
        "sqs:SendMessage",
        "arn:aws:sqs:us-east-1:123456789012:q",
        &[]
    ));
    assert_mints_nothing(&layers);
}

/// Denials of the sessions of `pay`, whose grant sets a source identity, before and after its
/// reinstatement, and the cutoff after it.
async fn denials_of_pay() -> (Layers, Layers, Timestamp) {
    let account = Account::new().await;
    let broker = Broker::start(&account).await;
    let role = account.role("credbroker-app", &narrow()).await;
    let token = broker.service("pay").await;
    let flags = ["--role-arn", &role, "--source-identity"];
    broker.grant("pay/work", &flags, &narrow()).await;
    broker.issue(&token, "work").await;
    broker.revoked(&["pay"]).await;
    let always = statements_at(&account, &role).await;
    broker.run(&["service", "reinstate", "pay"]).await.ok();
    let moment = async || {
        let statements = statements_at(&account, &role).await;
        let moment = &statements[0]["Condition"]["DateLessThan"]["aws:TokenIssueTime"];
        let moment = moment.as_str()?.parse().unwrap();
        Some((statements, moment))
    };
    let (dated, moment) = eventually("it has a moment", moment).await;
    let layers = |statements: Vec<Value>| {
        assert_eq!(statements.len(), 2, "{statements:#?}");
        let together = [statements, vec![narrow()["Statement"][0].clone()]].concat();
        Layers::of([json!({"Version": "2012-10-17", "Statement": together})])
    };
    (layers(always), layers(dated), moment)
}

/// Statements of the denials at a role.
async fn statements_at(account: &Account, role: &str) -> Vec<Value> {
    let iam = account.root.iam();
    let role = role.rsplit('/').next().unwrap();
    let names = iam.list_role_policies().role_name(role).send().await;
    let names = names.unwrap().policy_names;
    let name = names
        .iter()
        .find(|name| name.starts_with("credbroker-denials-"));
    let policy = iam.get_role_policy().role_name(role);
    let policy = policy.policy_name(name.unwrap()).send().await.unwrap();
    let denial = document(&policy.policy_document);
    denial["Statement"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_denial_meets_sessions_by_name_or_source_identity_always_or_those_issued_before() {
    let (always, dated, moment) = denials_of_pay().await;
    let may_by = |layers: &Layers, user: &str, source: Option<&str>, seconds: i64| {
        let issued = moment + SignedDuration::from_secs(seconds);
        let (user, issued) = (format!("AROAEXAMPLE:{user}"), issued.to_string());
        let mut context = vec![
            ("aws:userid", user.as_str()),
            ("aws:TokenIssueTime", &issued),
        ];
        context.extend(source.map(|source| ("aws:SourceIdentity", source)));
        layers.allow("s3:GetObject", INSIDE, &context)
    };
    let may = |user: &str, source: Option<&str>, seconds| may_by(&dated, user, source, seconds);
    let lease = "06h0tl5t6oruvrhg1fhm2dfkdg";
    let (ours, theirs) = (format!("pay.{lease}"), format!("payroll.{lease}"));
    assert!(!may(&ours, Some("pay"), -1));
    assert!(!may(&ours, None, -1), "by its name alone");
    assert!(!may("chained", Some("pay"), -1), "by its source alone");
    for (user, source) in [
        (theirs.as_str(), Some("payroll")),
        (&theirs, None),
        ("chained", None),
    ] {
        assert!(may(user, source, -1), "{user} {source:?}");
        assert!(may_by(&always, user, source, -1), "{user} {source:?}");
    }
    for seconds in [-1, 0, 86_400] {
        for (user, source) in [
            (ours.as_str(), Some("pay")),
            (&ours, None),
            ("chained", Some("pay")),
        ] {
            assert!(!may_by(&always, user, source, seconds), "{user} {source:?}");
        }
    }
    for seconds in [0, 3600] {
        assert!(may(&ours, Some("pay"), seconds), "issued later");
        assert!(may("chained", Some("pay"), seconds), "issued later");
    }
}
