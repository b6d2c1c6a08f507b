//! `serve`, with a configuration derived from the shipped one.

use std::process::Stdio;

use credbroker::proto::WhoAmIRequest;
use rcgen::KeyPair;
use tokio::process::Command;

use super::{address, mode};
use crate::harness::{
    Account, Run,
    broker::credbroker,
    emulator::emulator,
    eventually,
    site::{Site, stop},
    stored::Stored,
    wire::tls_get,
};

#[tokio::test]
async fn serve_follows_its_configuration_and_makes_the_first_operator_once() {
    let (site, account) = (Site::new(), Account::new().await);
    let child = site.serving(&account.admin).await;
    assert_eq!(mode(&site.path("admin-token")), 0o600);
    if let Stored::File(path) = &site.stored {
        assert_eq!(mode(path), 0o600);
    }
    let status = site.run(&["status", "-o", "json"]).await.ok().json();
    assert_eq!(status["region"], "eu-central-1");
    assert!(
        status["admin_arn"]
            .as_str()
            .unwrap()
            .ends_with(":user/credbroker-admin"),
        "{status}"
    );
    site.run(&["service", "create", "payments-api"]).await.ok();
    let answer = tls_get(address(&site.env()), &site.path("tls.pem"), "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    stop(child).await;

    // The token stays valid after a move to a safe place, and is not created again.
    let safe = site.path("safe");
    std::fs::rename(site.path("admin-token"), &safe).unwrap();
    let mut again = site.serve(&account.admin);
    let again = again.stdin(Stdio::null()).stderr(Stdio::null());
    let child = again.spawn().unwrap();
    let safe = safe.to_str().unwrap();
    let show = ["service", "show", "payments-api", "--token-file", safe];
    let shows = async || (site.run(&show).await.code == 0).then_some(());
    eventually("it serves again", shows).await;
    assert!(!site.path("admin-token").exists());
    stop(child).await;
}

#[tokio::test]
async fn serve_does_not_start_without_the_boundary_and_says_how_to_make_it() {
    let (site, account) = (Site::new(), Account::empty());
    let run = Run::of(site.serve(&account.root), "").await;
    let boundary = format!(
        "arn:aws:iam::{}:policy/credbroker/credbroker-boundary",
        account.id
    );
    let words = [
        &boundary,
        "deploy/aws/bootstrap.sh",
        "aws iam create-policy --path /credbroker/ --policy-name credbroker-boundary",
    ];
    run.fails(6, &words);
    let iam = account.root.iam();
    let make = iam.create_policy().path("/credbroker/");
    let make = make.policy_name("credbroker-boundary");
    let document = include_str!("../../../deploy/aws/boundary-policy.json");
    make.policy_document(document).send().await.unwrap();
    stop(site.serving(&account.root).await).await;
}

#[tokio::test]
async fn all_mistakes_of_a_configuration_are_reported_together() {
    let (site, account) = (Site::new(), Account::new().await);
    let wrong = site
        .config()
        .replace(&site.address, "localhost")
        .replace(
            "region = \"eu-central-1\"",
            "region = \"Europe\"\ncolour = \"blue\"",
        )
        .replace("tls_key_file", "# tls_key_file")
        .replace("format = \"text\"", "format = \"xml\"");
    std::fs::write(site.path("config.toml"), wrong).unwrap();
    let run = Run::of(site.serve(&account.admin), "").await;
    let words = [
        "mistakes: 5",
        "listen.address: ",
        "listen.tls_key_file: is missing",
        "aws.region: write it like eu-central-1",
        "aws.colour: is not a setting",
        "log.format: choose text or json",
    ];
    run.fails(2, &words);
    assert!(!site.path("credbroker.db").exists());

    std::fs::remove_file(site.path("config.toml")).unwrap();
    let run = Run::of(site.serve(&account.admin), "").await;
    run.fails(2, &["cannot read", "config.toml"]);

    std::fs::write(site.path("config.toml"), site.config()).unwrap();
    stop(site.serving(&account.admin).await).await;
}

#[tokio::test]
async fn an_unusable_certificate_is_reported_before_anything_is_created() {
    let (site, account) = (Site::new(), Account::new().await);
    let key = std::fs::read(site.path("tls.key")).unwrap();
    let foreign = KeyPair::generate().unwrap().serialize_pem();
    for (wrong, words) in [
        (
            foreign.as_str(),
            "the TLS certificate and key cannot be used",
        ),
        ("no key", "cannot read the TLS private key"),
    ] {
        std::fs::write(site.path("tls.key"), wrong).unwrap();
        let run = Run::of(site.serve(&account.admin), "").await;
        run.fails(2, &[words]);
    }
    assert!(!site.path("credbroker.db").exists());
    std::fs::write(site.path("tls.key"), key).unwrap();
    stop(site.serving(&account.admin).await).await;
}

/// Configuration with a sealing key file, and more settings of its section.
fn keeping(site: &Site, more: &str) -> String {
    let file = site.path("seal.key").display().to_string();
    let setting = "# sealing_key_file = \"/run/credentials/credbroker.service/seal.key\"";
    let config = site.config();
    assert!(config.contains(setting));
    config.replace(setting, &format!("sealing_key_file = {file:?}\n{more}"))
}

#[tokio::test]
async fn serve_without_an_admin_key_waits_for_one_to_be_imported() {
    let (site, account) = (Site::new(), Account::new().await);
    let without = |site: &Site| {
        let mut command = site.serve(&account.admin);
        command.env("HOME", site.directory.path());
        command.env_remove("AWS_ACCESS_KEY_ID");
        command.env_remove("AWS_SECRET_ACCESS_KEY");
        command
    };
    // Without a place to store a key there is nothing to wait for.
    let run = Run::of(without(&site), "").await;
    run.fails(6, &["the broker has no AWS admin key"]);

    std::fs::write(site.path("config.toml"), keeping(&site, "")).unwrap();
    let run = Run::of(without(&site), "").await;
    run.fails(1, &["cannot use", "seal.key"]);
    std::fs::write(site.path("seal.key"), "hush").unwrap();
    let run = Run::of(without(&site), "").await;
    assert!(!run.stderr.contains("hush"));
    run.fails(
        2,
        &["seal.key cannot be used: a sealing key has 32 random bytes in base64"],
    );

    let key = data_encoding::BASE64.encode(&[9; 32]);
    std::fs::write(site.path("seal.key"), key).unwrap();
    let child = site.serving_by(without(&site)).await;
    let status = site.run(&["status", "-o", "json"]).await.ok().json();
    assert_eq!(status["aws_error"], "the broker has no AWS admin key");
    let (id, secret) = (&account.admin.id, &account.admin.secret);
    let file = format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    let mut import = credbroker(&["admin-key", "import"]);
    import.envs(site.env());
    Run::of(import, &file).await.ok();
    let status = site.run(&["status", "-o", "json"]).await.ok().json();
    assert!(status["admin_arn"].is_string(), "{status}");
    stop(child).await;
    stop(site.serving_by(without(&site)).await).await;
}

#[tokio::test]
async fn a_sealing_key_encrypted_by_kms_is_opened() {
    let (site, account) = (Site::new(), Account::new().await);
    let region = "sealing_kms_region = \"us-east-1\"";
    std::fs::write(site.path("config.toml"), keeping(&site, region)).unwrap();
    let kms = aws_sdk_kms::Client::new(&account.root.config());
    let made = kms.create_key().send().await.unwrap().key_metadata.unwrap();
    let encrypt = |context: &'static str| {
        let (kms, key) = (kms.clone(), made.key_id.clone());
        async move {
            let call = kms.encrypt().key_id(key).plaintext(vec![9; 32].into());
            let call = call.encryption_context("purpose", context);
            let blob = call.send().await.unwrap().ciphertext_blob.unwrap();
            data_encoding::BASE64.encode(blob.as_ref())
        }
    };
    std::fs::write(
        site.path("seal.key"),
        encrypt("credbroker-sealing-key").await,
    )
    .unwrap();
    let with_kms = || {
        let mut serve = site.serve(&account.admin);
        serve.env("AWS_ENDPOINT_URL_KMS", &emulator().endpoint);
        serve
    };
    // The admin policy of deploy/ does not reach KMS.
    let run = Run::of(with_kms(), "").await;
    run.fails(6, &["the sealing key cannot be opened", "kms:Decrypt"]);

    let decrypt = serde_json::json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*"},
    ]});
    account.let_admin(&decrypt).await;
    let child = site.serving_by(with_kms()).await;
    let (id, secret) = (&account.admin.id, &account.admin.secret);
    let file = format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    let mut import = credbroker(&["admin-key", "import"]);
    import.envs(site.env());
    Run::of(import, &file).await.ok();
    stop(child).await;
    stop(site.serving_by(with_kms()).await).await;

    // Data encrypted for another purpose is not a sealing key.
    std::fs::write(site.path("seal.key"), encrypt("something-else").await).unwrap();
    let run = Run::of(with_kms(), "").await;
    run.fails(6, &["the sealing key cannot be opened"]);
}

#[tokio::test]
async fn a_configuration_is_checked_without_a_store_or_aws() {
    let site = Site::new();
    let config = site.text("config.toml");
    let check = [
        "serve",
        "--check",
        "--config",
        config.as_str(),
        "-o",
        "json",
    ];
    let checked = site.run(&check).await.ok().json();
    assert_eq!(checked["valid"], true, "{checked}");
    assert!(!site.path("credbroker.db").exists());
    site.set("region = \"eu-central-1\"", "region = \"Europe\"");
    site.run(&check)
        .await
        .fails(2, &["aws.region: write it like eu-central-1"]);
    site.set("region = \"Europe\"", "region = \"eu-central-1\"");
    std::fs::write(site.path("tls.key"), "no key").unwrap();
    site.run(&check)
        .await
        .fails(2, &["cannot read the TLS private key"]);
}

#[tokio::test]
async fn sighup_rereads_the_configuration_and_ends_no_connection() {
    let (site, account) = (Site::new(), Account::new().await);
    let child = site.serving(&account.admin).await;
    let token = site.service("loops").await;
    let pid = child.id().unwrap().to_string();
    let hang_up = async |words: &str| {
        let kill = Command::new("kill").args(["-HUP", &pid]).status();
        assert!(kill.await.unwrap().success());
        let told = async || {
            let log = std::fs::read_to_string(site.path("log")).unwrap();
            log.contains(words).then_some(())
        };
        eventually(words, told).await;
    };
    hang_up("the configuration is read again").await;

    site.set("# calls_per_second = 200", "calls_per_second = 1");
    hang_up("the limits of services have changed").await;
    let client = site.client(&token).await;
    let who = async || client.identity().who_am_i(WhoAmIRequest {}).await;
    let slowed = async || who().await.err();
    let refused = eventually("it is slowed down", slowed).await;
    assert!(
        refused.message().contains("more than 1 times a second"),
        "{refused:?}"
    );

    site.set("eu-central-1", "eu-west-1");
    hang_up("settings have changed that take a restart").await;
    site.set("calls_per_second = 1", "calls_per_second = \"many\"");
    hang_up("the configuration stays as it was").await;
    let log = std::fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("limits.calls_per_second"), "{log}");
    site.run(&["status"]).await.ok();
    stop(child).await;
}
