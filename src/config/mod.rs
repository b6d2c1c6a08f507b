//! The configuration file of `credbroker serve`. All mistakes are reported at once.
//!
//! `deploy/credbroker.example.toml` documents each setting.

mod audit;
mod certificates;
mod enrollment;
mod listen;
mod oidc;
mod revocation;
mod store;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use toml::{Table, Value};

pub use self::{
    audit::{Audit, Destination, Server, Sink, Witness},
    certificates::ClientAuthority,
    enrollment::Enrollment,
    listen::Listen,
    oidc::{Issuer, KeysAt, OperatorRule},
    store::{StoreAt, is_database},
};
use crate::domain::{
    arn::{Partition, is_region},
    denial::Placements,
    duration::{self, DurationError, HOUR},
    service::Limits,
};

const SECTIONS: [&str; 12] = [
    "listen",
    "bounds",
    "oidc",
    "client_certificates",
    "enrollment",
    "aws",
    "limits",
    "admin_key",
    "audit",
    "revocation",
    "operators",
    "log",
];
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Settings of `credbroker serve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Location of the store.
    pub store: StoreAt,
    /// Addresses to listen on, and limits of connections and calls.
    pub listen: Listen,
    /// CAs for client certificates of services.
    pub client_authorities: Vec<ClientAuthority>,
    /// Issuers whose signed tokens are accepted.
    pub issuers: Vec<Issuer>,
    /// The broker's own CA for client certificates.
    pub enrollment: Option<Enrollment>,
    /// Access to AWS.
    pub aws: Aws,
    /// Limits of one service.
    pub limits: Limits,
    /// Storage and rotation of the admin key.
    pub admin_key: AdminKey,
    /// Settings of the audit log.
    pub audit: Audit,
    /// Locations of denials in AWS.
    pub revocation: Placements,
    /// Settings of operators.
    pub operators: Operators,
    /// Settings of the process's log.
    pub log: Log,
}

/// Access to AWS; the admin key comes from the standard AWS chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aws {
    /// Region whose STS endpoint is used.
    pub region: String,
    /// Partition; by default the partition of the region.
    pub partition: Partition,
    /// Alternative endpoint for STS, IAM and the services of probes.
    pub endpoint_url: Option<String>,
    /// Calls per second that IAM accepts; `None` for the broker's default.
    pub iam_calls_per_second: Option<u32>,
    /// Calls per second that STS accepts; `None` for the broker's default.
    pub sts_calls_per_second: Option<u32>,
}

/// Storage and rotation of the admin key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminKey {
    /// File of the key that seals the admin key; `None` when the broker stores no admin key.
    pub sealing_key_file: Option<PathBuf>,
    /// Region of the KMS that has encrypted that file; `None` when the file is plain.
    pub sealing_kms_region: Option<String>,
    /// Age at which the broker rotates the admin key automatically.
    pub rotate_every: Option<Duration>,
}

/// Settings of operators: the first one, and changes that need a second one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operators {
    /// File for the token of operator `admin`, written when the store has no operator.
    pub bootstrap_token_file: PathBuf,
    /// True if some changes need a second operator.
    pub two_person: bool,
}

/// Settings of the process's log, which goes to standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or a filter like `info,credbroker=debug`.
    pub level: String,
    /// True for one JSON object per line, false for text.
    pub json: bool,
}

/// Error of a configuration file, with all its mistakes.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The file has at least one mistake.
    #[error("{path} cannot be used; mistakes: {}{}", mistakes.len(), Lines(mistakes))]
    Mistakes {
        /// Path of the file.
        path: PathBuf,
        /// Mistakes, each with the name of its setting.
        mistakes: Vec<String>,
    },
}

struct Lines<'a>(&'a [String]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or has mistakes: all of them are returned.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|mistakes| ConfigError::Mistakes {
            path: path.to_owned(),
            mistakes,
        })
    }

    /// Parses the text of a configuration.
    ///
    /// # Errors
    /// All mistakes, each with the name of its setting.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| vec![error.to_string()])?;
        let mut reader = Reader::of(table);
        let config = read(&mut reader);
        reader.finish(config, &SECTIONS)
    }
}

fn read(reader: &mut Reader) -> Option<Config> {
    let store = store::read(reader);
    let listen = listen::read(reader);
    let client_authorities = certificates::read(reader);
    let issuers = oidc::read(reader);
    let enrollment = enrollment::read(reader, &client_authorities);
    let region: Option<String> = reader.required("aws", "region");
    let partition = reader.optional("aws", "partition");
    let endpoint_url: Option<String> = reader.optional("aws", "endpoint_url");
    let iam_calls_per_second = reader.number("aws", "iam_calls_per_second");
    let sts_calls_per_second = reader.number("aws", "sts_calls_per_second");
    let limits = limits(reader);
    let admin_key = admin_key(reader);
    let audit = audit::read(reader);
    let revocation = revocation::read(reader);
    let bootstrap_token_file = reader.required("operators", "bootstrap_token_file");
    let two_person = reader.flag("operators", "two_person").unwrap_or_default();
    let level = reader
        .optional("log", "level")
        .unwrap_or_else(|| "info".to_owned());
    let format: Option<LogFormat> = reader.optional("log", "format");
    if region.as_deref().is_some_and(|region| !is_region(region)) {
        reader.wrong("aws.region", "write it like eu-central-1");
    }
    if endpoint_url
        .as_deref()
        .is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://"))
    {
        reader.wrong(
            "aws.endpoint_url",
            "write it like https://host or http://host:port",
        );
    }
    if !LEVELS.contains(&level.as_str()) && !level.contains('=') {
        reader.wrong(
            "log.level",
            "write error, warn, info, debug, trace, or a filter like info,credbroker=debug",
        );
    }
    let region = region?;
    let of_region = Partition::for_region(&region);
    let partition = partition.unwrap_or(of_region);
    if is_region(&region) && partition != of_region {
        reader.wrong(
            "aws.partition",
            format!("{region} is in partition {of_region}"),
        );
    }
    Some(Config {
        store: store?,
        listen: listen?,
        client_authorities,
        issuers,
        enrollment,
        aws: Aws {
            region,
            partition,
            endpoint_url,
            iam_calls_per_second,
            sts_calls_per_second,
        },
        limits,
        admin_key,
        audit,
        revocation,
        operators: Operators {
            bootstrap_token_file: bootstrap_token_file?,
            two_person,
        },
        log: Log {
            level,
            json: matches!(format, Some(LogFormat::Json)),
        },
    })
}

fn limits(reader: &mut Reader) -> Limits {
    let default = Limits::default();
    let mut live = |key| reader.number("limits", key).map(u64::from);
    let (users, sessions) = (live("live_users"), live("live_sessions"));
    Limits {
        live_users: users.unwrap_or(default.live_users),
        live_sessions: sessions.unwrap_or(default.live_sessions),
        calls_per_second: reader
            .number("limits", "calls_per_second")
            .unwrap_or(default.calls_per_second),
        issues_per_second: reader
            .number("limits", "issues_per_second")
            .unwrap_or(default.issues_per_second),
        users_per_minute: reader
            .number("limits", "users_per_minute")
            .unwrap_or(default.users_per_minute),
    }
}

fn admin_key(reader: &mut Reader) -> AdminKey {
    let every: Option<Lifetime> = reader.optional("admin_key", "rotate_every");
    let admin_key = AdminKey {
        sealing_key_file: reader.optional("admin_key", "sealing_key_file"),
        sealing_kms_region: reader.optional("admin_key", "sealing_kms_region"),
        rotate_every: every.map(|Lifetime(every)| every),
    };
    if let Some(region) = &admin_key.sealing_kms_region
        && !is_region(region)
    {
        reader.wrong("admin_key.sealing_kms_region", "write it like eu-central-1");
    }
    if admin_key.rotate_every.is_some_and(|every| every < HOUR) {
        reader.wrong("admin_key.rotate_every", "must be an hour or more");
    }
    let without = admin_key.sealing_key_file.is_none();
    if without && (admin_key.rotate_every.is_some() || admin_key.sealing_kms_region.is_some()) {
        reader.wrong(
            "admin_key.sealing_key_file",
            "is missing: only a kept key can be rotated",
        );
    }
    admin_key
}

struct Lifetime(Duration);

impl FromStr for Lifetime {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        duration::parse(text).map(Self)
    }
}

enum LogFormat {
    Text,
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("choose text or json"),
        }
    }
}

/// Reader that removes each setting from the table. Settings left at the end are unknown.
struct Reader {
    table: Table,
    mistakes: Vec<String>,
}

impl Reader {
    const fn of(table: Table) -> Self {
        Self {
            table,
            mistakes: Vec::new(),
        }
    }

    fn wrong(&mut self, setting: &str, message: impl fmt::Display) {
        self.mistakes.push(format!("{setting}: {message}"));
    }

    fn required<T>(&mut self, section: &str, key: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let before = self.mistakes.len();
        let value = self.optional(section, key);
        if value.is_none() && self.mistakes.len() == before {
            self.wrong(&path(section, key), "is missing");
        }
        value
    }

    fn optional<T>(&mut self, section: &str, key: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let setting = path(section, key);
        match self.take(section, key)? {
            Value::String(text) => match text.parse() {
                Ok(value) => return Some(value),
                Err(error) => self.wrong(&setting, error),
            },
            other => self.wrong(
                &setting,
                format!("must be text in quotes, not {}", other.type_str()),
            ),
        }
        None
    }

    /// Reads a whole number from 1 to 1,000,000.
    fn number(&mut self, section: &str, key: &str) -> Option<u32> {
        let value = self.take(section, key)?;
        let number = value.as_integer().and_then(|n| u32::try_from(n).ok());
        let number = number.filter(|n| (1..=1_000_000).contains(n));
        if number.is_none() {
            let message = "must be a whole number from 1 to 1000000, without quotes";
            self.wrong(&path(section, key), message);
        }
        number
    }

    fn flag(&mut self, section: &str, key: &str) -> Option<bool> {
        let value = self.take(section, key)?;
        if value.as_bool().is_none() {
            let message = "must be true or false, without quotes";
            self.wrong(&path(section, key), message);
        }
        value.as_bool()
    }

    fn take(&mut self, section: &str, key: &str) -> Option<Value> {
        let table = match section {
            "" => Some(&mut self.table),
            section => self.table.get_mut(section).and_then(Value::as_table_mut),
        };
        table?.remove(key)
    }

    /// Reads the tables of `[[section.key]]`.
    fn tables(&mut self, section: &str, key: &str) -> Vec<Table> {
        let values = match self.take(section, key) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values,
            Some(other) => vec![other],
        };
        let mut tables = Vec::new();
        for value in values {
            if let Value::Table(table) = value {
                tables.push(table);
            } else {
                let setting = path(section, key);
                self.wrong(&setting, format!("begin each with [[{setting}]]"));
            }
        }
        tables
    }

    fn finish<T>(mut self, value: Option<T>, sections: &[&str]) -> Result<T, Vec<String>> {
        for (key, value) in std::mem::take(&mut self.table) {
            match value {
                Value::Table(rest) if sections.contains(&key.as_str()) => {
                    for (unknown, _) in rest {
                        self.wrong(&path(&key, &unknown), "is not a setting");
                    }
                }
                _ => self.wrong(&key, "is not a setting"),
            }
        }
        match value {
            Some(value) if self.mistakes.is_empty() => Ok(value),
            _ => Err(self.mistakes),
        }
    }
}

fn path(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("{section}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/credbroker.example.toml");

    #[test]
    fn the_example_is_a_valid_configuration() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!(config.aws.partition, Partition::Aws);
        assert_eq!(config.log.level, "info");
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn what_the_example_calls_a_default_is_one() {
        let uncommented = EXAMPLE
            .replace("# live_", "live_")
            .replace("# calls_per_second", "calls_per_second")
            .replace("# issues_per", "issues_per");
        let (before, bounds) = uncommented.split_once("[bounds]").unwrap();
        let (bounds, after) = bounds.split_once("\n\n").unwrap();
        let settings: Vec<_> = bounds
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|l| l.contains(" = ")))
            .collect();
        assert_eq!(settings.iter().flatten().count(), 26);
        let bounds = settings
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n");
        let uncommented = format!("{before}[bounds]\n{bounds}\n\n{after}");
        let config = Config::parse(&uncommented).unwrap();
        assert_eq!(config, Config::parse(EXAMPLE).unwrap());
        let fewer = uncommented.replace("live_users = 100", "live_users = 7");
        assert_eq!(Config::parse(&fewer).unwrap().limits.live_users, 7);
    }

    #[test]
    fn the_partition_follows_the_region_unless_given() {
        let chinese = EXAMPLE.replace("eu-central-1", "cn-north-1");
        assert_eq!(
            Config::parse(&chinese).unwrap().aws.partition,
            Partition::AwsCn
        );
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let text = r#"
            store = 7
            colour = "blue"
            [listen]
            address = "localhost"
            admin_address = "here"
            tls_cert_file = "a"
            [bounds]
            connections = 0
            connections_per_address = "many"
            call_timeout = "0s"
            drain_timeout = 7
            frame_bytes = 16383
            stream_window_bytes = 65534
            connection_window_bytes = "1m"
            [aws]
            region = "Europe"
            partition = "azure"
            endpoint_url = "ftp://x"
            secret = "hush"
            iam_calls_per_second = "40"
            [limits]
            live_users = 0
            [admin_key]
            rotate_every = "10m"
            sealing_kms_region = "Mars"
            [operators]
            two_person = "yes"
            [log]
            format = "xml"
            level = "loud"
        "#;
        let mistakes = Config::parse(text).unwrap_err();
        for setting in [
            "store",
            "colour",
            "listen.address",
            "listen.tls_key_file",
            "listen.admin_address",
            "bounds.connections",
            "bounds.connections_per_address",
            "bounds.call_timeout",
            "bounds.drain_timeout",
            "bounds.frame_bytes",
            "bounds.stream_window_bytes",
            "bounds.connection_window_bytes",
            "aws.region",
            "aws.partition",
            "aws.endpoint_url",
            "aws.secret",
            "aws.iam_calls_per_second",
            "limits.live_users",
            "admin_key.rotate_every",
            "admin_key.sealing_kms_region",
            "admin_key.sealing_key_file",
            "operators.bootstrap_token_file",
            "operators.two_person",
            "log.format",
            "log.level",
        ] {
            let told = mistakes
                .iter()
                .filter(|m| m.starts_with(&format!("{setting}:")))
                .count();
            assert_eq!(told, 1, "{setting} in {mistakes:#?}");
        }
        assert!(!mistakes.join("").contains("hush"));
    }
}
