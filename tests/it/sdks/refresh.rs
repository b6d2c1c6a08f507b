//! Processes that continue while one session after the other ends.

use credbroker::domain::clock::wall_time;
use jiff::SignedDuration;
use tokio::task::JoinSet;

use super::{
    broker_itself, served_by,
    service::{Host, LASTING, Service, Way},
};
use crate::{
    agent::Agent,
    harness::{World, eventually_within, proxy::Fault},
};

/// Rewrites AWS's answer: the session ends soon, before SDKs begin to look for another.
fn short(answer: &str) -> String {
    let (before, rest) = answer.split_once("<Expiration>").unwrap();
    let (_, after) = rest.split_once("</Expiration>").unwrap();
    let end = (wall_time() + SignedDuration::from_secs(16)).strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("{before}<Expiration>{end}</Expiration>{after}")
}

/// Asserts that the service works all the time, and with another session before long.
async fn goes_on(mut service: Service) {
    let work = async |service: &mut Service| {
        let told = service.call().await;
        told.unwrap_or_else(|why| panic!("{:?}: {why}", service.sdk))
    };
    let first = work(&mut service).await;
    let service = tokio::sync::Mutex::new(service);
    let another = async || (work(&mut *service.lock().await).await != first).then_some(());
    eventually_within(30, "another session", another).await;
}

#[tokio::test]
async fn a_process_continues_with_the_next_session_in_every_way() {
    let world = World::new().await;
    let host = Host::new(&world);
    world.proxy.inject("AssumeRole", Fault::Rewrite(short));
    let agent = Agent::start(&world, &["role"], &[]).await;
    let ways = [
        broker_itself(&world, &host),
        served_by(&agent),
        Way::Process,
        Way::Exec(&["--refresh"]),
    ];
    let mut going = JoinSet::new();
    for way in &ways {
        for service in host.start_each(&LASTING, way).into_each() {
            going.spawn(goes_on(service));
        }
    }
    going.join_all().await;
}
