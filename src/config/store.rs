//! `store`: location of the broker's store.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::Reader;

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// Location of the store.
#[derive(Clone, Debug)]
pub enum StoreAt {
    /// One SQLite file.
    File(PathBuf),
    /// A PostgreSQL database.
    Database {
        /// URL `postgres://USER@HOST/DATABASE`; it may contain a password.
        url: SecretString,
        /// Journal for revocations while the database accepts no records.
        emergency_file: PathBuf,
    },
}

impl PartialEq for StoreAt {
    fn eq(&self, other: &Self) -> bool {
        let told = |at: &Self| match at {
            Self::File(path) => (String::new(), path.clone()),
            Self::Database {
                url,
                emergency_file,
            } => (url.expose_secret().to_owned(), emergency_file.clone()),
        };
        told(self) == told(other)
    }
}

impl Eq for StoreAt {}

/// Returns whether `store` is the URL of a database rather than a file.
#[must_use]
pub fn is_database(store: &str) -> bool {
    SCHEMES.iter().any(|scheme| store.starts_with(scheme))
}

pub(super) fn read(reader: &mut Reader) -> Option<StoreAt> {
    let store: Option<String> = reader.required("", "store");
    let emergency_file = reader.optional("", "emergency_file");
    let setting = "emergency_file";
    match (store.filter(|store| !store.is_empty())?, emergency_file) {
        (url, Some(emergency_file)) if is_database(&url) => Some(StoreAt::Database {
            url: url.into(),
            emergency_file,
        }),
        (url, None) if is_database(&url) => {
            reader.wrong(
                setting,
                "is missing: with a database, name a file of this host, where revocations are kept while the database takes no records",
            );
            None
        }
        (file, None) => Some(StoreAt::File(file.into())),
        (_, Some(_)) => {
            reader.wrong(
                setting,
                "is for databases: beside a store in a file it is FILE.emergency",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const EXAMPLE: &str = include_str!("../../deploy/credbroker.example.toml");
    const FLEETS: [&str; 2] = [
        include_str!("../../deploy/compose/credbroker.toml"),
        include_str!("../../deploy/kubernetes/credbroker.toml"),
    ];
    const FILE: &str = "store = \"/var/lib/credbroker/credbroker.db\"";
    const URL: &str = "store = \"postgres://ann:hunter2@db.example/credbroker\"";

    #[test]
    fn a_database_takes_an_emergency_file_and_a_file_has_its_own() {
        let file = Config::parse(EXAMPLE).unwrap();
        assert!(matches!(file.store, StoreAt::File(_)));
        let without = EXAMPLE.replace(FILE, URL);
        let mistakes = Config::parse(&without).unwrap_err();
        assert!(mistakes[0].starts_with("emergency_file: is missing"));
        let named = EXAMPLE.replace(FILE, &format!("{FILE}\nemergency_file = \"here\""));
        let mistakes = Config::parse(&named).unwrap_err();
        assert!(mistakes[0].starts_with("emergency_file: is for databases"));
        let config = Config::parse(&named.replace(FILE, URL)).unwrap();
        assert!(matches!(config.store, StoreAt::Database { .. }));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_shipped_for_several_brokers_is_a_configuration() {
        for text in FLEETS {
            let config = Config::parse(text).unwrap();
            assert!(matches!(config.store, StoreAt::Database { .. }));
        }
    }
}
