//! Ten thousand ways to change a log, in its export and in the store: each is noticed, and reported
//! for what it is. Seeds are printed.

use std::{collections::BTreeMap, fs, path::Path, thread};

use credbroker::{
    audit::{
        checkpoint::{Checkpoint, Receipt},
        files::{CHECKPOINT, Growing, KEYS, bundle, handover_path},
        leaf,
        note::Signer,
        tile::bundle_path,
        verify::{Fault, Requirements, verify},
    },
    domain::audit::{AuditEvent, AuditRecord, Event},
};
use fastrand::Rng;
use jiff::Timestamp;
use tempfile::TempDir;

use crate::harness::sample::{seed, trials};

const MUTATIONS: u32 = 1_000;
const THREADS: u64 = 2;
const RECORDS: u64 = 300;
/// Sequence number of the record that announces the second key.
const SECOND_KEY: u64 = 280;

type Files = BTreeMap<String, Vec<u8>>;

fn signer(seed: u8) -> Signer {
    Signer::new("credbroker/0123456789", &vec![seed; 32].into()).unwrap()
}

fn record(seq: u64, words: &str) -> Vec<u8> {
    match seq {
        1 => announcement(seq, &signer(1)),
        SECOND_KEY => announcement(seq, &signer(2)),
        _ => record_of(seq, Event::LeaseIssued, words),
    }
}

fn announcement(seq: u64, key: &Signer) -> Vec<u8> {
    record_of(seq, Event::LogKeyMade, &key.verifier().to_string())
}

fn record_of(seq: u64, event: Event, words: &str) -> Vec<u8> {
    let time = Timestamp::from_second(1_700_000_000 + seq.cast_signed()).unwrap();
    let event = AuditEvent::by_broker(event, time)
        .service(&"payments-api".parse().unwrap())
        .access_key(&format!("AKIA{seq:016}"))
        .detail(words);
    leaf::encode(&AuditRecord { seq, event }).unwrap()
}

fn records() -> Vec<Vec<u8>> {
    (1..=RECORDS).map(|seq| record(seq, "as usual")).collect()
}

fn head(records: &[Vec<u8>]) -> Checkpoint {
    let mut tree = Growing::default();
    for entry in records {
        tree.push(entry);
    }
    Checkpoint {
        origin: signer(1).verifier().name().to_owned(),
        size: tree.edge.size(),
        root: tree.edge.root(),
    }
}

fn signed(records: &[Vec<u8>], signer: &Signer) -> String {
    signer.sign(&head(records).text()).unwrap()
}

/// Export of these records, signed by the second key.
fn export(records: &[Vec<u8>], keys: [&Signer; 2]) -> Files {
    let mut files = Files::new();
    let (mut tree, size) = (Growing::default(), records.len() as u64);
    for (entries, index) in records.chunks(256).zip(0..) {
        files.insert(bundle_path(index, size), bundle(entries).unwrap());
        for entry in entries {
            tree.push(entry);
        }
    }
    for (tile, hashes) in &tree.tiles {
        files.insert(tile.path(size), hashes.as_flattened().to_vec());
    }
    let names = keys.map(|key| format!("{}\n", key.verifier()));
    files.insert(KEYS.to_owned(), names.concat().into_bytes());
    let announcing = &records[..SECOND_KEY.try_into().unwrap()];
    let handover = head(announcing).handover_text(keys[1].verifier());
    let handover = keys[0].sign(&handover).unwrap().into_bytes();
    files.insert(handover_path(2), handover);
    files.insert(CHECKPOINT.to_owned(), signed(records, keys[1]).into_bytes());
    files
}

/// Word that reports a fault correctly.
fn word(fault: &Fault) -> &'static str {
    match fault {
        Fault::MissingFile(_) | Fault::Missing(_) => "missing",
        Fault::ChangedFile(_) | Fault::Changed(_) | Fault::ChangedSomewhere => "changed",
        Fault::Truncated(_) => "truncated",
        Fault::Reordered { .. } => "reordered",
        Fault::Checkpoint(_) => "signature",
        Fault::WrongKey(_) => "wrong key",
        Fault::SplitView(_) => "split view",
        Fault::Pruned { .. } => "pruned",
        Fault::Unreadable { .. } => "unreadable",
    }
}

/// Mutation of an export: the changed files, and the words that may report it.
struct Mutation {
    name: &'static str,
    files: Files,
    words: Vec<&'static str>,
}

fn mutation(name: &'static str, files: Files, words: &[&'static str]) -> Mutation {
    Mutation {
        name,
        files,
        words: words.to_vec(),
    }
}

/// Export with other entries in its bundles, otherwise unchanged.
fn with_entries(of: &Files, entries: &[Vec<u8>]) -> Files {
    let mut files = of.clone();
    files.retain(|name, _| !name.starts_with("tile/entries/"));
    // The last bundle has the rest of the entries, under the name of the true one.
    let (first, last) = entries.split_at(entries.len().min(256));
    files.insert(bundle_path(0, RECORDS), bundle(first).unwrap());
    files.insert(bundle_path(1, RECORDS), bundle(last).unwrap());
    files
}

struct Chance {
    rng: Rng,
    whole: Files,
    records: Vec<Vec<u8>>,
}

impl Chance {
    fn name(&mut self) -> String {
        let names: Vec<&String> = self.whole.keys().collect();
        names[self.rng.usize(0..names.len())].clone()
    }

    fn place(&mut self) -> usize {
        self.rng.usize(0..self.records.len())
    }

    fn mutation(&mut self) -> Mutation {
        match self.rng.u8(0..10) {
            0 | 1 => self.flip(),
            2 => self.delete_file(),
            3 => self.delete_records(),
            4 => self.insert(),
            5 => self.exchange(),
            6 => self.cut_file(),
            7 => self.rewrite(),
            8 => self.roll_back(),
            _ => self.swap_key(),
        }
    }

    /// Flips a bit of any file.
    fn flip(&mut self) -> Mutation {
        let (name, mut files) = (self.name(), self.whole.clone());
        let bytes = files.get_mut(&name).unwrap();
        let at = self.rng.usize(0..bytes.len());
        bytes[at] ^= 1 << self.rng.u8(0..8);
        let words: &[&str] = match name.as_str() {
            CHECKPOINT => &["signature", "changed"],
            KEYS => &["changed", "wrong key"],
            // A length that reaches further leaves too few entries.
            name if name.starts_with("tile/entries/") => &["changed", "missing", "truncated"],
            _ => &["changed"],
        };
        mutation("flip", files, words)
    }

    fn delete_file(&mut self) -> Mutation {
        let (name, mut files) = (self.name(), self.whole.clone());
        files.remove(&name);
        let words: &[&str] = if name == bundle_path(1, RECORDS) {
            &["truncated"]
        } else if name == handover_path(2) {
            // The second key cannot be reached from the first any more.
            &["signature"]
        } else {
            &["missing"]
        };
        mutation("delete file", files, words)
    }

    fn delete_records(&mut self) -> Mutation {
        let (mut records, at) = (self.records.clone(), self.place());
        let count = self.rng.usize(1..4).min(records.len() - at);
        records.drain(at..at + count);
        let words: &[&str] = if at == records.len() {
            &["truncated"]
        } else {
            &["missing"]
        };
        mutation("delete", with_entries(&self.whole, &records), words)
    }

    /// Inserts a forged record, or repeats a true one.
    fn insert(&mut self) -> Mutation {
        let (mut records, at) = (self.records.clone(), self.place());
        let (entry, word) = if self.rng.bool() {
            let seq = self.rng.u64(1..RECORDS + 2);
            (record(seq, "never happened"), "changed")
        } else {
            let mut other = self.place();
            while other == at {
                other = self.place();
            }
            (records[other].clone(), "reordered")
        };
        records.insert(at, entry);
        // The record that announces the key may have moved, so `reordered` counts as well.
        mutation(
            "insert",
            with_entries(&self.whole, &records),
            &[word, "reordered"],
        )
    }

    fn exchange(&mut self) -> Mutation {
        let (mut records, at) = (self.records.clone(), self.place());
        let mut other = self.place();
        while other == at {
            other = self.place();
        }
        records.swap(at, other);
        mutation(
            "exchange",
            with_entries(&self.whole, &records),
            &["reordered"],
        )
    }

    fn cut_file(&mut self) -> Mutation {
        let (name, mut files) = (self.name(), self.whole.clone());
        let bytes = files.get_mut(&name).unwrap();
        bytes.truncate(self.rng.usize(0..bytes.len()));
        let words: &[&str] = match name.as_str() {
            CHECKPOINT => &["signature", "changed"],
            // Without its second line the second key is unknown.
            KEYS => &["changed", "wrong key", "signature"],
            name if name == bundle_path(1, RECORDS) => &["truncated"],
            name if name.starts_with("tile/entries/") => &["missing"],
            _ => &["changed"],
        };
        mutation("cut file", files, words)
    }

    /// Changes a record, and recomputes everything that needs no key.
    fn rewrite(&mut self) -> Mutation {
        let (mut records, at) = (self.records.clone(), self.place());
        let seq = at as u64 + 1;
        if seq == 1 || seq == SECOND_KEY {
            return self.exchange();
        }
        records[at] = record(seq, "nothing to see here");
        let forged = export(&records, [&signer(1), &signer(2)]);
        let mut files = self.whole.clone();
        for (name, bytes) in forged {
            if name.starts_with("tile/entries/") || self.rng.bool() && name.starts_with("tile/") {
                files.insert(name, bytes);
            }
        }
        // A record before the announcement of the second key contradicts the first key's signature.
        mutation("rewrite", files, &["changed", "split view"])
    }

    /// Replaces all files with an older copy.
    fn roll_back(&mut self) -> Mutation {
        let size = self
            .rng
            .usize(usize::try_from(SECOND_KEY).unwrap()..self.records.len());
        let files = export(&self.records[..size], [&signer(1), &signer(2)]);
        mutation("roll back", files, &["truncated"])
    }

    /// Replaces the log with a foreign one, signs this one with foreign keys, or with the true keys
    /// signs another log than was shown before.
    fn swap_key(&mut self) -> Mutation {
        let (ours, theirs) = ([&signer(1), &signer(2)], [&signer(3), &signer(4)]);
        let mut records = self.records.clone();
        let at = self.rng.usize(1..usize::try_from(SECOND_KEY).unwrap() - 1);
        records[at] = record(at as u64 + 1, "nothing to see here");
        match self.rng.u8(0..3) {
            0 => mutation("foreign log", export(&records, theirs), &["wrong key"]),
            1 => {
                let mut files = self.whole.clone();
                let note = signed(&self.records, theirs[1]).into_bytes();
                files.insert(CHECKPOINT.to_owned(), note);
                mutation("foreign signature", files, &["signature"])
            }
            _ => mutation("split view", export(&records, ours), &["split view"]),
        }
    }
}

fn write(files: &Files, directory: &Path, before: &Files) {
    for name in before.keys().filter(|name| !files.contains_key(*name)) {
        fs::remove_file(directory.join(name)).unwrap();
    }
    for (name, bytes) in files {
        if before.get(name) != Some(bytes) {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

/// Applies `count` mutations. Returns the number of each kind.
fn tamper(seed: u64, count: u32) -> BTreeMap<&'static str, u32> {
    let (home, records) = (TempDir::new().unwrap(), records());
    let whole = export(&records, [&signer(1), &signer(2)]);
    let dir = home.path();
    write(&whole, dir, &Files::new());
    let Checkpoint { size, root, .. } = head(&records[..200]);
    let demands = Requirements {
        key: Some(signer(1).verifier().clone()),
        since: Some(signed(&records, &signer(2))),
        whole: true,
        receipts: vec![Receipt {
            seq: 150,
            size,
            root,
        }],
    };
    verify(dir, &demands).unwrap();
    let mut chance = Chance {
        rng: Rng::with_seed(seed),
        whole: whole.clone(),
        records,
    };
    let mut done = BTreeMap::new();
    for number in 0..count {
        let Mutation { name, files, words } = chance.mutation();
        if files == whole {
            continue;
        }
        write(&files, dir, &whole);
        let Err(fault) = verify(dir, &demands) else {
            panic!("seed {seed}, {number}: {name} goes unnoticed");
        };
        let told = word(&fault);
        assert!(
            words.contains(&told),
            "seed {seed}, {number}: {name}: {fault}"
        );
        write(&whole, dir, &files);
        *done.entry(name).or_default() += 1;
    }
    verify(dir, &demands).unwrap();
    done
}

#[test]
fn every_change_of_an_export_is_noticed_and_reported_correctly() {
    let first = seed().wrapping_mul(THREADS);
    let seeds = first..first + THREADS;
    let mutations = trials(
        "changes of an export",
        "CREDBROKER_TEST_CHANGES",
        MUTATIONS,
        8_500,
    );
    let workers = seeds.map(|seed| thread::spawn(move || tamper(seed, mutations / 2)));
    let workers: Vec<_> = workers.collect();
    for worker in workers {
        println!("{:?}", worker.join().unwrap());
    }
}

#[test]
fn a_copy_that_begins_between_key_record_and_handover_is_verified() {
    let (home, [first, second]) = (TempDir::new().unwrap(), [1, 2].map(signer));
    let mut records = records();
    let mut put = |seq: usize, leaf| records[seq - 1] = leaf;
    put(256, announcement(256, &second));
    put(280, record_of(280, Event::LeaseIssued, "as usual"));
    put(290, record_of(290, Event::LogPruned, "records 1 to 256"));
    let mut files = export(&records, [&first, &second]);
    let handover = head(&records[..258]).handover_text(second.verifier());
    let handover = first.sign(&handover).unwrap().into_bytes();
    files.insert(handover_path(2), handover);
    for pruned in ["tile/entries/000", "tile/0/000"] {
        files.remove(pruned).unwrap();
    }
    write(&files, home.path(), &Files::new());
    for key in [&first, &second] {
        let demands = Requirements {
            key: Some(key.verifier().clone()),
            ..Requirements::default()
        };
        assert_eq!(verify(home.path(), &demands).unwrap().start, 256);
    }
    let stranger = Requirements {
        key: Some(signer(3).verifier().clone()),
        ..Requirements::default()
    };
    let fault = verify(home.path(), &stranger).unwrap_err();
    assert_eq!(word(&fault), "wrong key");
}
