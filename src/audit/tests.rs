//! Checks of the tree against the text of RFC 6962, written out as recursion, and against the test
//! vectors of Certificate Transparency.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::{BASE64, HEXLOWER};
use proptest::prelude::*;

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    note::{self, NoteError, Signer, Verifier, VerifierError, WitnessKey, WitnessKeyError},
    tile::{self, Tile, Tiles, WIDTH},
    tree::{
        EMPTY, Frontier, Hash, Range, consistency_proof, extends, includes, inclusion_proof,
        leaf_hash, node_hash, sha256,
    },
};

/// MTH of RFC 6962, section 2.1.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => EMPTY,
        [leaf] => *leaf,
        _ => {
            let split = 1 << (leaves.len() - 1).ilog2();
            let (left, right) = leaves.split_at(split);
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

fn leaves(count: u64) -> Vec<Hash> {
    (0..count).map(|n| leaf_hash(&n.to_be_bytes())).collect()
}

/// Returns the edge and all tiles of a tree, filled as in a log: as subtrees become perfect.
fn grown(leaves: &[Hash]) -> (Frontier, Tiles) {
    let (mut edge, mut tiles) = (Frontier::default(), Tiles::new());
    for leaf in leaves {
        for (node, hash) in edge.push(*leaf) {
            if let Some(tile) = Tile::holding(node) {
                tiles.entry(tile).or_default().push(hash);
            }
        }
    }
    (edge, tiles)
}

fn proof(ranges: Option<Vec<Range>>, tiles: &Tiles) -> Vec<Hash> {
    tile::hashes(&ranges.unwrap(), tiles).unwrap()
}

#[test]
fn roots_are_those_of_certificate_transparency() {
    let inputs = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    let roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut edge = Frontier::default();
    assert_eq!(edge.root(), EMPTY);
    for (input, root) in inputs.iter().zip(roots) {
        edge.push(leaf_hash(&HEXLOWER.decode(input.as_bytes()).unwrap()));
        assert_eq!(HEXLOWER.encode(&edge.root()), root);
    }
}

#[test]
fn every_proof_of_every_small_tree_holds_and_no_other() {
    let all = leaves(40);
    for size in 0..=40 {
        let tree = &all[..usize::try_from(size).unwrap()];
        let (edge, tiles) = grown(tree);
        let root = naive_root(tree);
        assert_eq!((edge.root(), tile::root(size, &tiles)), (root, Some(root)));
        for index in 0..size {
            let proof = proof(inclusion_proof(index, size), &tiles);
            for (other, leaf) in (0..).zip(tree) {
                let included = includes(&root, size, index, leaf, &proof);
                assert_eq!(included, other == index, "{other} for {index} of {size}");
            }
        }
        assert_eq!(inclusion_proof(size, size), None);
        for old in 0..=size {
            let old_root = naive_root(&all[..usize::try_from(old).unwrap()]);
            let proof = proof(consistency_proof(old, size), &tiles);
            assert!(extends(&root, size, &old_root, old, &proof), "{old} {size}");
            assert!(!extends(&root, size, &leaf_hash(b"x"), old, &proof));
        }
        assert_eq!(consistency_proof(size + 1, size), None);
    }
}

#[test]
fn the_edge_alone_makes_a_tree_grow() {
    let (whole, _) = grown(&leaves(1000));
    let (part, _) = grown(&leaves(777));
    let mut edge = Frontier::new(part.size(), part.subtrees().to_vec()).unwrap();
    for leaf in &leaves(1000)[777..] {
        edge.push(*leaf);
    }
    assert_eq!(edge, whole);
    assert_eq!(Frontier::new(5, vec![EMPTY]), None);
}

#[test]
fn tiles_and_bundles_have_the_paths_of_the_specification() {
    let tile = |level, index| Tile { level, index };
    assert_eq!(tile(0, 0).path(256), "tile/0/000");
    assert_eq!(tile(0, 1).path(300), "tile/0/001.p/44");
    assert_eq!(tile(1, 0).path(70_000), "tile/1/000");
    assert_eq!(tile(1, 1).path(70_000), "tile/1/001.p/17");
    let size = (1_234_067 + 1) * WIDTH;
    assert_eq!(tile(0, 1_234_067).path(size), "tile/0/x001/x234/067");
    assert_eq!(tile::bundle_path(3, 1000), "tile/entries/003.p/232");
    assert_eq!(tile(2, 0).width(65_535), 0);
    assert_eq!(tile(2, 0).width(65_536), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_proof_of_a_large_tree_holds_until_a_bit_of_it_is_turned(
        size in 1_u64..2000, at in 0_u64..2000, bit in 0_usize..256, which in 0_usize..64,
    ) {
        let (index, old) = (at % size, at % size + 1);
        let tree = leaves(size);
        let (edge, tiles) = grown(&tree);
        let (root, leaf) = (edge.root(), tree[usize::try_from(index).unwrap()]);
        let turn = |mut proof: Vec<Hash>| {
            let turned = which % proof.len();
            proof[turned][bit / 8] ^= 1 << (bit % 8);
            proof
        };

        let inclusion = proof(inclusion_proof(index, size), &tiles);
        prop_assert!(includes(&root, size, index, &leaf, &inclusion));
        let mut longer = inclusion.clone();
        longer.push(root);
        prop_assert!(!includes(&root, size, index, &leaf, &longer));
        if !inclusion.is_empty() {
            prop_assert!(!includes(&root, size, index, &leaf, &inclusion[1..]));
            prop_assert!(!includes(&root, size, index, &leaf, &turn(inclusion)));
        }

        let old_root = naive_root(&tree[..usize::try_from(old).unwrap()]);
        let consistency = proof(consistency_proof(old, size), &tiles);
        prop_assert!(extends(&root, size, &old_root, old, &consistency));
        if !consistency.is_empty() {
            prop_assert!(!extends(&root, size, &old_root, old, &consistency[1..]));
            prop_assert!(!extends(&root, size, &old_root, old, &turn(consistency)));
        }
    }
}

/// Example of Go's package golang.org/x/mod/sumdb/note, an independent implementation.
const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const PETERS_SEED: &str = "gQoUAtUUbI2E8kQzMPVAgOv5juF9nHT2JS/F1ccoMXM=";
const PETERS_TEXT: &str = "If you think cryptography is the answer to your problem,\n\
                           then you don't know what your problem is.\n";
const PETERS_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n\n\
    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

fn peter() -> Signer {
    let seed = BASE64.decode(PETERS_SEED.as_bytes()).unwrap();
    Signer::new("PeterNeumann", &seed.into()).unwrap()
}

#[test]
fn notes_are_signed_and_read_as_others_do() {
    let peter_reads: Verifier = PETER.parse().unwrap();
    assert_eq!(peter_reads.to_string(), PETER);
    assert_eq!(peter().verifier(), &peter_reads);
    assert_eq!(peter().sign(PETERS_TEXT).unwrap(), PETERS_NOTE);
    assert_eq!(note::open(PETERS_NOTE, &[peter_reads]), Ok(PETERS_TEXT));
}

#[test]
fn a_note_is_believed_by_a_known_key_alone() {
    let (ours, other) = (peter(), Signer::new("other", &vec![9; 32].into()).unwrap());
    let signed = ours.sign("a\nb\n").unwrap();
    let keys = [ours.verifier().clone()];
    // Signatures of other keys are ignored, even those of another text.
    let line = other.sign("x\n").unwrap();
    let both = format!("{signed}{}\n", line.lines().last().unwrap());
    assert_eq!(note::open(&both, &keys), Ok("a\nb\n"));
    let others = [other.verifier().clone()];
    assert_eq!(note::open(&signed, &others), Err(NoteError::Unsigned));
    let forged = signed.replacen('a', "c", 1);
    assert_eq!(note::open(&forged, &keys), Err(NoteError::Forged));
    for broken in [
        "",
        "a\n",
        "a\n\n",
        "a\n\nb\n",
        "\u{7}a\n\n",
        &signed[1..signed.len() - 1],
    ] {
        assert_eq!(
            note::open(broken, &keys),
            Err(NoteError::Shape),
            "{broken:?}"
        );
    }
    for broken in [
        "",
        "a+b",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ] {
        assert_eq!(broken.parse::<Verifier>(), Err(VerifierError), "{broken:?}");
    }
}

/// A checkpoint of a public log, signed by this log and a public witness.
const PUBLIC_NOTE: &str = "coachandhorses2026h1.staging.certificate.transparency.goog
185550722
YXAM0VmnrfvLaBCOOYSJhCaE5F10oGBOo+hkbDa1kng=

\u{2014} coachandhorses2026h1.staging.certificate.transparency.goog MpXgsHy8ZwxXnO+WjtVrPxAzL49Rs1gWTkNVNeEa//5peAzaocRCB3qt3EaibjzY5GILLtGgBP7dBhgcSHy+JQh0OAc=
";
const PUBLIC_COSIGNATURE: &str = "\u{2014} witness.navigli.sunlight.geomys.org o+AP4gAAAABqb7DzNrGFRJnQ9vrJ8xpnwZytnr/ZYczDIsvwvouiSjwOjn7a72ccxBk+lKnZ7dKqkYKER1s/KxLTaVwQD7lJZTC/CQ==
";
const PUBLIC_WITNESS: &str =
    "witness.navigli.sunlight.geomys.org+a3e00fe2+BNy/co4C1Hn1p+INwJrfUlgz7W55dSZReusH/GhUhJ/G";

#[test]
fn a_cosignature_counts_for_the_note_that_was_cosigned_alone() {
    let witness: WitnessKey = PUBLIC_WITNESS.parse().unwrap();
    assert_eq!(witness.name(), "witness.navigli.sunlight.geomys.org");
    let (note, lines) = (PUBLIC_NOTE, PUBLIC_COSIGNATURE);
    let both = format!("{note}{lines}");
    assert_eq!(witness.cosigned(note, lines), Ok(both));
    let others = peter().sign("x\n").unwrap();
    let others = format!("{}\n{lines}", others.lines().last().unwrap());
    witness.cosigned(note, &others).unwrap();

    let larger = note.replace("185550722", "185550723");
    let later = lines.replace("Bqb7DzN", "BqbwDzN");
    let own = note.rsplit_once("\n\n").unwrap().1;
    for (note, lines, wrong) in [
        (&*larger, lines, NoteError::Forged),
        (note, &later, NoteError::Forged),
        (note, own, NoteError::Unsigned),
        (note, "", NoteError::Unsigned),
        (note, "nothing\n", NoteError::Shape),
        (note, lines.trim_end(), NoteError::Shape),
    ] {
        assert_eq!(witness.cosigned(note, lines), Err(wrong), "{note}{lines}");
    }
}

#[test]
fn a_witness_cannot_make_the_note_another_by_an_empty_line() {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let typed = [&[4], pair.public_key().as_ref()].concat();
    let id = &sha256(&[b"w\n", &typed])[..4];
    let key = format!("w+{}+{}", HEXLOWER.encode(id), BASE64.encode(&typed));
    let witness: WitnessKey = key.parse().unwrap();
    let cosign = |text: &str| {
        let signature = pair.sign(format!("cosignature/v1\ntime 7\n{text}").as_bytes());
        let bytes = [id, &7_u64.to_be_bytes(), signature.as_ref()].concat();
        format!("\u{2014} w {}\n", BASE64.encode(&bytes))
    };
    let (text, _) = PUBLIC_NOTE.split_once("\n\n").unwrap();
    let cosignature = cosign(&format!("{text}\n"));
    witness.cosigned(PUBLIC_NOTE, &cosignature).unwrap();
    let other = format!("\n{}", cosign(PUBLIC_NOTE));
    let refused = witness.cosigned(PUBLIC_NOTE, &other);
    assert_eq!(refused, Err(NoteError::Shape));
}

#[test]
fn a_key_of_a_log_is_none_of_a_witness_nor_the_other_way_round() {
    assert_eq!(PETER.parse::<WitnessKey>(), Err(WitnessKeyError));
    assert_eq!(PUBLIC_WITNESS.parse::<Verifier>(), Err(VerifierError));
    let of_another_id = PUBLIC_WITNESS.replace("a3e00fe2", "a3e00fe3");
    assert_eq!(of_another_id.parse::<WitnessKey>(), Err(WitnessKeyError));
}

#[test]
fn a_checkpoint_reads_back_and_has_one_spelling() {
    let checkpoint = Checkpoint {
        origin: "credbroker/00ff".to_owned(),
        size: 7,
        root: leaf_hash(b"x"),
    };
    let text = checkpoint.text();
    assert_eq!(text.lines().count(), 3);
    assert_eq!(Checkpoint::parse(&text), Ok(checkpoint.clone()));
    assert_eq!(
        Checkpoint::parse(&format!("{text}extension\n")),
        Ok(checkpoint)
    );
    for broken in [
        text.replace("\n7\n", "\n07\n"),
        text.replace("\n7\n", "\n+7\n"),
        text.replace("\n7\n", "\n\n"),
        text.replace("credbroker/00ff", ""),
        text.replace('=', ""),
        format!("{text}\n"),
        text.trim_end().to_owned(),
    ] {
        assert_eq!(
            Checkpoint::parse(&broken),
            Err(CheckpointError),
            "{broken:?}"
        );
    }
}
