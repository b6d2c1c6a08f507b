//! The process dies before and after each call to AWS and each commit of the store; it is started
//! again, and the checker must find nothing.

use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

use super::{
    checker::assert_sound,
    process::{Mortal, new_id},
};
use crate::harness::{proxy::Fault, sample};

/// Story that the death interrupts.
#[derive(Clone, Copy, Debug)]
enum Story {
    Issue(&'static str),
    Repeat(&'static str),
    Revoke,
    Rotate,
    /// An issue that AWS refuses half way.
    Refused,
    /// A user whose lease expires.
    RunOut,
    /// A service that holds a session of a role, one of federation and a user is revoked.
    ShutOut,
    /// The last denied session has expired.
    Lift,
}

impl Story {
    /// Events of the records that the story commits.
    const fn commits(self) -> &'static [&'static str] {
        match self {
            Self::Issue(_) => &["lease.requested", "lease.issued"],
            Self::Repeat(_) => &["lease.replacing", "lease.redelivered"],
            Self::Revoke => &["lease.revoking", "lease.revoked"],
            Self::Refused => &["lease.denied", "lease.revoked"],
            Self::RunOut => &["lease.revoking", "lease.expired"],
            Self::ShutOut => &[
                "service.revoked",
                "canary.issued",
                "denial.written",
                "lease.revoked",
                "denial.confirmed",
            ],
            Self::Lift => &["denial.lifted"],
            Self::Rotate => &[
                "admin_key.rotating",
                "admin_key.created",
                "admin_key.switched",
                "admin_key.deactivated",
                "admin_key.rotated",
            ],
        }
    }

    /// Returns whether the story makes calls to AWS that no other story makes.
    const fn has_calls_of_its_own(self) -> bool {
        !matches!(self, Self::Refused | Self::RunOut)
    }

    /// Number of brokers that die of the story concurrently: proof of an existing denial takes
    /// seconds of waiting.
    const fn worlds(self) -> usize {
        if matches!(self, Self::ShutOut) { 4 } else { 1 }
    }

    async fn world(self) -> Mortal {
        let mut mortal = Mortal::new().await;
        if matches!(self, Self::Rotate) {
            mortal.import().await;
        }
        // The broker makes its one-time calls now.
        mortal.ask("user", &new_id()).await.unwrap();
        if matches!(self, Self::ShutOut | Self::Lift) {
            // Other services at the role and the broker's user continue.
            for grant in ["role", "federation"] {
                mortal.ask(grant, &new_id()).await.unwrap();
            }
        }
        mortal
    }

    /// Prepares the state in which the story begins. Returns what its continuation needs.
    async fn prepare(self, mortal: &mut Mortal) -> Prepared {
        let id = new_id();
        let lease = match self {
            Self::Repeat(grant) => mortal.ask(grant, &id).await,
            Self::Revoke | Self::RunOut => mortal.ask("user", &id).await,
            Self::ShutOut => {
                mortal.holding(&["role", "federation", "user"]).await;
                None
            }
            Self::Lift => {
                mortal.holding(&["role", "federation"]).await;
                mortal.shut_out().await;
                mortal.settle().await;
                None
            }
            Self::Issue(_) | Self::Rotate | Self::Refused => None,
        };
        Prepared { id, lease }
    }

    async fn happen(self, mortal: &mut Mortal, prepared: &Prepared) {
        match self {
            Self::Issue(grant) | Self::Repeat(grant) => {
                mortal.ask(grant, &prepared.id).await;
            }
            Self::Revoke => {
                let _ = mortal.revoke(prepared.lease.as_ref().unwrap()).await;
            }
            Self::Refused => {
                let denied = Fault::Answer(403, "AccessDenied", "not now");
                mortal.world.proxy.inject("CreateAccessKey", denied);
                mortal.ask("user", &prepared.id).await;
            }
            Self::RunOut => {
                let over = "UPDATE leases SET expires_at = 1, due_at = 1 WHERE state = 'active'";
                mortal.world.broker.write_store(over).await;
            }
            Self::ShutOut => mortal.shut_out().await,
            Self::Lift => {
                mortal.outlive_sessions().await;
                mortal.lifted().await;
            }
            // Grace and retirement of the old key have long passed.
            Self::Rotate => {
                mortal.rotate().await;
                for _ in 0..2 {
                    mortal.world.broker.let_time_pass().await;
                    let alive = mortal.tended().await;
                    if !alive {
                        return;
                    }
                }
            }
        }
    }

    /// Repeats the unanswered request of the client; it must succeed.
    async fn repeated(self, mortal: &mut Mortal, prepared: &Prepared) {
        if let Self::Issue(grant) | Self::Repeat(grant) = self {
            mortal.ask(grant, &prepared.id).await.expect("an answer");
        }
    }
}

struct Prepared {
    id: credbroker::domain::request::RequestId,
    lease: Option<String>,
}

/// Time of the process's death.
#[derive(Clone, Copy, Debug)]
enum Death {
    BeforeCall(usize),
    AfterCall(usize),
    AtCommit(&'static str, &'static str),
}

async fn die(story: Story, death: Death, mut mortal: Mortal) -> Mortal {
    if let Death::AtCommit(moment, record) = death {
        let mut prepared = story.prepare(&mut mortal).await;
        mortal.world.broker.kill().await;
        mortal = mortal.start(Some(&format!("{moment}:{record}"))).await;
        if matches!(story, Story::Issue(_) | Story::Refused) {
            prepared = story.prepare(&mut mortal).await;
        }
        return end(story, death, mortal, prepared).await;
    }
    let prepared = story.prepare(&mut mortal).await;
    let kill = Arc::new(mortal.world.broker.killer());
    match death {
        Death::BeforeCall(number) => mortal
            .world
            .proxy
            .strike(number, Fault::Instead(kill), false),
        Death::AfterCall(number) => mortal.world.proxy.strike(number, Fault::After(kill), false),
        Death::AtCommit(..) => {}
    }
    end(story, death, mortal, prepared).await
}

async fn end(story: Story, death: Death, mut mortal: Mortal, prepared: Prepared) -> Mortal {
    let told_as = format!("{story:?}: {death:?}");
    story.happen(&mut mortal, &prepared).await;
    let died = tokio::time::timeout(
        std::time::Duration::from_secs(10),
        mortal.world.broker.ended(),
    );
    assert!(!died.await.expect(&told_as), "{told_as}: it died well");
    // Half of the clients come back at once, half never.
    let comes_back = matches!(death, Death::AfterCall(_) | Death::AtCommit("after", _));
    if comes_back {
        mortal = mortal.start(None).await;
        story.repeated(&mut mortal, &prepared).await;
        mortal.world.broker.kill().await;
    }
    mortal = mortal.recover().await;
    assert_sound(&told_as, &mortal.violations().await);
    mortal
}

/// Number of calls to AWS of an undisturbed story, without those that a broker makes once.
async fn calls_of(story: Story, mortal: &mut Mortal) -> usize {
    if matches!(story, Story::Lift) {
        let prepared = story.prepare(mortal).await;
        story.happen(mortal, &prepared).await;
        mortal.settle().await;
    }
    let prepared = story.prepare(mortal).await;
    let already = mortal.world.proxy.actions().len();
    story.happen(mortal, &prepared).await;
    let calls = mortal.world.proxy.actions().len() - already;
    mortal.settle().await;
    calls
}

async fn die_everywhere(story: Story) {
    let mut mortal = story.world().await;
    let calls = if story.has_calls_of_its_own() {
        calls_of(story, &mut mortal).await
    } else {
        0
    };
    let mut deaths = Vec::new();
    for call in 0..calls {
        deaths.extend([Death::BeforeCall(call), Death::AfterCall(call)]);
    }
    for record in story.commits() {
        deaths.extend(["before", "after"].map(|moment| Death::AtCommit(moment, record)));
    }
    let deaths = sample::cases(deaths);
    let count = deaths.len();
    let (worlds, deaths) = (story.worlds(), Arc::new(Mutex::new(deaths)));
    let mut dying = JoinSet::new();
    dying.spawn(die_of(story, Arc::clone(&deaths), mortal));
    for _ in 1..worlds {
        dying.spawn(die_of(story, Arc::clone(&deaths), story.world().await));
    }
    dying.join_all().await;
    println!("{story:?}: {count} deaths, 0 violations");
}

/// Runs the remaining deaths, one after the other.
async fn die_of(story: Story, left: Arc<Mutex<Vec<Death>>>, mut mortal: Mortal) {
    loop {
        let death = left.lock().unwrap().pop();
        let Some(death) = death else { return };
        mortal = die(story, death, mortal).await;
    }
}

stories! {
    die_everywhere of
    a_broker_may_die_anywhere_in_the_issue_of_a_user: Story::Issue("user");
    a_broker_may_die_anywhere_in_the_issue_of_a_session: Story::Issue("role");
    a_broker_may_die_anywhere_in_a_repeated_issue_of_a_user: Story::Repeat("user");
    a_broker_may_die_anywhere_in_a_repeated_issue_of_a_session: Story::Repeat("role");
    a_broker_may_die_anywhere_in_a_revocation: Story::Revoke;
    a_broker_may_die_anywhere_in_a_rotation_of_its_key: Story::Rotate;
    a_broker_may_die_anywhere_in_an_issue_that_aws_refuses: Story::Refused;
    a_broker_may_die_anywhere_in_the_end_of_a_user: Story::RunOut;
    a_broker_may_die_anywhere_in_the_shutting_out_of_a_service: Story::ShutOut;
    a_broker_may_die_anywhere_in_the_lifting_of_a_denial: Story::Lift;
}
