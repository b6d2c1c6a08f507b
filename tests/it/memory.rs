//! What the memory of a broker holds, and who may read it.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
};

use aho_corasick::AhoCorasick;

use crate::harness::{World, eventually};

/// Regions are read in pieces of so many bytes, which overlap by the longest secret.
const PIECE: usize = 1 << 20;

/// How often each of these stands in the memory of a process.
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
            // A region may be gone meanwhile.
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
async fn what_was_issued_a_moment_before_is_not_in_the_memory_of_an_idle_broker() {
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
        // Whoever is not root is kept from looking.
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        return;
    }
    let all_gone = async || {
        let counts = found(&pid, &secrets);
        (counts.iter().sum::<usize>() == 0).then_some(())
    };
    eventually("nothing of it is left", all_gone).await;
    // What the broker cannot do without: the search finds what is there.
    assert_ne!(found(&pid, &[&world.account.admin.secret]), [0]);
}

#[tokio::test]
async fn a_broker_leaves_no_core_file_and_lets_no_process_of_its_user_look() {
    let world = World::new().await;
    let pid = world.broker.pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.unwrap().split_whitespace().skip(4).take(2).collect();
    assert_eq!(core, ["0", "0"]);
    // The files of a process that may not be dumped are root's, whoever it runs as.
    let owner = fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid();
    assert_eq!(owner, 0);
}
