//! Witness: it cosigns checkpoints, and reveals an older or another log.

mod server;

use std::fs;

use credbroker::audit::note::Verifier;

use self::server::Witness;
use super::fill_store;
use crate::harness::{
    Account, Run, eventually, eventually_within,
    site::{Site, stop},
    stored::skipped_over_postgres,
};

/// A site whose log is signed and has this witness.
fn site(witness: &Witness) -> Site {
    Site::sealed(|site| format!("keep = \"1s\"\n{}", witness.settings(site)))
}

impl Site {
    async fn number(&self, sql: &'static str) -> u64 {
        let mut store = self.store().await;
        let number = sqlx::query_scalar(sql).fetch_one(&mut store).await;
        let number: i64 = number.unwrap();
        u64::try_from(number).unwrap()
    }

    async fn signed(&self) -> u64 {
        self.number("SELECT size FROM audit_checkpoint").await
    }

    /// Returns the size of the newest stored cosigned checkpoint.
    async fn kept(&self) -> u64 {
        let kept = "SELECT coalesce(max(size), 0) FROM audit_witness";
        self.number(kept).await
    }

    /// Returns the key that signs the log.
    async fn log_key(&self) -> Verifier {
        let told = self.run(&["audit", "checkpoint", "-o", "json"]).await;
        let told = told.ok().json();
        told["verifier_key"].as_str().unwrap().parse().unwrap()
    }

    /// Waits until the witness has cosigned all current records. Returns their number.
    async fn cosigned(&self) -> u64 {
        let size = self.number("SELECT size FROM audit_edge").await;
        let cosigned = async || (self.kept().await >= size).then_some(());
        eventually_within(30, "a cosignature", cosigned).await;
        size
    }

    /// Exports the log and prunes as much as possible. Returns the log's new start.
    async fn prune(&self) -> u64 {
        let dir = self.text("archive");
        self.run(&["audit", "export", &dir]).await.ok();
        let prune = ["audit", "prune", &dir, "--older-than", "1s", "-o", "json"];
        let pruned = self.run(&prune).await.ok().json();
        pruned["start"].as_u64().unwrap()
    }

    /// Removes the witness from the configuration.
    fn forget(&self, witness: &Witness) {
        self.reconfigure(&witness.settings(self), "");
    }

    fn remember(&self, witness: &Witness) {
        self.reconfigure(
            "\n[limits]",
            &format!("\n{}\n[limits]", witness.settings(self)),
        );
    }

    fn reconfigure(&self, from: &str, to: &str) {
        let path = self.path("config.toml");
        let config = fs::read_to_string(&path).unwrap();
        assert!(config.contains(from));
        fs::write(path, config.replace(from, to)).unwrap();
    }

    async fn tells(&self, words: &str) {
        let told = async || {
            let log = fs::read_to_string(self.path("log")).unwrap();
            log.contains(words).then_some(())
        };
        eventually(words, told).await;
    }

    /// Asserts that the broker issues nothing, and that the error names the next step.
    async fn assert_issues_nothing(&self, token: &str, words: &str) {
        let expected = [
            words,
            "reason: LOG_CONTRADICTED",
            "next: put the newest copy of the store in its place",
            "take audit.witness out",
        ];
        let issue = self.run_as(token, &["issue", "user"]).await;
        issue.fails(6, &expected);
        let checkpoint = self.run(&["audit", "checkpoint"]).await;
        checkpoint.fails(6, &[words]);
    }

    async fn assert_revokes(&self) {
        let revoked = self.run(&["revoke", "payments-api", "-o", "json"]).await;
        assert_eq!(revoked.revoked()["confirmed"], true);
        let reinstate = ["service", "reinstate", "payments-api"];
        self.run(&reinstate).await.ok();
    }
}

/// Runs a broker that issues and whose log the witness cosigns, and stops it. Returns its site, its
/// token, and its store at that time.
async fn cosigned_and_stopped(account: &Account, witness: &Witness) -> (Site, String, Vec<u8>) {
    let site = site(witness);
    let running = witness.start(&site).await;
    let child = site.serving(&account.admin).await;
    witness.trust(site.log_key().await);
    let token = site.payments_api().await;
    site.assert_issues(&token).await;
    site.cosigned().await;
    stop(child).await;
    running.end().await;
    let store = fs::read(site.path("credbroker.db")).unwrap();
    (site, token, store)
}

#[tokio::test]
async fn checkpoints_are_cosigned_as_the_log_grows_and_over_restarts() {
    let (account, witness) = (Account::new().await, Witness::new());
    let site = site(&witness);
    let running = witness.start(&site).await;
    let child = site.serving(&account.admin).await;
    // The log has no key before its first start, so the witness cannot know it yet.
    site.tells("it does not know the log (404): have its operator add the log's key")
        .await;
    witness.trust(site.log_key().await);
    let first = site.cosigned().await;
    let token = site.payments_api().await;
    site.assert_issues(&token).await;
    assert!(site.cosigned().await > first);
    let told = site.metric("credbroker_audit_witnessed_size").await;
    assert!(told.unwrap() > 0.0);
    stop(child).await;

    // The witness cosigns the last checkpoint at the next start, whole tiles of it.
    fill_store(&site.stored, 700).await;
    let signed = site.signed().await;
    let child = site.serving(&account.admin).await;
    assert!(witness.size() >= signed);
    let all = site.cosigned().await;
    assert!(all > 700);
    site.create("billing").await;
    assert!(site.cosigned().await > all);
    stop(child).await;

    // Old records are pruned, except those that the witness continues from.
    running.end().await;
    let kept = site.kept().await;
    fill_store(&site.stored, 700).await;
    let child = site.serving(&account.admin).await;
    assert_eq!(site.prune().await, kept - kept % 256);
    let running = witness.start(&site).await;
    site.cosigned().await;
    assert!(site.prune().await > kept);
    stop(child).await;
    let child = site.serving(&account.admin).await;
    site.cosigned().await;
    stop(child).await;
    running.end().await;

    // Both sides make valid requests only; the stored note has both signatures.
    let lost = [400, 403, 409, 422].map(|status| witness.answered(status));
    assert_eq!(lost, [0; 4]);
    let note = sqlx::query_scalar("SELECT note FROM audit_witness");
    let note: String = note.fetch_one(&mut site.store().await).await.unwrap();
    assert_eq!(note.matches("\n\u{2014} ").count(), 3, "{note}");
    assert!(note.contains("\u{2014} witness.example/w1 "), "{note}");
}

#[tokio::test]
async fn an_older_copy_of_the_store_contradicts_the_witness() {
    if skipped_over_postgres() {
        return;
    }
    let (account, witness) = (Account::new().await, Witness::new());
    let (site, token, older) = cosigned_and_stopped(&account, &witness).await;
    let running = witness.start(&site).await;
    let child = site.serving(&account.admin).await;
    site.assert_issues(&token).await;
    site.cosigned().await;
    stop(child).await;

    fs::write(site.path("credbroker.db"), &older).unwrap();
    let child = site.serving(&account.admin).await;
    let words = "the witness witness.example/w1 has cosigned";
    site.assert_issues_nothing(&token, words).await;
    site.assert_revokes().await;
    stop(child).await;
    // The newest copy repairs it, and so does a decision of the operator.
    site.forget(&witness);
    let child = site.serving(&account.admin).await;
    site.assert_issues(&token).await;
    stop(child).await;

    // A witness that is down at the start reports the contradiction when it is back.
    running.end().await;
    site.remember(&witness);
    fs::write(site.path("credbroker.db"), &older).unwrap();
    witness.has_seen_another(1_000_000);
    let child = site.serving(&account.admin).await;
    site.assert_issues(&token).await;
    let _running = witness.start(&site).await;
    let doubted = async || {
        let checkpoint = site.run(&["audit", "checkpoint"]).await;
        (checkpoint.code == 6).then_some(())
    };
    eventually_within(30, "a doubt", doubted).await;
    site.assert_issues_nothing(&token, words).await;
    stop(child).await;
}

#[tokio::test]
async fn a_log_rewritten_from_an_older_copy_contradicts_the_witness() {
    if skipped_over_postgres() {
        return;
    }
    let (account, witness) = (Account::new().await, Witness::new());
    let (site, token, older) = cosigned_and_stopped(&account, &witness).await;
    let running = witness.start(&site).await;
    let child = site.serving(&account.admin).await;
    site.create("billing").await;
    let cosigned = site.cosigned().await;
    stop(child).await;

    // The log has grown beyond, with other records, signed by its own key.
    fs::write(site.path("credbroker.db"), older).unwrap();
    site.forget(&witness);
    let child = site.serving(&account.admin).await;
    site.create("another").await;
    stop(child).await;
    fill_store(&site.stored, 300).await;
    stop(site.serving(&account.admin).await).await;
    assert!(site.signed().await > cosigned);
    site.remember(&witness);
    let child = site.serving(&account.admin).await;
    let words = "are not those that the witness witness.example/w1 has cosigned";
    site.assert_issues_nothing(&token, words).await;
    site.assert_revokes().await;
    assert_eq!((witness.answered(409), witness.answered(422)), (1, 1));
    stop(child).await;

    // The other log has the same size.
    witness.has_seen_another(site.signed().await);
    let child = site.serving(&account.admin).await;
    site.assert_issues_nothing(&token, words).await;
    assert_eq!((witness.answered(409), witness.answered(422)), (3, 1));
    stop(child).await;
    running.end().await;
}

#[tokio::test]
async fn a_witness_that_is_down_delays_no_call_and_catches_up_later() {
    let (account, witness) = (Account::new().await, Witness::new());
    let site = site(&witness);
    let child = site.serving(&account.admin).await;
    let token = site.payments_api().await;
    site.assert_issues(&token).await;
    let failed = async || {
        let failures = site.metric("credbroker_audit_witness_failures_total").await;
        failures.filter(|failures| *failures > 0.0)
    };
    eventually("a failure", failed).await;
    witness.trust(site.log_key().await);
    // A signature of another key in the witness's name does not count.
    let impostor = witness.with_another_key().start(&site).await;
    site.tells("is no cosignature by witness.example/w1: no known key has signed it")
        .await;
    assert_eq!(site.kept().await, 0);
    impostor.end().await;
    let running = witness.start(&site).await;
    site.cosigned().await;
    stop(child).await;

    running.end().await;
    let child = site.serving(&account.admin).await;
    site.tells("the witness has not confirmed the log; the broker starts all the same")
        .await;
    site.assert_issues(&token).await;
    let running = witness.start(&site).await;
    site.cosigned().await;
    stop(child).await;
    running.end().await;

    // The witness accepts connections and does not answer.
    let silent = witness.listener().await;
    let child = site.serving(&account.admin).await;
    site.tells("did not answer within 2.5 s").await;
    site.assert_issues(&token).await;
    stop(child).await;
    drop(silent);
}

#[tokio::test]
async fn a_wrong_witness_setting_is_reported_before_the_start() {
    let (account, witness) = (Account::new().await, Witness::new());
    let site = site(&witness);
    fs::write(site.path("empty.pem"), "").unwrap();
    let ca = |name: &str| format!("ca_file = {:?}", site.text(name));
    site.reconfigure(&ca("tls.pem"), &ca("empty.pem"));
    let words = "the witness of the audit log cannot be set up: there are no certificates to trust";
    let run = Run::of(site.serve(&account.admin), "").await;
    run.fails(2, &[words]);
    assert!(!site.path("credbroker.db").exists());
}
