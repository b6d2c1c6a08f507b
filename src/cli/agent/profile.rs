//! A profile in the AWS credentials file, next to profiles that the agent did not write.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>

use std::{
    env,
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use rustix::process::geteuid;
use secrecy::{ExposeSecret, SecretString};
use tokio::task::spawn_blocking;

use crate::{
    cli::{error::CliError, file_permissions},
    client::Issued,
};

/// Line below a section's header that marks the section as the agent's.
const OURS: &str = "# Kept by `credbroker agent`, which removes it when it ends.";

/// Number of attempts to lock the file while another agent has it locked.
const TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Profile that the agent maintains.
#[derive(Clone)]
pub(super) struct Profile {
    name: String,
    file: PathBuf,
}

impl Profile {
    /// Returns the profile of this name in the file that SDKs read. Deletes an earlier section that
    /// an agent left; fails if the section is not an agent's.
    pub(super) async fn named(name: &str) -> Result<Self, CliError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@+".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            let why = format!("{name:?} is no name of a profile: letters, digits and -_.@+");
            return Err(CliError::usage(why));
        }
        let home = || env::home_dir().map(|home| home.join(".aws/credentials"));
        let named = env::var_os("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
        let file = named.filter(|file| file.is_absolute()).or_else(home);
        let unset =
            || CliError::usage("HOME is not set").next("set it, or AWS_SHARED_CREDENTIALS_FILE");
        let profile = Self {
            name: name.to_owned(),
            file: file.ok_or_else(unset)?,
        };
        // A profile that no agent wrote is an error, and stays as it is.
        profile.change(None).await?;
        Ok(profile)
    }

    pub(super) async fn write(&self, issued: &Issued) -> Result<(), CliError> {
        let token = issued.session_token.as_ref().map(|token| {
            let token = token.expose_secret();
            format!("aws_session_token = {token}\n")
        });
        let body = format!(
            "{OURS}\naws_access_key_id = {}\naws_secret_access_key = {}\n{}",
            issued.access_key_id,
            issued.secret_access_key.expose_secret(),
            token.unwrap_or_default()
        );
        self.change(Some(SecretString::from(body))).await
    }

    pub(super) async fn remove(&self) -> Result<(), CliError> {
        self.change(None).await
    }

    async fn change(&self, body: Option<SecretString>) -> Result<(), CliError> {
        let profile = self.clone();
        let changed = spawn_blocking(move || profile.change_file(body.as_ref())).await;
        let changed = changed.map_err(|error| CliError::unexpected(error.to_string()))?;
        let name = &self.name;
        let wrong = |error: &str| {
            let file = self.file.display();
            CliError::usage(format!("cannot keep profile {name} in {file}: {error}"))
        };
        match changed {
            Ok(true) => Ok(()),
            Ok(false) => Err(wrong("it is there already, and not the agent's")
                .next("give --write-profile another name, or remove that profile")),
            Err(error) => Err(wrong(&error.to_string())),
        }
    }

    /// Writes the section, or deletes it if `body` is `None`. Returns false if no agent wrote the
    /// section; then it stays as it is.
    fn change_file(&self, body: Option<&SecretString>) -> io::Result<bool> {
        // If the path is a link, its target is changed.
        let file = fs::canonicalize(&self.file).unwrap_or_else(|_| self.file.clone());
        let directory = file.parent().unwrap_or(Path::new("/"));
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory)?;
        let _alone = lock(&file.with_extension("credbroker-lock"))?;
        let old = SecretString::from(match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            old => old?,
        });
        let body = body.map(ExposeSecret::expose_secret);
        let Some(new) = with_section(old.expose_secret(), &self.name, body) else {
            return Ok(false);
        };
        if new.expose_secret() != old.expose_secret() {
            replace(&file, &new)?;
        }
        Ok(true)
    }
}

/// Takes the lock that keeps other agents from changing the file at the same time.
fn lock(path: &Path) -> io::Result<File> {
    let file = file_permissions::lock_file(path)?;
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(BETWEEN_TRIES),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("another agent has it locked"))
}

/// Replaces the file, unless another user owns it: the new file would belong to this user.
fn replace(file: &Path, text: &SecretString) -> io::Result<()> {
    let old = fs::metadata(file).ok();
    if old.is_some_and(|old| old.uid() != geteuid().as_raw()) {
        return Err(io::Error::other("it belongs to another user"));
    }
    file_permissions::replace(file, text)
}

/// Returns the file with `body` in the section, or without the section if `body` is `None`; nothing
/// else changes. Returns `None` if no agent wrote the section.
fn with_section(text: &str, name: &str, body: Option<&str>) -> Option<SecretString> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let is_head = |line: &str| line.trim_start().starts_with('[');
    let is_ours = |line: &&str| section(line) == Some(name);
    let from = lines.iter().position(is_ours);
    let to = from.map_or(lines.len(), |from| {
        let mut after = lines.iter().skip(from + 1);
        let next = after.position(|line| is_head(line));
        next.map_or(lines.len(), |next| from + 1 + next)
    });
    let from = from.unwrap_or(lines.len());
    if from < to
        && lines
            .get(from + 1)
            .is_none_or(|line| line.trim_end() != OURS)
    {
        return None;
    }
    let mut new: String = lines[..from].concat();
    if let Some(body) = body {
        if !new.is_empty() && !new.ends_with('\n') {
            new.push('\n');
        }
        new.extend(["[", name, "]\n", body]);
    }
    new += &lines[to..].concat();
    Some(SecretString::from(new))
}

/// Returns the name of the section that a line begins.
fn section(line: &str) -> Option<&str> {
    let (name, _) = line.trim().strip_prefix('[')?.split_once(']')?;
    Some(name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, body: Option<&str>) -> Option<String> {
        let new = with_section(text, "pay", body);
        new.map(|new| new.expose_secret().to_owned())
    }

    #[test]
    fn a_profile_is_kept_among_others_and_none_of_theirs_changes() {
        let ours = |key: &str| format!("[pay]\n{OURS}\naws_access_key_id = {key}\n");
        let body = |key: &str| format!("{OURS}\naws_access_key_id = {key}\n");
        let before = "# mine\n[default]\nkey=1 \n\n";
        let after = "[ other ]\r\nkey=[pay]\n";
        for (before, after) in [("", ""), (before, ""), ("", after), (before, after)] {
            let one = format!("{before}{}{after}", ours("AKIA1"));
            let two = format!("{before}{}{after}", ours("AKIA2"));
            let none = format!("{before}{after}");
            assert_eq!(with(&one, Some(&body("AKIA2"))), Some(two));
            assert_eq!(with(&one, None), Some(none.clone()));
            assert_eq!(with(&none, None), Some(none.clone()));
            let last = format!("{none}{}", ours("AKIA1"));
            assert_eq!(with(&none, Some(&body("AKIA1"))), Some(last));
        }
        // A last line without a line end stays a line of its own.
        let grown = with("[default]\nkey=1", Some(&body("AKIA1"))).unwrap();
        assert_eq!(grown, format!("[default]\nkey=1\n{}", ours("AKIA1")));
    }

    #[test]
    fn a_profile_of_somebody_elses_is_left_alone() {
        for text in [
            "[pay]\naws_access_key_id = AKIA1\n",
            "[pay]",
            "[default]\n[ pay ]\n",
        ] {
            assert_eq!(with(text, None), None, "{text}");
            assert_eq!(with(text, Some("")), None, "{text}");
        }
    }
}
