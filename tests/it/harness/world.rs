//! World that most tests begin with.

use std::path::Path;

use serde_json::Value;

use super::{
    Account, Broker, Key, Run,
    broker::dev,
    proxy::Proxy,
    stepped::policy,
    stored::{Engine, Stored},
};

/// A broker behind a proxy, and `payments-api` with the grants `role`, `federation` and
/// `user`.
pub struct World {
    pub account: Account,
    pub proxy: Proxy,
    pub broker: Broker,
    /// ARN of the role behind `role`.
    pub role: String,
    /// Token of `payments-api`.
    pub token: String,
}

impl World {
    pub async fn new() -> Self {
        Self::on(Engine::chosen()).await
    }

    /// Creates a world with a store of this engine.
    pub async fn on(engine: Engine) -> Self {
        let (account, proxy) = (Account::new().await, Proxy::start().await);
        let store = |state: &Path| Stored::fresh(engine, state.join("credbroker.db"));
        let command = |state: &Path| dev(state, &account.admin, &proxy.endpoint);
        let broker = Broker::start_on(store, command).await;
        Self::with(account, proxy, broker).await
    }

    /// Creates a world with a broker that has just been started.
    pub async fn with(account: Account, proxy: Proxy, broker: Broker) -> Self {
        let role = account.role("credbroker-any", &policy()).await;
        account.let_admin(&policy()).await;
        let mut world = Self {
            account,
            proxy,
            broker,
            role,
            token: String::new(),
        };
        world.token = world.service("payments-api").await;
        world
    }

    /// Registers a service with all three grants, and returns its token.
    pub async fn service(&self, name: &str) -> String {
        let token = self.broker.service(name).await;
        let put = async |grant: &str, flags: &[&str]| {
            let grant = format!("{name}/{grant}");
            self.broker.grant(&grant, flags, &policy()).await;
        };
        put("role", &["--role-arn", &self.role, "--max-ttl", "2h"]).await;
        put("federation", &["--kind", "federation_token"]).await;
        put("user", &["--kind", "iam_user"]).await;
        token
    }

    /// Puts the grant `user` with these flags.
    pub async fn put_user(&self, more: &[&str]) {
        let flags = [&["--kind", "iam_user"], more].concat();
        let grant = "payments-api/user";
        self.broker.grant(grant, &flags, &policy()).await;
    }

    /// Runs `issue` as the service. Returns the result.
    pub async fn issue(&self, args: &[&str]) -> Run {
        let args = [&["issue"], args, &["-o", "json"]].concat();
        self.broker.run_as(Some(&self.token), &args).await
    }

    /// Issues to the service. Returns the JSON; the issue must succeed.
    pub async fn issued(&self, args: &[&str]) -> Value {
        self.issue(args).await.ok().json()
    }

    /// Asserts that an issue succeeds: the credentials work, and the lease is active.
    pub async fn assert_issues(&self, grant: &str) {
        let issued = self.issued(&[grant]).await;
        assert!(Key::issued(&issued).works().await);
        let id = issued["lease_id"].as_str().unwrap();
        let shown = self.broker.json(&["lease", "show", id]).await;
        assert_eq!(shown["state"], "active");
    }

    pub async fn leases(&self) -> Vec<Value> {
        let leases = self.broker.json(&["lease", "list"]).await;
        leases.as_array().unwrap().clone()
    }

    /// Asserts that nothing is left in AWS, and no lease was handed out.
    pub async fn assert_nothing_left(&self) {
        assert_eq!(self.account.issued_users().await, Vec::<String>::new());
        for lease in self.leases().await {
            assert_eq!(lease["state"], "revoked", "{lease}");
        }
    }
}
