//! Owners of access keys that were found.

use std::collections::BTreeSet;

use credbroker::proto::LookupAccessKeysRequest;
use serde_json::{Value, json};
use tokio::process::Command;
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{Account, Broker, Key, Run, World, broker::BINARY, eventually};

const REQUEST: &str = "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10";
const UNKNOWN: &str = "AKIAIOSFODNN7EXAMPLE";

impl World {
    /// Output of `lookup` for one known key.
    async fn owner(&self, key: &Value) -> Value {
        let owners = self.broker.json(&["lookup", text(key)]).await;
        let [owner] = owners.as_array().unwrap().as_slice() else {
            panic!("{owners}");
        };
        owner.clone()
    }

    async fn lookup_in(&self, input: &str) -> Run {
        let args = ["lookup", "-o", "json"];
        self.broker.run_in(None, &args, input).await
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn revoke_command(issued: &Value) -> String {
    let key = text(&issued["access_key_id"]);
    format!("credbroker revoke payments-api --reason \"access key {key} was found\"")
}

#[tokio::test]
async fn the_key_of_a_session_or_a_user_leads_to_service_grant_and_lease() {
    let world = World::new().await;
    for (grant, kind) in [("role", "assume_role"), ("user", "iam_user")] {
        let issued = world.issued(&[grant]).await;
        let lease = text(&issued["lease_id"]);
        let shown = world.broker.json(&["lease", "show", lease]).await;
        let expected = json!({
            "access_key_id": issued["access_key_id"],
            "known": true,
            "service": "payments-api",
            "grant": format!("payments-api/{grant}"),
            "lease_id": lease,
            "kind": kind,
            "state": "active",
            "issued_at": shown["issued_at"],
            "expires_at": shown["expires_at"],
            "ended_at": null,
            "access_may_live_until": null,
            "current": true,
            "admin_key": false,
            "revoke_command": revoke_command(&issued),
        });
        assert_eq!(world.owner(&issued["access_key_id"]).await, expected);
    }
}

#[tokio::test]
async fn lookup_prints_state_and_ending_command_and_no_secret() {
    let world = World::new().await;
    for grant in ["role", "user"] {
        let issued = world.issued(&[grant]).await;
        let (key, lease) = (text(&issued["access_key_id"]), text(&issued["lease_id"]));
        let told = world.broker.run(&["lookup", key]).await.ok().stdout;
        for word in [
            key,
            &format!("payments-api/{grant}"),
            "yes, until 20",
            &revoke_command(&issued),
            &format!("credbroker lease revoke {lease} "),
        ] {
            assert!(told.contains(word), "{word:?} in {told}");
        }
        for secret in ["secret_access_key", "session_token"] {
            let secret = issued[secret].as_str();
            assert!(secret.is_none_or(|secret| !told.contains(secret)), "{told}");
        }
    }
}

#[tokio::test]
async fn the_command_that_lookup_prints_ends_the_key() {
    let world = World::new().await;
    let issued = world.issued(&["user"]).await;
    let owner = world.owner(&issued["access_key_id"]).await;
    let path = std::env::var("PATH").unwrap();
    let directory = BINARY.rsplit_once('/').unwrap().0;
    let mut shell = Command::new("sh");
    shell
        .args(["-euc", text(&owner["revoke_command"])])
        .env_clear()
        .env("PATH", format!("{directory}:{path}"))
        .envs(world.broker.env.iter().cloned());
    Run::of(shell, "").await.ok();
    assert!(!Key::issued(&issued).works().await);
    let owner = world.owner(&issued["access_key_id"]).await;
    assert_eq!(owner["state"], "revoked");
    assert!(owner["ended_at"].is_string());
    assert!(owner["revoke_command"].is_null());
    let key = text(&issued["access_key_id"]);
    let told = world.broker.run(&["lookup", key]).await.ok().stdout;
    assert!(told.contains("no: the lease is over"), "{told}");
    assert!(!told.contains("credbroker"), "{told}");
}

#[tokio::test]
async fn a_session_is_said_to_work_until_it_expires_or_is_revoked() {
    let world = World::new().await;
    let issued = world.issued(&["role"]).await;
    let release = ["release", text(&issued["lease_id"])];
    world.broker.run_as(Some(&world.token), &release).await.ok();
    let key = text(&issued["access_key_id"]);
    assert_eq!(
        world.owner(&issued["access_key_id"]).await["state"],
        "revoking"
    );
    let told = world.broker.run(&["lookup", key]).await.ok().stdout;
    assert!(told.contains("yes, until 20"), "{told}");
    assert!(told.contains("revoke it"), "{told}");
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    let told = world.broker.run(&["lookup", key]).await.ok().stdout;
    assert!(told.contains("no: the lease is over"), "{told}");
}

#[tokio::test]
async fn a_key_that_a_repeated_request_has_replaced_still_leads_to_its_lease() {
    let world = World::new().await;
    for (grant, works, id) in [
        ("user", "no: it was removed", REQUEST),
        (
            "role",
            "yes, until 20",
            "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f11",
        ),
    ] {
        let ask = [grant, "--request-id", id];
        let (first, again) = (world.issued(&ask).await, world.issued(&ask).await);
        let former = world.owner(&first["access_key_id"]).await;
        assert_eq!(
            (&former["lease_id"], &former["current"], &former["state"]),
            (&first["lease_id"], &json!(false), &json!("active"))
        );
        let present = world.owner(&again["access_key_id"]).await;
        assert_eq!(
            (&present["lease_id"], &present["current"]),
            (&first["lease_id"], &json!(true))
        );
        assert!(text(&former["issued_at"]) < text(&present["issued_at"]));
        let key = text(&first["access_key_id"]);
        let told = world.broker.run(&["lookup", key]).await.ok().stdout;
        assert!(told.contains(works), "{told}");
    }
}

#[tokio::test]
async fn an_alert_of_githubs_secret_scanning_is_read_from_standard_input() {
    let world = World::new().await;
    let (user, role) = (world.issued(&["user"]).await, world.issued(&["role"]).await);
    let alert = json!([
        {"token": user["access_key_id"], "type": "aws_access_key_id",
         "url": "https://github.com/o/r/blob/1/a.env", "source": "content"},
        {"token": UNKNOWN, "type": "aws_access_key_id", "url": "", "source": "commit"},
        {"token": "junk", "type": "aws_access_key_id",
         "url": format!("https://x/?id={}&AKIA", text(&role["access_key_id"])), "source": "content"},
        {"token": user["access_key_id"], "type": "aws_access_key_id", "url": "", "source": "wiki"},
    ]);
    let alert = serde_json::to_string_pretty(&alert).unwrap();
    let owners = world.lookup_in(&alert).await.ok().json();
    let told: Vec<_> = owners
        .as_array()
        .unwrap()
        .iter()
        .map(|owner| (&owner["access_key_id"], &owner["lease_id"], &owner["known"]))
        .collect();
    let (no, yes) = (json!(false), json!(true));
    let expected = [
        (&user["access_key_id"], &user["lease_id"], &yes),
        (&json!(UNKNOWN), &Value::Null, &no),
        (&role["access_key_id"], &role["lease_id"], &yes),
    ];
    assert!(
        expected.iter().all(|owner| told.contains(owner)),
        "{told:?}"
    );
    assert_eq!(told.len(), expected.len());
    let dash = world.broker.run_in(None, &["lookup", "-"], &alert).await;
    assert!(dash.ok().stdout.contains("unknown"));
}

#[tokio::test]
async fn more_keys_than_one_call_takes_are_asked_for_in_several() {
    let world = World::new().await;
    let issued = world.issued(&["user"]).await;
    let unknown = (0..2100).map(|n| format!("AKIAIOSFODNN7EX{n:05}"));
    let known = text(&issued["access_key_id"]).to_owned();
    let input = unknown.chain([known]).collect::<Vec<_>>().join("\n");
    let owners = world.lookup_in(&input).await.ok().json();
    let owners = owners.as_array().unwrap();
    assert_eq!(owners.len(), 2101);
    assert_eq!(owners[2100]["lease_id"], issued["lease_id"]);
    let read = ["audit", "query", "--event", "lease.read"];
    let read = world.broker.json(&read).await;
    let details: Vec<&str> = read
        .as_array()
        .unwrap()
        .iter()
        .map(|record| text(&record["detail"]))
        .collect();
    let expected = [(1000, 0), (1000, 0), (101, 1)]
        .map(|(asked, known)| format!("access keys looked up: {asked}; known: {known}"));
    assert_eq!(details, expected);
}

#[tokio::test]
async fn lookup_of_unknown_keys_is_not_found_and_of_no_keys_is_invalid() {
    let world = World::new().await;
    let unknown = world.broker.run(&["lookup", UNKNOWN, "-o", "json"]).await;
    let unknown = unknown.fails(5, &["knows none of these", "get-access-key-info"]);
    let owner = &unknown.json()[0];
    let told: BTreeSet<&str> = owner
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(field, _)| field.as_str())
        .collect();
    assert_eq!(
        told,
        BTreeSet::from(["access_key_id", "admin_key", "known"])
    );
    assert_eq!(
        (&owner["known"], &owner["admin_key"]),
        (&json!(false), &json!(false))
    );

    for input in ["", "[]", "AKIA is how they begin"] {
        let none = world.lookup_in(input).await;
        none.fails(2, &["standard input holds no access key id"]);
    }
    let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    for wrong in [&["lookup", secret][..], &["lookup", UNKNOWN, "-"]] {
        let refused = world.broker.run(wrong).await;
        let refused = refused.fails(2, &["neither a token of the broker nor an access key id"]);
        assert!(!refused.stderr.contains(secret), "{refused:?}");
    }
}

#[tokio::test]
async fn lookup_is_open_to_every_operator_and_refused_to_services() {
    let world = World::new().await;
    let issued = world.issued(&["user"]).await;
    let key = text(&issued["access_key_id"]);
    let lookup = ["lookup", key];
    let service = world.broker.run_as(Some(&world.token), &lookup).await;
    service.fails(4, &["this call is for operators"]);
    let make = ["operator", "create", "vera", "--role", "viewer"];
    let viewer = world.broker.json(&make).await;
    let viewer = text(&viewer["token"]);
    world.broker.run_as(Some(viewer), &lookup).await.ok();
    let asked = ["audit", "query", "--actor", "operator:vera"];
    let asked = world.broker.json(&asked).await;
    let (event, lease, of) = (
        &asked[0]["event"],
        &asked[0]["lease_id"],
        &asked[0]["access_key_id"],
    );
    assert_eq!(
        (event, lease, of),
        (&json!("lease.read"), &issued["lease_id"], &json!(key))
    );
}

#[tokio::test]
async fn lookup_recognises_an_admin_key_of_the_chain_imported_or_replaced() {
    let account = Account::new().await;
    let broker = Broker::start(&account).await;
    let Key { id, secret, .. } = &account.admin;
    let owner = async |key: &str| broker.json(&["lookup", key]).await[0].clone();
    let rotate = json!("credbroker admin-key rotate");
    let at_work = |owner: &Value| {
        let told = [
            &owner["admin_key"],
            &owner["current"],
            &owner["revoke_command"],
        ];
        assert_eq!(told, [&json!(true), &json!(true), &rotate], "{owner}");
        assert!(owner["service"].is_null() && owner["lease_id"].is_null());
    };
    at_work(&owner(id).await);

    let wrong = format!("aws_access_key_id={UNKNOWN}\naws_secret_access_key={secret}\n");
    let import = ["admin-key", "import"];
    broker.run_in(None, &import, &wrong).await.fails(6, &[]);
    broker.run(&["lookup", UNKNOWN]).await.fails(5, &[]);

    let key = format!("aws_access_key_id={id}\naws_secret_access_key={secret}\n");
    broker.run_in(None, &import, &key).await.ok();
    let imported = owner(id).await;
    at_work(&imported);
    assert!(imported["issued_at"].is_string());
    let told = broker.run(&["lookup", id]).await.ok().stdout;
    assert!(
        told.contains("its admin key") && !told.contains(secret),
        "{told}"
    );

    let rotated = broker.json(&["admin-key", "rotate"]).await;
    at_work(&owner(text(&rotated["access_key_id"])).await);
    let former = async || {
        let former = owner(id).await;
        let told = [&former["known"], &former["admin_key"], &former["current"]];
        assert_eq!(
            told,
            [&json!(true), &json!(true), &json!(false)],
            "{former}"
        );
        assert!(former["revoke_command"].is_null());
    };
    former().await;
    for phase in ["retiring", "steady"] {
        broker.let_time_pass().await;
        eventually(phase, async || {
            let status = broker.json(&["admin-key", "status"]).await;
            (status["phase"] == phase).then_some(())
        })
        .await;
    }
    former().await;
}

#[tokio::test]
async fn a_call_with_too_many_ids_or_wrong_ones_says_which() {
    let broker = Broker::start(&Account::new().await).await;
    let client = broker.client(broker.admin_token()).await;
    let violations = async |access_key_ids: Vec<String>| {
        let request = LookupAccessKeysRequest { access_key_ids };
        let status = client.leases().lookup_access_keys(request).await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let told = status.get_details_bad_request().unwrap().field_violations;
        told.into_iter().map(|told| told.field).collect::<Vec<_>>()
    };
    let good = || UNKNOWN.to_owned();
    assert_eq!(violations(vec![]).await, ["access_key_ids"]);
    assert_eq!(violations(vec![good(); 1001]).await, ["access_key_ids"]);
    let two = vec!["AKIA".to_owned(), good(), String::new()];
    assert_eq!(
        violations(two).await,
        ["access_key_ids[0]", "access_key_ids[2]"]
    );
    assert_eq!(violations(vec!["x".to_owned(); 1000]).await.len(), 10);
    let request = LookupAccessKeysRequest {
        access_key_ids: vec![good(); 1000],
    };
    let answer = client.leases().lookup_access_keys(request).await.unwrap();
    assert_eq!(answer.into_inner().owners.len(), 1000);
}

#[tokio::test]
async fn a_broker_token_is_looked_up_by_its_visible_part() {
    let broker = Broker::start(&Account::new().await).await;
    let service = broker.service("pay").await;
    let make = ["operator", "create", "ann", "--role", "viewer"];
    let operator = broker.json(&make).await;
    let operator = text(&operator["token"]);
    let id = |token: &str| token[4..20].to_owned();
    let of_service = json!({
        "token_id": id(&service), "known": true, "kind": "service", "service": "pay", "operator": null,
        "expires_at": null,
        "revoke_command": format!("credbroker revoke pay --reason \"token {} was found\"", id(&service)),
        "delete_command": format!("credbroker service token delete pay {}", id(&service)),
    });
    let of_operator = json!({
        "token_id": id(operator), "known": true, "kind": "operator", "service": null, "operator": "ann",
        "expires_at": null, "revoke_command": null, "delete_command": "credbroker operator delete ann",
    });
    let looked_up = async |asked: &[&str], input: &str| {
        let args = [&["lookup", "-o", "json"], asked].concat();
        let mut owners = broker.run_in(None, &args, input).await.ok().json();
        for owner in owners.as_array_mut().unwrap() {
            assert!(
                owner
                    .as_object_mut()
                    .unwrap()
                    .remove("created_at")
                    .is_some()
            );
        }
        owners
    };
    let both = json!([of_service, of_operator]);
    assert_eq!(looked_up(&[&service[..20], operator], "").await, both);
    let alert = format!("[{{\"secret\":\"{service}\"}},{{\"secret\":\"{operator}\"}}] {service}");
    assert_eq!(looked_up(&[], &alert).await, both);

    let told = broker.run(&["lookup", &service[..20]]).await.ok().stdout;
    assert!(told.contains("service   pay"), "{told}");
    let secret = &service[21..];
    assert!(!told.contains(secret), "{told}");
    // The id that it prints ends the token.
    let delete = ["service", "token", "delete", "pay", &id(&service)];
    broker.run(&delete).await.ok();
    let gone = broker.run(&["lookup", &service]).await;
    let gone = gone.fails(5, &["knows none of these tokens"]);
    assert!(!gone.stderr.contains(secret), "{gone:#?}");
    let log = broker.audit().await;
    assert!(!log.iter().any(|record| record.to_string().contains(secret)));
}
