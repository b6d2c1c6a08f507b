//! The real binary, killed and restarted, and clients that repeat unanswered requests.

use std::{path::Path, time::Duration};

use credbroker::{
    client::{Client, ConnectError},
    domain::{random::SystemRandom, request::RequestId},
    proto::{
        ImportAdminKeyRequest, IssueCredentialsRequest, IssueCredentialsResponse,
        RevokeLeaseRequest, RotateAdminKeyRequest,
    },
};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};
use tonic::Status;

use super::checker::{Checker, Seen};
use crate::harness::{Key, World, broker::dev, eventually};

/// Time without progress after which the broker counts as stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Calls with which denials are written.
pub const POLICIES: [&str; 4] = [
    "PutRolePolicy",
    "DeleteRolePolicy",
    "PutUserPolicy",
    "DeleteUserPolicy",
];

/// Time after which late writes for a dead replica have been overwritten.
pub const LATEST: Duration = Duration::from_secs(40);

/// Leases that are in transition.
macro_rules! going_on {
    () => {
        " FROM leases WHERE state = 'pending' OR kind = 'iam_user'
           AND (state IN ('revoking', 'quarantined') OR replacing_until IS NOT NULL
                OR state = 'active' AND due_at <= {now})"
    };
}

/// Denials that AWS was not seen to enforce yet, or that have expired.
macro_rules! denying {
    () => {
        " FROM denials WHERE refused_at IS NULL AND failure NOT LIKE '%new sessions since%'
           OR refused_at IS NULL AND failure IS NULL
           OR lasts_until <= {now}"
    };
}

/// A broker behind a proxy, with `payments-api` and its grants.
pub struct Mortal {
    pub world: World,
    pub seen: Vec<Seen>,
    pub keeps_key: bool,
    /// Policies that replicas may have written after they were stopped for a while.
    pub stopped: usize,
    /// Service that sends the requests.
    service: String,
}

impl Mortal {
    pub async fn new() -> Self {
        Self::of(World::new().await)
    }

    pub fn of(world: World) -> Self {
        Self {
            world,
            seen: Vec::new(),
            keeps_key: false,
            stopped: 0,
            service: "payments-api".to_owned(),
        }
    }

    pub async fn service(&self) -> Option<Client> {
        self.world.broker.try_client(&self.world.token).await.ok()
    }

    pub async fn operator(&self) -> Result<Client, ConnectError> {
        let broker = &self.world.broker;
        broker.try_client(broker.admin_token()).await
    }

    /// Sends a request like a client, and remembers the credentials. Returns `None` when there are
    /// none, or the broker is dead.
    pub async fn ask(&mut self, grant: &str, id: &RequestId) -> Option<String> {
        let issued = issue(&self.service().await?, grant, id).await.ok()?;
        let seen = saw(issued, id);
        let lease = seen.lease_id.clone();
        self.seen.push(seen);
        Some(lease)
    }

    pub async fn revoke(&self, lease_id: &str) -> Result<(), Status> {
        let request = RevokeLeaseRequest {
            lease_id: lease_id.to_owned(),
            reason: String::new(),
        };
        let unreachable = |error: ConnectError| Status::unavailable(error.to_string());
        let mut leases = self.operator().await.map_err(unreachable)?.leases();
        leases.revoke_lease(request).await.map(drop)
    }

    /// Issues a credential under each of these grants to another service, and to no other.
    pub async fn holding(&mut self, grants: &[&str]) {
        let services = "SELECT count(*) FROM services";
        let services = self.world.broker.count(services).await;
        self.service = format!("service-{services}");
        self.world.token = self.world.service(&self.service).await;
        for grant in grants {
            self.ask(grant, &new_id()).await.unwrap();
        }
    }

    /// Revokes the service, whatever the result.
    pub async fn shut_out(&self) {
        let revoke = ["revoke", &self.service];
        self.world.broker.run(&revoke).await;
    }

    /// Moves every denied session past its end for the broker. AWS's clock does not move, so the
    /// checker no longer checks what clients have seen of these sessions.
    pub async fn outlive_sessions(&mut self) {
        let over = "SELECT string_agg(lease_id, ',') FROM leases WHERE state = 'revoked'";
        let over = self.world.broker.text(over).await.unwrap_or_default();
        self.seen.retain(|seen| !over.contains(&seen.lease_id));
        let over = "UPDATE denials SET lasts_until = 1, due_at = 1";
        self.world.broker.write_store(over).await;
    }

    pub async fn import(&mut self) {
        let request = ImportAdminKeyRequest {
            access_key_id: self.world.account.admin.id.clone(),
            secret_access_key: self.world.account.admin.secret.clone(),
        };
        let mut admin = self.operator().await.unwrap().admin();
        admin.import_admin_key(request).await.unwrap();
        self.keeps_key = true;
    }

    pub async fn rotate(&self) -> Option<()> {
        let mut admin = self.operator().await.ok()?.admin();
        let rotated = admin.rotate_admin_key(RotateAdminKeyRequest {}).await;
        rotated.ok().map(drop)
    }

    /// Waits until the broker has taken the due step of its key's rotation, or has died of it.
    pub async fn tended(&self) -> bool {
        let due = "SELECT count(*) FROM admin_key
                   WHERE phase <> 'steady'
                   AND due_at < {now} - 600000000";
        let tended = async || {
            let dead = self.world.broker.is_dead();
            (dead || self.world.broker.count(due).await == 0).then_some(!dead)
        };
        eventually("a step of the rotation", tended).await
    }

    /// Waits until no denial is left, or the broker has died of that.
    pub async fn lifted(&self) {
        let lifted = async || {
            let dead = self.world.broker.is_dead();
            let denials = self.world.broker.count("SELECT count(*) FROM denials");
            (dead || denials.await == 0).then_some(())
        };
        eventually("the end of the denials", lifted).await;
    }

    /// Command that starts the broker again, or another replica.
    pub fn command(&self) -> impl Fn(&Path) -> Command + use<> {
        let endpoint = self.world.proxy.endpoint.clone();
        // The imported key is in the store alone: no other key works.
        let admin = if self.keeps_key {
            Key {
                secret: "forgotten".to_owned(),
                ..self.world.account.admin.clone()
            }
        } else {
            self.world.account.admin.clone()
        };
        move |state| dev(state, &admin, &endpoint)
    }

    /// Starts the broker again, to die at this point.
    pub async fn start(mut self, death: Option<&str>) -> Self {
        let alive = self.command();
        let command = |state: &Path| -> Command {
            let mut command = alive(state);
            if let Some(death) = death {
                command.env("CREDBROKER_TEST_DEATH", death);
            }
            command
        };
        self.world.broker = self.world.broker.start_again_by(command).await;
        self
    }

    /// Recovers after a death: an hour passes, and the broker starts and repairs everything.
    pub async fn recover(self) -> Self {
        self.world.proxy.heal();
        self.world.broker.let_time_pass().await;
        let world = self.start(None).await;
        world.settle().await;
        world
    }

    /// Waits until nothing is in progress any more and the broker has reconciled with AWS.
    pub async fn settle(&self) {
        self.world.broker.reconciled().await;
        let (mut least, mut since) = (i64::MAX, Instant::now());
        loop {
            let left = self.going_on().await;
            if left == 0 {
                return;
            }
            if left < least {
                (least, since) = (left, Instant::now());
            }
            let stuck = since.elapsed() > STUCK;
            assert!(!stuck, "no end of: {}", self.told_going_on().await);
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn going_on(&self) -> i64 {
        let broker = &self.world.broker;
        if self.keeps_key {
            broker
                .write_store("UPDATE admin_key SET due_at = due_at - 3600000000")
                .await;
        }
        let leases = broker.count(concat!("SELECT count(*)", going_on!())).await;
        let denials = broker.count(concat!("SELECT count(*)", denying!())).await;
        let key = "SELECT count(*) FROM admin_key WHERE phase <> 'steady'";
        leases + denials + broker.count(key).await
    }

    async fn told_going_on(&self) -> String {
        let leases = concat!(
            "SELECT string_agg(concat_ws(' ', lease_id, state, attempts, cause), '; ')",
            going_on!()
        );
        let denials = concat!(
            "SELECT string_agg(concat_ws(' ', holder, service, scope, attempts, failure), '; ')",
            denying!()
        );
        let key = "SELECT max(concat_ws(' ', phase, attempts, failure)) FROM admin_key";
        let told = [
            self.world.broker.text(leases).await,
            self.world.broker.text(denials).await,
            self.world.broker.text(key).await,
        ];
        format!("{told:?}")
    }

    pub async fn violations(&self) -> Vec<String> {
        self.violations_within(Duration::ZERO).await
    }

    /// Violations that persist, for policies after `patience`: late writes of AWS for the dead
    /// replica are overwritten within that time.
    pub async fn violations_within(&self, patience: Duration) -> Vec<String> {
        let checker = Checker {
            account: &self.world.account,
            stored: &self.world.broker.store,
            home: &self.world.broker.state,
            // Lines that were searched need no second search.
            log: std::mem::take(&mut self.world.broker.log.lock().unwrap()),
            keeps_key: self.keeps_key,
            strays: false,
            late: self.world.proxy.abandoned(&POLICIES) + self.stopped,
        };
        let began = Instant::now();
        loop {
            let violations = checker.violations(&self.seen).await;
            let is_of_policies = |told: &String| told.contains("AWS") || told.contains("session");
            let may_be_mended = violations.iter().all(is_of_policies);
            if violations.is_empty() || !may_be_mended || began.elapsed() >= patience {
                return violations;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
}

pub async fn issue(
    client: &Client,
    grant: &str,
    id: &RequestId,
) -> Result<IssueCredentialsResponse, Status> {
    let request = IssueCredentialsRequest {
        grant: grant.to_owned(),
        ttl: None,
        request_id: id.to_string(),
    };
    let issued = client.credentials().issue_credentials(request).await;
    Ok(issued?.into_inner())
}

pub fn saw(issued: IssueCredentialsResponse, id: &RequestId) -> Seen {
    let lease = issued.lease.unwrap();
    Seen {
        lease_id: lease.lease_id,
        request_id: Some(id.to_string()),
        key: Key {
            id: lease.access_key_id.unwrap(),
            secret: issued.secret_access_key,
            token: issued.session_token,
        },
    }
}

pub fn new_id() -> RequestId {
    RequestId::random(&SystemRandom)
}
