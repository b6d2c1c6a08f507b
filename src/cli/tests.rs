use clap::error::ErrorKind;

use super::*;

/// Documents that show commands to people.
const DOCUMENTS: [(&str, &str); 11] = [
    ("README.md", include_str!("../../README.md")),
    (
        "guide/services.md",
        include_str!("../../docs/guide/services.md"),
    ),
    (
        "guide/platform.md",
        include_str!("../../docs/guide/platform.md"),
    ),
    (
        "guide/on-call.md",
        include_str!("../../docs/guide/on-call.md"),
    ),
    ("oidc.md", include_str!("../../docs/oidc.md")),
    ("platforms.md", include_str!("../../docs/platforms.md")),
    ("clients.md", include_str!("../../docs/clients.md")),
    ("deploy/README.md", include_str!("../../deploy/README.md")),
    (
        "credbroker.service",
        include_str!("../../deploy/systemd/credbroker.service"),
    ),
    (
        "credbroker-enroll.service",
        include_str!("../../deploy/systemd/credbroker-enroll.service"),
    ),
    (
        "credbroker-agent.service",
        include_str!("../../deploy/systemd/credbroker-agent.service"),
    ),
];

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_documents_is_one() {
    let (mut commands, mut wrong) = (Vec::new(), Vec::new());
    for (document, text) in DOCUMENTS {
        let found = commands_of(text);
        assert!(!found.is_empty(), "no command in {document}");
        for command in found {
            if let Err(error) = Cli::try_parse_from(&command.words)
                && !command.may_be(error.kind())
            {
                wrong.push(format!("{document}: {error}"));
            }
            commands.push(command.words);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let agents = commands.iter().filter(|words| words[1] == "agent").count();
    assert!(commands.len() > 100 && agents > 3, "{commands:?}");
}

#[test]
fn commands_are_found_where_documents_have_them() {
    let text = r#"
Prose about credbroker agent counts for nothing, `credbroker status` does.
```
id=1 && credbroker issue "a b" -o env   # until here, credbroker whoami
A=$(sudo /usr/bin/credbroker whoami | jq .x) > y
credbroker service bind pay \
    --dns-name 'pay.example'
openssl req -subj "/CN=credbroker CA"
```
```yaml
  args: [agent, --grant, "x"]
```
```go
import credbroker "example.com"
```
"#;
    let unit = "Description=one credbroker agent\nExecStart=/usr/bin/credbroker enroll --renew\n";
    let found = [commands_of(text), commands_of(unit)].concat();
    let found: Vec<_> = found.iter().map(|c| c.words[1..].join("|")).collect();
    let expected = [
        "status",
        "issue|a b|-o|env",
        "whoami",
        "service|bind|pay|--dns-name|pay.example",
        "agent|--grant|x",
        "enroll|--renew",
    ];
    assert_eq!(found, expected);
}

#[derive(Clone)]
struct Found {
    words: Vec<String>,
    in_prose: bool,
}

impl Found {
    /// Returns true if an error of this kind is no mistake of the document.
    fn may_be(&self, kind: ErrorKind) -> bool {
        let placeholder = |word: &String| word.contains(['$', '…']) || word == "COMMAND";
        match kind {
            ErrorKind::DisplayHelp => true,
            // Prose names a command without its arguments.
            ErrorKind::MissingRequiredArgument => self.in_prose,
            ErrorKind::ValueValidation | ErrorKind::InvalidSubcommand => {
                self.words.iter().any(placeholder)
            }
            _ => false,
        }
    }
}

/// Returns the commands of a document's code or of a unit, and the arguments of containers.
fn commands_of(text: &str) -> Vec<Found> {
    let text = text.replace("\\\n", " ");
    let is_markdown = text.contains("\n```");
    let (mut fence, mut found) = (None, Vec::new());
    for line in text.lines() {
        let in_prose = is_markdown && fence.is_none();
        let commands: Vec<_> = match (line.strip_prefix("```"), fence) {
            (Some(language), None) => {
                fence = Some(language);
                continue;
            }
            (Some(_), Some(_)) => {
                fence = None;
                continue;
            }
            (None, None) if is_markdown => {
                let spans = line.split('`').skip(1).step_by(2);
                spans.filter_map(command_at).collect()
            }
            (None, Some("dockerfile" | "go" | "python" | "rust")) => continue,
            (None, None) if !line.starts_with("Exec") => continue,
            (None, _) => commands_in(line),
        };
        found.extend(commands.into_iter().map(|words| Found { words, in_prose }));
    }
    found
}

fn commands_in(line: &str) -> Vec<Vec<String>> {
    let line = line.trim_start();
    if let Some(words) = line.strip_prefix("args: [agent, ") {
        let words = words.trim_end_matches(']').split(", ");
        let words = words.map(|word| word.trim_matches('"'));
        let command = ["credbroker", "agent"].into_iter().chain(words);
        return vec![command.map(ToOwned::to_owned).collect()];
    }
    let begins = |at: &usize| {
        let before = &line[..*at];
        let apart = |c: char| c.is_whitespace() || "/(".contains(c);
        !before.contains('#') && (before.is_empty() || before.ends_with(apart))
    };
    let starts = line.match_indices("credbroker ").map(|(at, _)| at);
    let commands = starts.filter(begins);
    commands.filter_map(|at| command_at(&line[at..])).collect()
}

/// Returns the words of a command, up to the character that ends it in a shell.
fn command_at(text: &str) -> Option<Vec<String>> {
    text.strip_prefix("credbroker ")?;
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in text.chars().chain([' ']) {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            ('#' | '|' | '<' | '>' | ';' | '&' | ')', None) => break,
            (c, None) if c.is_whitespace() => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            }
            (c, _) => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    (words.len() > 1).then_some(words)
}
