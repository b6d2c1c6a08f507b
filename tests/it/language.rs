//! The rules of `docs/STYLE.md` that a machine can judge, and the paths that documents name.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// First words that hide what a comment is about.
const OPENINGS: &[&str] = &[
    "After",
    "As",
    "At",
    "Before",
    "By",
    "For",
    "From",
    "How",
    "In",
    "It",
    "Its",
    "No",
    "Nobody",
    "Not",
    "Nothing",
    "Of",
    "Only",
    "So",
    "Somebody",
    "Something",
    "That",
    "There",
    "These",
    "They",
    "This",
    "Those",
    "To",
    "Unless",
    "Until",
    "What",
    "When",
    "Where",
    "Whether",
    "Which",
    "Who",
    "Whoever",
    "Whom",
    "Whose",
    "Why",
];

/// Words that name no actor, and words of our own for what has a term.
const BANNED: &[&str] = &[
    "anew",
    "anybody",
    "are told",
    "for want of",
    "had its time",
    "is at it",
    "is told",
    "let in",
    "lets in",
    "nobody",
    "shut out",
    "shuts out",
    "somebody",
    "someone",
    "taken away",
    "takes away",
    "to itself",
    "under way",
    "whoever",
];

/// A comment: its lines without the slashes, and the number of the first.
#[derive(Debug, PartialEq, Eq)]
struct Comment<'a> {
    line: usize,
    /// False for a plain comment.
    is_doc: bool,
    lines: Vec<&'a str>,
}

/// Comments that stand on lines of their own.
fn comments(text: &str) -> Vec<Comment<'_>> {
    let mut found: Vec<Comment<'_>> = Vec::new();
    let mut marker_before = "";
    for (at, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let mut markers = ["///", "//!", "//"].into_iter();
        let marker = markers.find(|marker| line.starts_with(marker));
        let marker = marker.unwrap_or_default();
        let words = line[marker.len()..].trim();
        match found.last_mut() {
            _ if marker.is_empty() => {}
            Some(comment) if marker == marker_before => comment.lines.push(words),
            _ => found.push(Comment {
                line: at + 1,
                is_doc: marker != "//",
                lines: vec![words],
            }),
        }
        marker_before = marker;
    }
    found
}

fn has_extension(path: impl AsRef<Path>, wanted: &str) -> bool {
    let extension = path.as_ref().extension();
    extension.is_some_and(|extension| extension == wanted)
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if has_extension(&path, "rs") {
            found.push(path);
        }
    }
}

/// Faults that `judge` finds in the comments of `src`, each with file and line.
fn wrong(judge: impl Fn(&Comment<'_>) -> Option<String>) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    sources(&root.join("src"), &mut paths);
    paths.sort();
    let mut wrong = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root).unwrap();
        let judged = comments(&text).into_iter().filter_map(|comment| {
            let what = judge(&comment)?;
            Some(format!("{}:{}: {what}", path.display(), comment.line))
        });
        wrong.extend(judged);
    }
    wrong
}

fn opening(comment: &Comment<'_>) -> Option<String> {
    let first = comment.lines[0];
    let word = first
        .split(|letter: char| !letter.is_alphanumeric())
        .next()?;
    (comment.is_doc && OPENINGS.contains(&word)).then(|| first.to_owned())
}

fn banned(comment: &Comment<'_>) -> Option<String> {
    let text = comment.lines.join(" ").to_lowercase();
    let is_apart = |at: usize, length: usize| {
        let before = text[..at].chars().next_back();
        let after = text[at + length..].chars().next();
        let is_letter = |letter: Option<char>| letter.is_some_and(char::is_alphanumeric);
        !is_letter(before) && !is_letter(after)
    };
    let found = BANNED.iter().filter(|words| {
        let mut hits = text.match_indices(**words);
        hits.any(|(at, hit)| is_apart(at, hit.len()))
    });
    let found: Vec<_> = found.copied().collect();
    (!found.is_empty()).then(|| found.join(", "))
}

#[test]
fn doc_comments_begin_with_a_noun_or_a_verb() {
    assert_eq!(wrong(opening), [""; 0]);
}

#[test]
fn comments_name_the_actor_and_use_the_terms_of_the_field() {
    assert_eq!(wrong(banned), [""; 0]);
}

#[test]
fn comments_are_judged_by_their_first_word_and_across_their_lines() {
    let text = "//! Rooms.\n\n/// What it\n/// is.\nfn a() {}\n    // Whoever is\n    // under way.\nlet b = 1; // Nobody\n";
    let comments = comments(text);
    let lines: Vec<_> = comments.iter().map(|comment| comment.line).collect();
    assert_eq!(lines, [1, 3, 6]);
    let opened: Vec<_> = comments.iter().map(opening).collect();
    assert_eq!(opened, [None, Some("What it".to_owned()), None]);
    let words: Vec<_> = comments.iter().map(banned).collect();
    assert_eq!(words, [None, None, Some("under way, whoever".to_owned())]);
}

/// Texts in backticks of a document.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_file_that_the_documents_of_the_design_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = vec![root.join("docs/ARCHITECTURE.md")];
    let pages = fs::read_dir(root.join("docs/design")).unwrap();
    documents.extend(pages.map(|page| page.unwrap().path()));
    let mut missing = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for name in quoted(&text).filter(|name| has_extension(name, "rs")) {
            let is_there = root.join(name).is_file() || root.join("src").join(name).is_file();
            if !is_there {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_name_of_the_wayfinding_page_is_in_its_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/design/wayfinding.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<Vec<&str>> = rows.map(|row| quoted(row).collect()).collect();
    let rows = rows.iter().filter(|row| !row.is_empty());
    for row in rows.clone() {
        let [file, name] = row[..] else {
            panic!("{row:?} is not a file and a name");
        };
        let text = fs::read_to_string(root.join(file)).unwrap();
        let defined = ["fn ", "const ", "static "].map(|item| format!("{item}{name}"));
        let is_there = defined.iter().any(|item| text.contains(item));
        assert!(is_there, "{name} is not in {file}");
    }
    assert!(rows.count() >= 20);
}
