//! Replacement of a stolen admin key, and the end of everything made with it.

use aws_sdk_sts::types::{Credentials, Tag};
use serde_json::{Value, json};

use super::as_printed;
use crate::{
    agent::Agent,
    harness::{Key, World, aws::ADMIN_USER, eventually_within, proxy::Fault},
};

fn key(made: Option<Credentials>) -> Key {
    let made = made.unwrap();
    Key {
        id: made.access_key_id,
        secret: made.secret_access_key,
        token: Some(made.session_token),
    }
}

/// Sessions that the thief makes with the admin key: of a role, and federated.
async fn thiefs(world: &World) -> [Key; 2] {
    let sts = world.account.admin.sts();
    let assumed = sts.assume_role().role_arn(&world.role);
    let tag = Tag::builder().key("credbroker:service").value("mallory");
    let assumed = assumed.tags(tag.build().unwrap());
    let assumed = assumed.role_session_name("mallory").send().await.unwrap();
    let policy =
        r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}"#;
    let federated = sts.get_federation_token().name("mallory").policy(policy);
    let federated = federated.send().await.unwrap();
    let sessions = [key(assumed.credentials), key(federated.credentials)];
    for session in &sessions {
        assert!(session.is_served().await);
    }
    sessions
}

async fn imported(world: &World) {
    let key = as_printed(&world.account.admin);
    let import = ["admin-key", "import"];
    world.broker.run_in(None, &import, &key).await.ok();
}

fn events(log: &[Value], event: &str) -> usize {
    log.iter().filter(|record| record["event"] == event).count()
}

#[tokio::test]
async fn a_stolen_key_and_its_sessions_are_refused_and_followers_get_new_sessions() {
    let world = World::new().await;
    imported(&world).await;
    let held = Key::issued(&world.issued(&["role"]).await);
    let federated = Key::issued(&world.issued(&["federation"]).await);
    let user = Key::issued(&world.issued(&["user"]).await);
    let agent = Agent::start(&world, &["role"], &[]).await;
    let before = agent.credentials().await;
    let [assumed, token] = thiefs(&world).await;
    // The thief has made a second key of the user.
    let call = world.account.root.iam().create_access_key();
    let made = call.user_name(ADMIN_USER).send().await.unwrap();
    let made = made.access_key.unwrap();

    let stolen = ["admin-key", "rotate", "--stolen", "-o", "json"];
    let told = world.broker.run(&stolen).await.ok().json();
    assert_eq!(told["confirmed"], true, "{told:#}");
    let status = world.broker.json(&["admin-key", "status"]).await;
    assert_eq!(status["phase"], "steady");
    assert_eq!(status["access_key_id"], told["key"]["access_key_id"]);
    assert_ne!(told["key"]["access_key_id"], json!(world.account.admin.id));
    let mut holders: Vec<_> = told["sessions"].as_array().unwrap().iter().collect();
    holders.sort_by_key(|told| told["holder"].to_string());
    assert_eq!(holders.len(), 2, "{told:#}");
    assert_eq!(holders[0]["holder"], json!(world.role));
    assert!(holders[1]["holder"].as_str().unwrap().ends_with(ADMIN_USER));

    for refused in [&held, &federated, &assumed, &token] {
        assert!(!refused.is_served().await, "{}", refused.id);
    }
    assert!(!world.account.admin.works().await);
    let call = world.account.root.iam().list_access_keys();
    let keys = call.user_name(ADMIN_USER).send().await.unwrap();
    let keys = keys.access_key_metadata.iter();
    assert!(
        keys.clone()
            .all(|key| key.access_key_id != Some(made.access_key_id.clone()))
    );
    // A user's key is no session.
    assert!(user.works().await);
    // The agent gets the next session without a restart.
    let next = async || {
        let next = agent.credentials().await;
        let has_next = next["AccessKeyId"].is_string();
        (has_next && next["AccessKeyId"] != before["AccessKeyId"]).then_some(())
    };
    eventually_within(60, "the agent has the next session", next).await;
    for grant in ["role", "federation"] {
        let next = Key::issued(&world.issued(&[grant]).await);
        assert!(next.is_served().await, "{grant}");
    }
    let log = world.broker.audit().await;
    assert!(events(&log, "admin_key.stolen") >= 3);
    assert_eq!(events(&log, "grant.revoked"), 2);
}

#[tokio::test]
async fn an_unconfirmed_refusal_is_reported_and_the_replacement_can_be_repeated() {
    let world = World::new().await;
    imported(&world).await;
    let held = Key::issued(&world.issued(&["role"]).await);
    let refused = Fault::Answer(403, "AccessDenied", "not authorized");
    world.proxy.inject("AssumeRole", refused);
    let told = world.broker.run(&["admin-key", "rotate", "--stolen"]).await;
    let told = told.fails(7, &["AWS was not seen to refuse every session"]);
    assert!(told.stdout.contains("open: "), "{told:#?}");
    // The denial works all the same.
    assert!(!held.is_served().await);
    world.proxy.heal();
    let stolen = ["admin-key", "rotate", "--stolen"];
    let told = world.broker.run(&stolen).await.ok();
    let last = told.stdout.lines().last().unwrap();
    assert!(
        last.starts_with("done: AWS was seen to refuse every session"),
        "{last}"
    );
    let next = Key::issued(&world.issued(&["role"]).await);
    assert!(next.is_served().await);
}

#[tokio::test]
async fn a_key_of_the_chain_cannot_be_replaced_and_nothing_is_denied() {
    let world = World::new().await;
    let held = Key::issued(&world.issued(&["role"]).await);
    let told = world.broker.run(&["admin-key", "rotate", "--stolen"]).await;
    told.fails(6, &["standard AWS chain", "credbroker admin-key import"]);
    assert!(held.is_served().await);
    assert_eq!(world.broker.count("SELECT count(*) FROM denials").await, 0);
}
