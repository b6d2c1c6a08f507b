//! `credbroker audit export` and `verify`: the log as plain files in the layout of C2SP
//! tlog-tiles, and the check of such a copy without any broker.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{failure::Failure, output::Output, proof};
use crate::{
    audit::{
        checkpoint::{Checkpoint, Receipt},
        leaf,
        note::{self, Verifier},
        tile::{self, Tile, Tiles, WIDTH},
        tree::{Edge, Hash, leaf_hash},
    },
    client::Client,
    proto::{ExportEntriesRequest, GetCheckpointRequest},
};

/// Where the signed checkpoint lies in an export, and the key that signed it.
const CHECKPOINT: &str = "checkpoint";
const KEY: &str = "key";

#[derive(Args, Debug)]
pub(super) struct Export {
    /// Where to write; what an earlier export has left there is gone on from.
    dir: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct Verify {
    /// An export or a copy of one, or a file that `audit prove` wrote.
    path: PathBuf,
    /// The log's key, as `audit checkpoint -o json` told it; the copy's own if not given,
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

/// A tree over entries that come one by one, with all its tiles.
#[derive(Default)]
struct Growing {
    edge: Edge,
    tiles: Tiles,
}

impl Growing {
    fn push(&mut self, entry: &[u8]) {
        for (node, hash) in self.edge.push(leaf_hash(entry)) {
            if let Some(tile) = Tile::holding(node) {
                self.tiles.entry(tile).or_default().push(hash);
            }
        }
    }
}

impl Export {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
        let mut audit = client.audit();
        let signed = audit.get_checkpoint(GetCheckpointRequest {}).await?;
        let signed = signed.into_inner();
        let key: Verifier = signed.verifier_key.parse().map_err(|error| {
            Failure::unexpected(format!("the broker's key of the log: {error}"))
        })?;
        let checkpoint = opened(&signed.note, &key)?;
        let mut tree = Growing::default();
        self.take_up(&mut tree, checkpoint.size)?;
        let taken_up = tree.edge.size();
        let request = ExportEntriesRequest {
            start: taken_up,
            end: checkpoint.size,
        };
        let mut bundles = audit.export_entries(request).await?.into_inner();
        while let Some(bundle) = bundles.message().await? {
            let index = tree.edge.size() / WIDTH;
            let mut bytes = Vec::new();
            for entry in &bundle.entries {
                let length = u16::try_from(entry.len()).map_err(|_| {
                    Failure::unexpected("the broker sent a record that is too long")
                })?;
                bytes.extend(length.to_be_bytes());
                bytes.extend(entry);
                tree.push(entry);
            }
            self.write(&tile::bundle_path(index, checkpoint.size), &bytes)?;
        }
        if (tree.edge.size(), tree.edge.root()) != (checkpoint.size, checkpoint.root) {
            let what = "what was exported is not what the broker's checkpoint stands for";
            return Err(Failure::verification(what)
                .next("export into an empty directory; if that fails too, the log was changed"));
        }
        for (tile, hashes) in &tree.tiles {
            self.write(&tile.path(checkpoint.size), hashes.as_flattened())?;
        }
        self.write(KEY, signed.verifier_key.as_bytes())?;
        self.write(CHECKPOINT, signed.note.as_bytes())?;
        let (size, new) = (checkpoint.size, checkpoint.size - taken_up);
        Ok(out.line(&format!(
            "{size} records, {new} of them new, in {}",
            self.dir.display()
        ))?)
    }

    /// The full bundles of an earlier export.
    fn take_up(&self, tree: &mut Growing, size: u64) -> Result<(), Failure> {
        for index in 0..size / WIDTH {
            let path = self.dir.join(tile::bundle_path(index, size));
            let Some(bytes) = read(&path)? else {
                return Ok(());
            };
            let entries = entries(&bytes).filter(|entries| entries.len() as u64 == WIDTH);
            let Some(entries) = entries else {
                return Ok(());
            };
            for entry in entries {
                tree.push(entry);
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.dir.join(name);
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| {
                let partial = path.with_extension("partial");
                fs::write(&partial, bytes)?;
                fs::rename(&partial, &path)
            });
        written.map_err(|error| unusable(&path, &error))
    }
}

impl Verify {
    pub(super) fn run(self, out: &mut Output) -> Result<(), Failure> {
        if self.path.is_file() {
            let key = self.key.as_ref().ok_or_else(|| {
                Failure::usage("a proof is checked with the log's key: give --key")
            })?;
            return proof::verify(&text(&self.path)?, key, out);
        }
        let note = text(&self.path.join(CHECKPOINT))?;
        let key = match &self.key {
            Some(key) => key.clone(),
            None => text(&self.path.join(KEY))?
                .parse()
                .map_err(|error| Failure::verification(format!("{KEY}: {error}")))?,
        };
        let checkpoint = opened(&note, &key)?;
        let copy = self.read_all(&checkpoint, &self.known(&key)?)?;
        if copy.tree.edge.root() != checkpoint.root {
            let what = match copy.suspect {
                Some(number) => format!("changed: record {number}"),
                None => {
                    "changed: the records are not those that the checkpoint stands for".to_owned()
                }
            };
            return Err(Failure::verification(what));
        }
        let tree = copy.tree;
        self.compare_tiles(&tree, checkpoint.size)?;
        let size = checkpoint.size;
        Ok(out.line(&format!("{size} records, as signed by {}", key.name()))?)
    }

    /// What the copy must go on from.
    fn known(&self, key: &Verifier) -> Result<Vec<Known>, Failure> {
        let mut known = Vec::new();
        if let Some(path) = &self.since {
            let Checkpoint { size, root, .. } = opened(&text(path)?, key)?;
            let what = "the earlier checkpoint".to_owned();
            known.push(Known { size, root, what });
        }
        for Receipt { seq, size, root } in self.receipt.iter().copied() {
            let what = format!("the receipt of record {seq}");
            known.push(Known { size, root, what });
        }
        Ok(known)
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
}

/// What has been read of a copy.
#[derive(Default)]
struct Copy {
    tree: Growing,
    /// The first record whose hash is not the one that its tile tells.
    suspect: Option<u64>,
}

impl Copy {
    /// The entries of the next bundle, with the hashes that their tile tells.
    fn take(&mut self, entries: &[&[u8]], hashes: &[Hash], known: &[Known]) -> Result<(), Failure> {
        let told = |entry: &&[u8]| leaf::decode(entry).ok().map(|record| record.seq);
        let numbers: Vec<Option<u64>> = entries.iter().map(told).collect();
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

fn opened(note: &str, key: &Verifier) -> Result<Checkpoint, Failure> {
    let text = note::open(note, std::slice::from_ref(key))
        .map_err(|error| Failure::verification(format!("the checkpoint: {error}")))?;
    let checkpoint = Checkpoint::parse(text)
        .map_err(|error| Failure::verification(format!("the checkpoint: {error}")))?;
    if checkpoint.origin != key.name() {
        return Err(Failure::verification("the checkpoint is of another log"));
    }
    Ok(checkpoint)
}

/// The entries of a bundle: a length of 16 bits, big endian, before each.
fn entries(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk()?;
        let (entry, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        entries.push(entry);
        bytes = rest;
    }
    Some(entries)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, &error)),
    }
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::unexpected(format!("{}: {error}", path.display()))
}
