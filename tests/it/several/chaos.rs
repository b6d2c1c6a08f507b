//! Several replicas on one database under load, while connections are cut, replicas are killed and
//! stopped for a while, and the database dies. The environment sets the number of blows, the seed
//! and the number of replicas: `CREDBROKER_TEST_CHAOS`, `CREDBROKER_TEST_SEED`,
//! `CREDBROKER_TEST_BROKERS`.

use std::{collections::BTreeMap, path::Path, time::Duration};

use credbroker::{client::Client, store::postgres::migrate};
use fastrand::Rng;
use secrecy::SecretString;
use sqlx::Executor;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use crate::{
    faults::{
        kills::{Memory, check, load},
        process::Mortal,
    },
    harness::{
        Account, Broker, World,
        broker::dev,
        postgres::{Server, connection},
        proxy::Proxy,
        sample::{number, seed, trials},
        stored::Stored,
    },
};

const BLOWS: u32 = 20;
const BROKERS: usize = 3;
/// Number of clients of each replica.
const CLIENTS: usize = 2;
/// Number of blows after which everything is repaired and checked.
const CHECK_AFTER: u32 = 10;
/// Policies of denials that a replica may be writing when it is stopped: of its role and its user.
const POLICIES: usize = 2;
/// Longer than any operation waits for its end.
const PAUSE: Duration = Duration::from_secs(120);
/// Time without an answer after which a client tries another replica.
const PATIENCE: Duration = Duration::from_secs(4);

/// Blow that a replica or the database suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    Cut,
    Kill,
    Stop,
    Pause,
    Database,
}

impl Blow {
    /// Six blows of ten are cuts, two are kills, one is the database's death and one a stop; each
    /// 25th stop is a long one.
    const fn nth(number: u32) -> Self {
        match (number % 10, number % 250) {
            (2 | 6, _) => Self::Kill,
            (4, _) => Self::Database,
            (_, 248) => Self::Pause,
            (8, _) => Self::Stop,
            _ => Self::Cut,
        }
    }
}

struct Fleet {
    server: Option<Server>,
    url: SecretString,
    /// The first replica, which also repairs everything; `None` during the repair.
    mortal: Option<Mortal>,
    others: Vec<Broker>,
    /// Number of times that a replica was stopped.
    stops: usize,
}

impl Fleet {
    async fn new(brokers: usize) -> Self {
        let server = Server::start(None);
        let (password, address) = (&server.password, &server.address);
        let url: SecretString =
            format!("postgres://credbroker:{password}@{address}/postgres").into();
        migrate(&url).await.unwrap();
        let (account, proxy) = (Account::new().await, Proxy::start().await);
        let store = |_: &Path| Stored::Database(url.clone());
        let command = |state: &Path| dev(state, &account.admin, &proxy.endpoint);
        let broker = Broker::start_on(store, command).await;
        let mut mortal = Mortal::of(World::with(account, proxy, broker).await);
        mortal.import().await;
        let mut others = Vec::new();
        for _ in 1..brokers {
            others.push(mortal.world.broker.beside_by(mortal.command()).await);
        }
        Self {
            server: Some(server),
            url,
            mortal: Some(mortal),
            others,
            stops: 0,
        }
    }

    fn mortal(&self) -> &Mortal {
        self.mortal.as_ref().unwrap()
    }

    fn brokers(&self) -> Vec<&Broker> {
        let first = &self.mortal().world.broker;
        std::iter::once(first).chain(&self.others).collect()
    }

    /// Clients of one replica, which try another when it does not answer.
    fn clients(&self, memory: &Memory, chance: &mut Rng) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        let world = &self.mortal().world;
        let (service, operator) = (&world.token, world.broker.admin_token());
        let settings: Vec<_> = self
            .brokers()
            .iter()
            .map(|broker| (broker.settings(service), broker.settings(operator)))
            .collect();
        for _ in 0..settings.len() * CLIENTS {
            let (settings, memory, mut chance) = (settings.clone(), memory.clone(), chance.fork());
            clients.spawn(async move {
                loop {
                    let (service, operator) = &settings[chance.usize(0..settings.len())];
                    let connecting = async {
                        let service = Client::connect(service).await.ok()?;
                        Some((service, Client::connect(operator).await.ok()?))
                    };
                    if let Ok(Some((service, operator))) = timeout(PATIENCE, connecting).await {
                        // A stopped replica does not answer, and closes no connection.
                        let load = load(service, operator, memory.clone(), chance.fork());
                        let _ = timeout(PATIENCE, load).await;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            });
        }
        clients
    }

    async fn strike(&mut self, blow: Blow, chance: &mut Rng) {
        let victim = chance.usize(0..=self.others.len());
        match blow {
            Blow::Cut => {
                let mut raw = connection(&self.url).await;
                let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                           WHERE application_name = 'credbroker' ORDER BY random() LIMIT 1";
                raw.execute(cut).await.unwrap();
            }
            Blow::Kill => self.kill(victim).await,
            // Some stops are long enough for the replica to be taken for dead.
            Blow::Stop => {
                let moment = Duration::from_millis(chance.u64(500..14_000));
                self.stop_for(victim, moment).await;
            }
            Blow::Pause => self.stop_for(victim, PAUSE).await,
            Blow::Database => {
                let mut server = self.server.take().unwrap();
                let dead = spawn_blocking(move || {
                    server.die_and_start();
                    server
                });
                self.server = Some(dead.await.unwrap());
            }
        }
    }

    /// Stops a replica for a while; it then continues.
    async fn stop_for(&mut self, victim: usize, moment: Duration) {
        self.stops += 1;
        self.brokers()[victim].signal("STOP");
        sleep(moment).await;
        self.brokers()[victim].signal("CONT");
    }

    /// Kills a replica and starts it again.
    async fn kill(&mut self, victim: usize) {
        if let Some(other) = victim.checked_sub(1) {
            let mut dead = self.others.remove(other);
            dead.kill().await;
            let again = dead.start_again_by(self.mortal().command()).await;
            self.others.insert(other, again);
        } else {
            let mut mortal = self.mortal.take().unwrap();
            mortal.world.broker.kill().await;
            self.mortal = Some(mortal.start(None).await);
        }
    }

    /// Repairs everything and checks.
    async fn check(&mut self, memory: &Memory) -> Vec<String> {
        for other in &mut self.others {
            // The replica ends the work that it has begun.
            assert!(other.stop().await);
        }
        let mut mortal = self.mortal.take().unwrap();
        mortal.world.broker.kill().await;
        mortal.stopped = POLICIES * self.stops;
        let (mortal, violations) = check(mortal, memory).await;
        let others = std::mem::take(&mut self.others);
        for other in others {
            self.others
                .push(other.start_again_by(mortal.command()).await);
        }
        self.mortal = Some(mortal);
        violations
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_fleet_under_random_faults_leaks_and_loses_nothing() {
    let what = "blows against several brokers";
    let blows = trials(what, "CREDBROKER_TEST_CHAOS", BLOWS, 500);
    let seed = seed();
    let (mut chance, memory) = (Rng::with_seed(seed), Memory::default());
    let brokers: usize = number("CREDBROKER_TEST_BROKERS").unwrap_or(BROKERS);
    let mut fleet = Fleet::new(brokers).await;
    let (mut struck, mut violations) = (BTreeMap::new(), Vec::new());
    let (mut requests, mut credentials) = (0, 0);
    let mut clients = fleet.clients(&memory, &mut chance);
    for number in 0..blows {
        let blow = Blow::nth(number);
        sleep(Duration::from_millis(chance.u64(0..400))).await;
        fleet.strike(blow, &mut chance).await;
        *struck.entry(blow).or_insert(0) += 1;
        if (number + 1) % CHECK_AFTER == 0 || number + 1 == blows {
            clients.shutdown().await;
            let (asked, given) = memory.counts();
            (requests, credentials) = (requests + asked, credentials + given);
            violations.extend(fleet.check(&memory).await);
            clients = fleet.clients(&memory, &mut chance);
        }
    }
    println!(
        "{struck:?}, seed {seed}: {requests} requests, {credentials} credentials, {} violations",
        violations.len()
    );
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}
