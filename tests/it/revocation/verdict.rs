//! Verdict of `revoke`, which its exit status repeats, and the preview of `--dry-run`.

use serde_json::{Value, json};

use crate::harness::{Key, Run, World, eventually, proxy::Fault};

/// Makes AWS refuse the canary session.
fn no_session(world: &World) {
    let refused = Fault::Answer(403, "AccessDenied", "not authorized");
    world.proxy.inject("AssumeRole", refused);
}

/// Lines of the output that begin like this.
fn lines(run: &Run, beginning: &str) -> Vec<String> {
    let lines = run.stdout.lines().map(str::trim);
    let lines = lines.filter(|line| line.starts_with(beginning));
    lines.map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn a_confirmed_revocation_prints_a_line_per_kind_and_a_verdict() {
    let world = World::new().await;
    for _ in 0..2 {
        world.issued(&["role"]).await;
        world.issued(&["user"]).await;
    }
    let told = world.broker.run(&["revoke", "payments-api"]).await.ok();
    let seen = lines(&told, &world.role);
    assert!(seen[1].contains(" s (sqs:ListQueues in "), "{told:#?}");
    let of_kinds = lines(&told, "leases of ");
    assert_eq!(of_kinds.len(), 2, "{told:#?}");
    let ways = [("assume_role", "refused"), ("iam_user", "gone")];
    for (line, (kind, how)) in of_kinds.iter().zip(ways) {
        let expected = format!("leases of {kind}: 2 {how}, the last after ");
        assert!(line.starts_with(&expected), "{line}");
    }
    let last = told.stdout.lines().last().unwrap();
    let both = "done: AWS was seen to refuse the sessions that payments-api held, the last after ";
    assert!(last.starts_with(both), "{told:#?}");
    assert!(
        last.contains("and the rest is gone in AWS, the last after "),
        "{told:#?}"
    );
    assert_eq!(lines(&told, "not reached").len(), 1, "{told:#?}");
    assert_eq!(lines(&told, "open"), [""; 0]);
    // The second revocation has nothing left but access made from the sessions.
    let again = world.broker.run(&["revoke", "payments-api"]).await.ok();
    let expected = "done: AWS was seen to refuse all that payments-api held, the last after ";
    assert!(again.stdout.lines().last().unwrap().starts_with(expected));
    world.broker.service("billing").await;
    let nothing = world.broker.run(&["revoke", "billing"]).await.ok();
    let last = "done: nothing that billing held can still work";
    assert_eq!(nothing.stdout.lines().last(), Some(last));
    assert_eq!(lines(&nothing, "not reached"), [""; 0]);
}

#[tokio::test]
async fn an_unconfirmed_revocation_prints_its_reasons_and_exits_with_7() {
    let world = World::new().await;
    for _ in 0..3 {
        world.issued(&["role"]).await;
    }
    no_session(&world);
    let told = world.broker.run(&["revoke", "payments-api"]).await;
    let told = told.fails(
        7,
        &[
            "payments-api gets nothing any more",
            "AWS was not seen to refuse all that it held; leases that may still work: 3 of 3, until 20",
            "credbroker revoke payments-api --wait",
        ],
    );
    let open = lines(&told, "open");
    let [open] = &open[..] else {
        panic!("{told:#?}")
    };
    for words in [
        &world.role,
        "leases that may work: 3, until 20",
        "cannot be had",
    ] {
        assert!(open.contains(words), "{words} in {open}");
    }
    let told = world.broker.revoked(&["payments-api"]).await;
    let open = &told["open"];
    assert_eq!(open[0]["holders"], json!([world.role]), "{told:#}");
    assert_eq!(open[0]["leases"], 3, "{told:#}");
    assert!(open[0]["until"].is_string() && open[1] == Value::Null);
}

#[tokio::test]
async fn revoke_with_wait_returns_once_aws_refuses() {
    let world = World::new().await;
    let key = Key::issued(&world.issued(&["role"]).await);
    no_session(&world);
    let healing = async {
        let postponed = "SELECT count(*) FROM audit WHERE event = 'denial.postponed'";
        let once = async || (world.broker.count(postponed).await > 0).then_some(());
        eventually("the first attempt comes to nothing", once).await;
        world.proxy.heal();
    };
    let revoke = ["revoke", "payments-api", "--wait"];
    let (told, ()) = tokio::join!(world.broker.run(&revoke), healing);
    let told = told.ok();
    let last = told.stdout.lines().last().unwrap();
    assert!(last.starts_with("done: "), "{told:#?}");
    assert!(!key.is_served().await);
    assert_eq!(lines(&told, "open"), [""; 0]);

    no_session(&world);
    let soon = ["payments-api", "--wait=1s"];
    assert_eq!(world.broker.revoked(&soon).await["confirmed"], false);
    let long = ["revoke", "payments-api", "--wait=2h"];
    let refused = world.broker.run(&long).await;
    refused.fails(2, &["wait: is a whole number of seconds, up to an hour"]);
}

#[tokio::test]
async fn a_reinstatement_lists_reactivated_credentials_with_their_ending_commands() {
    let world = World::new().await;
    let create = ["operator", "create", "ria", "--role", "responder"];
    let responder = world.broker.json(&create).await;
    let responder = responder["token"].as_str();
    let tokens = ["service", "token", "list", "payments-api"];
    let tokens = world.broker.json(&tokens).await;
    let token = tokens[0]["token_id"].as_str().unwrap();
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    let reinstate = ["service", "reinstate", "payments-api"];
    let told = world.broker.run_as(responder, &reinstate).await.ok().stderr;
    let delete = ["service", "token", "delete", "payments-api", token];
    for words in [
        &format!("warning: token {token} works again"),
        &format!("`credbroker {}`", delete.join(" ")),
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    world.issued(&["role"]).await;
    world.broker.run_as(responder, &delete).await.ok();
    let refused = world.broker.run_as(Some(&world.token), &["issue", "role"]);
    refused.await.fails(3, &["not accepted"]);
}

#[tokio::test]
async fn a_reinstatement_on_a_terminal_asks_for_the_name() {
    let world = World::new().await;
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    let at_terminal = async |args: &[&str], typed: &str| {
        let reinstate = [&["service", "reinstate", "payments-api"], args].concat();
        Run::at_terminal(world.broker.command(&reinstate), typed).await
    };
    for typed in ["", "y", "payments"] {
        let refused = at_terminal(&[], typed).await;
        let words = [
            "works again; if it may",
            "type its name: ",
            "stays suspended",
        ];
        refused.fails(2, &words);
    }
    let shown = world.broker.json(&["service", "show", "payments-api"]);
    assert_eq!(shown.await["suspended"], true);
    let told = at_terminal(&[], "payments-api").await.ok().stderr;
    assert_eq!(told.matches("works again").count(), 1, "{told}");
    world.issued(&["role"]).await;

    world.broker.run(&["revoke", "payments-api"]).await.ok();
    at_terminal(&["--yes"], "").await.ok();
    // A service that is not suspended needs no confirmation.
    let told = at_terminal(&[], "").await.stderr;
    assert!(!told.contains("type its name"), "{told}");
    // Nor is a script asked.
    world.broker.run(&["revoke", "payments-api"]).await.ok();
    at_terminal(&["-o", "json"], "").await.ok();
}

#[tokio::test]
async fn a_dry_run_lists_the_reach_and_changes_nothing() {
    let world = World::new().await;
    let role = world.issued(&["role"]).await;
    let user = world.issued(&["user"]).await;
    let dry = ["revoke", "payments-api", "--dry-run"];
    let told = world.broker.run(&dry).await.ok().stdout;
    for words in [
        "nothing is changed; of payments-api: it would be suspended; live leases: 2",
        &format!("{}: its sessions would be denied until 20", world.role),
        "leases of assume_role: 1",
        "leases of iam_user: 1",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    let grant = ["revoke", "payments-api/user", "--dry-run"];
    let of_grant = world.broker.json(&grant).await;
    assert_eq!(of_grant["leases"], json!([user["lease_id"]]));
    assert_eq!(of_grant["sessions"], json!([]));
    assert_eq!(of_grant["dry_run"], true);
    for issued in [&role, &user] {
        assert!(Key::issued(issued).works().await);
    }
    world.issued(&["role"]).await;
    assert_eq!(world.proxy.calls("PutRolePolicy"), [""; 0]);
    for unknown in ["nobody", "payments-api/nothing"] {
        let refused = world.broker.run(&["revoke", unknown, "--dry-run"]).await;
        refused.fails(5, &[unknown]);
    }
}

#[tokio::test]
async fn an_unreachable_broker_makes_revoke_print_the_offline_ways() {
    let mut world = World::new().await;
    world.broker.kill().await;
    let revoke = ["revoke", "payments-api", "--reason", "it's out"];
    let config = "--config /etc/credbroker/credbroker.toml";
    world.broker.run(&revoke).await.fails(
        7,
        &[
            &format!(r"`credbroker revoke payments-api --offline {config} --reason 'it'\''s out'`"),
            &format!("`credbroker revoke payments-api --print-aws-commands {config} > revoke.sh`"),
        ],
    );
}
