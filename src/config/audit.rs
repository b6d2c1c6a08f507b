//! Settings of the audit log: checkpoint file, witness and sinks.

use std::{net::Ipv6Addr, path::PathBuf, str::FromStr, time::Duration};

use toml::{Table, Value};

use super::{Lifetime, Reader, path};
use crate::{audit::note::WitnessKey, domain::name::Name};

/// Default for the largest size of a file sink's file, MiB.
const ROTATE_MIB: u32 = 100;
/// Default number of older files that a file sink keeps.
const KEEP: u32 = 10;
const HTTPS: u16 = 443;
/// Default of the shortest time that records are kept: 400 days.
const KEEP_RECORDS: Duration = Duration::from_hours(400 * 24);

/// Settings of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// File of the newest checkpoint; `None` when only the store holds the checkpoint.
    pub checkpoint_file: Option<PathBuf>,
    /// Shortest time that records are kept.
    pub keep: Duration,
    /// Witness that cosigns the log's checkpoints.
    pub witness: Option<Witness>,
    /// Sinks that records are streamed to.
    pub sinks: Vec<Sink>,
}

/// A witness that cosigns the log's checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Server of the witness.
    pub server: Server,
    /// Path of the witness's submission prefix, without a slash at the end.
    pub prefix: String,
    /// Key that verifies the witness's signatures.
    pub key: WitnessKey,
}

/// A sink that the log's records are streamed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// Name, under which the store remembers the sink's position.
    pub name: Name,
    /// Kind and address of the sink.
    pub to: Destination,
}

/// Kind and address of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Largest size of the file, MiB.
        rotate_mib: u32,
        /// Number of older files kept beside it.
        keep: u32,
    },
    /// A syslog server.
    Syslog {
        /// Server that receives the records over TLS.
        server: Server,
    },
    /// A URL.
    Webhook {
        /// Server of the URL.
        server: Server,
        /// Path and query, at least `/`.
        path: String,
        /// File of the bearer token that is sent with the records.
        token_file: Option<PathBuf>,
    },
}

/// A server that is reached over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// CA certificates for the server, PEM; `None` for those that the machine trusts.
    pub ca_file: Option<PathBuf>,
}

pub(super) fn read(reader: &mut Reader) -> Audit {
    Audit {
        checkpoint_file: reader.optional("audit", "checkpoint_file"),
        keep: reader
            .optional("audit", "keep")
            .map_or(KEEP_RECORDS, |Lifetime(keep)| keep),
        witness: witness(reader),
        sinks: sinks(reader),
    }
}

fn witness(reader: &mut Reader) -> Option<Witness> {
    let section = "audit.witness";
    let Value::Table(table) = reader.take("audit", "witness")? else {
        reader.wrong(section, "begin it with [audit.witness]");
        return None;
    };
    let mut own = Reader::of(Table::from_iter([(section.to_owned(), table.into())]));
    let url: Option<Prefix> = own.required(section, "url");
    let key = own.required(section, "key");
    let ca_file = own.optional(section, "ca_file");
    let witness = url.zip(key).map(|(url, key)| Witness {
        server: url.address.with(ca_file),
        prefix: url.path,
        key,
    });
    let read = own.finish(witness, &[section]);
    read.map_err(|mistakes| reader.mistakes.extend(mistakes))
        .ok()
}

fn sinks(reader: &mut Reader) -> Vec<Sink> {
    let mut sinks: Vec<Sink> = Vec::new();
    for (index, table) in reader.tables("audit", "sinks").into_iter().enumerate() {
        // Position in the file; the first is 1.
        let section = format!("audit.sinks[{}]", index + 1);
        let read = sink(&section, table);
        match read {
            Ok(sink) => {
                if sinks.iter().any(|other| other.name == sink.name) {
                    reader.wrong(&path(&section, "name"), "another sink has this name");
                }
                if sinks.iter().any(|other| same_file(other, &sink)) {
                    reader.wrong(&path(&section, "path"), "another sink has this file");
                }
                sinks.push(sink);
            }
            Err(mistakes) => reader.mistakes.extend(mistakes),
        }
    }
    sinks
}

fn same_file(one: &Sink, other: &Sink) -> bool {
    match (&one.to, &other.to) {
        (Destination::File { path, .. }, Destination::File { path: other, .. }) => path == other,
        _ => false,
    }
}

fn sink(section: &str, table: Table) -> Result<Sink, Vec<String>> {
    let mut reader = Reader::of(Table::from_iter([(section.to_owned(), table.into())]));
    let name = reader.required(section, "name");
    let kind = reader.required(section, "kind");
    let to = match kind {
        Some(Kind::File) => file(&mut reader, section),
        Some(Kind::Syslog) => syslog(&mut reader, section),
        Some(Kind::Webhook) => webhook(&mut reader, section),
        None => {
            // The settings of an unknown kind are unknown, too: report none of them.
            reader.table.clear();
            None
        }
    };
    let sink = name.zip(to).map(|(name, to)| Sink { name, to });
    reader.finish(sink, &[section])
}

fn file(reader: &mut Reader, section: &str) -> Option<Destination> {
    let path = reader.required(section, "path");
    let rotate_mib = reader.number(section, "rotate_mib").unwrap_or(ROTATE_MIB);
    let keep = reader.number(section, "keep").unwrap_or(KEEP);
    Some(Destination::File {
        path: path?,
        rotate_mib,
        keep,
    })
}

fn syslog(reader: &mut Reader, section: &str) -> Option<Destination> {
    let address: Option<Address> = reader.required(section, "address");
    let ca_file = reader.optional(section, "ca_file");
    let server = address?.with(ca_file);
    Some(Destination::Syslog { server })
}

fn webhook(reader: &mut Reader, section: &str) -> Option<Destination> {
    let url: Option<Url> = reader.required(section, "url");
    let ca_file = reader.optional(section, "ca_file");
    let token_file = reader.optional(section, "token_file");
    let Url { address, path } = url?;
    Some(Destination::Webhook {
        server: address.with(ca_file),
        path,
        token_file,
    })
}

enum Kind {
    File,
    Syslog,
    Webhook,
}

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "file" => Ok(Self::File),
            "syslog" => Ok(Self::Syslog),
            "webhook" => Ok(Self::Webhook),
            _ => Err("choose file, syslog or webhook"),
        }
    }
}

/// `host:port`.
pub(super) struct Address {
    host: String,
    port: u16,
}

impl Address {
    pub(super) fn with(self, ca_file: Option<PathBuf>) -> Server {
        let Self { host, port } = self;
        Server {
            host,
            port,
            ca_file,
        }
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let parts = text.rsplit_once(':').and_then(|(host, port)| {
            let port = port.parse().ok().filter(|port| *port > 0)?;
            Some((host_of(host)?, port))
        });
        let (host, port) = parts.ok_or("write it like logs.example:6514 or [2001:db8::1]:6514")?;
        Ok(Self { host, port })
    }
}

/// Returns the host, if `text` is a DNS name or an IP address; IPv6 takes brackets.
fn host_of(text: &str) -> Option<String> {
    let bracketed = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = bracketed {
        return address.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string());
    }
    let is_label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.bytes().all(plain)
    };
    text.split('.').all(is_label).then(|| text.to_owned())
}

/// `https://host:port/path?query`.
pub(super) struct Url {
    pub(super) address: Address,
    pub(super) path: String,
}

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let wrong = "write it like https://hooks.example/audit";
        let rest = text.strip_prefix("https://").ok_or(wrong)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        // Characters of a path and a query: RFC 3986 section 3.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@/?".contains(&b);
        if !path.bytes().all(plain) {
            return Err(wrong);
        }
        let address = match host_of(authority) {
            Some(host) => Ok(Address { host, port: HTTPS }),
            None => authority.parse().map_err(|_| wrong),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            address: address?,
            path: format!("{slash}{path}"),
        })
    }
}

/// `https://host:port/path`, to which a path is appended.
struct Prefix {
    address: Address,
    path: String,
}

impl FromStr for Prefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let url = text.parse().ok();
        let Url { address, path } = url
            .filter(|url: &Url| !url.path.contains('?'))
            .ok_or("write it like https://witness.example/prefix")?;
        let path = path.trim_end_matches('/').to_owned();
        Ok(Self { address, path })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Destination, Server, Sink, Witness};

    const EXAMPLE: &str = include_str!("../../deploy/credbroker.example.toml");

    fn with(sinks: &str) -> Result<Vec<Sink>, Vec<String>> {
        let text = EXAMPLE.replace("\n[limits]", &format!("\n{sinks}\n[limits]"));
        Config::parse(&text).map(|config| config.audit.sinks)
    }

    #[test]
    fn the_sinks_of_the_example_are_valid() {
        assert_eq!(with("").unwrap(), []);
        let (before, rest) = EXAMPLE.split_once("# [[audit.sinks]]").unwrap();
        let (sinks, after) = rest.split_once("\n\n").unwrap();
        let is_setting = |line: &&str| line.starts_with("# [[") || line.contains(" = ");
        let sinks: Vec<&str> = sinks.lines().filter(is_setting).collect();
        let sinks = sinks.join("\n").replace("# ", "");
        let config = Config::parse(&format!("{before}[[audit.sinks]]\n{sinks}\n{after}"));
        let names = config.unwrap().audit.sinks.into_iter();
        let names: Vec<String> = names.map(|sink| sink.name.to_string()).collect();
        assert_eq!(names, ["archive", "siem", "collector"]);
    }

    #[test]
    fn a_file_has_defaults_and_a_url_its_parts() {
        let sinks = with(
            "[[audit.sinks]]\nname = 'archive'\nkind = 'file'\npath = '/a'
             [[audit.sinks]]\nname = 'hook'\nkind = 'webhook'\nurl = 'https://h.example?k=v'
             [[audit.sinks]]\nname = 'hook-2'\nkind = 'webhook'\nurl = 'https://[::1]:8443/a'",
        );
        let to: Vec<Destination> = sinks.unwrap().into_iter().map(|sink| sink.to).collect();
        let webhook = |host: &str, port, path: &str| Destination::Webhook {
            server: Server {
                host: host.to_owned(),
                port,
                ca_file: None,
            },
            path: path.to_owned(),
            token_file: None,
        };
        let file = Destination::File {
            path: "/a".into(),
            rotate_mib: 100,
            keep: 10,
        };
        let expected = [
            file,
            webhook("h.example", 443, "/?k=v"),
            webhook("::1", 8443, "/a"),
        ];
        assert_eq!(to, expected);
    }

    #[test]
    fn an_address_is_a_host_and_a_port_and_a_url_is_of_https() {
        for (kind, setting, wrong) in [
            ("syslog", "address", "logs.example"),
            ("syslog", "address", "logs.example:0"),
            ("syslog", "address", ":6514"),
            ("syslog", "address", "2001:db8::1:6514"),
            ("syslog", "address", "user@logs.example:6514"),
            ("webhook", "url", "http://h.example/"),
            ("webhook", "url", "https://user:hush@h.example/"),
            ("webhook", "url", "https://h.example/a#hush"),
            ("webhook", "url", "https://h.example/a hush"),
            ("webhook", "url", "https:///a"),
        ] {
            let text =
                format!("[[audit.sinks]]\nname = 'sink'\nkind = '{kind}'\n{setting} = '{wrong}'");
            let mistakes = with(&text).unwrap_err().join("\n");
            let begin = format!("audit.sinks[1].{setting}: write it like");
            assert!(mistakes.starts_with(&begin), "{wrong}: {mistakes}");
            assert!(!mistakes.contains("hush"), "{mistakes}");
        }
    }

    #[test]
    fn every_mistake_of_every_sink_is_told_at_once() {
        let mistakes = with(
            "[[audit.sinks]]\nname = 'same'\nkind = 'file'\npath = '/a'\nrotate_mib = 0\ncolour = 'red'
             [[audit.sinks]]\nkind = 'syslog'\nurl = 'https://h.example'
             [[audit.sinks]]\nname = 'No!'\nkind = 'pigeon'\nloft = 'mine'
             [[audit.sinks]]\nname = 'one'\nkind = 'file'\npath = '/b'
             [[audit.sinks]]\nname = 'one'\nkind = 'file'\npath = '/b'",
        );
        let mistakes = mistakes.unwrap_err();
        let told: Vec<&str> = mistakes
            .iter()
            .filter_map(|mistake| mistake.split(": ").next())
            .collect();
        let expected = [
            "audit.sinks[1].rotate_mib",
            "audit.sinks[1].colour",
            "audit.sinks[2].name",
            "audit.sinks[2].address",
            "audit.sinks[2].url",
            "audit.sinks[3].name",
            "audit.sinks[3].kind",
            "audit.sinks[5].name",
            "audit.sinks[5].path",
        ];
        assert_eq!(told, expected, "{mistakes:#?}");
        let mistakes = with("sinks = ['archive']").unwrap_err();
        assert_eq!(mistakes, ["audit.sinks: begin each with [[audit.sinks]]"]);
    }

    fn witness(settings: &str) -> Result<Option<Witness>, Vec<String>> {
        let text = EXAMPLE.replace("\n[limits]", &format!("\n{settings}\n[limits]"));
        Config::parse(&text).map(|config| config.audit.witness)
    }

    const KEY: &str = "witness.example+d2bd90f1+BNy/co4C1Hn1p+INwJrfUlgz7W55dSZReusH/GhUhJ/G";

    #[test]
    fn the_witness_of_the_example_is_valid_and_optional() {
        assert_eq!(witness("").unwrap(), None);
        let (before, rest) = EXAMPLE.split_once("# [audit.witness]").unwrap();
        let (settings, after) = rest.split_once("\n\n").unwrap();
        let is_setting = |line: &&str| line.contains(" = ");
        let settings: Vec<&str> = settings.lines().filter(is_setting).collect();
        let settings = settings.join("\n").replace("# ", "");
        let config = Config::parse(&format!("{before}[audit.witness]\n{settings}\n\n{after}"));
        let witness = config.unwrap().audit.witness.unwrap();
        assert_eq!(witness.key.name(), "witness.example");
    }

    #[test]
    fn the_url_of_a_witness_is_what_a_path_is_added_to() {
        for (url, host, port, prefix) in [
            ("https://w.example", "w.example", 443, ""),
            ("https://w.example/", "w.example", 443, ""),
            ("https://w.example:8443/a/b/", "w.example", 8443, "/a/b"),
        ] {
            let settings =
                format!("[audit.witness]\nurl = '{url}'\nkey = '{KEY}'\nca_file = '/ca'");
            let witness = witness(&settings).unwrap().unwrap();
            let server = Server {
                host: host.to_owned(),
                port,
                ca_file: Some("/ca".into()),
            };
            assert_eq!((witness.server, &*witness.prefix), (server, prefix));
        }
    }

    #[test]
    fn every_mistake_of_the_witness_is_told_at_once() {
        let of_a_log = KEY.replace("BNy", "ANy");
        for (settings, expected) in [
            (
                "[audit.witness]",
                &["url: is missing", "key: is missing"][..],
            ),
            (
                "[audit.witness]\nurl = 'http://w.example'\nkey = 'mine'\ncolour = 'red'",
                &["url: write it like", "key: it is no key", "colour: is not"],
            ),
            (
                &format!("[audit.witness]\nurl = 'https://w.example/?a=b'\nkey = '{of_a_log}'"),
                &["url: write it like", "key: it is no key"],
            ),
        ] {
            let mistakes = witness(settings).unwrap_err();
            assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
            for (mistake, begin) in mistakes.iter().zip(expected) {
                let begin = format!("audit.witness.{begin}");
                assert!(mistake.starts_with(&begin), "{mistake}");
            }
        }
        let mistakes = witness("witness = 'https://w.example'").unwrap_err();
        assert_eq!(mistakes, ["audit.witness: begin it with [audit.witness]"]);
    }
}
