//! The binary under load, killed repeatedly: at random moments, at calls to AWS and at commits of
//! the store; in some of its lives AWS is late with policies, partly until after its death. The
//! environment sets the number of kills and the seed: `CREDBROKER_TEST_KILLS`,
//! `CREDBROKER_TEST_SEED`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use credbroker::{
    client::Client,
    domain::request::RequestId,
    proto::{
        ReinstateServiceRequest, ReleaseLeaseRequest, RenewLeaseRequest, RevokeLeaseRequest,
        RevokeServiceRequest, RotateAdminKeyRequest,
    },
};
use fastrand::Rng;
use tokio::{task::JoinSet, time::timeout};
use tonic::Status;

use super::{
    checker::Seen,
    process::{LATEST, Mortal, POLICIES, issue, new_id, saw},
};
use crate::harness::{
    proxy::Fault,
    sample::{seed, trials},
};

const SERVICE: &str = "payments-api";
const KILLS: u32 = 20;
/// Number of brokers that are killed concurrently.
const WORLDS: u32 = 2;
/// Number of clients of each broker.
const CLIENTS: usize = 4;
/// Number of consecutive deaths after which everything is repaired and checked.
const CHECK_AFTER: u32 = 10;
/// Time after which a broker is killed that does not reach its point.
const LONGEST_LIFE: Duration = Duration::from_millis(1000);

const COMMITS: [&str; 17] = [
    "lease.requested",
    "lease.issued",
    "lease.resumed",
    "lease.replacing",
    "lease.redelivered",
    "lease.renewed",
    "lease.released",
    "lease.revoking",
    "lease.revoked",
    "service.revoked",
    "service.reinstated",
    "canary.issued",
    "denial.written",
    "denial.confirmed",
    "admin_key.rotating",
    "admin_key.created",
    "admin_key.switched",
];

/// Point at which the process dies.
#[derive(Clone, Debug)]
enum Point {
    Moment(Duration),
    Call {
        number: usize,
        after: bool,
    },
    Commit {
        when: &'static str,
        record: &'static str,
    },
}

impl Point {
    fn choose(chance: &mut Rng) -> Self {
        match chance.u8(0..4) {
            0 => Self::Moment(Duration::from_millis(chance.u64(0..400))),
            1 | 2 => Self::Call {
                number: chance.usize(0..40),
                after: chance.bool(),
            },
            _ => Self::Commit {
                when: if chance.bool() { "before" } else { "after" },
                record: COMMITS[chance.usize(0..COMMITS.len())],
            },
        }
    }

    fn death(&self) -> Option<String> {
        match self {
            Self::Commit { when, record } => Some(format!("{when}:{record}")),
            _ => None,
        }
    }
}

/// Requests and credentials of the clients; outlives every broker.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Remembered>>);

#[derive(Default)]
struct Remembered {
    seen: Vec<Seen>,
    /// Requests, each with its grant and the lease that answered it last.
    requests: Vec<(RequestId, &'static str, Option<String>)>,
}

impl Memory {
    /// Number of requests, and number of credentials seen.
    pub fn counts(&self) -> (usize, usize) {
        let memory = self.0.lock().unwrap();
        (memory.requests.len(), memory.seen.len())
    }

    fn any(&self, chance: &mut Rng) -> Option<(RequestId, &'static str, Option<String>)> {
        let memory = self.0.lock().unwrap();
        let count = memory.requests.len();
        (count > 0).then(|| memory.requests[chance.usize(0..count)].clone())
    }

    fn ask(&self, id: &RequestId, grant: &'static str) {
        let mut memory = self.0.lock().unwrap();
        if !memory.requests.iter().any(|(known, ..)| known == id) {
            memory.requests.push((id.clone(), grant, None));
        }
    }

    fn saw(&self, id: &RequestId, seen: Seen) {
        let mut memory = self.0.lock().unwrap();
        let known = memory.requests.iter_mut().find(|(known, ..)| known == id);
        known.unwrap().2 = Some(seen.lease_id.clone());
        memory.seen.push(seen);
    }
}

/// Calls like clients and operators do, until the broker is gone.
pub async fn load(service: Client, operator: Client, memory: Memory, mut chance: Rng) {
    loop {
        let known = memory.any(&mut chance);
        let lease = known.as_ref().and_then(|(_, _, lease)| lease.clone());
        let gone = match (chance.u8(0..16), known, lease) {
            (0..=2, Some((id, grant, _)), _) => ask(&service, &id, grant, &memory).await,
            (3, _, Some(lease_id)) => {
                let request = ReleaseLeaseRequest { lease_id };
                is_gone(service.credentials().release_lease(request).await.err())
            }
            (4, _, Some(lease_id)) => {
                let reason = String::new();
                let request = RevokeLeaseRequest { lease_id, reason };
                is_gone(operator.leases().revoke_lease(request).await.err())
            }
            (5, _, Some(lease_id)) => {
                let request = RenewLeaseRequest {
                    lease_id,
                    ttl: None,
                    request_id: String::new(),
                };
                is_gone(service.credentials().renew_lease(request).await.err())
            }
            (6, ..) => {
                let request = RotateAdminKeyRequest {};
                is_gone(operator.admin().rotate_admin_key(request).await.err())
            }
            (7, ..) => shut_out(&operator).await,
            (8..=9, ..) => let_in(&operator).await,
            _ => {
                let grant = ["user", "user", "role", "federation"][chance.usize(0..4)];
                ask(&service, &new_id(), grant, &memory).await
            }
        };
        if gone {
            return;
        }
    }
}

async fn ask(service: &Client, id: &RequestId, grant: &'static str, memory: &Memory) -> bool {
    memory.ask(id, grant);
    match issue(service, grant, id).await {
        Ok(issued) => {
            memory.saw(id, saw(issued, id));
            false
        }
        Err(status) => is_gone(Some(status)),
    }
}

async fn shut_out(operator: &Client) -> bool {
    let request = RevokeServiceRequest {
        service: SERVICE.to_owned(),
        reason: String::new(),
    };
    let revoked = operator.revocation().revoke_service(request).await;
    is_gone(revoked.err())
}

async fn let_in(operator: &Client) -> bool {
    let name = SERVICE.to_owned();
    let request = ReinstateServiceRequest { name };
    let reinstated = operator.services().reinstate_service(request).await;
    is_gone(reinstated.err())
}

/// Returns whether the call got no answer, as opposed to a refusal.
fn is_gone(failed: Option<Status>) -> bool {
    use std::error::Error;
    failed.is_some_and(|status| status.source().is_some())
}

/// Lives under load up to its point. Returns the real point of death.
async fn live_and_die(mut mortal: Mortal, memory: &Memory, chance: &mut Rng) -> (Mortal, String) {
    let point = Point::choose(chance);
    mortal = mortal.start(point.death().as_deref()).await;
    let kill = Arc::new(mortal.world.broker.killer());
    if let Point::Call { number, after } = point {
        let fault = if after {
            Fault::After(kill.clone())
        } else {
            Fault::Instead(kill.clone())
        };
        mortal.world.proxy.strike(number, fault, false);
    }
    if chance.u8(0..4) == 0 {
        let late = Duration::from_millis(chance.u64(0..4000));
        for action in POLICIES {
            mortal.world.proxy.inject(action, Fault::Late(late));
        }
    }
    let mut clients = JoinSet::new();
    let connected = (mortal.service().await, mortal.operator().await.ok());
    if let (Some(service), Some(operator)) = connected {
        for _ in 0..CLIENTS {
            let (service, operator) = (service.clone(), operator.clone());
            clients.spawn(load(service, operator, memory.clone(), chance.fork()));
        }
    }
    let life = match point {
        Point::Moment(moment) => moment,
        _ => LONGEST_LIFE,
    };
    let came = timeout(life, mortal.world.broker.ended()).await.is_ok();
    mortal.world.broker.kill().await;
    clients.join_all().await;
    mortal.world.proxy.heal();
    let told = match point {
        Point::Call { after: true, .. } if came => "after a call".to_owned(),
        Point::Call { after: false, .. } if came => "before a call".to_owned(),
        Point::Commit { when, record } if came => format!("{when} the commit of {record}"),
        _ => "at a random moment".to_owned(),
    };
    (mortal, told)
}

/// Repairs everything, checks, and clears for the next deaths.
pub async fn check(mut mortal: Mortal, memory: &Memory) -> (Mortal, Vec<String>) {
    mortal = mortal.recover().await;
    mortal.world.proxy.caught_up().await;
    mortal.seen.clone_from(&memory.0.lock().unwrap().seen);
    let violations = mortal.violations_within(LATEST).await;
    let operator = mortal.operator().await.unwrap();
    assert!(!shut_out(&operator).await && !let_in(&operator).await);
    *memory.0.lock().unwrap() = Remembered::default();
    (mortal, violations)
}

type Tally = (BTreeMap<String, u32>, Vec<String>);

async fn kill_again_and_again(kills: u32, seed: u64) -> Tally {
    let (mut chance, memory) = (Rng::with_seed(seed), Memory::default());
    let (mut points, mut violations) = (BTreeMap::new(), Vec::new());
    let mut mortal = Mortal::new().await;
    mortal.import().await;
    for kill in 1..=kills {
        let (dead, told) = live_and_die(mortal, &memory, &mut chance).await;
        mortal = dead;
        *points.entry(told).or_insert(0) += 1;
        if kill % CHECK_AFTER == 0 || kill == kills {
            let (checked, found) = check(mortal, &memory).await;
            mortal = checked;
            violations.extend(found);
        }
    }
    (points, violations)
}

// A check takes its time: one world's must not make the other's clients wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_repeatedly_killed_broker_leaks_and_loses_nothing() {
    let what = "kills of a broker under load";
    let kills = trials(what, "CREDBROKER_TEST_KILLS", KILLS, 2_000);
    let seed = seed();
    let mut worlds = JoinSet::new();
    for mortal in 0..WORLDS {
        let share = kills / WORLDS + u32::from(mortal < kills % WORLDS);
        let seed = seed.wrapping_mul(1_000).wrapping_add(mortal.into());
        worlds.spawn(kill_again_and_again(share, seed));
    }
    let (mut points, mut violations) = (BTreeMap::new(), Vec::new());
    for (of_world, found) in worlds.join_all().await {
        for (point, count) in of_world {
            *points.entry(point).or_insert(0) += count;
        }
        violations.extend(found);
    }
    for (point, count) in &points {
        println!("{count:5} {point}");
    }
    let all: u32 = points.values().sum();
    println!(
        "{all:5} kills, seed {seed}, {} violations",
        violations.len()
    );
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
