//! Agreement with another implementation of the public formats, on random trees and on the files
//! that a broker exports: Cloudflare's `tlog_tiles` and `signed_note`.

use std::{fs, path::PathBuf};

use credbroker::audit::{
    files::Growing,
    note::Signer,
    tile::{hashes, tiles_of},
    tree::{Hash, consistency_proof, extends, includes, inclusion_proof, leaf_hash},
};
use fastrand::Rng;
use signed_note::{Note, StandardVerifier, VerifierList};
use tempfile::TempDir;
use tlog_tiles::{Checkpoint, Hash as TheirHash, HashReader, Tile, TileHashReader, TileReader};

use super::export::{export, key_of, with_records};
use crate::harness::Account;

const SEED: u64 = 13;

/// Hash store of the other implementation.
struct Stored(Vec<TheirHash>);

impl HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<TheirHash>, tlog_tiles::Error> {
        let hash = |index: &u64| self.0[usize::try_from(*index).unwrap()];
        Ok(indexes.iter().map(hash).collect())
    }
}

/// The same log in both implementations, and its roots as it grew.
struct Twin {
    theirs: Stored,
    ours: Growing,
    roots: Vec<Hash>,
}

fn entry(number: u64) -> Vec<u8> {
    format!("record {number}").into_bytes()
}

fn twin(size: u64) -> Twin {
    let mut twin = Twin {
        theirs: Stored(Vec::new()),
        ours: Growing::default(),
        roots: vec![Growing::default().edge.root()],
    };
    for number in 0..size {
        let entry = entry(number);
        let made = tlog_tiles::stored_hashes(number, &entry, &twin.theirs).unwrap();
        twin.theirs.0.extend(made);
        twin.ours.push(&entry);
        let theirs = tlog_tiles::tree_hash(number + 1, &twin.theirs).unwrap();
        assert_eq!(theirs.0, twin.ours.edge.root(), "{number}");
        twin.roots.push(theirs.0);
    }
    twin
}

impl Twin {
    fn root(&self, size: u64) -> Hash {
        self.roots[usize::try_from(size).unwrap()]
    }

    fn our_hashes(&self, ranges: &[credbroker::audit::tree::Range]) -> Vec<Hash> {
        let tiles = &self.ours.tiles;
        assert!(tiles_of(ranges).iter().all(|tile| tiles.contains_key(tile)));
        hashes(ranges, tiles).unwrap()
    }
}

fn plain(proof: &[TheirHash]) -> Vec<Hash> {
    proof.iter().map(|hash| hash.0).collect()
}

#[test]
fn roots_and_proofs_agree_between_both_implementations() {
    let (twin, mut rng) = (twin(1100), Rng::with_seed(SEED));
    for _ in 0..2000 {
        let size = rng.u64(1..=1100);
        let (index, old) = (rng.u64(0..size), rng.u64(1..=size));
        let (root, leaf) = (twin.root(size), leaf_hash(&entry(index)));

        let theirs = tlog_tiles::prove_record(size, index, &twin.theirs).unwrap();
        let ours = twin.our_hashes(&inclusion_proof(index, size).unwrap());
        assert_eq!(plain(&theirs), ours, "{index} of {size}");
        assert!(includes(&root, size, index, &leaf, &ours));
        let checked =
            tlog_tiles::check_record(&theirs, size, TheirHash(root), index, TheirHash(leaf));
        checked.unwrap();

        let theirs = tlog_tiles::prove_tree(size, old, &twin.theirs).unwrap();
        let ours = twin.our_hashes(&consistency_proof(old, size).unwrap());
        assert_eq!(plain(&theirs), ours, "{old} of {size}");
        assert!(extends(&root, size, &twin.root(old), old, &ours));
        let (root, before) = (TheirHash(root), TheirHash(twin.root(old)));
        tlog_tiles::check_tree(&theirs, size, root, old, before).unwrap();
    }
}

#[test]
fn invalid_proofs_are_refused_by_both_implementations() {
    let (twin, mut rng) = (twin(300), Rng::with_seed(SEED));
    for _ in 0..1000 {
        let size = rng.u64(2..=300);
        let (index, old) = (rng.u64(0..size), rng.u64(1..size));
        let root = twin.root(size);
        let mut record = tlog_tiles::prove_record(size, index, &twin.theirs).unwrap();
        let mut tree = tlog_tiles::prove_tree(size, old, &twin.theirs).unwrap();
        for proof in [&mut record, &mut tree] {
            if proof.is_empty() || rng.bool() {
                proof.push(TheirHash([rng.u8(..); 32]));
            } else {
                let at = rng.usize(0..proof.len());
                proof[at].0[rng.usize(0..32)] ^= 1 << rng.u8(0..8);
            }
        }
        let leaf = leaf_hash(&entry(index));
        let theirs =
            tlog_tiles::check_record(&record, size, TheirHash(root), index, TheirHash(leaf));
        assert!(theirs.is_err());
        assert!(!includes(&root, size, index, &leaf, &plain(&record)));
        let before = twin.root(old);
        let theirs = tlog_tiles::check_tree(&tree, size, TheirHash(root), old, TheirHash(before));
        assert!(theirs.is_err());
        assert!(!extends(&root, size, &before, old, &plain(&tree)));
    }
}

/// Tiles of an export.
struct Exported(PathBuf);

impl TileReader for Exported {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        // Paths of the other implementation contain the height, like the format's older form.
        let path = |tile: &Tile| tile.path().replacen("tile/8/", "tile/", 1);
        let read = |tile: &Tile| fs::read(self.0.join(path(tile))).unwrap();
        Ok(tiles.iter().map(read).collect())
    }

    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

#[tokio::test]
async fn an_export_is_verified_by_the_other_implementation() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("log");
    let broker = with_records(&Account::new().await, 700).await;
    export(&broker, &dir).await;
    let verifier = StandardVerifier::new(&key_of(&dir)).unwrap();
    let note = Note::from_bytes(&fs::read(dir.join("checkpoint")).unwrap()).unwrap();
    note.verify(&VerifierList::new(vec![Box::new(verifier)]))
        .unwrap();
    let checkpoint = Checkpoint::from_bytes(note.text()).unwrap();
    let (size, root) = (checkpoint.size(), *checkpoint.hash());
    let exported = Exported(dir);
    let reader = TileHashReader::new(size, root, &exported);
    for index in [0, 255, 256, 511, 600, size - 1] {
        let proof = tlog_tiles::prove_record(size, index, &reader).unwrap();
        let leaf = reader
            .read_hashes(&[tlog_tiles::stored_hash_index(0, index)])
            .unwrap();
        tlog_tiles::check_record(&proof, size, root, index, leaf[0]).unwrap();
    }
}

#[test]
fn a_note_is_signed_the_same_by_both_implementations() {
    let ours = Signer::new("credbroker/0123456789", &vec![7; 32].into()).unwrap();
    let note = ours.sign("credbroker/0123456789\n0\nroot\n").unwrap();
    let verifier = StandardVerifier::new(&ours.verifier().to_string()).unwrap();
    let theirs = Note::from_bytes(note.as_bytes()).unwrap();
    let (signed, unknown) = theirs
        .verify(&VerifierList::new(vec![Box::new(verifier)]))
        .unwrap();
    assert_eq!((signed.len(), unknown.len()), (1, 0));
    assert_eq!(theirs.to_bytes(), note.as_bytes());
}
