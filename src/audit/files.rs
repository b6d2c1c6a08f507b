//! The log as plain files in the layout of C2SP tlog-tiles, with a file of the keys that have
//! signed the log. <https://c2sp.org/tlog-tiles>

use super::{
    tile::{HEIGHT, Tile, Tiles},
    tree::{Frontier, Hash, Node, leaf_hash},
};

/// File of the signed checkpoint.
pub const CHECKPOINT: &str = "checkpoint";
/// File of the keys that have signed the log, one a line, the newest last.
pub const KEYS: &str = "keys";

/// Returns the path of the handover to key `number` (2 or more): a checkpoint of the log that
/// announces this key, signed by the key before it.
#[must_use]
pub fn handover_path(number: usize) -> String {
    format!("handover/{number}")
}

/// Returns a bundle of entries: before each entry its length in 16 bits, big endian. `None` if an
/// entry is longer than that.
#[must_use]
pub fn bundle(entries: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend(u16::try_from(entry.len()).ok()?.to_be_bytes());
        bytes.extend(entry);
    }
    Some(bytes)
}

/// Returns the entries of a bundle, and the bytes after the last complete entry.
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

/// A tree that grows entry by entry, with all its tiles.
#[derive(Default)]
pub struct Growing {
    /// Right edge of the tree.
    pub edge: Frontier,
    /// All tiles of the tree.
    pub tiles: Tiles,
}

impl Growing {
    /// Adds an entry.
    pub fn push(&mut self, entry: &[u8]) {
        let made = self.edge.push(leaf_hash(entry));
        self.keep(made);
    }

    /// Adds a full bundle of pruned entries by the root over them.
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
