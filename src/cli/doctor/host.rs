//! Inputs of an SDK on this host: variables and files. They are read once, here; other modules
//! check them.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use secrecy::SecretString;

/// Longest token, bytes.
const TOKEN_MAX: u64 = 64 * 1024;
/// Variables whose values are never shown.
const SECRET: [&str; 4] = [
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CREDBROKER_TOKEN",
];
/// Files of the certificates that a system trusts: Debian, Red Hat, Alpine and BSD.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Environment variables; an empty one counts as unset.
#[derive(Debug, Default)]
pub(super) struct Environment {
    shown: BTreeMap<String, String>,
    secret: BTreeMap<String, SecretString>,
}

impl Environment {
    pub(super) fn of(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            if value.is_empty() {
                continue;
            }
            if SECRET.contains(&name.as_str()) {
                environment.secret.insert(name, SecretString::from(value));
            } else {
                environment.shown.insert(name, value);
            }
        }
        environment
    }

    fn look() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        };
        let known = |name: &str| {
            name.starts_with("AWS_") || name.starts_with("CREDBROKER_") || name == "SSL_CERT_FILE"
        };
        Self::of(env::vars_os().map(text).filter(|(name, _)| known(name)))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.shown.contains_key(name) || self.secret.contains_key(name)
    }

    /// Returns the value of a variable that may be shown.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.shown.get(name).map(String::as_str)
    }

    pub(super) fn secret(&self, name: &str) -> Option<&SecretString> {
        self.secret.get(name)
    }
}

/// One of the two AWS files: config or credentials.
#[derive(Debug, Default)]
pub(super) struct AwsFile {
    /// `None`: the variable is not set, and there is no home directory.
    pub(super) path: Option<PathBuf>,
    /// `None`: there is no file, or it cannot be read.
    pub(super) text: Option<SecretString>,
    /// Reason why the file cannot be read.
    pub(super) unread: Option<String>,
}

impl AwsFile {
    fn look(variable: Option<&str>, home: Option<&Path>, name: &str) -> Self {
        let at_home = || home.map(|home| home.join(".aws").join(name));
        let path = variable.map(PathBuf::from).or_else(at_home);
        let (text, unread) = match path.as_ref().map(fs::read_to_string) {
            None => (None, None),
            Some(Ok(text)) => (Some(SecretString::from(text)), None),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => (None, None),
            Some(Err(error)) => (None, Some(error.to_string())),
        };
        Self { path, text, unread }
    }

    pub(super) fn shown(&self) -> String {
        let path = self.path.as_ref();
        path.map_or_else(|| "~/.aws".to_owned(), |path| path.display().to_string())
    }
}

/// Content and mode of a token file.
#[derive(Debug)]
pub(super) struct TokenFile {
    pub(super) text: Result<SecretString, String>,
    pub(super) mode: u32,
}

impl TokenFile {
    fn look(path: &str) -> Self {
        let mut mode = 0;
        let mut read = || {
            let file = File::open(path)?;
            mode = file.metadata()?.mode();
            let mut text = String::new();
            file.take(TOKEN_MAX).read_to_string(&mut text)?;
            Ok(SecretString::from(text))
        };
        let text = read().map_err(|error: io::Error| error.to_string());
        Self { text, mode }
    }
}

/// State of the path of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    There,
    Missing,
    /// The path is no file, or no user may execute it.
    NotRunnable,
}

impl Program {
    pub(super) fn look(path: &Path) -> Self {
        match fs::metadata(path) {
            Err(_) => Self::Missing,
            Ok(found) if found.is_file() && found.mode() & 0o111 != 0 => Self::There,
            Ok(_) => Self::NotRunnable,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) env: Environment,
    pub(super) config: AwsFile,
    pub(super) credentials: AwsFile,
    /// File that AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE names.
    pub(super) token_file: Option<TokenFile>,
    /// File of the certificates that the machine trusts.
    pub(super) bundle: Option<PathBuf>,
}

impl Host {
    pub(super) fn look() -> Self {
        let (env, home) = (Environment::look(), env::home_dir());
        let file = |variable, name| AwsFile::look(env.get(variable), home.as_deref(), name);
        let config = file("AWS_CONFIG_FILE", "config");
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let token_file = env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
        let token_file = token_file.map(TokenFile::look);
        let known = || {
            BUNDLES
                .map(PathBuf::from)
                .into_iter()
                .find(|path| path.exists())
        };
        let named = env.get("SSL_CERT_FILE").map(PathBuf::from);
        let bundle = named.or_else(known);
        Self {
            env,
            config,
            credentials,
            token_file,
            bundle,
        }
    }
}
