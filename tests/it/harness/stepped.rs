//! A broker inside the test, with a clock that the test moves. The store and the AWS adapter are
//! the real ones.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use credbroker::{
    authn::{Authenticator, PresentedCredentials},
    aws::{AwsAccount, AwsSettings, Clients, Timeouts},
    broker::{
        AdminKeyPolicy, AdminKeyStatus, Broker, Dependencies, Error, IssuedLease, PROOF_LIMIT,
        Reconciliation, RemovalOutcome, RenewedLease, Revocation, RevokedLease, Subscription,
        ports::{AuditFilter, LeaseFilter, PageRequest, RevokeTarget},
    },
    domain::{
        access::{Caller, Surface},
        arn::Partition,
        audit::AuditEvent,
        clock::{Clock, SteadyClock, wall_time},
        credential::AccessKey,
        decide::{IssueRequest, RenewRequest},
        denial::Placements,
        grant::{GrantSpec, Reuse},
        lease::Lease,
        name::GrantName,
        principal::Origin,
        probe::Probe,
        random::{Random, SystemRandom},
        request::RequestId,
        sealing::SealingKey,
        service::Limits,
    },
    store::emergency_journal::FileSpool,
};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    Account, Key,
    aws::REGION,
    proxy::Proxy,
    stored::{Engine, Stored},
};

/// Seconds after which no access made from a session of now is left.
pub const ALL_OVER: i64 = 60 * 3600;

/// A clock that the test moves.
struct Hands {
    /// Time at which the clock stands still; `None` for the clock of production.
    at: Option<Timestamp>,
    steady: Arc<SteadyClock>,
    moved: Mutex<SignedDuration>,
}

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        let time = self.at.unwrap_or_else(|| self.steady.now());
        time + *self.moved.lock().unwrap()
    }

    fn is_certain(&self) -> bool {
        self.steady.is_certain()
    }
}

/// Differences of a world from the usual one.
#[derive(Clone)]
pub struct Ways {
    pub patience: Timeouts,
    /// True if the broker takes AWS for silent as soon as the proxy holds a call or its answer.
    pub gives_up_what_is_held: bool,
    /// Calls per second, of either kind.
    pub calls_per_second: u32,
    pub limits: Limits,
    pub rotate_every: Option<Duration>,
    /// Longest time that AWS may take to enforce a denial.
    pub proof_limit: Duration,
    /// Error of the machine's clock; the broker then has the clock of production.
    pub wall_wrong_by: Option<SignedDuration>,
}

impl Default for Ways {
    fn default() -> Self {
        Self {
            patience: Timeouts::default(),
            gives_up_what_is_held: false,
            calls_per_second: 1_000_000,
            limits: Limits {
                users_per_minute: 10_000,
                ..Limits::default()
            },
            rotate_every: None,
            proof_limit: PROOF_LIMIT,
            wall_wrong_by: None,
        }
    }
}

impl Ways {
    /// Repeats a failed call at once, and does not wait long for AWS to accept a key or to enforce
    /// a denial.
    pub fn quick() -> Self {
        Self {
            patience: Timeouts {
                repetition: Duration::from_millis(5),
                acceptance: Duration::from_millis(400),
            },
            proof_limit: Duration::from_millis(400),
            ..Self::default()
        }
    }

    /// Differs like [`Self::quick`], and takes AWS for silent as soon as the proxy holds a call or
    /// its answer.
    pub fn impatient() -> Self {
        Self {
            gives_up_what_is_held: true,
            ..Self::quick()
        }
    }
}

/// The broker, with `payments-api` and its grants `role`, `federation` and `user`, of up to six
/// hours each, one hour by default. The user gets a managed policy and a group besides its own.
pub struct Stepped {
    pub account: Account,
    pub proxy: Proxy,
    pub broker: Arc<Broker>,
    pub stored: Stored,
    clock: Arc<Hands>,
    operator: SecretString,
    service: SecretString,
    directory: TempDir,
}

impl Stepped {
    pub async fn new() -> Self {
        Self::with(Ways::default()).await
    }

    pub async fn with(ways: Ways) -> Self {
        let account = Account::new().await;
        let (proxy, directory) = (Proxy::start().await, tempfile::tempdir().unwrap());
        let wrong_by = ways.wall_wrong_by.unwrap_or_default();
        let clock = Arc::new(Hands {
            at: ways.wall_wrong_by.is_none().then(wall_time),
            steady: Arc::new(SteadyClock::starting_at(wall_time() + wrong_by)),
            moved: Mutex::default(),
        });
        let home = directory.path();
        let stored = Stored::fresh(Engine::chosen(), home.join("credbroker.db"));
        let broker = broker(home, &stored, &account, &proxy, &clock, &ways).await;
        let admin = broker.new_admin_token().unwrap();
        broker.install_admin(&admin).await.unwrap();
        let operator = admin.token.text().clone();
        let mut world = Self {
            account,
            proxy,
            broker,
            stored,
            clock,
            service: operator.clone(),
            operator,
            directory,
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
        self.account.let_admin(&policy()).await;
        let managed = self.account.managed_policy("one").await;
        let group = self.account.group("readers").await;
        let role = json!({"assume_role": {
            "role_arn": role_arn, "external_id": null, "source_identity": false, "region": null, "tags": [],
        }});
        let federation = json!({"federation_token": {"region": null, "tags": []}});
        let user = json!({"iam_user": {
            "groups": [group], "path": "/", "permissions_boundary": null, "tags": [],
        }});
        self.put("role", &role, &[]).await;
        self.put("federation", &federation, &[]).await;
        self.put("user", &user, &[&managed]).await;
    }

    pub async fn put(&self, grant: &str, kind: &Value, managed: &[&str]) {
        self.put_spec(grant, spec(kind, managed)).await;
    }

    /// Makes callers share a session of this grant from now on.
    pub async fn share(&self, grant: &str) {
        let put = self.broker.store().grant(&name(grant)).await.unwrap();
        let mut spec = put.unwrap().spec.clone();
        spec.reuse = Some(Reuse::PerService);
        self.put_spec(grant, spec).await;
    }

    /// Adds probes and regions with which the broker tries a denial of this grant's sessions from
    /// now on.
    pub async fn probe_further(&self, grant: &str, probes: &[Probe], regions: &[&str]) {
        let put = self.broker.store().grant(&name(grant)).await.unwrap();
        let mut spec = put.unwrap().spec.clone();
        spec.further_probes = probes.to_vec();
        spec.probe_regions = regions.iter().map(ToString::to_string).collect();
        self.put_spec(grant, spec).await;
    }

    async fn put_spec(&self, grant: &str, spec: GrantSpec) {
        let caller = self.operator("GrantService/PutGrant").await;
        let put = self.broker.put_grant(&caller, name(grant), spec);
        put.await.unwrap();
    }

    async fn operator(&self, method: &str) -> Caller {
        self.caller(&self.operator, method).await
    }

    async fn caller(&self, token: &SecretString, method: &str) -> Caller {
        let header = format!("Bearer {}", token.expose_secret());
        let shown = PresentedCredentials {
            authorization: Some(header.into()),
            ..PresentedCredentials::default()
        };
        let origin = Origin {
            peer: None,
            method: format!("credbroker.v1.{method}"),
        };
        let proven = self.broker.login(origin, &Arc::new(shown)).await.unwrap();
        self.broker.admit(proven, Surface::Whole).await.unwrap()
    }

    async fn service(&self, method: &str) -> Caller {
        let method = format!("CredentialService/{method}");
        self.caller(&self.service, &method).await
    }

    pub async fn issue(&self, grant: &str) -> Result<IssuedLease, Error> {
        self.issue_of(grant, None, None).await
    }

    /// Issues in answer to the request with this id.
    pub async fn issue_named(&self, grant: &str, id: &RequestId) -> Result<IssuedLease, Error> {
        self.issue_of(grant, None, Some(id.clone())).await
    }

    pub async fn issue_of(
        &self,
        grant: &str,
        ttl: Option<Duration>,
        id: Option<RequestId>,
    ) -> Result<IssuedLease, Error> {
        let request = IssueRequest::new(name(grant), ttl, id);
        self.issue_request(request).await
    }

    pub async fn issue_request(&self, request: IssueRequest) -> Result<IssuedLease, Error> {
        let caller = self.service("IssueCredentials").await;
        self.broker.issue(caller, request).await
    }

    pub async fn follow(&self, grant: &str) -> Result<Subscription, Error> {
        let caller = self.service("WatchCredentials").await;
        self.broker.follow(caller, name(grant), None, None).await
    }

    pub async fn renew(
        &self,
        lease: &Lease,
        ttl: Option<Duration>,
        id: Option<RequestId>,
    ) -> Result<RenewedLease, Error> {
        let caller = self.service("RenewLease").await;
        let request = RenewRequest::new(lease.binding.lease_id.clone(), ttl, id);
        self.broker.renew(caller, request).await
    }

    pub async fn release(&self, lease: &Lease) -> Result<RemovalOutcome, Error> {
        let caller = self.service("ReleaseLease").await;
        let id = lease.binding.lease_id.clone();
        let (taken, _) = self.broker.release(caller, id).await?;
        Ok(taken)
    }

    pub async fn revoke(&self, lease: &Lease) -> Result<RevokedLease, Error> {
        let caller = self.operator("LeaseService/RevokeLease").await;
        let id = lease.binding.lease_id.clone();
        let revoking = self.broker.revoke_lease(caller, id, "leaked".to_owned());
        let (taken, _) = revoking.await?;
        Ok(taken)
    }

    /// Revokes the service.
    pub async fn shut_out(&self) -> Result<Revocation, Error> {
        let service = "payments-api".parse().unwrap();
        self.revoke_all(RevokeTarget::Service(service)).await
    }

    /// Revokes everything that was issued under a grant.
    pub async fn revoke_grant(&self, grant: &str) -> Result<Revocation, Error> {
        self.revoke_all(RevokeTarget::Grant(name(grant))).await
    }

    async fn revoke_all(&self, target: RevokeTarget) -> Result<Revocation, Error> {
        let method = "RevocationService/StreamRevocation";
        let caller = self.operator(method).await;
        let words = "leaked".to_owned();
        self.broker.revoke(caller, target, words, None).await
    }

    pub async fn import(&self, key: &Key) -> Result<AdminKeyStatus, Error> {
        let caller = self.operator("AdminService/ImportAdminKey").await;
        let (id, secret) = (key.id.parse().unwrap(), key.secret.clone().into());
        self.broker.import_admin_key(caller, id, secret).await
    }

    pub async fn rotate(&self) -> Result<AdminKeyStatus, Error> {
        let caller = self.operator("AdminService/RotateAdminKey").await;
        self.broker.rotate_admin_key(caller).await
    }

    pub async fn admin_key(&self) -> AdminKeyStatus {
        let caller = self.operator("AdminService/GetAdminKey").await;
        self.broker.admin_key_status(&caller).await.unwrap()
    }

    pub async fn reconcile(&self) -> Reconciliation {
        self.broker.reconcile_once().await.unwrap()
    }

    pub fn wait(&self, seconds: i64) {
        *self.clock.moved.lock().unwrap() += SignedDuration::from_secs(seconds);
    }

    /// Moves the clock, cleans up once, and runs the denials that are due.
    pub async fn step(&self, seconds: i64) {
        self.wait(seconds);
        self.broker.clean_up_once().await.unwrap();
        self.broker.maintain_denials_once().await.unwrap();
    }

    /// Passes a quarter of an hour without faults: deadlines and the consistency window pass, and
    /// due work is done, like in a broker that runs.
    pub async fn recover(&self) {
        self.proxy.heal();
        self.proxy.caught_up().await;
        self.broker.settle_clock().await;
        for _ in 0..15 {
            self.step(61).await;
            match self.broker.maintain_admin_key_once().await {
                // The step is due again in the next minute.
                Err(Error::Aws(_)) => {}
                tended => tended.unwrap(),
            }
        }
        self.reconcile().await;
        self.step(1).await;
    }

    /// Directory of the broker's files.
    pub fn home(&self) -> &Path {
        self.directory.path()
    }

    pub async fn lease(&self, lease: &Lease) -> Lease {
        self.lease_of_id(lease.binding.lease_id.as_str()).await
    }

    pub async fn lease_of_id(&self, id: &str) -> Lease {
        let found = self.broker.store().lease(&id.parse().unwrap()).await;
        found.unwrap().unwrap()
    }

    /// Returns the audit records of one event, oldest first.
    pub async fn records(&self, event: &str) -> Vec<AuditEvent> {
        let filter = AuditFilter {
            event: Some(event.to_owned()),
            ..AuditFilter::default()
        };
        let page = PageRequest {
            after: None,
            limit: 1000,
        };
        let found = self.broker.store().audit(&filter, &page).await.unwrap();
        found.into_iter().map(|record| record.event).collect()
    }

    /// Returns the newest lease; of several with the same request time, any.
    pub async fn newest(&self) -> Lease {
        let page = PageRequest {
            after: None,
            limit: 1,
        };
        let all = LeaseFilter::default();
        let leases = self.broker.store().leases(&all, &page).await;
        leases.unwrap().remove(0)
    }
}

/// Spec of every grant: allows one action that cannot be denied, and one that can.
fn spec(kind: &Value, managed: &[&str]) -> GrantSpec {
    let spec = json!({
        "kind": kind, "policy": {"document": policy(), "template": null}, "managed_policies": managed,
        "default_ttl": 3600, "max_ttl": 21600, "allow_broad": false,
    });
    serde_json::from_value(spec).unwrap()
}

pub fn policy() -> Value {
    json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": ["sts:GetCallerIdentity", "sqs:ListQueues", "kms:ListKeys"], "Resource": "*"},
    ]})
}

/// The system's source, but jitter is always the most: the broker requests 4 bytes for jitter
/// alone.
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
    stored: &Stored,
    account: &Account,
    proxy: &Proxy,
    clock: &Arc<Hands>,
    ways: &Ways,
) -> Arc<Broker> {
    let store = stored.open().await;
    let spool = FileSpool::open(&directory.join("emergency"));
    let settings = AwsSettings {
        region: Some(REGION.to_owned()),
        endpoint_url: Some(proxy.endpoint.clone()),
        iam_calls_per_second: ways.calls_per_second,
        sts_calls_per_second: ways.calls_per_second,
        patience: ways.patience,
        timer: ways.gives_up_what_is_held.then(|| proxy.timer()),
    };
    let key = AccessKey {
        id: account.admin.id.clone(),
        secret: account.admin.secret.clone().into(),
    };
    let clients = Clients::new(&settings, &clock.steady).await.with_key(&key);
    let deployment = store.deployment().await.unwrap();
    let issuer = Arc::new(AwsAccount::new(
        clients,
        Partition::Aws,
        &deployment,
        BTreeMap::new(),
    ));
    let sealing = SealingKey::from_bytes(&SecretSlice::from(vec![7; 32])).unwrap();
    Broker::new(Dependencies {
        authentication: Arc::new(Authenticator::default()),
        store,
        issuer: issuer.clone(),
        inventory: issuer.clone(),
        denier: issuer.clone(),
        placements: Placements::default(),
        keyring: issuer,
        clock: clock.clone(),
        random: Arc::new(MostJitter),
        partition: Partition::Aws,
        region: REGION.to_owned(),
        limits: ways.limits,
        custody: AdminKeyPolicy {
            sealing: Some(sealing),
            rotate_every: ways.rotate_every,
        },
        spool: Arc::new(spool.unwrap()),
        anchor: None,
        keep: Duration::ZERO,
        proof_limit: ways.proof_limit,
        authority: None,
        witness: None,
        two_person: false,
        stop: CancellationToken::new(),
    })
}

fn name(grant: &str) -> GrantName {
    format!("payments-api/{grant}").parse().unwrap()
}

/// Key of the issued credentials.
pub fn key(issued: &IssuedLease) -> Key {
    let credentials = &issued.credentials;
    let token = credentials.session_token.as_ref();
    Key {
        id: credentials.access_key_id.clone(),
        secret: credentials.secret_access_key.expose_secret().to_owned(),
        token: token.map(|token| token.expose_secret().to_owned()),
    }
}
