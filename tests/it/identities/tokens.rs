//! Signed tokens of an issuer that the configuration names.

mod forged;
mod issuer;
mod recipes;
mod review;

use std::fs;

use serde_json::{Value, json};
use tokio::process::Child;

use self::issuer::{Issuer, Signs, now};
use super::streams::{end_with_the_token, tail_ends_with_the_token};
use crate::harness::{
    Account, Run,
    broker::{aws_env, credbroker},
    eventually,
    site::{Site, stop},
};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://broker.example";
const SUBJECT: &str = "repo:acme/pay:ref:refs/heads/main";

/// A broker that accepts tokens of one issuer, whose keys are in a file.
struct Taken {
    site: Site,
    issuer: Issuer,
    child: Child,
    account: Account,
}

impl Taken {
    async fn new() -> Self {
        let issuer = Issuer::new();
        let site =
            Site::sealed(|site| configured(&format!("jwks_file = {:?}", site.text("keys.json"))));
        fs::write(site.path("keys.json"), issuer.keys().to_string()).unwrap();
        let account = Account::new().await;
        let child = site.serving(&account.admin).await;
        site.payments_api().await;
        Self {
            site,
            issuer,
            child,
            account,
        }
    }

    async fn bound() -> Self {
        let world = Self::new().await;
        world
            .bind("payments-api", "repo:acme/pay:*", &["repository_id=42"])
            .await;
        world
    }

    async fn bind(&self, service: &str, subject: &str, claims: &[&str]) {
        self.site.run(&binding(service, subject, claims)).await.ok();
    }

    async fn whoami(&self, token: &str) -> Value {
        let whoami = self.site.run_as(token, &["whoami", "-o", "json"]).await;
        whoami.ok().json()
    }

    async fn refused(&self) -> Vec<Value> {
        let query = ["audit", "query", "--event", "login.failed", "-o", "json"];
        let records = self.site.run(&query).await.ok().json();
        records.as_array().unwrap().clone()
    }
}

fn binding<'a>(service: &'a str, subject: &'a str, claims: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["service", "bind", service, "--oidc-issuer", ISSUER];
    args.extend(["--oidc-subject", subject]);
    args.extend(claims.iter().flat_map(|claim| ["--oidc-claim", claim]));
    args
}

fn configured(keys: &str) -> String {
    format!(
        "[[oidc.issuers]]\nissuer = {ISSUER:?}\naudiences = [{AUDIENCE:?}]\n{keys}\noperator_prefix = \"acme-\"\n\
         operator_name_claim = \"login\"\n\
         [[oidc.issuers.operators]]\nclaim = \"groups\"\nvalue = \"platform\"\nrole = \"admin\"\n\
         [[oidc.issuers.operators]]\nclaim = \"groups\"\nvalue = \"staff\"\nrole = \"viewer\"\n"
    )
}

/// Claims of a good token.
fn good() -> Value {
    json!({
        "iss": ISSUER, "sub": SUBJECT, "aud": AUDIENCE, "iat": now(), "exp": now() + 300,
        "repository_id": "42",
    })
}

fn changed(name: &str, value: Value) -> Value {
    let mut claims = good();
    claims[name] = value;
    claims
}

#[tokio::test]
async fn a_service_authenticates_by_a_token_of_every_algorithm() {
    let world = Taken::bound().await;
    for signer in Signs::ALL {
        let token = world.issuer.sign(signer, &good());
        let who = world.whoami(&token).await;
        assert_eq!(who["actor"], "service:payments-api", "{signer:?} {who:#}");
        assert_eq!(who["evidence"], format!("jwt of {ISSUER} for {SUBJECT}"));
        assert_eq!(who["binding"]["oidc"]["subject"], "repo:acme/pay:*");
        assert_eq!(
            who["binding"]["oidc"]["claims"],
            json!({"repository_id": "42"})
        );
        assert!(who["expires_at"].is_string());
    }
    let several = changed("aud", json!(["other", AUDIENCE]));
    let token = world.issuer.sign(Signs::Es256, &several);
    world.site.assert_issues(&token).await;
    let fraction: Value = format!("{}.5", now() + 200).parse().unwrap();
    let fraction = changed("exp", fraction);
    world
        .whoami(&world.issuer.sign(Signs::Rs256, &fraction))
        .await;
}

#[tokio::test]
async fn an_operator_of_an_issuer_gets_its_role_from_its_group() {
    let world = Taken::bound().await;
    let login = |name: &str, groups: Value| {
        let mut claims = good();
        claims["sub"] = json!("user-1");
        claims["login"] = json!(name);
        claims["groups"] = groups;
        world.issuer.sign(Signs::EdDsa, &claims)
    };
    let admin = login("ann", json!(["staff", "platform"]));
    let who = world.whoami(&admin).await;
    assert_eq!(
        (&who["actor"], &who["role"]),
        (&json!("operator:acme-ann"), &json!("admin"))
    );
    world
        .site
        .run_as(&admin, &["service", "create", "made"])
        .await
        .ok();
    let viewer = login("vera", json!("staff"));
    world.site.run_as(&viewer, &["service", "list"]).await.ok();
    world
        .site
        .run_as(&viewer, &["service", "create", "no"])
        .await
        .fails(4, &["role viewer"]);
    for (token, reason) in [
        (login("Ann Smith", json!("staff")), "OPERATOR_NAME_INVALID"),
        (login("ann", json!("others")), "IDENTITY_UNBOUND"),
        (login("ann", json!({"0": "platform"})), "IDENTITY_UNBOUND"),
    ] {
        world
            .site
            .run_as(&token, &["whoami"])
            .await
            .fails(3, &["not accepted"]);
        assert_eq!(world.refused().await.pop().unwrap()["reason"], reason);
    }
    // A name of the broker's own operator is reserved for that operator.
    let create = ["operator", "create", "acme-ann", "--role", "viewer"];
    world.site.run(&create).await.ok();
    world
        .site
        .run_as(&admin, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
    assert_eq!(
        world.refused().await.pop().unwrap()["reason"],
        "OPERATOR_NAME_TAKEN"
    );
    // A caller cannot be both a service and an operator.
    let mut both = good();
    both["groups"] = json!("staff");
    both["login"] = json!("bob");
    let both = world.issuer.sign(Signs::Es256, &both);
    world
        .site
        .run_as(&both, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
    assert_eq!(
        world.refused().await.pop().unwrap()["reason"],
        "IDENTITY_AMBIGUOUS"
    );
}

#[tokio::test]
async fn operators_are_identified_by_subject_and_a_name_of_two_subjects_is_refused() {
    let Taken {
        site,
        issuer,
        child,
        account,
    } = Taken::new().await;
    stop(child).await;
    let config = fs::read_to_string(site.path("config.toml")).unwrap();
    let config = config.replace("# two_person", "two_person");
    fs::write(site.path("config.toml"), config).unwrap();
    let child = site.serving(&account.admin).await;
    let admin = |subject: &str, name: &str| {
        let mut claims = good();
        claims["sub"] = json!(subject);
        claims["login"] = json!(name);
        claims["groups"] = json!("platform");
        issuer.sign(Signs::EdDsa, &claims)
    };
    let ann = admin("user-1", "ann");
    let create = ["operator", "create", "dora", "--role", "viewer"];
    let asked = site.run_as(&ann, &create).await;
    asked.fails(6, &["APPROVAL_REQUIRED"]);
    let list = ["approval", "list", "-o", "json"];
    let open = site.run_as(&ann, &list).await.ok().json();
    let id = open[0]["approval_id"].as_str().unwrap();
    let approve = ["approval", "approve", id];
    for (subject, name) in [("user-1", "ann-two"), ("user-2", "ann")] {
        let own = site.run_as(&admin(subject, name), &approve).await;
        own.fails(6, &["APPROVAL_OWN"]);
    }
    let bob = admin("user-2", "bob");
    site.run_as(&bob, &approve).await.ok();
    let stranger = site.run_as(&admin("user-3", "ann"), &create).await;
    stranger.fails(6, &["APPROVAL_REQUIRED"]);
    site.run_as(&ann, &create).await.ok();
    stop(child).await;
}

#[tokio::test]
async fn overlapping_bindings_of_two_services_are_refused() {
    let world = Taken::bound().await;
    let site = &world.site;
    site.create("billing").await;
    for (subject, claims) in [
        ("repo:acme/pay:*", &["repository_id=42"][..]),
        ("repo:*", &[]),
        (SUBJECT, &[]),
        ("repo:acme/*:ref:*", &["environment=prod"]),
    ] {
        let refused = site.run(&binding("billing", subject, claims)).await;
        refused.fails(
            6,
            &["service payments-api is known by subject", "IDENTITY_TAKEN"],
        );
    }
    for (subject, claims) in [
        ("repo:acme/billing:*", &["repository_id=42"][..]),
        ("repo:acme/*", &["repository_id=43"]),
    ] {
        site.run(&binding("billing", subject, claims)).await.ok();
    }
    // Rules of one service may overlap.
    let again = binding("payments-api", SUBJECT, &["repository_id=42"]);
    site.run(&again).await.ok();
    let whose = async |repository: &str| {
        let claims = changed("repository_id", json!(repository));
        let token = world.issuer.sign(Signs::Es256, &claims);
        world.whoami(&token).await["actor"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(whose("42").await, "service:payments-api");
    assert_eq!(whose("43").await, "service:billing");
    let refused = site.run(&binding("payments-api", SUBJECT, &[])).await;
    refused.fails(
        6,
        &[
            "service billing is known by subject repo:acme/*",
            "IDENTITY_TAKEN",
        ],
    );
    site.run(&again)
        .await
        .fails(6, &["service payments-api is known by", "IDENTITY_TAKEN"]);
    for (wrong, words) in [
        (binding("billing", "*", &[]), "something beside them"),
        (binding("billing", "a", &["iss=x"]), "checked anyway"),
        (
            vec![
                "service",
                "bind",
                "billing",
                "--oidc-issuer",
                "issuer",
                "--oidc-subject",
                "a",
            ],
            "https://",
        ),
        (
            vec!["service", "bind", "billing", "--oidc-issuer", ISSUER],
            "--oidc-subject",
        ),
    ] {
        site.run(&wrong).await.fails(2, &[words]);
    }
}

#[tokio::test]
async fn a_suspended_service_and_an_ended_binding_are_refused_whatever_the_token_says() {
    let world = Taken::bound().await;
    let token = world.issuer.sign(Signs::Ps256, &good());
    world.whoami(&token).await;
    world
        .site
        .run(&["service", "suspend", "payments-api"])
        .await
        .ok();
    world
        .site
        .run_as(&token, &["whoami"])
        .await
        .fails(4, &["suspended"]);
    world
        .site
        .run(&["service", "reinstate", "payments-api"])
        .await
        .ok();
    let who = world.whoami(&token).await;
    let id = who["binding"]["binding_id"].as_str().unwrap();
    let delete = ["service", "binding", "delete", "payments-api", id];
    world.site.run(&delete).await.ok();
    world
        .site
        .run_as(&token, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
}

#[tokio::test]
async fn a_new_issuer_key_is_fetched_and_a_removed_one_is_refused() {
    let mut world = Taken::bound().await;
    let old = world.issuer.sign(Signs::Es256, &good());
    world.whoami(&old).await;
    world.issuer = Issuer::new();
    let keys = world.site.path("keys.json");
    fs::write(&keys, "rubbish").unwrap();
    world.whoami(&old).await;
    fs::write(&keys, world.issuer.keys().to_string()).unwrap();
    let new = world.issuer.sign(Signs::Es256, &good());
    let is_taken = async || {
        let run = world.site.run_as(&new, &["whoami"]).await;
        (run.code == 0).then_some(())
    };
    crate::harness::eventually("the new key", is_taken).await;
    world
        .site
        .run_as(&old, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
    assert_eq!(
        world.refused().await.pop().unwrap()["reason"],
        "JWT_KEY_UNKNOWN"
    );
}

#[tokio::test]
async fn unknown_key_ids_cause_one_fetch_of_the_keys() {
    let mut issuer = Issuer::new();
    let account = Account::new().await;
    let site = Site::sealed(|site| {
        let server = issuer.listen(&site.path("tls.pem"), &site.path("tls.key"));
        configured(&format!(
            "jwks_url = \"https://{server}/keys\"\nca_file = {:?}",
            site.text("tls.pem")
        ))
    });
    let served = issuer.serve();
    let _child = site.serving(&account.admin).await;
    site.payments_api().await;
    site.run(&binding("payments-api", SUBJECT, &[])).await.ok();
    let token = issuer.sign(Signs::Es256, &good());
    site.run_as(&token, &["whoami"]).await.ok();
    assert_eq!(served.asked(), 1);
    // The broker requests unknown keys from the issuer at most once in half a minute.
    for _ in 0..5 {
        let unknown = Issuer::new().sign(Signs::Es256, &good());
        site.run_as(&unknown, &["whoami"])
            .await
            .fails(3, &["not accepted"]);
    }
    assert_eq!(served.asked(), 1);
    site.run_as(&token, &["whoami"]).await.ok();
}

#[tokio::test]
async fn a_broker_without_issuer_keys_starts_and_refuses_tokens_until_they_arrive() {
    let issuer = Issuer::new();
    let account = Account::new().await;
    let site =
        Site::sealed(|site| configured(&format!("jwks_file = {:?}", site.text("keys.json"))));
    let _child = site.serving(&account.admin).await;
    site.payments_api().await;
    site.run(&binding("payments-api", SUBJECT, &[])).await.ok();
    let token = issuer.sign(Signs::Rs256, &good());
    site.run_as(&token, &["whoami"])
        .await
        .fails(3, &["not accepted"]);
    fs::write(site.path("keys.json"), issuer.keys().to_string()).unwrap();
    let is_taken = async || (site.run_as(&token, &["whoami"]).await.code == 0).then_some(());
    crate::harness::eventually("the keys", is_taken).await;
}

#[tokio::test]
async fn streams_end_when_the_key_of_their_token_is_gone() {
    let world = Taken::bound().await;
    // A token with an unknown key makes the broker read the keys again, but not often.
    let known = async |issuer: &Issuer| {
        fs::write(world.site.path("keys.json"), issuer.keys().to_string()).unwrap();
        let token = issuer.sign(Signs::Es256, &good());
        let let_in =
            async || (world.site.run_as(&token, &["whoami"]).await.code == 0).then_some(());
        eventually("it is let in", let_in).await;
    };
    let other = Issuer::new();
    let ends = async || known(&other).await;
    let token = world.issuer.sign(Signs::Es256, &good());
    end_with_the_token(&world.site, &token, "JWT_KEY_UNKNOWN", ends).await;
    known(&world.issuer).await;
    let mut claims = changed("sub", json!("user-1"));
    claims["login"] = json!("ann");
    claims["groups"] = json!(["platform"]);
    let operator = world.issuer.sign(Signs::Es256, &claims);
    tail_ends_with_the_token(&world.site, &operator, "JWT_KEY_UNKNOWN", ends).await;
}

#[tokio::test]
async fn an_operator_of_an_issuer_revokes_while_the_broker_is_down() {
    let world = Taken::bound().await;
    stop(world.child).await;
    let operator = |groups: &str| {
        let mut claims = changed("sub", json!("user-1"));
        claims["login"] = json!("ann");
        claims["groups"] = json!([groups]);
        world.issuer.sign(Signs::Es256, &claims)
    };
    let config = world.site.text("config.toml");
    let revoke = async |token: String| {
        let args = ["revoke", "payments-api", "--offline", "--config", &config];
        let mut command = credbroker(&args);
        command
            .envs(aws_env(&world.account.admin))
            .env("CREDBROKER_TOKEN", token);
        Run::of(command, "").await
    };
    let viewer = revoke(operator("staff")).await;
    viewer.fails(4, &["role viewer may not do this"]);
    let forged = Issuer::new().sign(Signs::Es256, &good());
    revoke(forged)
        .await
        .fails(3, &["the token was not accepted"]);
    revoke(operator("platform")).await.ok();

    let child = world.site.serving(&world.account.admin).await;
    let shown = ["service", "show", "payments-api", "-o", "json"];
    let service = world.site.run(&shown).await.ok().json();
    assert_eq!(service["suspended"], true, "{service:#}");
    stop(child).await;
}
