//! Signed checkpoints of the log, and the changes of the log that they reveal.

use std::{sync::Arc, time::Duration};

use credbroker::{
    audit::{
        checkpoint::Checkpoint,
        note::{self, Verifier},
        tree::{Frontier, leaf_hash},
    },
    broker::ports::{AuditFilter, PageRequest, Store},
    domain::audit::Event,
    store::sqlite::SqliteStore,
};
use tempfile::TempDir;
use tokio::time::Instant;

use super::{fill, rewriting};
use crate::harness::{
    Account, Broker, Key, emulator::emulator, eventually, stepped::policy, stored::Stored,
};

async fn leaves(broker: &Broker) -> Vec<Vec<u8>> {
    broker.store.leaves().await
}

fn root(leaves: &[Vec<u8>]) -> [u8; 32] {
    let mut tree = Frontier::default();
    for leaf in leaves {
        tree.push(leaf_hash(leaf));
    }
    tree.root()
}

/// Returns the checkpoint that the broker reports, and the key that signed it.
async fn checkpoint(broker: &Broker) -> (Checkpoint, Verifier) {
    let told = broker.json(&["audit", "checkpoint"]).await;
    let verifier: Verifier = told["verifier_key"].as_str().unwrap().parse().unwrap();
    let note = told["checkpoint"].as_str().unwrap();
    let text = note::open(note, std::slice::from_ref(&verifier)).unwrap();
    let checkpoint = Checkpoint::parse(text).unwrap();
    assert_eq!(checkpoint.origin, verifier.name());
    (checkpoint, verifier)
}

#[tokio::test]
async fn a_checkpoint_is_signed_and_covers_every_record() {
    let broker = Broker::start(&Account::new().await).await;
    broker.service("payments-api").await;
    let (first, key) = checkpoint(&broker).await;
    let all = leaves(&broker).await;
    let size = usize::try_from(first.size).unwrap();
    assert_eq!(first.root, root(&all[..size]));
    // The log contains the call that requested the checkpoint.
    let last = String::from_utf8(all[size - 1].clone()).unwrap();
    assert!(last.contains("AuditService/GetCheckpoint"), "{last}");

    broker.service("billing").await;
    let (second, same) = checkpoint(&broker).await;
    assert_eq!(key, same);
    assert!(second.size > first.size);
    // A record changed, omitted or moved makes another tree.
    let all = leaves(&broker).await;
    let all = &all[..usize::try_from(second.size).unwrap()];
    assert_eq!(second.root, root(all));
    let mut changed = all.to_vec();
    changed[3][20] ^= 1;
    let mut without = all.to_vec();
    without.remove(3);
    let mut exchanged = all.to_vec();
    exchanged.swap(2, 3);
    for other in [changed, without, exchanged] {
        assert_ne!(second.root, root(&other));
    }
    let note = broker.run(&["audit", "checkpoint"]).await.ok().stdout;
    assert!(note.starts_with("credbroker/"), "{note}");
    note::open(&note, &[key]).unwrap();
}

#[tokio::test]
async fn the_log_is_signed_automatically_as_it_grows_and_at_the_stop() {
    let account = Account::new().await;
    let mut broker = Broker::start(&account).await;
    broker.service("payments-api").await;
    let all_signed = "SELECT count(*) FROM audit_checkpoint c JOIN audit_edge e ON e.size = c.size";
    let signed = async || (broker.count(all_signed).await == 1).then_some(());
    eventually("a checkpoint", signed).await;
    assert!(broker.stop().await);
    assert_eq!(broker.count(all_signed).await, 1);
    let endpoint = &emulator().endpoint;
    let before = broker.count("SELECT count(*) FROM audit_keys").await;
    let broker = broker.start_again(&account.admin, endpoint).await;
    checkpoint(&broker).await;
    let keys = broker.count("SELECT count(*) FROM audit_keys").await;
    assert_eq!((before, keys), (1, 1));
}

#[tokio::test]
async fn a_log_that_lost_its_key_announces_a_new_key_and_continues() {
    let account = Account::new().await;
    let mut broker = Broker::start(&account).await;
    let (_, lost) = checkpoint(&broker).await;
    assert!(broker.stop().await);
    std::fs::remove_file(broker.state.join("seal.key")).unwrap();
    let endpoint = &emulator().endpoint;
    let broker = broker.start_again(&account.admin, endpoint).await;
    let (_, next) = checkpoint(&broker).await;
    assert_ne!(lost, next);
    let made = ["audit", "query", "--event", "log.key_made"];
    let made = broker.json(&made).await;
    let named: Vec<&str> = made
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|record| record["detail"].as_str())
        .collect();
    assert_eq!(named, [lost.to_string(), next.to_string()]);
}

/// Runs a broker that issues, and stops it. Returns its token and its lease.
async fn stopped(account: &Account) -> (Broker, String, String) {
    let mut broker = Broker::start(account).await;
    let token = broker.service("payments-api").await;
    let flags = ["--kind", "iam_user"];
    broker.grant("payments-api/user", &flags, &policy()).await;
    let issued = broker.issue(&token, "user").await;
    assert!(broker.stop().await);
    let lease = issued["lease_id"].as_str().unwrap().to_owned();
    (broker, token, lease)
}

/// Asserts that the broker issues nothing, ends everything on request, and that the error names the
/// next step.
async fn assert_issues_nothing(broker: &Broker, token: &str, lease: &str, words: &str) {
    let issue = broker.run_as(Some(token), &["issue", "user"]).await;
    let expected = [
        words,
        "reason: LOG_CONTRADICTED",
        "next: put the newest copy",
    ];
    issue.fails(6, &expected);
    let renew = broker.run_as(Some(token), &["lease", "renew", lease]).await;
    renew.fails(6, &["reason: LOG_CONTRADICTED"]);
    let checkpoint = broker.run(&["audit", "checkpoint"]).await;
    checkpoint.fails(6, &[words]);
    let revoked = broker.revoked(&["payments-api"]).await;
    assert_eq!(revoked["confirmed"], true, "{revoked}");
    let reinstate = ["service", "reinstate", "payments-api"];
    broker.run(&reinstate).await.ok();
}

#[tokio::test]
async fn an_older_copy_of_the_store_issues_nothing_until_the_operator_accepts_it() {
    let (account, endpoint) = (Account::new().await, &emulator().endpoint);
    let (broker, token, lease) = stopped(&account).await;
    let older = broker.store.copy().await;
    let mut broker = broker.start_again(&account.admin, endpoint).await;
    let later = broker.issue(&token, "user").await;
    assert!(broker.stop().await);
    broker.store.restore(&older).await;
    let mut broker = broker.start_again(&account.admin, endpoint).await;
    assert_issues_nothing(&broker, &token, &lease, "the store is an older copy").await;
    // A user that the copy does not know is not taken for an orphan.
    let status = broker.json(&["status"]).await;
    assert_eq!(status["reconciled_at"], serde_json::Value::Null);
    assert!(Key::issued(&later).works().await);
    // The checkpoint that reveals this is not overwritten, however the log grows.
    assert!(broker.stop().await);
    let mut broker = broker.start_again(&account.admin, endpoint).await;
    let issue = ["issue", "user"];
    let refused = broker.run_as(Some(&token), &issue).await;
    refused.fails(6, &["reason: LOG_CONTRADICTED"]);
    assert!(broker.stop().await);
    let file = broker.state.join("checkpoint");
    // A removed file is no decision of the operator: its volume may be missing.
    std::fs::remove_file(&file).unwrap();
    let mut broker = broker.start_again(&account.admin, endpoint).await;
    let refused = broker.run_as(Some(&token), &issue).await;
    refused.fails(6, &["is not there any more"]);
    assert!(broker.stop().await);
    std::fs::write(&file, "").unwrap();
    let broker = broker.start_again(&account.admin, endpoint).await;
    broker.issue(&token, "user").await;
}

/// Changes of a log, each as SQL.
fn rewritings(store: &Stored) -> [String; 8] {
    let rewrite = |words, instead_of| {
        let leaf = store.leaf_with(words, instead_of);
        format!("UPDATE audit SET leaf = {leaf} WHERE event = 'service.created'")
    };
    [
        rewrite("payments-app", "payments-api"),
        "UPDATE audit SET seq = -seq WHERE seq IN (4, 5);
         UPDATE audit SET seq = 9 + seq WHERE seq < 0"
            .to_owned(),
        "DELETE FROM audit WHERE seq = 5; UPDATE audit SET seq = seq - 1 WHERE seq > 5".to_owned(),
        // The record alone has this word; no column beside it does.
        rewrite("registry", "Registry"),
        // Searches do not find the record then.
        "UPDATE audit SET service = NULL WHERE event = 'service.created'".to_owned(),
        "INSERT INTO audit SELECT seq + 1000, leaf, time, event, outcome, actor, service, grant_name,
                                  lease_id, access_key_id FROM audit WHERE seq = 5"
            .to_owned(),
        format!(
            "UPDATE audit_edge SET subtrees = {}",
            store.zeros("length(subtrees)")
        ),
        format!(
            "UPDATE audit_tiles SET hash = {} WHERE idx = 1",
            store.zeros("32")
        ),
    ]
}

#[tokio::test]
async fn a_log_that_was_rewritten_is_noticed_at_the_start() {
    let (account, endpoint) = (Account::new().await, &emulator().endpoint);
    for number in 0..8 {
        let (broker, token, lease) = stopped(&account).await;
        fill(&broker, 600).await;
        broker.store.unguard().await;
        for statement in rewritings(&broker.store)[number].split(';') {
            broker.write_store(statement).await;
        }
        let broker = broker.start_again(&account.admin, endpoint).await;
        assert_issues_nothing(&broker, &token, &lease, "LOG_CONTRADICTED").await;
    }
}

#[tokio::test]
async fn a_broker_with_a_checkpoint_of_another_log_issues_nothing() {
    let (account, endpoint) = (Account::new().await, &emulator().endpoint);
    let (broker, token, lease) = stopped(&account).await;
    let (other, ..) = stopped(&Account::new().await).await;
    let (from, to) = (
        other.state.join("checkpoint"),
        broker.state.join("checkpoint"),
    );
    std::fs::copy(from, to).unwrap();
    let broker = broker.start_again(&account.admin, endpoint).await;
    let words = "it is of another log, or of a later state of this one";
    assert_issues_nothing(&broker, &token, &lease, words).await;
}

/// Creates a broker inside the test, with its store.
async fn without_aws(home: &TempDir) -> (Arc<SqliteStore>, Arc<credbroker::broker::Broker>) {
    let store = SqliteStore::open(&rewriting::database(home.path())).await;
    let store = Arc::new(store.unwrap());
    let broker = rewriting::broker(home.path(), &store, &rewriting::issuer().await);
    (store, broker)
}

#[tokio::test]
async fn the_first_checkpoint_is_of_a_log_that_announces_its_key() {
    let home = TempDir::new().unwrap();
    let (store, broker) = without_aws(&home).await;
    broker.record_lifecycle(Event::BrokerStarted).await.unwrap();
    broker.sign_log().await.unwrap();
    let first = PageRequest {
        after: None,
        limit: 10,
    };
    let log = store.audit(&AuditFilter::default(), &first).await.unwrap();
    let made = log.last().unwrap();
    assert_eq!(made.event.event, Event::LogKeyMade);
    assert_eq!(store.checkpoint().await.unwrap().unwrap().size, made.seq);
    store.close().await;
}

#[tokio::test]
async fn an_idle_log_gets_a_record_each_minute() {
    let home = TempDir::new().unwrap();
    let (store, broker) = without_aws(&home).await;
    // Time passes in steps from here on, and not by itself: a task is always busy.
    tokio::time::pause();
    let work = tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let signing = tokio::spawn(async move { broker.run_signing().await });
    let filter = AuditFilter {
        event: Some("log.heartbeat".to_owned()),
        ..AuditFilter::default()
    };
    let page = PageRequest {
        after: None,
        limit: 10,
    };
    let (began, really) = (Instant::now(), std::time::Instant::now());
    for beats in 1..=3 {
        let minutes = u32::try_from(beats).unwrap();
        while store.audit(&filter, &page).await.unwrap().len() < beats {
            if began.elapsed() < Duration::from_secs(62) * minutes {
                tokio::time::advance(Duration::from_millis(100)).await;
            }
            // A busy machine writes it late; no more than this passes meanwhile.
            assert!(really.elapsed() < Duration::from_mins(2), "beat {beats}");
        }
        assert!(began.elapsed() >= Duration::from_mins(1) * minutes);
    }
    signing.abort();
    work.abort();
}
