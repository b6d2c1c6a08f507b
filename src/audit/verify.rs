//! The check of a log in files, on nothing but the files: leaves, tree, tiles, signatures,
//! and that it goes on from what is known of it from elsewhere.

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

/// What is asked of a copy, beside that it is of one piece.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// This key, or one that it leads to, has signed it; by default the newest that it
    /// names.
    pub key: Option<Verifier>,
    /// It goes on from this checkpoint, a signed note.
    pub since: Option<String>,
    /// It holds these records.
    pub receipts: Vec<Receipt>,
    /// It begins with the first record.
    pub whole: bool,
}

/// A copy that is as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What it holds.
    pub checkpoint: Checkpoint,
    /// The newest key that may have signed it.
    pub key: Verifier,
    /// How many of the first records it does not hold, since they were pruned.
    pub start: u64,
}

/// What is wrong with a copy, the first that is found.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not there.
    #[error("missing: {0}")]
    MissingFile(String),
    /// A file is not what the records say.
    #[error("changed: {0}")]
    ChangedFile(String),
    /// A record is not there, and later ones are.
    #[error("missing: record {0}")]
    Missing(u64),
    /// A record is not the one that was signed.
    #[error("changed: record {0}")]
    Changed(u64),
    /// The records are not those that were signed, and nothing says which.
    #[error("changed: the records are not those that the checkpoint stands for")]
    ChangedSomewhere,
    /// The copy ends too early.
    #[error("truncated: the copy ends before {0}")]
    Truncated(String),
    /// A record stands in the place of another.
    #[error("reordered: record {found} in the place of {place}")]
    Reordered {
        /// Which.
        found: u64,
        /// Where.
        place: u64,
    },
    /// The checkpoint is not signed as it should be.
    #[error("the checkpoint: {0}")]
    Checkpoint(String),
    /// It is of another log, or signed by a key that nothing leads to.
    #[error("wrong key: {0}")]
    WrongKey(String),
    /// Records were pruned that alone could show it.
    #[error("not to be told: the copy begins with record {first}, after {what}")]
    Pruned {
        /// The first that is there.
        first: u64,
        /// What cannot be told.
        what: String,
    },
    /// Somebody was shown another log.
    #[error("split view: the copy is another log than {0}")]
    SplitView(String),
}

/// Checks the copy in a directory.
///
/// # Errors
/// What is wrong with it.
pub fn verify(directory: &Path, demands: &Demands) -> Result<Verified, Fault> {
    let files = Files(directory);
    let keys = files.keys()?;
    let mut known = files.handovers(&keys)?;
    let trusted = trusted(&keys, &known, demands.key.as_ref())?;
    let checkpoint = opened(&files.text(CHECKPOINT)?, trusted)?;
    if let Some(note) = &demands.since {
        let earlier = opened(note, trusted)?;
        known.push(Known::elsewhere(&earlier, "the earlier checkpoint"));
    }
    known.extend(demands.receipts.iter().map(Known::of_receipt));
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

/// The checkpoint of a note that one of `keys` has signed.
///
/// # Errors
/// It is none of theirs, or of another log.
pub fn opened(note: &str, keys: &[Verifier]) -> Result<Checkpoint, Fault> {
    let text = note::open(note, keys).map_err(|error| Fault::Checkpoint(error.to_string()))?;
    let checkpoint =
        Checkpoint::parse(text).map_err(|error| Fault::Checkpoint(error.to_string()))?;
    if keys.iter().all(|key| key.name() != checkpoint.origin) {
        return Err(Fault::Checkpoint("it is of another log".to_owned()));
    }
    Ok(checkpoint)
}

/// The checkpoint by which a key hands the log over to the next.
fn handover(note: &str, before: &Verifier, next: &Verifier) -> Option<Checkpoint> {
    let text = note::open(note, std::slice::from_ref(before)).ok()?;
    let named = Checkpoint::successor(text)?;
    let checkpoint = Checkpoint::parse(text).ok()?;
    (named == *next && checkpoint.origin == before.name()).then_some(checkpoint)
}

/// Keys that may have signed the copy: the one that is trusted, by default the newest, and
/// those that it leads to.
fn trusted<'k>(
    keys: &'k [Verifier],
    handovers: &[Known],
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

/// Reads a file; `None` when there is none.
///
/// # Errors
/// It cannot be read.
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

/// The files of a copy.
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

    /// The keys that the copy names, at least one.
    fn keys(&self) -> Result<Vec<Verifier>, Fault> {
        let text = self.text(KEYS)?;
        let lines = text.strip_suffix('\n').map(|lines| lines.split('\n'));
        let keys = lines.and_then(|lines| lines.map(|line| line.parse().ok()).collect());
        keys.ok_or_else(|| Fault::ChangedFile(KEYS.to_owned()))
    }

    /// What each key has signed of the log that announces the next.
    fn handovers(&self, keys: &[Verifier]) -> Result<Vec<Known>, Fault> {
        let mut known = Vec::new();
        for (at, before) in keys.iter().enumerate().take(keys.len() - 1) {
            let name = handover_path(at + 2);
            // The key before may have been lost.
            if self.read(&name)?.is_none() {
                continue;
            }
            let note = self.text(&name)?;
            let checkpoint = handover(&note, before, &keys[at + 1]);
            let checkpoint = checkpoint.ok_or(Fault::ChangedFile(name))?;
            let what = format!("the checkpoint that announces key {}", at + 2);
            known.push(Known {
                announces: Some(at + 1),
                ..Known::elsewhere(&checkpoint, &what)
            });
        }
        Ok(known)
    }

    /// The tree over the copy's records, each looked at.
    fn read_all(&self, head: &Checkpoint, known: &[Known]) -> Result<Copy, Fault> {
        if let Some(later) = known.iter().find(|known| known.size > head.size) {
            return Err(Fault::Truncated(later.what.clone()));
        }
        let mut copy = Copy::default();
        let first = self.first_bundle(head.size);
        self.skip_pruned(first, head.size, known, &mut copy)?;
        for index in first..head.size.div_ceil(WIDTH) {
            self.read_bundle(index, head.size, known, &mut copy)?;
        }
        if copy.pruned < copy.start {
            return Err(Fault::Missing(1));
        }
        let mut before = known.iter().filter(|known| known.size < copy.start);
        let told = |known: &Known| known.announces.is_some() || known.size.is_multiple_of(WIDTH);
        match before.find(|known| !told(known)) {
            None => Ok(copy),
            Some(untold) => Err(Fault::Pruned {
                first: copy.start + 1,
                what: untold.what.clone(),
            }),
        }
    }

    /// The first bundle that is there; 0 for none.
    fn first_bundle(&self, size: u64) -> u64 {
        let is_there = |index: &u64| self.0.join(tile::bundle_path(*index, size)).exists();
        (0..size.div_ceil(WIDTH)).find(is_there).unwrap_or(0)
    }

    /// What was pruned is in the tree by the roots of its bundles.
    fn skip_pruned(
        &self,
        first: u64,
        size: u64,
        known: &[Known],
        copy: &mut Copy,
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
        known: &[Known],
        copy: &mut Copy,
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

    /// What has become of the record that belongs in `place`, where another stands: if that
    /// is one of the log's and those that follow it come with it, it has been taken out.
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

    /// The first record of a bundle.
    fn first_of(&self, index: u64, size: u64) -> Result<Option<AuditRecord>, Fault> {
        let bytes = self.read(&tile::bundle_path(index, size))?;
        let bytes = bytes.unwrap_or_default();
        let first = entries(&bytes).0.first().copied();
        Ok(first.and_then(|entry| leaf::decode(entry).ok()))
    }

    /// Whether the tile of a record, if it is there, has the hash of this entry.
    fn tells(&self, number: u64, entry: &[u8], size: u64) -> Result<bool, Fault> {
        let Some(index) = number.checked_sub(1).filter(|index| *index < size) else {
            return Ok(false);
        };
        let at = usize::try_from(index % WIDTH).unwrap_or(usize::MAX);
        let hashes = self.hashes(index / WIDTH, size)?;
        Ok(hashes.is_none_or(|hashes| hashes.get(at) == Some(&leaf_hash(entry))))
    }

    /// The hashes of a bundle's records, as its tile tells them; `None` without one.
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

/// What is known of the log from elsewhere: that its first records had this root.
struct Known {
    size: u64,
    root: Hash,
    what: String,
    /// Which of the log's keys, from 0, a record among them must name.
    announces: Option<usize>,
}

impl Known {
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

/// What has been read of a copy.
#[derive(Default)]
struct Copy {
    tree: Growing,
    /// The first record whose hash is not the one that its tile tells.
    suspect: Option<u64>,
    /// Keys that records announce, with their numbers.
    announced: Vec<(u64, String)>,
    /// How many of the first records are not there.
    start: u64,
    /// How many a record says were pruned.
    pruned: u64,
}

impl Copy {
    /// Each key must be named by a record, and before the key before has said so.
    fn must_announce(&self, keys: &[Verifier], known: &[Known]) -> Result<(), Fault> {
        if self.start > 0 {
            // Those records may have been pruned; each handover names its key by itself.
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

    /// The next record.
    fn take(&mut self, record: AuditRecord, entry: &[u8], known: &[Known]) -> Result<(), Fault> {
        self.pruned = self.pruned.max(record.event.pruned_until().unwrap_or(0));
        if record.event.event == Event::LogKeyMade {
            let key = record.event.detail.unwrap_or_default();
            self.announced.push((record.seq, key));
        }
        self.tree.push(entry);
        self.must_agree(known)
    }

    /// What is known of the log at this size.
    fn must_agree(&self, known: &[Known]) -> Result<(), Fault> {
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
