//! A broker inside the test, with a clock that the test moves by hand; the store and the
//! AWS adapter are the real ones.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use credbroker::{
    authn::token::authenticate,
    aws::{AwsIssuer, AwsSettings, Clients},
    broker::{
        Broker, Custody, Error, IssuedLease, Parts, TakenAway,
        ports::{LeaseFilter, Page, Store},
    },
    domain::{
        access::{Caller, admit},
        arn::Partition,
        clock::{Clock, SteadyClock, wall_time},
        credential::AccessKey,
        decide::IssueRequest,
        lease::Lease,
        name::GrantName,
        principal::Origin,
        random::{Random, SystemRandom},
        service::Limits,
    },
    store::sqlite::SqliteStore,
};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::policy;
use crate::harness::{Account, Key, aws::REGION, proxy::Proxy};

struct Hands(Mutex<Timestamp>);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

/// The broker, with `payments-api` and its grants `role` and `user`, of one hour each.
pub struct Stepped {
    pub account: Account,
    pub proxy: Proxy,
    broker: Arc<Broker>,
    clock: Arc<Hands>,
    operator: SecretString,
    service: SecretString,
    _directory: TempDir,
}

impl Stepped {
    pub async fn new() -> Self {
        let account = Account::new().await;
        let (proxy, directory) = (Proxy::start().await, tempfile::tempdir().unwrap());
        let clock = Arc::new(Hands(Mutex::new(wall_time())));
        let broker = broker(directory.path(), &account, &proxy, clock.clone()).await;
        let admin = broker.new_admin_token().unwrap();
        broker.install_admin(&admin).await.unwrap();
        let operator = admin.token.text().clone();
        let mut world = Self {
            account,
            proxy,
            broker,
            clock,
            service: operator.clone(),
            operator,
            _directory: directory,
        };
        world.prepare().await;
        world
    }

    async fn prepare(&mut self) {
        let service = "payments-api".parse().unwrap();
        let registry = "ServiceRegistry/CreateService";
        let caller = self.operator(registry).await;
        let made = self.broker.create_service(&caller, service);
        let service = made.await.unwrap().service.name;
        let token = self.broker.create_token(&caller, &service, None).await;
        self.service = token.unwrap().token.text().clone();
        let role_arn = self.account.role("credbroker-any", &policy()).await;
        let role = json!({"assume_role": {
            "role_arn": role_arn, "external_id": null, "source_identity": false, "region": null, "tags": [],
        }});
        let user = json!({"iam_user": {
            "groups": [], "path": "/", "permissions_boundary": null, "tags": [],
        }});
        self.put("role", &role).await;
        self.put("user", &user).await;
    }

    async fn put(&self, grant: &str, kind: &Value) {
        let spec = json!({
            "kind": kind, "policy": {"document": policy(), "template": null}, "managed_policies": [],
            "default_ttl": 3600, "max_ttl": 3600, "allow_broad": false,
        });
        let spec = serde_json::from_value(spec).unwrap();
        let caller = self.operator("GrantService/PutGrant").await;
        let put = self.broker.put_grant(&caller, name(grant), spec);
        put.await.unwrap();
    }

    async fn operator(&self, method: &str) -> Caller {
        self.caller(&self.operator, method).await
    }

    async fn caller(&self, token: &SecretString, method: &str) -> Caller {
        let header = format!("Bearer {}", token.expose_secret());
        let origin = Origin {
            peer: None,
            method: format!("credbroker.v1.{method}"),
        };
        let (store, now) = (self.broker.store(), self.clock.now());
        let proven = authenticate(store, now, origin, Some(&header)).await;
        admit(proven.unwrap()).unwrap()
    }

    pub async fn issue(&self, grant: &str) -> Result<IssuedLease, Error> {
        let method = "CredentialService/IssueCredentials";
        let caller = self.caller(&self.service, method).await;
        self.broker
            .issue(caller, IssueRequest::new(name(grant), None, None))
            .await
    }

    pub async fn revoke(&self, lease: &Lease) -> Result<TakenAway, Error> {
        let caller = self.operator("LeaseService/RevokeLease").await;
        let id = lease.binding.lease_id.clone();
        self.broker
            .revoke_lease(caller, id, "leaked".to_owned())
            .await
    }

    /// Moves the clock and cleans up once.
    pub async fn step(&mut self, seconds: i64) {
        *self.clock.0.lock().unwrap() += SignedDuration::from_secs(seconds);
        self.broker.reap_once().await.unwrap();
    }

    pub async fn lease(&self, lease: &Lease) -> Lease {
        let found = self.broker.store().lease(&lease.binding.lease_id).await;
        found.unwrap().unwrap()
    }

    /// Of leases asked for at the same moment, any.
    pub async fn newest(&self) -> Lease {
        let page = Page {
            after: None,
            limit: 1,
        };
        let all = LeaseFilter::default();
        let leases = self.broker.store().leases(&all, &page).await;
        leases.unwrap().remove(0)
    }
}

/// The system's, but jitter is always the most: 4 bytes are asked for that alone.
struct MostJitter;

impl Random for MostJitter {
    fn fill(&self, bytes: &mut [u8]) {
        if bytes.len() == 4 {
            bytes.fill(0xff);
        } else {
            SystemRandom.fill(bytes);
        }
    }
}

async fn broker(
    directory: &Path,
    account: &Account,
    proxy: &Proxy,
    clock: Arc<Hands>,
) -> Arc<Broker> {
    let store = SqliteStore::open(&directory.join("credbroker.db")).await;
    let store = Arc::new(store.unwrap());
    let settings = AwsSettings {
        region: Some(REGION.to_owned()),
        endpoint_url: Some(proxy.endpoint.clone()),
        ..AwsSettings::default()
    };
    let time = Arc::new(SteadyClock::starting_at(wall_time()));
    let key = AccessKey {
        id: account.admin.id.clone(),
        secret: account.admin.secret.clone().into(),
    };
    let clients = Clients::new(&settings, &time).await.with_key(&key);
    let deployment = store.deployment().await.unwrap();
    let issuer = Arc::new(AwsIssuer::new(clients, Partition::Aws, &deployment));
    Broker::new(Parts {
        store,
        issuer: issuer.clone(),
        inventory: issuer.clone(),
        keyring: issuer,
        clock,
        random: Arc::new(MostJitter),
        partition: Partition::Aws,
        region: REGION.to_owned(),
        limits: Limits::default(),
        custody: Custody::default(),
        stop: tokio_util::sync::CancellationToken::new(),
    })
}

fn name(grant: &str) -> GrantName {
    format!("payments-api/{grant}").parse().unwrap()
}

/// What was issued, as AWS sees it.
pub fn key(issued: &IssuedLease) -> Key {
    let credentials = &issued.credentials;
    let token = credentials.session_token.as_ref();
    Key {
        id: credentials.access_key_id.clone(),
        secret: credentials.secret_access_key.expose_secret().to_owned(),
        token: token.map(|token| token.expose_secret().to_owned()),
    }
}
