//! Recipes of `docs/oidc.md`: the test configures and binds them as written, and the broker accepts
//! a token of that issuer's shape.

use std::fs;

use serde_json::{Value, json};

use super::{AUDIENCE, Issuer, Signs, now};
use crate::harness::{
    Account,
    site::{Site, stop},
};

const DOCS: &str = include_str!("../../../../docs/oidc.md");

/// Texts between the fences of this language.
fn blocks(language: &str) -> impl Iterator<Item = &'static str> {
    let fence = format!("\n```{language}\n");
    DOCS.match_indices(&fence.clone())
        .map(move |(at, _)| {
            let rest = &DOCS[at + fence.len()..];
            rest.split("```").next().unwrap()
        })
        .collect::<Vec<_>>()
        .into_iter()
}

/// Commands that bind a service, split into words.
fn binds() -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for block in blocks("") {
        let lines = block.replace("\\\n", " ");
        for line in lines
            .lines()
            .filter(|l| l.starts_with("credbroker service bind"))
        {
            // Words have no spaces in them.
            let words = line.split_whitespace().skip(1);
            commands.push(words.map(|word| word.replace('\'', "")).collect());
        }
    }
    commands
}

fn issuer_of(command: &[String]) -> &str {
    let at = command.iter().position(|word| word == "--oidc-issuer");
    &command[at.unwrap() + 1]
}

/// Claims of these issuers' tokens besides the common ones: of a good token, and of a token of
/// another workload of the same issuer.
fn claims(issuer: &str) -> (Signs, Value, Value) {
    let pod = |account: &str| {
        json!({
            "sub": format!("system:serviceaccount:shop:{account}"),
            "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": account}},
        })
    };
    let job = |id: &str| {
        json!({
            "sub": "repo:acme/shop:environment:production", "repository": "acme/shop",
            "repository_id": id, "repository_owner_id": "815", "ref": "refs/heads/main",
        })
    };
    let pipeline = |id: &str| {
        json!({
            "sub": "project_path:acme/shop:ref_type:branch:ref:main", "project_id": id,
            "ref_protected": "true",
        })
    };
    let role = |name: &str| {
        json!({
            "sub": format!("arn:aws:iam::111122223333:role/{name}"),
            "https://sts.amazonaws.com/": {"aws_account": "111122223333"},
        })
    };
    let workload = |name: &str| json!({"sub": format!("spiffe://prod.example/ns/shop/sa/{name}")});
    match issuer {
        "https://kubernetes.default.svc.cluster.local" => {
            (Signs::Rs256, pod("payments-api"), pod("other"))
        }
        "https://token.actions.githubusercontent.com" => (Signs::Rs256, job("4711"), job("4712")),
        "https://gitlab.com" => (Signs::Rs256, pipeline("4711"), pipeline("4712")),
        "https://ISSUER-OF-THE-ACCOUNT" => (Signs::Es384, role("payments"), role("other")),
        "https://oidc.prod.example" => (Signs::Es256, workload("pay"), workload("other")),
        unknown => panic!("the recipe for {unknown} is not tried"),
    }
}

#[tokio::test]
async fn every_documented_recipe_accepts_its_token_alone() {
    let (account, issuer, commands) = (Account::new().await, Issuer::new(), binds());
    assert_eq!(commands.len(), 5, "{commands:?}");
    let site = Site::with_audit(|site| {
        let keys = format!("jwks_file = {:?}", site.text("keys.json"));
        let mut issuers: Vec<String> = blocks("toml")
            .filter(|block| block.contains("[[oidc.issuers]]\nissuer"))
            .map(|block| {
                let lines = block.lines().map(|line| {
                    if line.starts_with("jwks_") {
                        keys.as_str()
                    } else {
                        line
                    }
                });
                lines.collect::<Vec<_>>().join("\n")
            })
            .collect();
        assert_eq!(issuers.len(), 4);
        let last = issuer_of(&commands[4]);
        issuers.push(format!(
            "[[oidc.issuers]]\nissuer = {last:?}\naudiences = [{AUDIENCE:?}]\n{keys}"
        ));
        issuers.join("\n")
    });
    fs::write(site.path("keys.json"), issuer.keys().to_string()).unwrap();
    let child = site.serving(&account.admin).await;
    for service in ["payments-api", "deploy"] {
        site.create(service).await;
    }
    for command in &commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        site.run(&words).await.ok();
        let (signs, good, other) = claims(issuer_of(command));
        let token = |mut claims: Value| {
            let said = claims.as_object_mut().unwrap();
            said.insert("iss".to_owned(), json!(issuer_of(command)));
            said.insert("aud".to_owned(), json!([AUDIENCE]));
            said.insert("iat".to_owned(), json!(now()));
            said.insert("exp".to_owned(), json!(now() + 300));
            issuer.sign(signs, &claims)
        };
        let whoami = ["whoami", "-o", "json"];
        let known = site.run_as(&token(good), &whoami).await.ok().json();
        assert_eq!(known["binding"]["service"], command[2], "{known}");
        site.run_as(&token(other), &whoami)
            .await
            .fails(3, &["the token was not accepted"]);
    }
    stop(child).await;
}
