//! The log as plain files, in the layout of C2SP tlog-tiles, with the keys that have signed
//! it beside. <https://c2sp.org/tlog-tiles>

use super::{
    tile::{HEIGHT, Tile, Tiles},
    tree::{Edge, Hash, Node, leaf_hash},
};

/// Where the signed checkpoint lies.
pub const CHECKPOINT: &str = "checkpoint";
/// The keys that have signed the log, a line each, the newest last.
pub const KEYS: &str = "keys";

/// The checkpoint of the key before, over the log that announces key `number`, from 2.
#[must_use]
pub fn handover_path(number: usize) -> String {
    format!("handover/{number}")
}

/// A bundle of entries: a length of 16 bits, big endian, before each. `None` when one is
/// longer.
#[must_use]
pub fn bundle(entries: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend(u16::try_from(entry.len()).ok()?.to_be_bytes());
        bytes.extend(entry);
    }
    Some(bytes)
}

/// The entries of a bundle, and what is left where it does not end with one.
#[must_use]
pub fn entries(mut bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut entries = Vec::new();
    while let Some((entry, rest)) = entry(bytes) {
        entries.push(entry);
        bytes = rest;
    }
    (entries, bytes)
}

fn entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

/// A tree over entries that come one by one, with all its tiles.
#[derive(Default)]
pub struct Growing {
    /// Its right edge.
    pub edge: Edge,
    /// Its tiles.
    pub tiles: Tiles,
}

impl Growing {
    /// Adds an entry.
    pub fn push(&mut self, entry: &[u8]) {
        let made = self.edge.push(leaf_hash(entry));
        self.keep(made);
    }

    /// Adds a full bundle of entries that are not there any more, by its root.
    pub fn push_pruned(&mut self, root: Hash) {
        let made = self.edge.push_subtree(HEIGHT, root);
        self.keep(made);
    }

    fn keep(&mut self, made: Vec<(Node, Hash)>) {
        for (node, hash) in made {
            if let Some(tile) = Tile::holding(node) {
                self.tiles.entry(tile).or_default().push(hash);
            }
        }
    }
}
