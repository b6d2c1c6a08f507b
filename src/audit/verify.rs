//! Offline check of a copy of the log, from its files alone: leaves, tree, tiles, signatures, and
//! agreement with checkpoints and receipts from elsewhere.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    checkpoint::{Checkpoint, Receipt},
    files::{CHECKPOINT, Growing, KEYS, entries, handover_path},
    leaf,
    note::{self, Verifier},
    tile::{self, Tile, WIDTH},
    tree::{Hash, leaf_hash},
};
use crate::domain::audit::{AuditRecord, Event};

/// Requirements on a copy beyond its own consistency.
#[derive(Clone, Debug, Default)]
pub struct Requirements {
    /// Key that must have signed the copy, by itself or by a key that it leads to. Default: the
    /// newest key that the copy names.
    pub key: Option<Verifier>,
    /// Earlier checkpoint, a signed note, that the copy must continue.
    pub since: Option<String>,
    /// Receipts of records that the copy must contain.
    pub receipts: Vec<Receipt>,
    /// True if the copy must begin with the first record.
    pub whole: bool,
}

/// A copy that has passed the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Checkpoint of the copy.
    pub checkpoint: Checkpoint,
    /// Newest key that may have signed the copy.
    pub key: Verifier,
    /// Count of the oldest records, which the copy lacks because they were pruned.
    pub start: u64,
}

/// First fault found in a copy.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A file is missing.
    #[error("missing: {0}")]
    MissingFile(String),
    /// A file does not match the records.
    #[error("changed: {0}")]
    ChangedFile(String),
    /// A record is missing, and later ones are there.
    #[error("missing: record {0}")]
    Missing(u64),
    /// A record is not the one that was signed.
    #[error("changed: record {0}")]
    Changed(u64),
    /// The records are not those that were signed, and no tile shows which one differs.
    #[error("changed: the records are not those that the checkpoint stands for")]
    ChangedSomewhere,
    /// The copy ends too early.
    #[error("truncated: the copy ends before {0}")]
    Truncated(String),
    /// A record stands in the place of another.
    #[error("reordered: record {found} in the place of {place}")]
    Reordered {
        /// Number of the record that stands there.
        found: u64,
        /// Number of the record that belongs there.
        place: u64,
    },
    /// The checkpoint's text or signature is invalid.
    #[error("the checkpoint: {0}")]
    Checkpoint(String),
    /// The copy belongs to another log, or a key is used that no other key or record leads to.
    #[error("wrong key: {0}")]
    WrongKey(String),
    /// Records that the check needs were pruned.
    #[error("unknown: the copy begins with record {first}, after {what}")]
    Pruned {
        /// First record that the copy has.
        first: u64,
        /// Checkpoint or receipt that cannot be checked.
        what: String,
    },
    /// The copy and a checkpoint or receipt from elsewhere belong to different logs.
    #[error("split view: the copy is another log than {0}")]
    SplitView(String),
}

/// Checks the copy in a directory.
///
/// # Errors
/// The first fault found in the copy.
pub fn verify(directory: &Path, demands: &Requirements) -> Result<Verified, Fault> {
    let files = Files(directory);
    let keys = files.keys()?;
    let mut known = files.handovers(&keys)?;
    let trusted = trusted(&keys, &known, demands.key.as_ref())?;
    let checkpoint = opened(&files.text(CHECKPOINT)?, trusted)?;
    if let Some(note) = &demands.since {
        let earlier = opened(note, trusted)?;
        known.push(KnownKeys::elsewhere(&earlier, "the earlier checkpoint"));
    }
    known.extend(demands.receipts.iter().map(KnownKeys::of_receipt));
    let copy = files.read_all(&checkpoint, &known)?;
    if copy.tree.edge.root() != checkpoint.root {
        return Err(copy.suspect.map_or(Fault::ChangedSomewhere, Fault::Changed));
    }
    copy.must_announce(&keys, &known)?;
    if demands.whole && copy.start > 0 {
        return Err(Fault::Missing(1));
    }
    files.compare_tiles(&copy.tree, checkpoint.size)?;
    let key = trusted.last().unwrap_or(&keys[0]).clone();
    Ok(Verified {
        checkpoint,
        key,
        start: copy.start,
    })
}

/// Returns the checkpoint of a note that one of `keys` has signed.
///
/// # Errors
/// None of `keys` has signed the note, or the checkpoint belongs to another log.
pub fn opened(note: &str, keys: &[Verifier]) -> Result<Checkpoint, Fault> {
    let text = note::open(note, keys).map_err(|error| Fault::Checkpoint(error.to_string()))?;
    let checkpoint =
        Checkpoint::parse(text).map_err(|error| Fault::Checkpoint(error.to_string()))?;
    if keys.iter().all(|key| key.name() != checkpoint.origin) {
        return Err(Fault::Checkpoint("it is of another log".to_owned()));
    }
    Ok(checkpoint)
}

/// Returns the checkpoint by which the key `before` hands the log over to `next`.
fn handover(note: &str, before: &Verifier, next: &Verifier) -> Option<Checkpoint> {
    let text = note::open(note, std::slice::from_ref(before)).ok()?;
    let named = Checkpoint::successor(text)?;
    let checkpoint = Checkpoint::parse(text).ok()?;
    (named == *next && checkpoint.origin == before.name()).then_some(checkpoint)
}

/// Returns the keys that may have signed the copy: the trusted key (by default the newest) and the
/// keys that it leads to.
fn trusted<'k>(
    keys: &'k [Verifier],
    handovers: &[KnownKeys],
    key: Option<&Verifier>,
) -> Result<&'k [Verifier], Fault> {
    let newest = keys.len() - 1;
    let stranger = || Fault::WrongKey("the copy is not of a log that this key signs".to_owned());
    let first = match key {
        None => newest,
        Some(key) => keys
            .iter()
            .position(|known| known == key)
            .ok_or_else(stranger)?,
    };
    let announced = |at: &usize| handovers.iter().any(|known| known.announces == Some(*at));
    let after = (first + 1..=newest).take_while(announced).count();
    Ok(&keys[first..=first + after])
}

/// Reads a file; `None` if there is no such file.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Fault> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Fault::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Files of a copy.
struct Files<'d>(&'d Path);

impl Files<'_> {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        read(&self.0.join(name))
    }

    fn text(&self, name: &str) -> Result<String, Fault> {
        let bytes = self.read(name)?;
        let bytes = bytes.ok_or_else(|| Fault::MissingFile(name.to_owned()))?;
        String::from_utf8(bytes).map_err(|_| Fault::ChangedFile(name.to_owned()))
    }

    /// Returns the keys that the copy names, at least one.
    fn keys(&self) -> Result<Vec<Verifier>, Fault> {
        let text = self.text(KEYS)?;
        let lines = text.strip_suffix('\n').map(|lines| lines.split('\n'));
        let keys = lines.and_then(|lines| lines.map(|line| line.parse().ok()).collect());
        keys.ok_or_else(|| Fault::ChangedFile(KEYS.to_owned()))
    }

    /// Returns the handovers: checkpoints that one key has signed to announce the next key.
    fn handovers(&self, keys: &[Verifier]) -> Result<Vec<KnownKeys>, Fault> {
        let mut known = Vec::new();
        for (at, before) in keys.iter().enumerate().take(keys.len() - 1) {
            let name = handover_path(at + 2);
            // The previous key may have been lost, and then signed no handover.
            if self.read(&name)?.is_none() {
                continue;
            }
            let note = self.text(&name)?;
            let checkpoint = handover(&note, before, &keys[at + 1]);
            let checkpoint = checkpoint.ok_or(Fault::ChangedFile(name))?;
            let what = format!("the checkpoint that announces key {}", at + 2);
            known.push(KnownKeys {
                announces: Some(at + 1),
                ..KnownKeys::elsewhere(&checkpoint, &what)
            });
        }
        Ok(known)
    }

    /// Returns the copy's tree, made from all its records, each checked.
    fn read_all(&self, head: &Checkpoint, known: &[KnownKeys]) -> Result<LogCopy, Fault> {
        if let Some(later) = known.iter().find(|known| known.size > head.size) {
            return Err(Fault::Truncated(later.what.clone()));
        }
        let mut copy = LogCopy::default();
        let first = self.first_bundle(head.size);
        self.skip_pruned(first, head.size, known, &mut copy)?;
        for index in first..head.size.div_ceil(WIDTH) {
            self.read_bundle(index, head.size, known, &mut copy)?;
        }
        if copy.pruned < copy.start {
            return Err(Fault::Missing(1));
        }
        // In the pruned part, a root is comparable only at the end of a bundle. A handover names
        // its key by itself, and needs no comparison.
        let mut before = known.iter().filter(|known| known.size < copy.start);
        let told =
            |known: &KnownKeys| known.announces.is_some() || known.size.is_multiple_of(WIDTH);
        match before.find(|known| !told(known)) {
            None => Ok(copy),
            Some(untold) => Err(Fault::Pruned {
                first: copy.start + 1,
                what: untold.what.clone(),
            }),
        }
    }

    /// Returns the index of the first bundle in the copy; 0 without bundles.
    fn first_bundle(&self, size: u64) -> u64 {
        let is_there = |index: &u64| self.0.join(tile::bundle_path(*index, size)).exists();
        (0..size.div_ceil(WIDTH)).find(is_there).unwrap_or(0)
    }

    /// Adds the pruned bundles to the tree by their roots.
    fn skip_pruned(
        &self,
        first: u64,
        size: u64,
        known: &[KnownKeys],
        copy: &mut LogCopy,
    ) -> Result<(), Fault> {
        for index in 0..first.div_ceil(WIDTH) {
            let tile = Tile { level: 1, index };
            let bytes = self.read(&tile.path(size))?.ok_or(Fault::Missing(1))?;
            let roots = bytes.as_chunks().0.iter();
            let count = usize::try_from(first - index * WIDTH).unwrap_or(usize::MAX);
            for root in roots.take(count) {
                copy.tree.push_pruned(*root);
                copy.must_agree(known)?;
            }
        }
        copy.start = copy.tree.edge.size();
        if copy.start != first * WIDTH {
            return Err(Fault::Missing(1));
        }
        Ok(())
    }

    fn read_bundle(
        &self,
        index: u64,
        size: u64,
        known: &[KnownKeys],
        copy: &mut LogCopy,
    ) -> Result<(), Fault> {
        let absent = |number: u64| {
            if index + 1 == size.div_ceil(WIDTH) {
                Fault::Truncated(format!("record {number}"))
            } else {
                Fault::Missing(number)
            }
        };
        let number = copy.tree.edge.size() + 1;
        let bytes = self.read(&tile::bundle_path(index, size))?;
        let bytes = bytes.ok_or_else(|| absent(number))?;
        let (entries, rest) = entries(&bytes);
        let hashes = self.hashes(index, size)?;
        for (at, entry) in entries.iter().enumerate() {
            let place = copy.tree.edge.size() + 1;
            let read = leaf::decode(entry).map_err(|_| Fault::Changed(place))?;
            if read.seq != place {
                let next = match entries.get(at + 1) {
                    Some(next) => leaf::decode(next).ok(),
                    None => self.first_of(index + 1, size)?,
                };
                return Err(self.misplaced(&read, entry, place, next.as_ref(), size)?);
            }
            let hash = hashes.as_ref().map(|hashes| hashes.get(at));
            if hash.is_some_and(|hash| hash != Some(&leaf_hash(entry))) {
                copy.suspect.get_or_insert(place);
            }
            copy.take(read, entry, known)?;
        }
        let width = Tile { level: 0, index }.width(size);
        let (number, count) = (copy.tree.edge.size() + 1, entries.len() as u64);
        if count < width {
            return Err(absent(number));
        }
        if count > width || !rest.is_empty() {
            return Err(Fault::Changed(number));
        }
        Ok(())
    }

    /// Returns the fault at `place`, where another record stands. If that record belongs to the log
    /// and its successors follow it, the record of `place` was removed.
    fn misplaced(
        &self,
        found: &AuditRecord,
        entry: &[u8],
        place: u64,
        next: Option<&AuditRecord>,
        size: u64,
    ) -> Result<Fault, Fault> {
        let found = found.seq;
        let shifted = next.is_none_or(|next| next.seq == found + 1);
        Ok(if !self.tells(found, entry, size)? {
            Fault::Changed(place)
        } else if found > place && shifted {
            Fault::Missing(place)
        } else {
            Fault::Reordered { found, place }
        })
    }

    /// Returns the first record of a bundle.
    fn first_of(&self, index: u64, size: u64) -> Result<Option<AuditRecord>, Fault> {
        let bytes = self.read(&tile::bundle_path(index, size))?;
        let bytes = bytes.unwrap_or_default();
        let first = entries(&bytes).0.first().copied();
        Ok(first.and_then(|entry| leaf::decode(entry).ok()))
    }

    /// Returns whether the record's tile has the hash of this entry. True if the tile is missing.
    fn tells(&self, number: u64, entry: &[u8], size: u64) -> Result<bool, Fault> {
        let Some(index) = number.checked_sub(1).filter(|index| *index < size) else {
            return Ok(false);
        };
        let at = usize::try_from(index % WIDTH).unwrap_or(usize::MAX);
        let hashes = self.hashes(index / WIDTH, size)?;
        Ok(hashes.is_none_or(|hashes| hashes.get(at) == Some(&leaf_hash(entry))))
    }

    /// Returns the hashes of a bundle's records from its tile; `None` without a tile.
    fn hashes(&self, index: u64, size: u64) -> Result<Option<Vec<Hash>>, Fault> {
        let tile = Tile { level: 0, index };
        let bytes = self.read(&tile.path(size))?;
        Ok(bytes.map(|bytes| bytes.as_chunks().0.to_vec()))
    }

    fn compare_tiles(&self, tree: &Growing, size: u64) -> Result<(), Fault> {
        for (tile, hashes) in &tree.tiles {
            let name = tile.path(size);
            match self.read(&name)? {
                None => return Err(Fault::MissingFile(name)),
                Some(bytes) if bytes != hashes.as_flattened() => {
                    return Err(Fault::ChangedFile(name));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Knowledge from elsewhere: the first `size` records have this root.
struct KnownKeys {
    size: u64,
    root: Hash,
    what: String,
    /// Index of the key, from 0, that one of these records must announce.
    announces: Option<usize>,
}

impl KnownKeys {
    fn elsewhere(checkpoint: &Checkpoint, what: &str) -> Self {
        Self {
            size: checkpoint.size,
            root: checkpoint.root,
            what: what.to_owned(),
            announces: None,
        }
    }

    fn of_receipt(receipt: &Receipt) -> Self {
        Self {
            size: receipt.size,
            root: receipt.root,
            what: format!("the receipt of record {}", receipt.seq),
            announces: None,
        }
    }
}

/// Parts of a copy read so far.
#[derive(Default)]
struct LogCopy {
    tree: Growing,
    /// First record whose hash differs from the hash in its tile.
    suspect: Option<u64>,
    /// Keys that records announce, each with the number of its record.
    announced: Vec<(u64, String)>,
    /// Count of the oldest records, which the copy lacks.
    start: u64,
    /// Number of the last record that was pruned, according to a record of the pruning.
    pruned: u64,
}

impl LogCopy {
    /// Checks that a record announces each key, within the records that its handover signs.
    fn must_announce(&self, keys: &[Verifier], known: &[KnownKeys]) -> Result<(), Fault> {
        if self.start > 0 {
            // The records may have been pruned. Each handover names its key by itself.
            return Ok(());
        }
        for (at, key) in keys.iter().enumerate() {
            let handover = known.iter().find(|known| known.announces == Some(at));
            let until = handover.map_or(u64::MAX, |known| known.size);
            let told = key.to_string();
            let mut announced = self.announced.iter();
            if !announced.any(|(seq, key)| *seq <= until && *key == told) {
                return Err(Fault::WrongKey(format!("no record announces {told}")));
            }
        }
        Ok(())
    }

    /// Adds the next record.
    fn take(
        &mut self,
        record: AuditRecord,
        entry: &[u8],
        known: &[KnownKeys],
    ) -> Result<(), Fault> {
        self.pruned = self.pruned.max(record.event.pruned_until().unwrap_or(0));
        if record.event.event == Event::LogKeyMade {
            let key = record.event.detail.unwrap_or_default();
            self.announced.push((record.seq, key));
        }
        self.tree.push(entry);
        self.must_agree(known)
    }

    /// Compares the tree with everything known of the log at this size.
    fn must_agree(&self, known: &[KnownKeys]) -> Result<(), Fault> {
        let size = self.tree.edge.size();
        let mut same_size = known.iter().filter(|known| known.size == size);
        let root = || self.tree.edge.root();
        if let Some(other) = same_size.find(|known| known.root != root()) {
            let split = || Fault::SplitView(other.what.clone());
            return Err(self.suspect.map_or_else(split, Fault::Changed));
        }
        Ok(())
    }
}
