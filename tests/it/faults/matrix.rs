//! Every call to AWS of every story meets every single fault, once and until it is healed. After
//! recovery the checker must find nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use credbroker::{
    broker::{Error, IssuedLease},
    domain::{lease::Lease, random::SystemRandom, request::RequestId},
};

use jiff::SignedDuration;
use tokio::{sync::Semaphore, task::JoinSet};

use super::checker::{Checker, Seen, assert_sound};
use crate::harness::{
    proxy::Fault,
    sample,
    stepped::{self, ALL_OVER, Stepped, Ways},
};

/// Duration of a fault, and repetition of the client's request after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lasting {
    /// One call meets the fault.
    Once,
    /// Later calls of the same action meet the fault as well.
    Long,
    /// Later calls meet it as well; then AWS recovers and the request is repeated.
    LongAndRepeated,
}
use Lasting::{Long, LongAndRepeated, Once};

/// Error of a wrong clock of AWS's: longer than any lease.
const WRONG: SignedDuration = SignedDuration::from_hours(61 * 24);

/// Faults that a call may meet, each with its name and its durations.
fn faults() -> Vec<(&'static str, Fault, &'static [Lasting])> {
    let denied = Fault::Answer(403, "AccessDenied", "not now");
    let sorry = Fault::AnswerAfter(500, "ServiceFailure", "sorry");
    let throttled = Fault::Answer(400, "Throttling", "Rate exceeded");
    let later = Fault::Answer(500, "ServiceFailure", "try later");
    vec![
        ("error before", denied, &[Once, Long]),
        ("error after", sorry, &[Once]),
        ("cut before", Fault::Cut, &[Once]),
        ("cut after", Fault::LoseAnswer, &[Once, LongAndRepeated]),
        ("hang before", Fault::Hold, &[Once, Long]),
        ("hang after", Fault::HoldAnswer, &[Once]),
        ("throttle", throttled, &[Once, LongAndRepeated]),
        ("500", later, &[Once]),
        ("malformed", Fault::Garble, &[Once]),
        ("date ahead", Fault::Skew(WRONG), &[Once]),
        ("date behind", Fault::Skew(-WRONG), &[Once]),
    ]
}

/// A world, and the credentials that its clients have seen.
struct World {
    stepped: Stepped,
    seen: Vec<Seen>,
    keeps_key: bool,
    strays: bool,
}

impl World {
    async fn new() -> Self {
        let stepped = Stepped::with(Ways {
            wall_wrong_by: Some(SignedDuration::ZERO),
            ..Ways::impatient()
        })
        .await;
        Self {
            stepped,
            seen: Vec::new(),
            keeps_key: false,
            strays: false,
        }
    }

    fn saw(&mut self, issued: &IssuedLease) {
        let lease = &issued.lease;
        self.seen.push(Seen {
            lease_id: lease.binding.lease_id.to_string(),
            request_id: lease.request.as_ref().map(|named| named.id.to_string()),
            key: stepped::key(issued),
        });
    }

    /// Sends a request like a client, and remembers the credentials.
    async fn ask(&mut self, grant: &str, id: &RequestId) -> Result<Lease, Error> {
        let issued = self.stepped.issue_named(grant, id).await?;
        self.saw(&issued);
        Ok(issued.lease)
    }

    /// Sends a request while AWS is well.
    async fn get(&mut self, grant: &str, id: &RequestId) -> Lease {
        self.ask(grant, id).await.unwrap()
    }

    async fn check(&self, story: &str) {
        let checker = Checker {
            account: &self.stepped.account,
            stored: &self.stepped.stored,
            home: self.stepped.home(),
            log: String::new(),
            keeps_key: self.keeps_key,
            strays: self.strays,
            late: 0,
        };
        assert_sound(story, &checker.violations(&self.seen).await);
    }

    /// Ends everything that is left, for the next story.
    async fn clear(&mut self) {
        self.stepped.step(7 * 3600).await;
        self.stepped.step(60).await;
        self.seen.clear();
        assert_eq!(
            self.stepped.account.issued_users().await,
            Vec::<String>::new()
        );
    }
}

/// Story that is disturbed.
#[derive(Clone, Copy, Debug)]
enum Story {
    Issue(&'static str),
    Repeat(&'static str),
    Revoke,
    /// A service that holds a session is revoked.
    ShutOut(&'static str),
    /// The denied session has expired.
    Lift(&'static str),
    Rotate,
    Reconcile,
}

/// State before a story begins.
struct Before {
    id: RequestId,
    lease: Option<Lease>,
}

impl Story {
    async fn world(self) -> World {
        let mut world = World::new().await;
        if matches!(self, Self::Rotate) {
            let admin = world.stepped.account.admin.clone();
            world.stepped.import(&admin).await.unwrap();
            world.keeps_key = true;
        }
        // The broker makes its one-time calls now.
        if matches!(self, Self::ShutOut(_) | Self::Lift(_)) {
            // The world has no user, whose removal is another story.
            world.stepped.broker.account_is_ours().await.unwrap();
            return world;
        }
        world.get("user", &RequestId::random(&SystemRandom)).await;
        if !self.is_a_session() {
            world.clear().await;
        }
        world
    }

    const fn is_a_session(self) -> bool {
        match self {
            Self::Issue(grant) | Self::Repeat(grant) => !matches!(grant.as_bytes(), b"user"),
            Self::ShutOut(_) | Self::Lift(_) => true,
            _ => false,
        }
    }

    async fn prepare(self, world: &mut World) -> Before {
        let id = RequestId::random(&SystemRandom);
        let lease = match self {
            Self::Repeat(grant) | Self::ShutOut(grant) => Some(world.get(grant, &id).await),
            Self::Revoke => Some(world.get("user", &id).await),
            Self::Lift(grant) => {
                let lease = world.get(grant, &id).await;
                world.stepped.shut_out().await.unwrap();
                world.stepped.recover().await;
                world.check("before the denial is lifted").await;
                // AWS's clock does not move, and the session lives on there.
                world.seen.clear();
                Some(lease)
            }
            Self::Reconcile => {
                let lease = world.get("user", &id).await;
                make_strays(world, &lease).await;
                world.strays = true;
                Some(lease)
            }
            Self::Issue(_) | Self::Rotate => None,
        };
        Before { id, lease }
    }

    async fn happen(self, world: &mut World, before: &Before) {
        match self {
            // The result does not matter: the checker decides.
            Self::Issue(grant) | Self::Repeat(grant) => drop(world.ask(grant, &before.id).await),
            Self::Revoke => {
                let lease = before.lease.as_ref().unwrap();
                let _ = world.stepped.revoke(lease).await;
            }
            Self::ShutOut(_) => drop(world.stepped.shut_out().await),
            Self::Lift(_) => world.stepped.step(ALL_OVER).await,
            Self::Rotate => {
                let _ = world.stepped.rotate().await;
                for _ in 0..2 {
                    world.stepped.wait(301);
                    let _ = world.stepped.broker.maintain_admin_key_once().await;
                }
            }
            Self::Reconcile => {
                world.stepped.wait(301);
                let _ = world.stepped.broker.reconcile_once().await;
            }
        }
    }

    /// A client that repeats its request after AWS has recovered gets its credentials.
    async fn repeated(self, world: &mut World, before: &Before) {
        if let Self::Issue(grant) | Self::Repeat(grant) = self {
            let lease = world.get(grant, &before.id).await;
            assert!(world.seen.last().unwrap().key.works().await, "{lease:?}");
        }
    }

    /// Asserts that a wrong time of AWS ends no lease early.
    async fn nothing_ended(self, world: &World) {
        if matches!(self, Self::Revoke | Self::ShutOut(_) | Self::Lift(_)) {
            return;
        }
        // A repetition returns another key of the same user.
        let last: BTreeMap<_, _> = world
            .seen
            .iter()
            .map(|seen| (&seen.lease_id, seen))
            .collect();
        for (id, seen) in last {
            let lease = world.stepped.lease_of_id(id).await;
            assert_eq!(lease.state.as_str(), "active", "{lease:?}");
            assert!(seen.key.works().await, "{lease:?}");
        }
    }

    /// Asserts the required end state, besides the checker.
    async fn ended(self, world: &mut World, before: &Before) {
        match self {
            Self::Revoke => {
                let lease = world.stepped.lease(before.lease.as_ref().unwrap()).await;
                assert_eq!(lease.state.as_str(), "revoked");
            }
            Self::ShutOut(_) => {
                let lease = world.stepped.lease(before.lease.as_ref().unwrap()).await;
                assert_eq!(lease.state.as_str(), "revoked");
                let service = lease.binding.grant.service;
                let service = world.stepped.broker.store().service(&service).await;
                let service = service.unwrap().unwrap().service;
                assert!(service.suspension.is_some());
            }
            Self::Lift(_) => {
                assert_eq!(world.stepped.account.denials().await, []);
                let lifted = world.stepped.records("denial.lifted").await;
                assert_eq!(lifted.len(), 1);
            }
            Self::Rotate => {
                // A session issued now uses the new key.
                let id = RequestId::random(&SystemRandom);
                world.get("role", &id).await;
            }
            _ => {}
        }
    }
}

/// Creates a user with the broker's tags that no lease knows, and a second key of a known user.
async fn make_strays(world: &World, lease: &Lease) {
    let iam = world.stepped.account.root.iam();
    let known = iam
        .get_user()
        .user_name(&lease.binding.aws_name)
        .send()
        .await;
    let known = known.unwrap().user.unwrap();
    let stray = lease.binding.lease_id.as_str().replace('0', "1");
    let tag = |key: &str, value: &str| {
        let tag = aws_sdk_iam::types::Tag::builder().key(key).value(value);
        tag.build().unwrap()
    };
    let user = format!("payments-api.{stray}");
    iam.create_user()
        .user_name(&user)
        .path(known.path)
        .tags(tag("credbroker:service", "payments-api"))
        .tags(tag("credbroker:lease", &stray))
        .send()
        .await
        .unwrap();
    for user in [&user, &lease.binding.aws_name] {
        iam.create_access_key()
            .user_name(user)
            .send()
            .await
            .unwrap();
    }
}

/// Calls that an undisturbed story makes.
async fn calls_of(story: Story, world: &mut World) -> Vec<String> {
    let before = story.prepare(world).await;
    let already = world.stepped.proxy.actions().len();
    story.happen(world, &before).await;
    let calls = world.stepped.proxy.actions().split_off(already);
    world.stepped.recover().await;
    world.check(&format!("{story:?} undisturbed")).await;
    calls
}

/// Worlds of a story.
const WORLDS: usize = 4;
/// Number of worlds, of all stories, that are disturbed at the same time: they compute more than
/// they wait.
static DISTURBED: Semaphore = Semaphore::const_new(4);

/// A fault, and the call that meets it.
struct Blow {
    /// Number of calls of the story before it.
    number: usize,
    action: String,
    name: &'static str,
    fault: Fault,
    lasting: Lasting,
}

/// Every combination of call and fault.
fn blows(calls: &[String]) -> Vec<Blow> {
    let mut blows = Vec::new();
    for (number, action) in calls.iter().enumerate() {
        for (name, fault, lasting) in faults() {
            blows.extend(lasting.iter().map(|lasting| Blow {
                number,
                action: action.clone(),
                name,
                fault: fault.clone(),
                lasting: *lasting,
            }));
        }
    }
    blows
}

async fn disturb_everywhere(story: Story) {
    let calls = calls_of(story, &mut story.world().await).await;
    let blows = sample::cases(blows(&calls));
    let count = blows.len();
    let (mut worlds, shared) = (JoinSet::new(), Arc::new(Mutex::new(blows)));
    for _ in 0..WORLDS.min(count) {
        let shared = Arc::clone(&shared);
        worlds.spawn(async move {
            let mut world = story.world().await;
            loop {
                let blow = shared.lock().unwrap().pop();
                let Some(blow) = blow else { return };
                let _permit = DISTURBED.acquire().await.unwrap();
                strike(story, &mut world, blow).await;
            }
        });
    }
    worlds.join_all().await;
    let calls = calls.len();
    println!("{story:?}: {calls} calls, {count} faults, 0 violations");
}

async fn strike(story: Story, world: &mut World, blow: Blow) {
    let Blow {
        number, lasting, ..
    } = blow;
    let told_as = format!(
        "{story:?}: {} at call {number}, {}, {lasting:?}",
        blow.name, blow.action
    );
    if story.is_a_session() {
        // AWS's clock does not follow the broker's, by which sessions expire.
        *world = story.world().await;
    }
    let before = story.prepare(world).await;
    let proxy = world.stepped.proxy.clone();
    let skews = matches!(blow.fault, Fault::Skew(_));
    proxy.strike(number, blow.fault, lasting != Once);
    story.happen(world, &before).await;
    proxy.heal();
    if lasting == LongAndRepeated {
        story.repeated(world, &before).await;
    }
    world.stepped.recover().await;
    world.check(&told_as).await;
    if skews {
        story.nothing_ended(world).await;
    }
    story.ended(world, &before).await;
    if !story.is_a_session() {
        world.clear().await;
    }
}

stories! {
    disturb_everywhere of
    every_call_of_an_issued_user_survives_every_fault: Story::Issue("user");
    every_call_of_an_issued_role_session_survives_every_fault: Story::Issue("role");
    every_call_of_an_issued_federation_session_survives_every_fault: Story::Issue("federation");
    every_call_of_a_repeated_user_survives_every_fault: Story::Repeat("user");
    every_call_of_a_repeated_session_survives_every_fault: Story::Repeat("role");
    every_call_of_a_revocation_survives_every_fault: Story::Revoke;
    every_call_of_the_shutting_out_of_a_role_session_survives_every_fault: Story::ShutOut("role");
    every_call_of_the_shutting_out_of_a_federation_session_survives_every_fault: Story::ShutOut("federation");
    every_call_of_the_lifting_of_a_roles_denial_survives_every_fault: Story::Lift("role");
    every_call_of_the_lifting_of_a_users_denial_survives_every_fault: Story::Lift("federation");
    every_call_of_a_rotation_survives_every_fault: Story::Rotate;
    every_call_of_a_reconciliation_survives_every_fault: Story::Reconcile;
}
