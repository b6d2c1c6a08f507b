//! Placements of denials: a policy on each role, or one of the account; in the broker's account and
//! in another.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::process::Child;

use super::{decoded, denials_of_role, size};
use crate::{
    enforcement::refused,
    harness::{
        Account, Key,
        aws::ADMIN_USER,
        eventually,
        site::{Site, stop},
    },
};

/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>
const MANAGED_ROOM: usize = 6_144;
const VERSIONS_MAX: usize = 5;

const MANAGED: &str = "[revocation]\nplacement = \"managed\"\n";

/// Permissions of the sessions, with the probe.
fn policy() -> Value {
    json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "sqs:ListQueues", "Resource": "*"},
    ]})
}

async fn works(key: &Key) -> bool {
    key.list_queues().await.is_ok()
}

async fn dead(what: &str, key: &Key) {
    refused(what, key.list_queues().await);
}

/// A broker of `serve` in an account that allows this to federation sessions, too.
struct Placed {
    account: Account,
    site: Site,
    child: Child,
}

impl Placed {
    async fn new(revocation: &str) -> Self {
        let (account, site) = (Account::new().await, Site::new());
        account.let_admin(&policy()).await;
        let placed = configure(&site, revocation);
        assert!(placed.exists());
        let child = site.serving(&account.admin).await;
        Self {
            account,
            site,
            child,
        }
    }

    /// Restarts the broker with another configuration.
    async fn restart(mut self, revocation: &str) -> Self {
        stop(self.child).await;
        configure(&self.site, revocation);
        self.child = self.site.serving(&self.account.admin).await;
        self
    }

    /// Registers a service with a grant on this role, or of federation. Returns its token.
    async fn service(&self, service: &str, flags: &[&str]) -> String {
        self.site.create(service).await;
        self.put(&format!("{service}/work"), flags).await;
        let create = ["service", "token", "create", service, "-o", "json"];
        let token = self.site.run(&create).await.ok().json();
        token["token"].as_str().unwrap().to_owned()
    }

    async fn put(&self, grant: &str, flags: &[&str]) {
        self.site.put(grant, flags, &policy()).await.ok();
    }

    async fn issue(&self, token: &str) -> Key {
        let issue = self.site.run_as(token, &["issue", "work", "-o", "json"]);
        Key::issued(&issue.await.ok().json())
    }

    async fn revoke(&self, target: &str) -> Value {
        let revoke = ["revoke", target, "-o", "json"];
        self.site.run(&revoke).await.revoked()
    }

    async fn reinstate(&self, service: &str) {
        let reinstate = ["service", "reinstate", service];
        self.site.run(&reinstate).await.ok();
    }

    /// Managed policy of denials: its ARN and its document.
    async fn managed(&self, account: &Account) -> Option<(String, Value)> {
        let iam = account.root.iam();
        let all = iam.list_policies().path_prefix("/credbroker/").send().await;
        let all = all.unwrap().policies.unwrap_or_default();
        let found = all.into_iter().find(|policy| {
            let name = policy.policy_name.as_deref().unwrap_or_default();
            name.starts_with("credbroker-denials-")
        })?;
        let (arn, version) = (found.arn.unwrap(), found.default_version_id.unwrap());
        let version = iam
            .get_policy_version()
            .policy_arn(&arn)
            .version_id(version);
        let version = version.send().await.unwrap().policy_version.unwrap();
        Some((arn, decoded(&version.document.unwrap())))
    }

    async fn records(&self, event: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM audit WHERE event = $1");
        let mut store = self.site.store().await;
        count.bind(event).fetch_one(&mut store).await.unwrap()
    }

    async fn let_sessions_end(&self) {
        self.site
            .write_store("UPDATE denials SET lasts_until = 1, due_at = 1 WHERE lasts_until > 1")
            .await;
    }
}

fn configure(site: &Site, revocation: &str) -> PathBuf {
    let file = site.path("config.toml");
    std::fs::write(&file, format!("{}\n{revocation}", site.config())).unwrap();
    file
}

fn name_of(role: &str) -> &str {
    role.rsplit('/').next().unwrap()
}

/// Number of managed policies on a role.
async fn attached(account: &Account, role: &str) -> usize {
    let attached = account.root.iam().list_attached_role_policies();
    let attached = attached.role_name(name_of(role)).send().await.unwrap();
    attached.attached_policies.unwrap_or_default().len()
}

async fn attached_to_user(account: &Account) -> usize {
    let attached = account.root.iam().list_attached_user_policies();
    let attached = attached.user_name(ADMIN_USER).send().await.unwrap();
    attached.attached_policies.unwrap_or_default().len()
}

fn denies_nothing(policy: &Value) -> bool {
    policy.to_string().contains("1970-01-01T00:00:00Z")
}

#[tokio::test]
async fn one_managed_policy_denies_sessions_of_every_role_and_user_concerned() {
    let placed = Placed::new(MANAGED).await;
    let account = &placed.account;
    let one = account.role("credbroker-one", &policy()).await;
    let two = account.role("credbroker-two", &policy()).await;
    let first = placed.service("payments-api", &["--role-arn", &one]).await;
    let second = placed.service("billing", &["--role-arn", &two]).await;
    let federated = ["--kind", "federation_token"];
    let third = placed.service("reports", &federated).await;
    let neighbour = placed.service("neighbour", &["--role-arn", &one]).await;
    let neighbour = placed.issue(&neighbour).await;
    let before = attached_to_user(account).await;
    for (service, token) in [
        ("payments-api", &first),
        ("billing", &second),
        ("reports", &third),
    ] {
        let key = placed.issue(token).await;
        assert!(works(&key).await);
        let revoked = placed.revoke(service).await;
        assert_eq!(revoked["confirmed"], true, "{revoked:#}");
        dead(service, &key).await;
        assert!(works(&neighbour).await);
    }
    assert_eq!(attached(account, &one).await, 1);
    assert_eq!(attached(account, &two).await, 1);
    assert_eq!(attached_to_user(account).await, before + 1);
    assert_eq!(denials_of_role(account, &one).await, None);
    let (_, policy) = placed.managed(account).await.unwrap();
    assert!(size(&policy) <= MANAGED_ROOM, "{}", size(&policy));
}

#[tokio::test]
async fn a_managed_policy_is_rewritten_beyond_its_version_limit_and_emptied_at_the_end() {
    let placed = Placed::new(MANAGED).await;
    let account = &placed.account;
    let role = account.role("credbroker-one", &policy()).await;
    let token = placed.service("payments-api", &["--role-arn", &role]).await;
    let mut keys = Vec::new();
    for _ in 0..VERSIONS_MAX + 2 {
        keys.push(placed.issue(&token).await);
        let revoked = placed.revoke("payments-api").await;
        assert_eq!(revoked["confirmed"], true, "{revoked:#}");
        placed.reinstate("payments-api").await;
    }
    let new = placed.issue(&token).await;
    for key in &keys {
        dead("an old session", key).await;
    }
    assert!(works(&new).await);
    let (arn, _) = placed.managed(account).await.unwrap();
    let versions = account.root.iam().list_policy_versions().policy_arn(arn);
    let versions = versions.send().await.unwrap().versions.unwrap();
    assert_eq!(versions.len(), VERSIONS_MAX);

    placed.let_sessions_end().await;
    let lifted = async || {
        let (_, policy) = placed.managed(account).await?;
        denies_nothing(&policy).then_some(())
    };
    eventually("nothing is denied any more", lifted).await;
    assert!(works(&new).await);
}

#[tokio::test]
async fn a_detached_managed_policy_is_attached_again() {
    let mut placed = Placed::new(MANAGED).await;
    let role = placed.account.role("credbroker-one", &policy()).await;
    let token = placed.service("payments-api", &["--role-arn", &role]).await;
    let key = placed.issue(&token).await;
    placed.revoke("payments-api").await;
    let (arn, _) = placed.managed(&placed.account).await.unwrap();
    let detach = placed.account.root.iam().detach_role_policy();
    let detach = detach.role_name(name_of(&role)).policy_arn(arn);
    detach.send().await.unwrap();
    assert!(works(&key).await, "somebody has let it work again");
    placed = placed.restart(MANAGED).await;
    let repaired = async || (placed.records("denial.repaired").await == 1).then_some(());
    eventually("the repair is recorded", repaired).await;
    dead("the session", &key).await;
}

#[tokio::test]
async fn a_deleted_role_does_not_block_denials_of_other_roles() {
    let placed = Placed::new(MANAGED).await;
    let account = &placed.account;
    let gone = account.role("credbroker-a-gone", &policy()).await;
    let role = account.role("credbroker-b-there", &policy()).await;
    let first = placed.service("payments-api", &["--role-arn", &gone]).await;
    let second = placed.service("billing", &["--role-arn", &role]).await;
    placed.issue(&first).await;
    placed.revoke("payments-api").await;
    let (iam, name) = (account.root.iam(), name_of(&gone));
    let (arn, _) = placed.managed(account).await.unwrap();
    let detach = iam.detach_role_policy().role_name(name).policy_arn(arn);
    detach.send().await.unwrap();
    let delete = iam.delete_role_policy().role_name(name);
    let delete = delete.policy_name("what-the-role-may");
    delete.send().await.unwrap();
    iam.delete_role().role_name(name).send().await.unwrap();
    let key = placed.issue(&second).await;
    let revoked = placed.revoke("billing").await;
    assert_eq!(revoked["confirmed"], true, "{revoked:#}");
    dead("the session", &key).await;
}

#[tokio::test]
async fn a_changed_placement_moves_all_denials() {
    let mut placed = Placed::new("").await;
    let role = placed.account.role("credbroker-one", &policy()).await;
    let token = placed.service("payments-api", &["--role-arn", &role]).await;
    let neighbour = placed.service("neighbour", &["--role-arn", &role]).await;
    let neighbour = placed.issue(&neighbour).await;
    let key = placed.issue(&token).await;
    placed.revoke("payments-api").await;
    assert!(denials_of_role(&placed.account, &role).await.is_some());

    placed = placed.restart(MANAGED).await;
    let moved = async || {
        let is_left = denials_of_role(&placed.account, &role).await.is_some();
        (!is_left).then_some(())
    };
    eventually("the role's own policy is gone", moved).await;
    let (_, policy) = placed.managed(&placed.account).await.unwrap();
    assert!(policy.to_string().contains("*:payments-api.*"), "{policy}");
    dead("under one policy of the account", &key).await;

    placed = placed.restart("").await;
    let moved = async || {
        let (_, policy) = placed.managed(&placed.account).await?;
        denies_nothing(&policy).then_some(())
    };
    eventually("the account's policy says nothing", moved).await;
    assert!(denials_of_role(&placed.account, &role).await.is_some());
    dead("under a policy of the role", &key).await;
    assert!(works(&neighbour).await);

    // The denial expires while the broker is down, and the placement changes.
    stop(placed.child).await;
    placed
        .site
        .write_store("UPDATE denials SET lasts_until = 1, due_at = 1")
        .await;
    configure(&placed.site, MANAGED);
    placed.child = placed.site.serving(&placed.account.admin).await;
    let lifted = async || {
        let is_left = denials_of_role(&placed.account, &role).await.is_some();
        (!is_left).then_some(())
    };
    eventually("what is over is lifted where it was", lifted).await;
    assert!(works(&neighbour).await);
}

#[tokio::test]
async fn a_session_of_another_account_is_denied_by_way_of_the_revoker_there() {
    let mut placed = Placed::new("").await;
    let member = Account::new().await;
    let policy = policy();
    let role = member.role_for(&placed.account, "credbroker-app", &policy);
    let role = role.await;
    let token = placed.service("payments-api", &["--role-arn", &role]).await;
    let key = placed.issue(&token).await;
    assert!(works(&key).await);
    let refusing = placed.revoke("payments-api").await;
    assert_eq!(refusing["confirmed"], false, "{refusing:#}");
    let notice = refusing["sessions"][0]["notice"].as_str().unwrap();
    assert!(notice.contains("[[revocation.accounts]]"), "{notice}");
    assert!(works(&key).await);

    let revoker = member.revoker_for(&placed.account).await;
    let there = format!(
        "[[revocation.accounts]]\naccount = \"{}\"\nrole_arn = \"{revoker}\"\n",
        member.id
    );
    for placement in ["", "placement = \"managed\"\n"] {
        placed = placed.restart(&format!("{there}{placement}")).await;
        // The start repeats the attempt.
        let confirmed = async || {
            let told = placed.revoke("payments-api").await;
            (told["confirmed"] == true).then_some(())
        };
        eventually("it is denied there", confirmed).await;
        dead("the session", &key).await;
        assert!(placed.records("account.entered").await >= 1);
    }
    let put = ["grant", "put", "payments-api/more", "--role-arn", &revoker];
    placed
        .site
        .run(&put)
        .await
        .fails(2, &["by this role the broker denies sessions"]);
}

#[tokio::test]
async fn denials_of_an_unreachable_account_are_dropped_once_expired() {
    let placed = Placed::new("").await;
    let member = Account::new().await;
    let policy = policy();
    let there = member.role_for(&placed.account, "credbroker-app", &policy);
    let (there, here) = (
        there.await,
        placed.account.role("credbroker-here", &policy).await,
    );
    let first = placed
        .service("payments-api", &["--role-arn", &there])
        .await;
    let second = placed.service("billing", &["--role-arn", &here]).await;
    for (service, token) in [("payments-api", &first), ("billing", &second)] {
        placed.issue(token).await;
        placed.revoke(service).await;
    }
    let lifted = async || {
        // An attempt in progress to enter the account keeps the end that it knows.
        placed.let_sessions_end().await;
        (placed.records("denial.lifted").await == 2).then_some(())
    };
    eventually("both are lifted", lifted).await;
    assert_eq!(denials_of_role(&placed.account, &here).await, None);
}
