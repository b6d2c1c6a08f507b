//! The Merkle tree of RFC 6962, section 2.1, over SHA-256, and its proofs as RFC 9162,
//! sections 2.1.3 and 2.1.4, verify them.
//!
//! Hashes of perfect subtrees never change as the tree grows. A proof is a list of
//! [`Range`]s of leaves; each range is made of perfect subtrees, whose hashes come from
//! [`tile`](super::tile)s.

use aws_lc_rs::digest::{Context, SHA256};

/// Length of a hash, bytes.
pub const HASH_LENGTH: usize = 32;
/// A SHA-256 hash.
pub type Hash = [u8; HASH_LENGTH];

/// The hash of the empty tree: of nothing.
pub const EMPTY: Hash = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

pub(super) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = Hash::default();
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The hash of a leaf with this content.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    sha256(&[&[0], leaf])
}

/// The hash of a node with these children.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// The root over neighbouring subtrees, the largest first: right to left, each is the
/// left sister of all that follow. `None` for none.
#[must_use]
pub fn fold(subtrees: &[Hash]) -> Option<Hash> {
    let (last, before) = subtrees.split_last()?;
    let root = before.iter().rev();
    Some(root.fold(*last, |right, left| node_hash(left, &right)))
}

/// The root of a perfect subtree, a power of two of leaves or of equal subtrees.
pub(super) fn perfect(hashes: &[Hash]) -> Option<Hash> {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        let pairs = level.as_chunks::<2>().0.iter();
        level = pairs.map(|[left, right]| node_hash(left, right)).collect();
    }
    level.first().copied()
}

/// A perfect subtree: the leaves from `index << level`, `1 << level` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// 0 for a leaf.
    pub level: u8,
    /// How many subtrees of its size lie before it.
    pub index: u64,
}

/// The right edge of a tree, all that is needed to make it grow: the hashes of the
/// perfect subtrees that it consists of, the largest first, one for each 1 in its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    subtrees: Vec<Hash>,
}

impl Edge {
    /// The edge of a tree of this size; `None` unless there is a hash for each 1 in it.
    #[must_use]
    pub fn new(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        let fits = usize::try_from(size.count_ones()) == Ok(subtrees.len());
        fits.then_some(Self { size, subtrees })
    }

    /// How many leaves there are.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Hashes of the subtrees, the largest first.
    #[must_use]
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    /// Adds a leaf. Returns every subtree that it makes perfect, itself first.
    pub fn push(&mut self, leaf: Hash) -> Vec<(Node, Hash)> {
        self.push_subtree(0, leaf)
    }

    /// Adds a perfect subtree of this level, to a tree of whole ones.
    pub(crate) fn push_subtree(&mut self, level: u8, root: Hash) -> Vec<(Node, Hash)> {
        let index = self.size >> level;
        let (mut node, mut hash) = (Node { level, index }, root);
        let mut made = vec![(node, hash)];
        for _ in 0..index.trailing_ones() {
            let Some(left) = self.subtrees.pop() else {
                break;
            };
            hash = node_hash(&left, &hash);
            node = Node {
                level: node.level + 1,
                index: node.index / 2,
            };
            made.push((node, hash));
        }
        self.subtrees.push(hash);
        self.size += 1 << level;
        made
    }

    /// The root hash.
    #[must_use]
    pub fn root(&self) -> Hash {
        fold(&self.subtrees).unwrap_or(EMPTY)
    }
}

/// Leaves from `start` until before `end`, at least one, as proofs split a tree: `start`
/// is a multiple of every subtree that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first leaf.
    pub start: u64,
    /// The first leaf after.
    pub end: u64,
}

impl Range {
    const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Splits it where RFC 6962 does: after the largest power of two of leaves that
    /// leaves something over.
    const fn split(self) -> (Self, Self) {
        let middle = self.start + (1 << (self.len() - 1).ilog2());
        let left = Self {
            start: self.start,
            end: middle,
        };
        let right = Self {
            start: middle,
            end: self.end,
        };
        (left, right)
    }

    /// The perfect subtrees that it consists of, the largest first.
    #[must_use]
    pub fn nodes(self) -> Vec<Node> {
        let (mut nodes, mut start) = (Vec::new(), self.start);
        while start < self.end {
            let level = (self.end - start).ilog2();
            nodes.push(Node {
                level: u8::try_from(level).unwrap_or(u8::MAX),
                index: start >> level,
            });
            start += 1 << level;
        }
        nodes
    }
}

/// What proves that leaf `index` is in the tree of `size` leaves: the hashes of these
/// ranges, in this order. `None` when there is no such leaf.
#[must_use]
pub fn inclusion_proof(index: u64, size: u64) -> Option<Vec<Range>> {
    if index >= size {
        return None;
    }
    let (mut rest, mut proof) = (
        Range {
            start: 0,
            end: size,
        },
        Vec::new(),
    );
    while rest.len() > 1 {
        let (left, right) = rest.split();
        let sister;
        (rest, sister) = if index < left.end {
            (left, right)
        } else {
            (right, left)
        };
        proof.push(sister);
    }
    proof.reverse();
    Some(proof)
}

/// What proves that the tree of `size` leaves begins with that of `old` leaves: the
/// hashes of these ranges, in this order; none where both are the same or the old one is
/// empty. `None` when it cannot: the old one is larger.
#[must_use]
pub fn consistency_proof(old: u64, size: u64) -> Option<Vec<Range>> {
    if old > size {
        return None;
    }
    let mut proof = Vec::new();
    if old == 0 {
        return Some(proof);
    }
    // Whether `rest` is a whole subtree of the old tree from its beginning.
    let (mut rest, mut known) = (
        Range {
            start: 0,
            end: size,
        },
        true,
    );
    while rest.end != old {
        let (left, right) = rest.split();
        if old <= left.end {
            proof.push(right);
            rest = left;
        } else {
            proof.push(left);
            (rest, known) = (right, false);
        }
    }
    if !known {
        proof.push(rest);
    }
    proof.reverse();
    Some(proof)
}

/// Whether `proof` shows that the leaf of this hash is leaf `index` of the tree of `size`
/// leaves with this root (RFC 9162, section 2.1.3.2).
#[must_use]
pub fn includes(root: &Hash, size: u64, index: u64, leaf: &Hash, proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sister in proof {
        if last == 0 {
            return false;
        }
        if at % 2 == 1 || at == last {
            hash = node_hash(sister, &hash);
            while at % 2 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, sister);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of `size` leaves with `root` begins with that of
/// `old_size` leaves with `old_root` (RFC 9162, section 2.1.4.2).
#[must_use]
pub fn extends(root: &Hash, size: u64, old_root: &Hash, old_size: u64, proof: &[Hash]) -> bool {
    if old_size == 0 {
        return *old_root == EMPTY && proof.is_empty();
    }
    if old_size >= size {
        return old_size == size && old_root == root && proof.is_empty();
    }
    // A whole subtree of the new tree proves itself.
    let mut hashes = proof.iter();
    let first = if old_size.is_power_of_two() {
        Some(old_root)
    } else {
        hashes.next()
    };
    let Some(first) = first else {
        return false;
    };
    let (mut at, mut last) = (old_size - 1, size - 1);
    while at % 2 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut old, mut new) = (*first, *first);
    for sister in hashes {
        if last == 0 {
            return false;
        }
        if at % 2 == 1 || at == last {
            old = node_hash(sister, &old);
            new = node_hash(sister, &new);
            while at % 2 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            new = node_hash(&new, sister);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && old == *old_root && new == *root
}
