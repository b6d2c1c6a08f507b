//! Tiles: 256 neighbouring hashes of one level, in the file layout of C2SP tlog-tiles.
//! <https://c2sp.org/tlog-tiles>
//!
//! Tile level 0 holds leaves. Each further level holds the roots of the full tiles below it. One
//! tile is enough for the hash of any perfect subtree, so a few tiles are enough for any proof.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::{Hash, Node, Range, fold, perfect};

/// Levels of the tree in one tile.
pub const HEIGHT: u8 = 8;
/// Number of hashes in a full tile, and of entries in a full bundle.
pub const WIDTH: u64 = 1 << HEIGHT;

/// Position of a tile. The tile holds the hashes of `WIDTH` subtrees, from `index * WIDTH`, each
/// with `WIDTH`^`level` leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// Level of the tile; 0 for leaves.
    pub level: u8,
    /// Number of tiles of the same level before this one.
    pub index: u64,
}

impl Tile {
    /// Returns the tile that holds a subtree's hash; `None` for the levels in between, whose hashes
    /// follow from the tile below.
    #[must_use]
    pub const fn holding(node: Node) -> Option<Self> {
        if !node.level.is_multiple_of(HEIGHT) {
            return None;
        }
        Some(Self {
            level: node.level / HEIGHT,
            index: node.index / WIDTH,
        })
    }

    /// Returns the tile that a subtree's hash is computed from, and the range of the tile's hashes.
    fn under(node: Node) -> (Self, std::ops::Range<usize>) {
        let level = node.level / HEIGHT;
        let above = node.level % HEIGHT;
        let first = node.index << above;
        let tile = Self {
            level,
            index: first / WIDTH,
        };
        let first = usize::try_from(first % WIDTH).unwrap_or(usize::MAX);
        (tile, first..first + (1 << above))
    }

    /// Returns the tile's number of hashes in a tree of `size` leaves, at most [`WIDTH`].
    #[must_use]
    pub fn width(self, size: u64) -> u64 {
        let whole = size
            .checked_shr(u32::from(self.level * HEIGHT))
            .unwrap_or(0);
        whole
            .saturating_sub(self.index.saturating_mul(WIDTH))
            .min(WIDTH)
    }

    /// Returns the tile's path under the log's directory, in a tree of `size` leaves.
    #[must_use]
    pub fn path(self, size: u64) -> String {
        let level = self.level;
        format!(
            "tile/{level}/{}{}",
            number(self.index),
            partial(self.width(size))
        )
    }
}

/// Returns the path of the bundle of entries from `index * WIDTH`, in a log of `size` entries.
#[must_use]
pub fn bundle_path(index: u64, size: u64) -> String {
    let width = Tile { level: 0, index }.width(size);
    format!("tile/entries/{}{}", number(index), partial(width))
}

fn partial(width: u64) -> String {
    if width == WIDTH {
        String::new()
    } else {
        format!(".p/{width}")
    }
}

/// Formats a number in groups of three digits, with `x` before each but the last: `x001/x234/067`.
fn number(index: u64) -> String {
    let mut text = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        text = format!("x{:03}/{text}", rest % 1000);
        rest /= 1000;
    }
    text
}

/// Hashes by tile; each tile needs only as many as are used.
pub type Tiles = BTreeMap<Tile, Vec<Hash>>;

/// Returns the tiles that the hashes of these ranges are computed from.
#[must_use]
pub fn tiles_of(ranges: &[Range]) -> BTreeSet<Tile> {
    let nodes = ranges.iter().flat_map(|range| range.nodes());
    nodes.map(|node| Tile::under(node).0).collect()
}

/// Returns the hashes of these ranges; `None` if a tile or a hash that they need is missing.
#[must_use]
pub fn hashes(ranges: &[Range], tiles: &Tiles) -> Option<Vec<Hash>> {
    ranges.iter().map(|range| hash(*range, tiles)).collect()
}

fn hash(range: Range, tiles: &Tiles) -> Option<Hash> {
    let subtree = |node| {
        let (tile, which) = Tile::under(node);
        perfect(tiles.get(&tile)?.get(which)?)
    };
    let subtrees: Option<Vec<Hash>> = range.nodes().into_iter().map(subtree).collect();
    fold(&subtrees?)
}

/// Returns the root of a tree of `size` leaves; `None` if a tile or a hash is missing.
#[must_use]
pub fn root(size: u64, tiles: &Tiles) -> Option<Hash> {
    match size {
        0 => Some(super::tree::EMPTY),
        _ => hash(
            Range {
                start: 0,
                end: size,
            },
            tiles,
        ),
    }
}
