//! Files of the log, possibly written by an attacker: records, bundles, checkpoints, signed notes,
//! proofs.
#![no_main]

use credbroker::audit::{
    checkpoint::Checkpoint,
    files, leaf,
    note::{self, Verifier},
    proof::InclusionProof,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = leaf::decode(bytes) {
        let written = leaf::encode(&record).expect("what it reads");
        assert_eq!(leaf::decode(&written).expect("what it writes"), record);
    }
    let (entries, rest) = files::entries(bytes);
    let read: usize = entries.iter().map(|entry| entry.len() + 2).sum();
    assert_eq!(read + rest.len(), bytes.len());
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(checkpoint) = Checkpoint::parse(text) {
        let again = Checkpoint::parse(&checkpoint.text()).expect("what it writes");
        assert_eq!(again, checkpoint);
    }
    let _ = Checkpoint::successor(text);
    let (key, rest) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(verifier) = key.parse::<Verifier>() {
        // The opened text is the signed text.
        if let Ok(opened) = note::open(rest, &[verifier]) {
            assert!(rest.starts_with(opened));
        }
    }
    let _ = note::open(text, &[]);
    if let Ok(proof) = InclusionProof::parse(text) {
        let again = InclusionProof::parse(&proof.text()).expect("what it writes");
        assert_eq!(again, proof);
        assert!(proof.verify(&[]).is_err());
    }
});
