//! `credbroker::client::Credentials`, which AWS SDKs take.

use std::time::Duration;

use aws_credential_types::provider::ProvideCredentials;
use credbroker::{
    client::{Credentials, Evidence, Missing, Settings},
    domain::clock::wall_time,
};
use jiff::{SignedDuration, Timestamp};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::harness::{Key, World, eventually, eventually_within};

const LIMIT: Duration = Duration::from_secs(10);

fn settings(world: &World) -> Settings {
    Settings {
        address: format!(
            "https://{}",
            world.broker.address().replace("127.0.0.1", "localhost")
        ),
        ca_file: world.broker.setting("CREDBROKER_CA_FILE").into(),
        evidence: Evidence::Token(world.token.clone().into()),
    }
}

#[tokio::test]
async fn an_sdk_has_fresh_credentials_for_as_long_as_it_runs() {
    let world = World::new().await;
    world.put_user(&["--ttl", "8s", "--max-ttl", "8s"]).await;
    let credentials = Credentials::under(settings(&world), "user");
    let provided = credentials.provide_credentials().await.unwrap();
    let key = Key {
        id: provided.access_key_id().to_owned(),
        secret: provided.secret_access_key().to_owned(),
        token: provided.session_token().map(ToOwned::to_owned),
    };
    assert!(key.works().await);
    assert!(provided.expiry().is_some());
    let others = async || {
        let provided = credentials.provide_credentials().await.unwrap();
        (provided.access_key_id() != key.id).then_some(())
    };
    eventually("the next are there", others).await;
    assert!(key.works().await, "and the old ones still work");
}

#[tokio::test]
async fn concurrent_callers_that_give_up_cause_one_call_to_the_broker() {
    let world = World::new().await;
    let credentials = Credentials::under(settings(&world), "role");
    // A caller that gives up does not disturb the others that wait.
    let given_up = tokio::time::timeout(Duration::ZERO, credentials.current(LIMIT));
    assert!(given_up.await.is_err());
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let credentials = credentials.clone();
            tokio::spawn(async move { credentials.current(LIMIT).await.unwrap().lease_id.clone() })
        })
        .collect();
    let mut leases = Vec::new();
    for asked in asking {
        leases.push(asked.await.unwrap());
    }
    leases.dedup();
    assert_eq!(leases.len(), 1);
    assert_eq!(world.leases().await.len(), 1);
    // An SDK keeps credentials for at most five minutes, so that it keeps no revoked ones.
    let provided = credentials.provide_credentials().await.unwrap();
    let until = Timestamp::try_from(provided.expiry().unwrap()).unwrap();
    assert!(until <= wall_time() + SignedDuration::from_mins(5));
    let shown = format!("{:?}", credentials.current(LIMIT).await.unwrap());
    let (_, secrets) = shown.split_once("Issued").unwrap();
    assert!(!secrets.contains("secret"), "{shown}");
}

#[tokio::test]
async fn missing_credentials_report_the_error_of_the_broker() {
    let world = World::new().await;
    let refused = Credentials::under(settings(&world), "nothing");
    let missing = refused.current(LIMIT).await.unwrap_err();
    assert!(matches!(missing, Missing::Refused { .. }), "{missing:?}");
    assert!(
        missing.to_string().contains("there is no grant"),
        "{missing}"
    );
    let told = refused.provide_credentials().await.unwrap_err();
    assert!(
        format!("{told:?}").contains("there is no grant"),
        "{told:?}"
    );

    let elsewhere = Settings {
        address: "https://localhost:1".to_owned(),
        ..settings(&world)
    };
    let away = Credentials::under(elsewhere, "role");
    let missing = away.current(Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(missing, Missing::Unavailable(_)), "{missing:?}");
    assert!(
        missing.to_string().contains("cannot reach the broker"),
        "{missing}"
    );
}

/// Address of a forwarder to the broker. Its first connection falls silent on demand, and stays
/// open.
async fn freezing(broker: &str, frozen: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let broker = broker.to_owned();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(&broker).await.unwrap();
            let mut frozen = frozen.clone();
            tokio::spawn(async move {
                let falls_silent = async {
                    if number > 0 || frozen.wait_for(|frozen| *frozen).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    () = falls_silent => {}
                }
                // Neither end notices it.
                std::future::pending::<()>().await;
            });
        }
    });
    format!("https://localhost:{}", address.port())
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_noticed() {
    let world = World::new().await;
    let (freeze, frozen) = watch::channel(false);
    let through = Settings {
        address: freezing(world.broker.address(), frozen).await,
        ..settings(&world)
    };
    let credentials = Credentials::under(through, "role");
    credentials.current(LIMIT).await.unwrap();
    freeze.send_replace(true);
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    let dropped = async || {
        let refused = credentials.current(Duration::ZERO).await.err()?;
        matches!(refused, Missing::Refused { .. }).then_some(())
    };
    eventually_within(30, "it asks anew, and hears of the revocation", dropped).await;
}
