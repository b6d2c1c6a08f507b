//! Random changes of the store's log while the broker is down: the broker reports each at its
//! start.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use credbroker::{
    audit::{checkpoint::Checkpoint, note::Signer},
    authn::Authenticator,
    aws::{AwsAccount, AwsSettings, Clients},
    broker::{
        AdminKeyPolicy, Broker, Dependencies, PROOF_LIMIT,
        ports::{CheckpointFile, Store},
    },
    domain::{
        arn::Partition,
        audit::{AuditEvent, Event},
        clock::{SteadyClock, wall_time},
        denial::Placements,
        random::SystemRandom,
        sealing::SealingKey,
        service::Limits,
    },
    store::{checkpoint_file::FileAnchor, emergency_journal::FileSpool, sqlite::SqliteStore},
};
use fastrand::Rng;
use jiff::Timestamp;
use secrecy::SecretSlice;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::harness::sample::{seed, trials};

const MUTATIONS: u32 = 250;
const OLDER: i64 = 270;
const RECORDS: i64 = 300;

pub(super) fn database(home: &Path) -> PathBuf {
    home.join("credbroker.db")
}

/// Creates a broker without access to AWS.
pub(super) fn broker(
    home: &Path,
    store: &Arc<SqliteStore>,
    issuer: &Arc<AwsAccount>,
) -> Arc<Broker> {
    let sealing = SealingKey::from_bytes(&SecretSlice::from(vec![7; 32])).unwrap();
    let anchor: Arc<dyn CheckpointFile> = Arc::new(FileAnchor::new(home.join("checkpoint")));
    Broker::new(Dependencies {
        authentication: Arc::new(Authenticator::default()),
        store: store.clone(),
        issuer: issuer.clone(),
        inventory: issuer.clone(),
        denier: issuer.clone(),
        placements: Placements::default(),
        keyring: issuer.clone(),
        clock: Arc::new(SteadyClock::starting_at(wall_time())),
        random: Arc::new(SystemRandom),
        partition: Partition::Aws,
        region: String::new(),
        limits: Limits::default(),
        custody: AdminKeyPolicy {
            sealing: Some(sealing),
            rotate_every: None,
        },
        spool: Arc::new(FileSpool::open(&home.join("emergency")).unwrap()),
        anchor: Some(anchor),
        keep: std::time::Duration::ZERO,
        proof_limit: PROOF_LIMIT,
        authority: None,
        witness: None,
        two_person: false,
        stop: CancellationToken::new(),
    })
}

pub(super) async fn issuer() -> Arc<AwsAccount> {
    let clock = Arc::new(SteadyClock::starting_at(wall_time()));
    let clients = Clients::new(&AwsSettings::default(), &clock).await;
    Arc::new(AwsAccount::new(
        clients,
        Partition::Aws,
        "0123456789",
        BTreeMap::new(),
    ))
}

/// Lets the log grow to `records` records, and signs it.
async fn grow(home: &Path, issuer: &Arc<AwsAccount>, records: i64, words: &str) {
    let store = Arc::new(SqliteStore::open(&database(home)).await.unwrap());
    let broker = broker(home, &store, issuer);
    broker.check_log().await.unwrap();
    broker.check_log_integrity().unwrap();
    broker.record_lifecycle(Event::BrokerStarted).await.unwrap();
    broker.sign_log().await.unwrap();
    while store.audit_size().await.unwrap() < records.cast_unsigned() {
        let event = AuditEvent::by_broker(Event::LeaseRead, Timestamp::UNIX_EPOCH);
        let event = event.service(&"payments-api".parse().unwrap());
        store.record(event.detail(words)).await.unwrap();
    }
    broker.sign_log().await.unwrap();
    store.close().await;
}

/// Error that the broker reports at its start, if the log is in doubt.
async fn doubt(home: &Path, issuer: &Arc<AwsAccount>) -> Option<String> {
    let store = match SqliteStore::open(&database(home)).await {
        Ok(store) => Arc::new(store),
        Err(error) => return Some(error.to_string()),
    };
    let broker = broker(home, &store, issuer);
    // A start that fails reports the change as well.
    let checked = broker.check_log().await;
    store.close().await;
    if let Err(error) = checked {
        return Some(error.to_string());
    }
    broker
        .check_log_integrity()
        .err()
        .map(|error| error.to_string())
}

async fn raw(home: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(database(home));
    let mut raw = options.connect().await.unwrap();
    let unguarded =
        "DROP TRIGGER audit_is_append_only_update; DROP TRIGGER audit_is_append_only_delete;
                     DROP TRIGGER audit_is_append_only_replace";
    sqlx::raw_sql(unguarded).execute(&mut raw).await.unwrap();
    raw
}

async fn run(raw: &mut SqliteConnection, statement: &'static str, number: i64) {
    let done = sqlx::query(statement).bind(number).execute(raw).await;
    assert!(done.unwrap().rows_affected() > 0, "{statement} {number}");
}

/// Flips one bit of a value.
async fn flip(raw: &mut SqliteConnection, rng: &mut Rng, [get, set]: [&'static str; 2], at: i64) {
    let value = sqlx::query_scalar(get).bind(at).fetch_one(&mut *raw).await;
    let mut bytes: Vec<u8> = value.unwrap();
    let place = rng.usize(0..bytes.len());
    bytes[place] ^= 1 << rng.u8(0..8);
    let done = sqlx::query(set).bind(bytes).bind(at).execute(raw).await;
    done.unwrap();
}

const COLUMNS: [&str; 4] = [
    "UPDATE audit SET actor = 'operator:ann' WHERE seq = ?",
    "UPDATE audit SET service = 'billing' WHERE seq = ?",
    "UPDATE audit SET event = 'lease.issued' WHERE seq = ?",
    "UPDATE audit SET time = time + 1 WHERE seq = ?",
];

const LEAF: [&str; 2] = [
    "SELECT leaf FROM audit WHERE seq = ?",
    "UPDATE audit SET leaf = ? WHERE seq = ?",
];
const EDGE: [&str; 2] = [
    "SELECT subtrees FROM audit_edge WHERE single = ?",
    "UPDATE audit_edge SET subtrees = ? WHERE single = ?",
];
const TILE: [&str; 2] = [
    "SELECT hash FROM audit_tiles WHERE level = ?",
    "UPDATE audit_tiles SET hash = ? WHERE level = ?",
];
const NOTE: [&str; 2] = [
    "SELECT CAST(note AS BLOB) FROM audit_checkpoint WHERE single = ?",
    "UPDATE audit_checkpoint SET note = CAST(?1 AS TEXT) WHERE single = ?2",
];

/// Changes the log in one of many ways. Returns the way, and words that may report it.
async fn change(home: &Path, rng: &mut Rng) -> (&'static str, Vec<String>) {
    let mut raw = raw(home).await;
    let (at, other) = (rng.i64(1..=RECORDS), rng.i64(1..RECORDS));
    let other = if other == at { RECORDS } else { other };
    let (at, other) = (at.min(other), at.max(other));
    let record = format!("record {at} of the audit log is missing or was changed");
    let differ = "the audit log and its Merkle tree differ".to_owned();
    let (name, words) = match rng.u8(0..14) {
        0 => {
            flip(&mut raw, rng, LEAF, at).await;
            ("flip", vec![record, differ])
        }
        1 => {
            let column = COLUMNS[rng.usize(0..COLUMNS.len())];
            run(&mut raw, column, at).await;
            ("column", vec![record])
        }
        2 => {
            run(&mut raw, "DELETE FROM audit WHERE seq = ?", at).await;
            ("delete", vec![record])
        }
        3 => {
            let doubled = "INSERT INTO audit SELECT ?1, leaf, time, event, outcome, actor, service, grant_name,
                           lease_id, access_key_id FROM audit WHERE seq = 5";
            run(&mut raw, doubled, RECORDS + 1).await;
            let strange = format!(
                "record {} of the audit log is not the broker's",
                RECORDS + 1
            );
            ("insert", vec![strange])
        }
        4 => {
            let exchange =
                "UPDATE audit SET seq = CASE seq WHEN -1 THEN ?1 ELSE -1 END WHERE seq IN (?1, -1)";
            run(&mut raw, exchange, at).await;
            let moved = sqlx::query("UPDATE audit SET seq = ? WHERE seq = ?");
            moved.bind(at).bind(other).execute(&mut raw).await.unwrap();
            run(&mut raw, "UPDATE audit SET seq = ? WHERE seq = -1", other).await;
            ("exchange", vec![record])
        }
        5 => {
            run(&mut raw, "DELETE FROM audit WHERE seq >= ?", at).await;
            (
                "truncate",
                vec![format!("record {at} of the audit log is missing")],
            )
        }
        6 => {
            flip(&mut raw, rng, EDGE, 1).await;
            ("edge", vec![differ])
        }
        7 => {
            flip(&mut raw, rng, TILE, 1).await;
            ("tile", vec![differ])
        }
        8 => {
            let span = "UPDATE audit_spans SET latest = latest + ?";
            run(&mut raw, span, at).await;
            ("span", vec![differ])
        }
        9 => {
            flip(&mut raw, rng, NOTE, 1).await;
            (
                "checkpoint",
                ["(the checkpoint in the store)", "column \"note\""]
                    .map(ToOwned::to_owned)
                    .to_vec(),
            )
        }
        12 => {
            run(&mut raw, "UPDATE audit_edge SET pruned = 256 * ?", 1).await;
            (
                "pruned",
                vec!["record 1 of the audit log is missing, and was not pruned".to_owned()],
            )
        }
        13 => {
            run(&mut raw, "UPDATE audit_spans SET idx = idx + ?", at).await;
            ("moved span", vec![differ])
        }
        10 => (
            swap_key(&mut raw).await,
            vec!["it is of another log".to_owned()],
        ),
        _ => ("older or other copy", take_copy(home, rng)),
    };
    raw.close().await.unwrap();
    (name, words)
}

/// Replaces the key, and has the new key sign the checkpoint.
async fn swap_key(raw: &mut SqliteConnection) -> &'static str {
    let note = "SELECT note FROM audit_checkpoint";
    let note: String = sqlx::query_scalar(note).fetch_one(&mut *raw).await.unwrap();
    let checkpoint = Checkpoint::parse(&note[..=note.find("\n\n").unwrap()]).unwrap();
    let theirs = Signer::new(&checkpoint.origin, &vec![9; 32].into()).unwrap();
    let verifier = "UPDATE audit_keys SET verifier = ?";
    let verifier = sqlx::query(verifier).bind(theirs.verifier().to_string());
    verifier.execute(&mut *raw).await.unwrap();
    let note = theirs.sign(&checkpoint.text()).unwrap();
    let signed = sqlx::query("UPDATE audit_checkpoint SET note = ?").bind(note);
    signed.execute(raw).await.unwrap();
    "swap key"
}

/// Restores an older copy, or one that continues from it differently.
fn take_copy(home: &Path, rng: &mut Rng) -> Vec<String> {
    let name = ["older.db", "other.db"][rng.usize(0..2)];
    fs::copy(home.join(name), database(home)).unwrap();
    vec![match name {
        "older.db" => {
            format!("the audit log ends with record {OLDER} and was signed with {RECORDS}")
        }
        _ => format!("the first {RECORDS} records are not those that were signed"),
    }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_of_the_stores_log_goes_unnoticed_at_the_next_start() {
    let (home, issuer) = (TempDir::new().unwrap(), issuer().await);
    let home = home.path();
    let [true_log, checkpoint] = ["true.db", "checkpoint"].map(|name| home.join(name));
    grow(home, &issuer, OLDER, "as usual").await;
    fs::copy(database(home), home.join("older.db")).unwrap();
    grow(home, &issuer, RECORDS, "as usual").await;
    fs::copy(database(home), &true_log).unwrap();
    let note = fs::read(&checkpoint).unwrap();
    // An attacker with the older copy and the broker can make this.
    fs::copy(home.join("older.db"), database(home)).unwrap();
    fs::write(&checkpoint, "").unwrap();
    grow(home, &issuer, RECORDS + 3, "nothing to see here").await;
    fs::rename(database(home), home.join("other.db")).unwrap();
    fs::write(&checkpoint, note).unwrap();

    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let mut done = std::collections::BTreeMap::<_, u32>::new();
    let what = "changes of the stored log";
    let mutations = trials(what, "CREDBROKER_TEST_CHANGES", MUTATIONS, 1_500);
    for number in 0..mutations {
        fs::copy(&true_log, database(home)).unwrap();
        let (name, words) = change(home, &mut rng).await;
        let doubt = doubt(home, &issuer).await;
        let told = doubt
            .as_ref()
            .is_some_and(|doubt| words.iter().any(|words| doubt.contains(words)));
        assert!(
            told,
            "seed {seed}, {number}: {name}: {doubt:?} instead of {words:?}"
        );
        *done.entry(name).or_default() += 1;
    }
    println!("{done:?}");
    fs::copy(&true_log, database(home)).unwrap();
    assert_eq!(doubt(home, &issuer).await, None);
}
