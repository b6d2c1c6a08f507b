//! The rooms of the house and who may import whom, as `docs/ARCHITECTURE.md` tells.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A room, what it may import of ours, and of other crates beside `std`.
struct Room {
    name: &'static str,
    ours: &'static [&'static str],
    theirs: &'static [&'static str],
}

const fn room(
    name: &'static str,
    ours: &'static [&'static str],
    theirs: &'static [&'static str],
) -> Room {
    Room { name, ours, theirs }
}

const ROOMS: &[Room] = &[
    // Digests, encodings and the random generator are computation, not I/O.
    room(
        "domain",
        &[],
        &[
            "aws_lc_rs",
            "data_encoding",
            "jiff",
            "secrecy",
            "serde",
            "serde_json",
            "thiserror",
        ],
    ),
    // Hashing and encoding are computation, not I/O.
    room(
        "audit",
        &["domain"],
        &[
            "aws_lc_rs",
            "data_encoding",
            "jiff",
            "secrecy",
            "serde",
            "serde_json",
            "thiserror",
        ],
    ),
    room(
        "broker",
        &["audit", "domain"],
        &[
            "async_trait",
            "data_encoding",
            "jiff",
            "metrics",
            "secrecy",
            "thiserror",
            "tokio",
            "tokio_util",
            "tracing",
        ],
    ),
    // A certificate is computed; its files are read elsewhere.
    room("ca", &["broker::ports", "domain"], &["jiff", "rcgen"]),
    room(
        "authn",
        &["broker::ports", "domain"],
        // Whether a certificate is good is computed; its files are read elsewhere.
        &[
            "async_trait",
            "aws_lc_rs",
            "data_encoding",
            "jiff",
            "secrecy",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tokio_rustls",
            "tracing",
            "x509_parser",
        ],
    ),
    room(
        "aws",
        &["broker::ports", "domain"],
        &[
            "async_trait",
            "aws_config",
            "aws_sdk_iam",
            "aws_sdk_kms",
            "aws_sdk_sts",
            "aws_sigv4",
            "aws_smithy_async",
            "aws_smithy_runtime",
            "aws_smithy_runtime_api",
            "aws_smithy_types",
            "jiff",
            "metrics",
            "percent_encoding",
            "secrecy",
            "serde_json",
            "thiserror",
            "tokio",
            "tracing",
        ],
    ),
    room(
        "store",
        &["audit", "broker::ports", "domain"],
        &[
            "async_trait",
            "jiff",
            "secrecy",
            "serde_json",
            "sqlx",
            "thiserror",
            "tokio",
            "tracing",
        ],
    ),
    room(
        "sink",
        &["audit", "broker::ports", "domain"],
        &[
            "async_trait",
            // rustls calls its module so.
            "aws_lc_rs",
            "http_body_util",
            "hyper",
            "hyper_util",
            "rustls_native_certs",
            "secrecy",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tokio_rustls",
        ],
    ),
    room(
        "grpc",
        &["audit", "broker", "domain", "proto"],
        &[
            "axum",
            "http_body_util",
            "jiff",
            "metrics",
            "prost",
            "prost_types",
            "secrecy",
            "tokio",
            "tonic",
            "tonic_health",
            "tonic_reflection",
            "tonic_types",
            "tower",
            "tracing",
        ],
    ),
    room(
        "http",
        &["grpc", "broker", "domain"],
        &[
            // rustls calls its module so.
            "aws_lc_rs",
            "axum",
            "h2",
            "http_body_util",
            "hyper",
            "hyper_util",
            "metrics",
            "metrics_exporter_prometheus",
            "secrecy",
            "serde_json",
            "thiserror",
            "tokio",
            "tokio_rustls",
            "tokio_util",
            "tonic",
            "tonic_health",
            "tower",
            "tracing",
            "x509_parser",
        ],
    ),
    room("proto", &[], &["tonic"]),
    // What the system is told of a process that holds secrets.
    room("process_hardening", &[], &["rustix"]),
    room(
        "client",
        &["proto", "domain"],
        // What AWS SDKs take credentials from, in the process and over HTTP.
        &[
            "aws_credential_types",
            "aws_lc_rs",
            "data_encoding",
            "http_body_util",
            "hyper",
            "hyper_util",
            "jiff",
            "prost_types",
            "secrecy",
            "serde_json",
            "thiserror",
            "tokio",
            "tokio_rustls",
            "tonic",
            "tonic_types",
        ],
    ),
    room(
        "cli",
        &[
            "audit",
            "client",
            "config",
            "domain",
            "process_hardening",
            "proto",
            "runtime",
        ],
        &[
            "aws_lc_rs",
            "clap",
            "clap_complete",
            "data_encoding",
            "flate2",
            "indicatif",
            "jiff",
            "prost_types",
            // A host makes its key and its request.
            "rcgen",
            "rustix",
            "secrecy",
            "serde",
            "serde_json",
            "tokio",
            "tonic",
            "tonic_types",
            "tracing",
            "tracing_subscriber",
            "x509_parser",
        ],
    ),
    room(
        "config",
        &["audit", "domain"],
        &["secrecy", "thiserror", "toml"],
    ),
    room(
        "runtime",
        &[
            "authn",
            "aws",
            "broker",
            "ca",
            "config",
            "domain",
            "grpc",
            "http",
            "process_hardening",
            "sink",
            "store",
        ],
        &[
            "aws_lc_rs",
            "data_encoding",
            "jiff",
            "rcgen",
            "secrecy",
            "thiserror",
            "tokio",
            "tokio_rustls",
            "tokio_util",
            "tracing",
        ],
    ),
];

/// A file of `src`, without its comments and unit tests.
struct Source {
    path: PathBuf,
    room: String,
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    read(&src, &src, &mut found);
    assert!(found.len() > 50, "where is the source?");
    found
}

fn read(src: &Path, directory: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(src, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let contents = fs::read_to_string(&path).unwrap();
            let inside = path.strip_prefix(src).unwrap();
            let room = inside
                .components()
                .next()
                .unwrap()
                .as_os_str()
                .to_str()
                .unwrap();
            let test = path.file_stem().is_some_and(|stem| stem == "tests");
            found.push(Source {
                room: room.trim_end_matches(".rs").to_owned(),
                code: if test { String::new() } else { code(&contents) },
                lines: contents.lines().count(),
                path,
            });
        }
    }
}

/// The text without comments, up to its unit tests.
fn code(text: &str) -> String {
    let end = text
        .find("#[cfg(test)]\nmod ")
        .or_else(|| text.find("#[cfg(test)]\npub(crate) mod "));
    let text = &text[..end.unwrap_or(text.len())];
    let without_comment = |line: &str| line.split("//").next().unwrap_or("").to_owned() + "\n";
    text.lines().map(without_comment).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path that begins with `root::`, less that beginning; `{…}` is spelt out.
fn paths(code: &str, root: &str) -> Vec<String> {
    let begin = format!("{root}::");
    let starts = code.match_indices(&begin).filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        !before.is_some_and(|c| is_word(c) || c == ':' || c == '$')
    });
    starts
        .flat_map(|(at, _)| spell_out(&code[at + begin.len()..]))
        .collect()
}

fn spell_out(tree: &str) -> Vec<String> {
    let tree = tree.trim_start();
    if let Some(group) = tree.strip_prefix('{') {
        return members(group).into_iter().flat_map(spell_out).collect();
    }
    let end = tree.find(|c| !is_word(c)).unwrap_or(tree.len());
    let (name, rest) = tree.split_at(end);
    match rest.strip_prefix("::") {
        Some(rest) => {
            let within = spell_out(rest).into_iter();
            within.map(|path| format!("{name}::{path}")).collect()
        }
        None => vec![name.to_owned()],
    }
}

/// The members of a group, up to the brace that closes it.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (1, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            found.push(group[start..at].trim());
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found.retain(|member| !member.is_empty());
    found
}

fn dependencies() -> BTreeSet<String> {
    let manifest: toml::Table = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .parse()
        .unwrap();
    let names = manifest["dependencies"].as_table().unwrap().keys();
    names.map(|name| name.replace('-', "_")).collect()
}

fn of(name: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.name == name)
}

/// Sources that belong to a room: all but the two roots.
fn rooms() -> impl Iterator<Item = (Source, &'static Room)> {
    let inside = sources()
        .into_iter()
        .filter(|s| !["lib", "main"].contains(&s.room.as_str()));
    inside.map(|source| {
        let room = of(&source.room)
            .unwrap_or_else(|| panic!("{} is in no known room", source.path.display()));
        (source, room)
    })
}

#[test]
fn a_room_imports_only_the_rooms_it_may() {
    let mut wrong = BTreeSet::new();
    for (source, room) in rooms() {
        for path in paths(&source.code, "crate") {
            let within =
                |allowed: &str| path == allowed || path.starts_with(&format!("{allowed}::"));
            if !within(room.name) && !room.ours.iter().any(|allowed| within(allowed)) {
                wrong.insert(format!("{}: crate::{path}", source.path.display()));
            }
        }
        assert!(
            !source.code.contains("super::super::"),
            "{}: say crate::",
            source.path.display()
        );
    }
    assert_eq!(wrong, BTreeSet::new());
}

#[test]
fn a_room_uses_only_the_crates_it_may() {
    let (mut wrong, dependencies) = (BTreeSet::new(), dependencies());
    for (source, room) in rooms() {
        let uses = |name: &str| {
            let plain = format!("use {name};");
            !paths(&source.code, name).is_empty() || source.code.contains(&plain)
        };
        for name in dependencies.iter().filter(|name| uses(name)) {
            if !room.theirs.contains(&name.as_str()) {
                wrong.insert(format!("{}: {name}", source.path.display()));
            }
        }
    }
    assert_eq!(wrong, BTreeSet::new());
}

#[test]
fn the_table_of_rooms_holds_nothing_that_is_not_used() {
    let all: Vec<_> = rooms().collect();
    for room in ROOMS {
        let code = || {
            all.iter()
                .filter(|(s, _)| s.room == room.name)
                .map(|(s, _)| &s.code)
        };
        for name in room.theirs {
            let plain = format!("use {name};");
            let used = code().any(|code| !paths(code, name).is_empty() || code.contains(&plain));
            assert!(used, "{} does not use {name}", room.name);
        }
    }
}

#[test]
fn the_domain_does_no_io_and_waits_for_nothing() {
    for (source, _) in rooms().filter(|(source, _)| source.room == "domain") {
        for word in [
            "async ",
            ".await",
            "std::fs",
            "std::io",
            "std::env",
            "std::thread",
            "std::process",
        ] {
            assert!(
                !source.code.contains(word),
                "{word} in {}",
                source.path.display()
            );
        }
    }
}

#[test]
fn a_principal_is_proven_by_authentication_alone() {
    let proven = sources()
        .into_iter()
        .filter(|s| s.code.contains("Principal::proven"));
    let rooms: BTreeSet<String> = proven.map(|source| source.room).collect();
    assert_eq!(rooms, BTreeSet::from(["authn".to_owned()]));
}

#[test]
fn a_commit_is_asked_to_be_on_disk_when_it_returns() {
    // The pragma belongs to the broker's own connection: nobody outside can ask for it.
    let store = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/store/sqlite/open.rs"
    ));
    assert!(store.contains(".synchronous(SqliteSynchronous::Full)"));
    assert!(store.contains(".foreign_keys(true)"));
}

#[test]
fn files_are_short() {
    for source in sources() {
        let most = if source.room == "main" { 24 } else { 600 };
        assert!(
            source.lines <= most,
            "{} has {} lines",
            source.path.display(),
            source.lines
        );
    }
}

#[test]
fn the_reader_of_imports_spells_out_what_it_reads() {
    let code = "use crate::{\n broker::{Error, ports::{Page, Store}},\n domain,\n};\nlet x = crate::aws::PATH; other_crate::no; $crate::no;";
    let expected = [
        "broker::Error",
        "broker::ports::Page",
        "broker::ports::Store",
        "domain",
        "aws::PATH",
    ];
    assert_eq!(paths(code, "crate"), expected);
    assert_eq!(self::code("a // b\n#[cfg(test)]\nmod tests {\n"), "a \n");
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let documents = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md"));
    let named = documents.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = named.filter(|text| is_test_name(text)).collect();
    assert!(named.len() > 20, "{named:?}");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let mut all = String::new();
    read_all(&tests, &mut all);
    let missing = |name: &&&str| !all.contains(&format!("fn {name}()"));
    let missing: Vec<_> = named.iter().filter(missing).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Modules of tests without a store, over one that the test chooses, or over both stores.
const ONE_STORE: [&str; 17] = [
    "agent",
    "architecture",
    "bootstrap",
    "clock",
    "container",
    "contract",
    "doctor",
    "edge",
    "harness",
    "language",
    "memory",
    "oracle",
    "probes",
    "process",
    "sdks",
    "several",
    "store",
];

#[test]
fn the_exhaustive_run_has_every_module_of_tests_over_postgres_too() {
    let script = include_str!("../exhaustive.sh");
    let listed = script.split_once("EITHER_STORE=\"").unwrap().1;
    let listed = listed.split_once('"').unwrap().0.split_whitespace();
    // A part of its own has the faults.
    let run: BTreeSet<&str> = listed.chain(ONE_STORE).chain(["faults"]).collect();
    let modules = include_str!("main.rs").lines();
    let modules = modules.filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    assert_eq!(modules.collect::<BTreeSet<_>>(), run);
}

/// A sentence, as tests are named.
fn is_test_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b == b'_';
    text.matches('_').count() > 3 && text.bytes().all(plain)
}

fn read_all(directory: &Path, all: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}
