//! Settings, exit statuses, and what goes to which output.

use std::io::Write;

use tempfile::NamedTempFile;

use super::World;
use crate::harness::{Account, Broker, Run, broker::credbroker};

#[tokio::test]
async fn results_go_to_standard_output_and_everything_else_to_standard_error() {
    let world = World::new().await;
    let token = world
        .broker
        .run(&["service", "token", "create", "pay"])
        .await
        .ok();
    assert!(
        token.stdout.contains("cbs_") && !token.stdout.contains("shown once"),
        "{token:?}"
    );
    assert!(
        token.stderr.contains("shown once") && !token.stderr.contains("cbs_"),
        "{token:?}"
    );
    let broad = [
        "grant",
        "put",
        "pay/broad",
        "--kind",
        "iam_user",
        "--allow-broad",
        "--managed-policy",
        "arn:aws:iam::aws:policy/AdministratorAccess",
        "-o",
        "json",
    ];
    let put = world.broker.run(&broad).await.ok();
    assert_eq!(put.json()["name"], "pay/broad");
    assert!(put.stderr.contains("warning: broad"), "{put:?}");
    let issued = world.run(&["issue", "user"]).await.ok();
    assert!(
        issued.stdout.contains("secret_access_key") && issued.stderr.is_empty(),
        "{issued:?}"
    );
    let revoked = world
        .broker
        .run(&["revoke", "pay", "-o", "json"])
        .await
        .ok();
    assert_eq!(revoked.json()["confirmed"], true);
    let failed = world.broker.run(&["service", "show", "none"]).await;
    assert!(failed.stdout.is_empty(), "{failed:?}");
    failed.fails(5, &["error: there is no service none"]);
    for run in [token, put, issued, revoked] {
        let escape = '\u{1b}';
        assert!(
            !(run.stdout + &run.stderr).contains(escape),
            "colour, and no terminal"
        );
    }
}

#[tokio::test]
async fn each_kind_of_failure_has_its_exit_status() {
    let world = World::new().await;
    let service = Some(world.token.as_str());
    let cases: [(Option<&str>, &[&str], i32); 12] = [
        (None, &["service", "show", "pay"], 0),
        (None, &["service", "list", "--colour"], 2),
        (None, &["service", "create", "No!"], 2),
        (service, &["issue", "user", "--ttl", "91d"], 2),
        (Some("nonsense"), &["status"], 3),
        (service, &["status"], 4),
        (None, &["issue", "user"], 4),
        (None, &["service", "show", "none"], 5),
        (service, &["issue", "none"], 5),
        (None, &["service", "create", "pay"], 6),
        (None, &["service", "reinstate", "pay"], 6),
        (None, &["status", "--addr", "https://127.0.0.1:1"], 7),
    ];
    for (token, args, code) in cases {
        let run = world.broker.run_as(token, args).await;
        assert_eq!(run.code, code, "{args:?} {run:#?}");
        assert_eq!(run.stderr.is_empty(), code == 0, "{args:?} {run:#?}");
    }
    let format = world.broker.run(&["status", "-o", "env"]).await;
    format.fails(2, &["for `credbroker issue`"]);
}

#[tokio::test]
async fn a_token_file_may_end_in_a_line_break() {
    let broker = Broker::start(&Account::new().await).await;
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "{}", broker.admin_token()).unwrap();
    let path = file.path().to_str().unwrap();
    let run = async |args: &[&str], settings: &[(&str, &str)]| {
        let mut command = credbroker(args);
        let token = |(name, _): &&(String, String)| name != "CREDBROKER_TOKEN";
        command.envs(broker.env.iter().filter(token).cloned());
        command.envs(settings.iter().copied());
        Run::of(command, "").await
    };
    run(&["service", "list"], &[("CREDBROKER_TOKEN_FILE", path)])
        .await
        .ok();
    run(&["service", "list", "--token-file", path], &[])
        .await
        .ok();
    let missing = [("CREDBROKER_TOKEN_FILE", "/nowhere/token")];
    run(&["service", "list"], &missing)
        .await
        .fails(2, &["cannot read /nowhere/token"]);
    let not_it = [("CREDBROKER_TOKEN_FILE", "/dev/null")];
    run(&["service", "list"], &not_it)
        .await
        .fails(3, &["the token was not accepted"]);
}

#[tokio::test]
async fn a_missing_setting_is_named_with_what_to_do() {
    let broker = Broker::start(&Account::new().await).await;
    let flags = [
        ("CREDBROKER_ADDR", "--addr"),
        ("CREDBROKER_CA_FILE", "--ca-file"),
        ("CREDBROKER_TOKEN", "--token-file"),
    ];
    for (missing, flag) in flags {
        let mut command = credbroker(&["status"]);
        command.envs(
            broker
                .env
                .iter()
                .filter(|(name, _)| name != missing)
                .cloned(),
        );
        let run = Run::of(command, "").await;
        run.fails(2, &[missing, "is not set", flag, "credbroker dev"]);
    }
    let wrong = broker
        .run(&["status", "--addr", "broker.example:8443"])
        .await;
    wrong.fails(2, &["broker.example:8443", "https://host:8443"]);
    let wrong = broker
        .run(&["status", "--ca-file", "/nowhere/ca.pem"])
        .await;
    wrong.fails(2, &["cannot read /nowhere/ca.pem"]);
    broker.run(&["status"]).await.ok();
}

#[tokio::test]
async fn a_broker_of_another_ca_is_not_trusted() {
    let broker = Broker::start(&Account::new().await).await;
    let other = Broker::start(&Account::new().await).await;
    let ca = other.setting("CREDBROKER_CA_FILE");
    let run = broker.run(&["status", "--ca-file", ca]).await;
    run.fails(7, &["cannot reach the broker", "CREDBROKER_CA_FILE"]);
}

#[tokio::test]
async fn shells_get_a_completion_script() {
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef credbroker"),
        ("fish", "complete -c credbroker"),
    ] {
        let run = Run::of(credbroker(&["completion", shell]), "").await.ok();
        assert!(run.stdout.contains(mark), "{shell}");
        for command in ["revoke", "issue", "grant"] {
            assert!(run.stdout.contains(command), "{command} in {shell}");
        }
    }
    Run::of(credbroker(&["completion", "tcl"]), "")
        .await
        .fails(2, &["tcl"]);
}

#[tokio::test]
async fn every_command_explains_itself() {
    for args in [
        &["--help"][..],
        &["service", "--help"],
        &["service", "token", "--help"],
        &["grant", "put", "--help"],
        &["issue", "--help"],
        &["lease", "--help"],
        &["revoke", "--help"],
        &["audit", "query", "--help"],
        &["operator", "--help"],
        &["approval", "--help"],
        &["dev", "--help"],
        &["serve", "--help"],
        &["--version"],
    ] {
        let run = Run::of(credbroker(args), "").await.ok();
        assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{args:?}");
    }
    let nothing = Run::of(credbroker(&[]), "").await;
    nothing.fails(2, &["Usage"]);
    let version = Run::of(credbroker(&["--version"]), "").await.ok().stdout;
    assert_eq!(
        version,
        format!("credbroker {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test]
async fn a_reason_is_one_line_of_256_characters_at_most() {
    let world = World::new().await;
    let (longest, session) = ("ä".repeat(256), world.lease("user").await);
    for wrong in [&format!("{longest}x"), "two\nlines", "\u{1b}[31mred"] {
        for command in [
            &["revoke", "pay"][..],
            &["service", "suspend", "pay"],
            &["lease", "revoke", &session],
        ] {
            let run = world
                .broker
                .run(&[command, &["--reason", wrong]].concat())
                .await;
            run.fails(
                2,
                &["reason: a reason has up to 256 characters, on one line"],
            );
        }
    }
    assert_eq!(
        world.broker.json(&["lease", "show", &session]).await["state"],
        "active"
    );
    let revoke = ["lease", "revoke", &session, "--reason", &longest];
    let revoked = world.broker.json(&revoke).await;
    assert_eq!(revoked["reason"], format!("revoked: {longest}"));
}
