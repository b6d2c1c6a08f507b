//! Checks of the profile in use in the AWS config and credentials files.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use secrecy::ExposeSecret;

use super::{
    environment::shown_key,
    host::{AwsFile, Host, Program},
    report::{Report, Step, Verdict, doubtful, fine, wrong},
};

/// Settings whose values are read; all other settings are known by name alone.
const READ: [&str; 2] = ["aws_access_key_id", "credential_process"];
/// Settings that lead SDKs to another source of credentials, and that source.
const ELSEWHERE: [(&str, &str); 6] = [
    ("role_arn", "a role to assume"),
    ("sso_session", "single sign-on"),
    ("sso_start_url", "single sign-on"),
    ("web_identity_token_file", "a role by web identity"),
    ("credential_source", "a role by another source"),
    ("login_session", "a login of the AWS CLI"),
];

type Settings = BTreeMap<String, String>;

/// Program that SDKs start, and the grant that follows `credential-process` in its command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) program: String,
    pub(super) grant: Option<String>,
}

/// Settings of the profile in use, from both files.
#[derive(Debug, Default)]
struct Profile {
    name: String,
    config: Option<Settings>,
    credentials: Option<Settings>,
    /// True if the config file has a section of this name that should begin with `profile`.
    unprefixed: bool,
}

/// Checks the profile in use. Returns the process that it starts, if any.
pub(super) fn judge(
    host: &Host,
    look: impl Fn(&Path) -> Program,
    report: &mut Report,
) -> Option<Process> {
    let profile = Profile::of(host);
    let there = report.add("profile", profile.there(host));
    let process = profile.process();
    let sources = match &there {
        Ok(()) => report.add("profile_sources", profile.sources(host, process.as_ref())),
        Err(why) => report.skip("profile_sources", why),
    };
    let check = "credential_process";
    let judged: Step<()> = match (&there, &process) {
        (Err(why), _) => report.skip(check, why),
        (Ok(()), None) => report.skip(check, &format!("{} has none", profile.shown())),
        (Ok(()), Some(process)) => {
            let program = look(Path::new(&process.program));
            report.add(check, process.judge(program))
        }
    };
    // Both findings are in the report; the process is known in any case.
    drop((sources, judged));
    process
}

impl Profile {
    fn of(host: &Host) -> Self {
        let name = host.env.get("AWS_PROFILE").unwrap_or("default").to_owned();
        let (config, credentials) = (sections(&host.config), sections(&host.credentials));
        let quoted = format!("profile \"{name}\"");
        let prefixed = config
            .get(&format!("profile {name}"))
            .or_else(|| config.get(&quoted));
        let plain = config.get(&name);
        let is_default = name == "default";
        Self {
            config: prefixed.or(plain.filter(|_| is_default)).cloned(),
            credentials: credentials.get(&name).cloned(),
            unprefixed: prefixed.is_none() && plain.is_some() && !is_default,
            name,
        }
    }

    fn shown(&self) -> String {
        format!("profile {}", self.name)
    }

    /// Checks that the files can be read and contain the profile.
    fn there(&self, host: &Host) -> Verdict {
        for file in [&host.config, &host.credentials] {
            if let Some(why) = &file.unread {
                let path = file.shown();
                return wrong(
                    format!("{path} cannot be read: {why}"),
                    "let the user of the service read it, or name another one",
                );
            }
        }
        if self.unprefixed {
            let (name, path) = (&self.name, host.config.shown());
            return wrong(
                format!("{path} has [{name}], which SDKs do not take for a profile"),
                format!("write it [profile {name}]"),
            );
        }
        let known = self.config.is_some() || self.credentials.is_some();
        if !known && host.env.has("AWS_PROFILE") {
            let (config, credentials) = (host.config.shown(), host.credentials.shown());
            return wrong(
                format!("there is no {} in {config} or {credentials}", self.shown()),
                format!(
                    "add [profile {}] to {config}, or unset AWS_PROFILE",
                    self.name
                ),
            );
        }
        self.named_files(host, known)
    }

    fn named_files(&self, host: &Host, known: bool) -> Verdict {
        for (variable, file) in [
            ("AWS_CONFIG_FILE", &host.config),
            ("AWS_SHARED_CREDENTIALS_FILE", &host.credentials),
        ] {
            if host.env.has(variable) && file.text.is_none() {
                return doubtful(
                    format!("{variable} names {}, which is not there", file.shown()),
                    format!("make the file, or unset {variable}"),
                );
            }
        }
        if known {
            fine(format!("{} can be read", self.shown()))
        } else {
            fine(format!("there is no {}", self.shown()))
        }
    }

    /// Returns the process of the credentials file, which SDKs prefer, or else of the config file.
    fn process(&self) -> Option<Process> {
        let files = [&self.credentials, &self.config].into_iter().flatten();
        let mut commands = files.filter_map(|settings| settings.get("credential_process"));
        commands.next().map(|command| Process::of(command))
    }

    /// Checks that SDKs find no source of credentials that they use instead of the broker.
    fn sources(&self, host: &Host, process: Option<&Process>) -> Verdict {
        let files = [
            (&self.credentials, &host.credentials),
            (&self.config, &host.config),
        ];
        for (settings, file) in files {
            let Some(source) = settings.as_ref().and_then(elsewhere) else {
                continue;
            };
            let (profile, path) = (self.shown(), file.shown());
            let before = match process {
                Some(_) => "credential_process",
                None => "a container's endpoint",
            };
            return wrong(
                format!("{profile} in {path} has {source}: SDKs take that before {before}"),
                format!(
                    "remove it from {path}, or set AWS_PROFILE to a profile of the service's own"
                ),
            );
        }
        self.both(host, process)
    }

    fn both(&self, host: &Host, process: Option<&Process>) -> Verdict {
        let Some(process) = process else {
            return fine(format!("{} has no credentials of its own", self.shown()));
        };
        let has = |settings: &Option<Settings>| {
            let settings = settings.as_ref();
            settings.is_some_and(|settings| settings.contains_key("credential_process"))
        };
        if has(&self.credentials) && has(&self.config) {
            return doubtful(
                format!(
                    "{} has a credential_process in {} and in {}: SDKs take the former",
                    self.shown(),
                    host.credentials.shown(),
                    host.config.shown()
                ),
                "remove one of the two",
            );
        }
        if !host.env.has("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
            return fine(format!("{} has a credential_process alone", self.shown()));
        }
        let what = format!(
            "{} has a credential_process: SDKs take it before the endpoint of AWS_CONTAINER_CREDENTIALS_FULL_URI",
            self.shown()
        );
        if process.is_ours() {
            doubtful(what, "one of the two is enough: remove the other")
        } else {
            wrong(
                what,
                "remove it, or unset AWS_CONTAINER_CREDENTIALS_FULL_URI",
            )
        }
    }
}

fn elsewhere(settings: &Settings) -> Option<String> {
    if let Some(id) = settings.get("aws_access_key_id") {
        return Some(format!("keys{}", shown_key(id)));
    }
    let mut found = ELSEWHERE
        .iter()
        .filter(|(name, _)| settings.contains_key(*name));
    found.next().map(|(name, what)| format!("{name}, {what}"))
}

impl Process {
    fn of(command: &str) -> Self {
        let command = command.trim();
        let quoted = command
            .strip_prefix('"')
            .and_then(|rest| rest.split_once('"'));
        let plain = || {
            command
                .split_once(char::is_whitespace)
                .unwrap_or((command, ""))
        };
        let (program, rest) = quoted.unwrap_or_else(plain);
        let words = rest.split_whitespace();
        let mut after = words
            .skip_while(|word| *word != "credential-process")
            .skip(1);
        let grant = after.next().filter(|word| !word.starts_with('-'));
        Self {
            program: program.to_owned(),
            grant: grant.map(ToOwned::to_owned),
        }
    }

    /// Returns whether the file name is that of this program. A program that wraps it is not
    /// recognized.
    pub(super) fn is_ours(&self) -> bool {
        self.program.rsplit('/').next() == Some("credbroker")
    }

    fn judge(&self, program: Program) -> Verdict {
        let shown = &self.program;
        let cure = "write the absolute path of a program, e.g. /usr/local/bin/credbroker";
        if shown.contains('=') {
            // The assigned value may be a secret.
            let what = "credential_process begins with a variable: not every SDK starts a shell";
            return wrong(
                what,
                "set the variable for the service, and begin with the program",
            );
        }
        if shown.starts_with('~') || shown.contains('$') {
            return wrong(
                format!("credential_process starts {shown}: not every SDK expands ~ and $"),
                cure,
            );
        }
        if !shown.starts_with('/') {
            return doubtful(
                format!(
                    "credential_process starts {shown}, which is found or not as the service's PATH and directory are"
                ),
                cure,
            );
        }
        match program {
            Program::Missing => wrong(
                format!("credential_process starts {shown}, which is not there"),
                cure,
            ),
            Program::NotRunnable => wrong(
                format!("credential_process starts {shown}, which cannot be run"),
                format!("chmod +x {shown}, or {cure}"),
            ),
            Program::There if self.is_ours() && self.grant.is_none() => wrong(
                format!("credential_process starts {shown} without a grant"),
                format!("write {shown} credential-process GRANT"),
            ),
            Program::There if self.is_ours() => fine(format!("credential_process starts {shown}")),
            Program::There => doubtful(
                format!("credential_process starts {shown}, which may ask another source"),
                format!("see that {shown} asks the broker, or write credbroker in its place"),
            ),
        }
    }
}

/// Returns the sections of a file by name. Indented lines belong to a setting before them, and are
/// skipped.
fn sections(file: &AwsFile) -> BTreeMap<String, Settings> {
    let mut found: BTreeMap<String, Settings> = BTreeMap::new();
    let mut section = None;
    let read = BTreeSet::from(READ);
    let text = file.text.as_ref().map_or("", |text| text.expose_secret());
    for line in text.lines() {
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.split_once(']').map_or(rest, |(name, _)| name);
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            found.entry(name.clone()).or_default();
            section = Some(name);
        } else if let (Some(section), Some((name, value))) = (&section, line.split_once('=')) {
            let name = name.trim().to_lowercase();
            let shown = read.contains(name.as_str()).then(|| value.trim());
            let value = shown.unwrap_or_default().to_owned();
            found
                .entry(section.clone())
                .or_default()
                .insert(name, value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::{
        host::Environment,
        report::State::{self, Ok as Fine, Problem, Skipped, Warning},
    };

    type Variables<'a> = &'a [(&'a str, &'a str)];

    const ASKS: &str = "credential_process = /bin/credbroker credential-process invoices --ttl 1h";

    fn host(variables: &[(&str, &str)], config: &str, credentials: &str) -> Host {
        let file = |path: &str, text: &str| AwsFile {
            path: Some(path.into()),
            text: (!text.is_empty()).then(|| text.into()),
            unread: None,
        };
        let variables = variables.iter();
        Host {
            env: Environment::of(
                variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
            ),
            config: file("/c/config", config),
            credentials: file("/c/credentials", credentials),
            ..Host::default()
        }
    }

    #[track_caller]
    fn assert_found(host: &Host, program: Program, check: &str, state: State, words: &str) {
        let mut report = Report::default();
        judge(host, |_| program, &mut report);
        let found = report.findings.iter().find(|found| found.check == check);
        let found = found.unwrap();
        assert_eq!(found.state, state, "{found:?}");
        assert!(found.what.contains(words), "{words} in {found:?}");
        let shown = format!("{report:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn what_a_profile_has_besides_the_broker_is_told() {
        let full = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "https://b/");
        let x = ("AWS_PROFILE", "x");
        let (there, sources) = ("profile", "profile_sources");
        let ours = format!("[default]\n{ASKS}\n");
        let keys =
            "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = hush\n";
        let role = "[profile x]\nrole_arn = arn:hush\n";
        #[rustfmt::skip]
        let table: &[(&str, Variables<'_>, &str, &str, State, &str)] = &[
            (there, &[], "", "", Fine, "no profile default"),
            (there, &[], &ours, "", Fine, "can be read"),
            (there, &[x], &ours, "", Problem, "no profile x"),
            (there, &[x], "[x]\n", "", Problem, "has [x]"),
            (there, &[x], "[profile x]\n", "", Fine, "can be read"),
            (there, &[x], "", "[x]\n", Fine, "can be read"),
            (there, &[("AWS_CONFIG_FILE", "/c/config")], "", "", Warning, "is not there"),
            (sources, &[x], &ours, "", Skipped, "profile has a problem"),
            (sources, &[], "", "", Fine, "no credentials"),
            (sources, &[], "", keys, Problem, "keys (AKIAIOSFODNN7EXAMPLE)"),
            (sources, &[], keys, "", Problem, "/c/config has keys"),
            (sources, &[], &ours, keys, Problem, "before credential_process"),
            (sources, &[], &ours, "[other]\naws_access_key_id = A\n", Fine, "alone"),
            (sources, &[x], role, "", Problem, "role_arn"),
            (sources, &[], role, "", Fine, "no credentials"),
            (sources, &[full], "[default]\nregion = eu\ns3 =\n  role_arn = no\n# role_arn = no\n", "", Fine, "no credentials"),
            (sources, &[full], "[default]\nsso_session = s\n", "", Problem, "single sign-on"),
            (sources, &[full], &ours, "", Warning, "before the endpoint"),
            (sources, &[full], "[default]\ncredential_process = /bin/other\n", "", Problem, "before the endpoint"),
            (sources, &[], &ours, &ours, Warning, "and in"),
        ];
        for (check, variables, config, credentials, state, words) in table {
            let host = host(variables, config, credentials);
            assert_found(&host, Program::There, check, *state, words);
        }
    }

    #[test]
    fn an_unreadable_file_is_told() {
        let mut host = host(&[], "", "");
        host.credentials.unread = Some("permission denied".to_owned());
        assert_found(
            &host,
            Program::There,
            "profile",
            Problem,
            "/c/credentials cannot be read",
        );
    }

    #[test]
    fn a_credential_process_is_a_program_that_every_sdk_finds() {
        use Program::{Missing, NotRunnable, There};
        for (command, program, state, words) in [
            (
                "/bin/credbroker credential-process invoices",
                There,
                Fine,
                "/bin/credbroker",
            ),
            (
                "\"/a b/credbroker\" credential-process invoices",
                There,
                Fine,
                "/a b/credbroker",
            ),
            (
                "/bin/credbroker credential-process",
                There,
                Problem,
                "without a grant",
            ),
            ("/bin/wrapper --token hush", There, Warning, "/bin/wrapper"),
            (
                "/bin/credbroker credential-process x",
                Missing,
                Problem,
                "not there",
            ),
            (
                "/bin/credbroker credential-process x",
                NotRunnable,
                Problem,
                "cannot be run",
            ),
            ("credbroker credential-process x", Missing, Warning, "PATH"),
            (
                "TOKEN=hush /bin/credbroker credential-process x",
                Missing,
                Problem,
                "begins with a variable",
            ),
            (
                "~/credbroker credential-process x",
                Missing,
                Problem,
                "expands",
            ),
            (
                "$HOME/credbroker credential-process x",
                There,
                Problem,
                "expands",
            ),
        ] {
            let config = format!("[default]\ncredential_process = {command}\n");
            let host = host(&[], &config, "");
            assert_found(&host, program, "credential_process", state, words);
        }
        assert_found(
            &host(&[], "", ""),
            There,
            "credential_process",
            Skipped,
            "has none",
        );
    }

    #[test]
    fn the_grant_is_read_from_the_command() {
        let process = Process::of(ASKS.split_once("= ").unwrap().1);
        assert_eq!(process.grant.as_deref(), Some("invoices"));
        assert!(process.is_ours());
        let other = Process::of("/opt/not-credbroker invoices");
        assert_eq!((other.grant.as_deref(), other.is_ours()), (None, false));
    }
}
