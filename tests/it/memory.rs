//! Memory of a broker: its secrets, and its readers.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
};

use aho_corasick::AhoCorasick;

use crate::harness::{World, eventually};

/// Size of the pieces in which regions are read, in bytes. Pieces overlap by the longest secret.
const PIECE: usize = 1 << 20;

/// Number of times that each secret occurs in the memory of a process.
fn found(pid: &str, secrets: &[&str]) -> Vec<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let finder = AhoCorasick::new(secrets).unwrap();
    let longest = secrets.iter().map(|secret| secret.len()).max().unwrap();
    let mut counts = vec![0; secrets.len()];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [mut at, end] = [from, to].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        while at < end {
            let length = usize::try_from(end - at).unwrap().min(PIECE + longest);
            let mut piece = vec![0; length];
            let read = memory
                .seek(SeekFrom::Start(at))
                .and_then(|_| memory.read_exact(&mut piece));
            // A region may have gone meanwhile.
            if read.is_err() {
                break;
            }
            for hit in finder.find_iter(&piece).filter(|hit| hit.start() < PIECE) {
                counts[hit.pattern().as_usize()] += 1;
            }
            at += PIECE as u64;
        }
    }
    counts
}

#[tokio::test]
async fn an_idle_broker_has_no_issued_secret_in_memory() {
    let world = World::new().await;
    let mut secrets = vec![world.token.clone(), world.broker.admin_token().to_owned()];
    for grant in ["user", "role", "federation"] {
        let issued = world.issued(&[grant]).await;
        let shown = ["secret_access_key", "session_token"];
        let told = shown.iter().filter_map(|field| issued[*field].as_str());
        secrets.extend(told.map(ToOwned::to_owned));
    }
    assert_eq!(secrets.len(), 7);
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    let pid = world.broker.pid();
    if let Err(error) = File::open(format!("/proc/{pid}/mem")) {
        // Any user but root is refused.
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        return;
    }
    let all_gone = async || {
        let counts = found(&pid, &secrets);
        (counts.iter().sum::<usize>() == 0).then_some(())
    };
    eventually("nothing of it is left", all_gone).await;
    // The search finds a secret that the broker needs, so it works.
    assert_ne!(found(&pid, &[&world.account.admin.secret]), [0]);
}

#[tokio::test]
async fn broker_memory_is_not_dumped_and_not_readable_by_its_user() {
    let world = World::new().await;
    let pid = world.broker.pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.unwrap().split_whitespace().skip(4).take(2).collect();
    assert_eq!(core, ["0", "0"]);
    // Files of a process that may not be dumped belong to root, whichever user runs it.
    let owner = fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid();
    assert_eq!(owner, 0);
}
