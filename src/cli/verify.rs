//! `credbroker audit verify`: the check of an export, without any broker.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    export::{CHECKPOINT, Growing, KEYS, entries, handover_path, opened, read},
    failure::Failure,
    output::Output,
    proof,
};
use crate::{
    audit::{
        checkpoint::{Checkpoint, Receipt},
        leaf,
        note::Verifier,
        tile::{self, Tile, WIDTH},
        tree::{Hash, leaf_hash},
    },
    domain::audit::{AuditRecord, Event},
};

#[derive(Args, Debug)]
pub(super) struct Verify {
    /// An export or a copy of one, or a file that `audit prove` wrote.
    path: PathBuf,
    /// The log's key, as `audit checkpoint -o json` told it, or an earlier one; the copy's own if not given,
    /// which shows that the copy is of one piece, not whose it is. A proof needs it.
    #[arg(long)]
    key: Option<Verifier>,
    /// What `issue` or `revoke` answered, SEQ:SIZE:ROOT: the copy must hold it. May be
    /// given several times.
    #[arg(long, value_name = "RECEIPT")]
    receipt: Vec<Receipt>,
    /// A checkpoint from earlier: the copy must go on from it.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
}

impl Verify {
    pub(super) fn run(self, out: &mut Output) -> Result<(), Failure> {
        if self.path.is_file() {
            let key = self.key.as_ref().ok_or_else(|| {
                Failure::usage("a proof is checked with the log's key: give --key")
            })?;
            return proof::verify(&text(&self.path)?, key, out);
        }
        let keys = self.keys()?;
        let mut known = self.handovers(&keys)?;
        let trusted = self.trusted(&keys, &known)?;
        let checkpoint = opened(&text(&self.path.join(CHECKPOINT))?, trusted)?;
        self.add_known(trusted, &mut known)?;
        let copy = self.read_all(&checkpoint, &known)?;
        if copy.tree.edge.root() != checkpoint.root {
            let what = match copy.suspect {
                Some(number) => format!("changed: record {number}"),
                None => {
                    "changed: the records are not those that the checkpoint stands for".to_owned()
                }
            };
            return Err(Failure::verification(what));
        }
        copy.must_announce(&keys, &known)?;
        let tree = copy.tree;
        self.compare_tiles(&tree, checkpoint.size)?;
        let size = checkpoint.size;
        Ok(out.line(&format!(
            "{size} records, as signed by {}",
            checkpoint.origin
        ))?)
    }

    /// The keys that the copy names.
    fn keys(&self) -> Result<Vec<Verifier>, Failure> {
        let path = self.path.join(KEYS);
        let keys: Result<Vec<Verifier>, _> = text(&path)?.lines().map(str::parse).collect();
        let changed = || Failure::verification(format!("changed: {}", path.display()));
        keys.ok()
            .filter(|keys| !keys.is_empty())
            .ok_or_else(changed)
    }

    /// What each key has signed of the log that announces the next.
    fn handovers(&self, keys: &[Verifier]) -> Result<Vec<Known>, Failure> {
        let mut known = Vec::new();
        for (at, before) in keys.iter().enumerate().take(keys.len() - 1) {
            let path = self.path.join(handover_path(at + 2));
            // The key before may have been lost.
            if read(&path)?.is_none() {
                continue;
            }
            let opened = opened(&text(&path)?, std::slice::from_ref(before));
            let Ok(Checkpoint { size, root, .. }) = opened else {
                return Err(Failure::verification(format!(
                    "changed: {}",
                    path.display()
                )));
            };
            known.push(Known {
                size,
                root,
                what: format!("the checkpoint that announces key {}", at + 2),
                announces: Some(at + 1),
            });
        }
        Ok(known)
    }

    /// Keys that may have signed the copy: the one that is trusted, by default the newest,
    /// and those that it leads to.
    fn trusted<'k>(
        &self,
        keys: &'k [Verifier],
        handovers: &[Known],
    ) -> Result<&'k [Verifier], Failure> {
        let newest = keys.len() - 1;
        let first = match &self.key {
            None => newest,
            Some(key) => keys.iter().position(|known| known == key).ok_or_else(|| {
                Failure::verification("wrong key: the copy is not of a log that this key signs")
            })?,
        };
        let announced = |at: &usize| handovers.iter().any(|known| known.announces == Some(*at));
        let after = (first + 1..=newest).take_while(announced).count();
        Ok(&keys[first..=first + after])
    }

    /// What else the copy must go on from.
    fn add_known(&self, keys: &[Verifier], known: &mut Vec<Known>) -> Result<(), Failure> {
        if let Some(path) = &self.since {
            let Checkpoint { size, root, .. } = opened(&text(path)?, keys)?;
            let what = "the earlier checkpoint".to_owned();
            known.push(Known {
                size,
                root,
                what,
                announces: None,
            });
        }
        for Receipt { seq, size, root } in self.receipt.iter().copied() {
            let what = format!("the receipt of record {seq}");
            known.push(Known {
                size,
                root,
                what,
                announces: None,
            });
        }
        Ok(())
    }

    /// The tree over the copy's records, each looked at.
    fn read_all(&self, head: &Checkpoint, known: &[Known]) -> Result<Copy, Failure> {
        if let Some(later) = known.iter().find(|known| known.size > head.size) {
            let what = format!("truncated: the copy ends before {}", later.what);
            return Err(Failure::verification(what));
        }
        let mut copy = Copy::default();
        for index in 0..head.size.div_ceil(WIDTH) {
            let bytes = read(&self.path.join(tile::bundle_path(index, head.size)))?;
            let number = copy.tree.edge.size() + 1;
            let absent = if index + 1 == head.size.div_ceil(WIDTH) {
                truncated
            } else {
                missing
            };
            let bytes = bytes.ok_or_else(|| absent(number))?;
            let entries = entries(&bytes).ok_or_else(|| changed(number))?;
            let tile = Tile { level: 0, index };
            let hashes = read(&self.path.join(tile.path(head.size)))?.unwrap_or_default();
            copy.take(&entries, hashes.as_chunks().0, known)?;
            let width = usize::try_from(tile.width(head.size)).unwrap_or(usize::MAX);
            let number = copy.tree.edge.size() + 1;
            match entries.len() {
                fewer if fewer < width => return Err(absent(number)),
                more if more > width => return Err(changed(number)),
                _ => {}
            }
        }
        Ok(copy)
    }

    fn compare_tiles(&self, tree: &Growing, size: u64) -> Result<(), Failure> {
        for (tile, hashes) in &tree.tiles {
            let name = tile.path(size);
            let bytes = read(&self.path.join(&name))?;
            if bytes.as_deref() != Some(hashes.as_flattened()) {
                return Err(Failure::verification(format!("changed: {name}")));
            }
        }
        Ok(())
    }
}

/// What is known of the log from elsewhere: that its first records had this root.
struct Known {
    size: u64,
    root: Hash,
    what: String,
    /// Which of the log's keys, from 0, a record of it must name.
    announces: Option<usize>,
}

/// What has been read of a copy.
#[derive(Default)]
struct Copy {
    tree: Growing,
    /// The first record whose hash is not the one that its tile tells.
    suspect: Option<u64>,
    /// Keys that records announce, with their numbers.
    announced: Vec<(u64, String)>,
}

impl Copy {
    /// Each key must be named by a record, and before the key before has said so.
    fn must_announce(&self, keys: &[Verifier], known: &[Known]) -> Result<(), Failure> {
        for (at, key) in keys.iter().enumerate() {
            let handover = known.iter().find(|known| known.announces == Some(at));
            let until = handover.map_or(u64::MAX, |known| known.size);
            let told = key.to_string();
            let mut announced = self.announced.iter();
            if !announced.any(|(seq, key)| *seq <= until && *key == told) {
                let what = format!("wrong key: no record announces {told}");
                return Err(Failure::verification(what));
            }
        }
        Ok(())
    }

    /// The entries of the next bundle, with the hashes that their tile tells.
    fn take(&mut self, entries: &[&[u8]], hashes: &[Hash], known: &[Known]) -> Result<(), Failure> {
        let records = entries.iter().map(|entry| leaf::decode(entry).ok());
        let records: Vec<Option<AuditRecord>> = records.collect();
        let number = |record: &Option<AuditRecord>| record.as_ref().map(|record| record.seq);
        let numbers: Vec<Option<u64>> = records.iter().map(number).collect();
        for record in records.into_iter().flatten() {
            if record.event.event == Event::LogKeyMade {
                let key = record.event.detail.unwrap_or_default();
                self.announced.push((record.seq, key));
            }
        }
        for (at, entry) in entries.iter().enumerate() {
            let number = self.tree.edge.size() + 1;
            match numbers[at] {
                None => return Err(changed(number)),
                Some(told) if told == number => {}
                Some(told) if numbers.contains(&Some(number)) || told < number => {
                    let what = format!("reordered: record {told} in the place of {number}");
                    return Err(Failure::verification(what));
                }
                Some(_) => return Err(missing(number)),
            }
            if hashes.get(at) != Some(&leaf_hash(entry)) {
                self.suspect.get_or_insert(number);
            }
            self.tree.push(entry);
            let mut same_size = known.iter().filter(|known| known.size == number);
            let root = || self.tree.edge.root();
            if let Some(other) = same_size.find(|known| known.root != root()) {
                let what = format!("split view: the copy is another log than {}", other.what);
                return Err(Failure::verification(what));
            }
        }
        Ok(())
    }
}

fn missing(number: u64) -> Failure {
    Failure::verification(format!("missing: record {number}"))
}

fn truncated(number: u64) -> Failure {
    Failure::verification(format!("truncated: the copy ends before record {number}"))
}

fn changed(number: u64) -> Failure {
    Failure::verification(format!("changed: record {number}"))
}

fn text(path: &Path) -> Result<String, Failure> {
    let missing = || Failure::verification(format!("missing: {}", path.display()));
    let bytes = read(path)?.ok_or_else(missing)?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::verification(format!("changed: {}", path.display())))
}
