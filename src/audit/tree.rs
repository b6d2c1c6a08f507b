//! The Merkle tree of RFC 6962, section 2.1, over SHA-256, with proofs that are verified as in RFC
//! 9162, sections 2.1.3 and 2.1.4.
//!
//! Hashes of perfect subtrees never change as the tree grows. A proof is a list of [`Range`]s of
//! leaves. Each range consists of perfect subtrees, whose hashes come from [`tile`](super::tile)s.

use aws_lc_rs::digest::{Context, SHA256};

/// Length of a hash, bytes.
pub const HASH_LENGTH: usize = 32;
/// A SHA-256 hash.
pub type Hash = [u8; HASH_LENGTH];

/// Root of the empty tree: the hash of the empty string.
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

/// Returns the hash of a leaf with this content.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    sha256(&[&[0], leaf])
}

/// Returns the hash of a node with these children.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// Returns the root over neighbouring subtrees, the largest first. From right to left, each subtree
/// becomes the left sibling of the root of all that follow. `None` without subtrees.
#[must_use]
pub fn fold(subtrees: &[Hash]) -> Option<Hash> {
    let (last, before) = subtrees.split_last()?;
    let root = before.iter().rev();
    Some(root.fold(*last, |right, left| node_hash(left, &right)))
}

/// Returns the root of a perfect subtree. `hashes` are its leaves or subtrees of equal size, and
/// their number is a power of two.
pub(super) fn perfect(hashes: &[Hash]) -> Option<Hash> {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        let pairs = level.as_chunks::<2>().0.iter();
        level = pairs.map(|[left, right]| node_hash(left, right)).collect();
    }
    level.first().copied()
}

/// A perfect subtree: `1 << level` leaves from leaf `index << level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Level of the subtree; 0 for a leaf.
    pub level: u8,
    /// Number of subtrees of the same size before this one.
    pub index: u64,
}

/// Right edge of a tree, which is all that growth needs: the hashes of the perfect subtrees that
/// the tree consists of, the largest first, one for each 1 bit in the tree's size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// Returns the edge of a tree of this size; `None` unless there is one hash for each 1 bit in
    /// it.
    #[must_use]
    pub fn new(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        let fits = usize::try_from(size.count_ones()) == Ok(subtrees.len());
        fits.then_some(Self { size, subtrees })
    }

    /// Returns the number of leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the hashes of the subtrees, the largest first.
    #[must_use]
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    /// Adds a leaf. Returns the leaf and every subtree that it completes, the leaf first.
    pub fn push(&mut self, leaf: Hash) -> Vec<(Node, Hash)> {
        self.push_subtree(0, leaf)
    }

    /// Adds a perfect subtree of this level. The tree must consist of whole subtrees of this level.
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

    /// Returns the root hash.
    #[must_use]
    pub fn root(&self) -> Hash {
        fold(&self.subtrees).unwrap_or(EMPTY)
    }
}

/// Leaves from `start` to before `end`, at least one. Proofs split a tree such that `start` is a
/// multiple of the size of every perfect subtree in the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First leaf.
    pub start: u64,
    /// End of the range: the first leaf after it.
    pub end: u64,
}

impl Range {
    const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Splits the range as RFC 6962 does: after the largest power of two of leaves that is smaller
    /// than the range.
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

    /// Returns the perfect subtrees that the range consists of, the largest first.
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

/// Returns the proof that leaf `index` is in the tree of `size` leaves: the ranges whose hashes are
/// the proof, in this order. `None` if there is no such leaf.
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

/// Returns the proof that the tree of `size` leaves begins with the tree of `old` leaves: the
/// ranges whose hashes are the proof, in this order. The proof is empty if both trees are the same
/// or the old one is empty. `None` if the old tree is larger, as no proof exists.
#[must_use]
pub fn consistency_proof(old: u64, size: u64) -> Option<Vec<Range>> {
    if old > size {
        return None;
    }
    let mut proof = Vec::new();
    if old == 0 {
        return Some(proof);
    }
    // `known`: `rest` is a whole subtree of the old tree, from the tree's beginning.
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

/// Returns whether `proof` shows that the leaf of this hash is leaf `index` of the tree of `size`
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

/// Returns whether `proof` shows that the tree of `size` leaves with `root` begins with the tree of
/// `old_size` leaves with `old_root` (RFC 9162, section 2.1.4.2).
#[must_use]
pub fn extends(root: &Hash, size: u64, old_root: &Hash, old_size: u64, proof: &[Hash]) -> bool {
    if old_size == 0 {
        return *old_root == EMPTY && proof.is_empty();
    }
    if old_size >= size {
        return old_size == size && old_root == root && proof.is_empty();
    }
    // An old tree of a power of two of leaves is a whole subtree of the new tree: its root is the
    // start, and is not in the proof.
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
