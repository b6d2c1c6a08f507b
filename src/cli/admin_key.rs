//! `credbroker admin-key …`: the broker's own AWS key.

use std::io::{self, Read};

use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use tonic::Streaming;

use super::{
    error::CliError,
    output::{Format, Output},
    view::{RevokedSessions, time},
};
use crate::{
    client::Client,
    proto::{
        self, AdminKeyPhase, GetAdminKeyRequest, ImportAdminKeyRequest,
        ReplaceStolenAdminKeyRequest, RotateAdminKeyRequest, StolenAdminKeyProgress,
        stolen_admin_key_progress::{Done, What},
    },
};

/// Longest input, bytes: no form of a key is longer.
const INPUT_MAX: u64 = 16 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum AdminKey {
    /// Import the broker's key from standard input: the output of `aws iam create-access-key`, a
    /// shared credentials file, or lines NAME=VALUE. The broker stores the key sealed. Rotate it
    /// afterwards: then only the broker knows the key.
    Import,
    /// Show the source and the age of the key, and the state of its replacement.
    Status,
    /// Replace the key by a new one that AWS makes.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// Treat the key as stolen: switch it off at once, deny every session issued so far at the
    /// broker's user and at every role, and let services get new ones.
    #[arg(long)]
    stolen: bool,
}

impl AdminKey {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let mut admin = client.admin();
        let told = match self {
            Self::Import => {
                let key = read_key(&from_stdin()?)?;
                admin.import_admin_key(key).await?
            }
            Self::Status => admin.get_admin_key(GetAdminKeyRequest {}).await?,
            Self::Rotate(Rotate { stolen: true }) => {
                let request = ReplaceStolenAdminKeyRequest {};
                let stream = admin.replace_stolen_admin_key(request).await?;
                return follow(stream.into_inner(), out).await;
            }
            Self::Rotate(_) => admin.rotate_admin_key(RotateAdminKeyRequest {}).await?,
        };
        Ok(out.show(&KeyStatus::from(told.into_inner()))?)
    }
}

/// Prints progress until the replacement is done.
async fn follow(
    mut stream: Streaming<StolenAdminKeyProgress>,
    out: &mut Output,
) -> Result<(), CliError> {
    let mut told = Stolen::default();
    while let Some(progress) = stream.message().await? {
        let Some(what) = progress.what else { continue };
        if let What::Done(done) = what {
            return told.end(&done, out);
        }
        let line = told.add(what);
        if out.format() != Format::Json {
            out.line(&line)?;
        }
    }
    Err(CliError::unavailable(
        "the broker has ended before it was done: repeat `credbroker admin-key rotate --stolen`",
    ))
}

/// Output of `rotate --stolen -o json`.
#[derive(Default, Serialize)]
struct Stolen {
    key: Option<KeyStatus>,
    sessions: Vec<RevokedSessions>,
    grants: Vec<RevokedGrant>,
    /// Time before which every issued session is denied.
    denied_before: Option<String>,
    confirmed: bool,
    /// Access that the broker cannot end.
    notice: Option<String>,
}

#[derive(Serialize)]
struct RevokedGrant {
    grant: String,
    leases: u64,
    confirmed: bool,
}

impl Stolen {
    /// Adds a progress message, and returns it as a line of text.
    fn add(&mut self, what: What) -> String {
        match what {
            What::Replaced(key) => {
                let key = KeyStatus::from(key);
                let id = key.access_key_id.clone().unwrap_or_default();
                self.key = Some(key);
                format!("the admin key is {id}; the stolen one is switched off")
            }
            What::Sessions(sessions) => {
                let sessions = RevokedSessions::from(sessions);
                let line = match (sessions.refused_after_seconds, &sessions.notice) {
                    (Some(seconds), _) => {
                        let seen_by = sessions.seen_by.as_deref().unwrap_or("seen later");
                        format!("AWS refuses all earlier sessions after {seconds:.2} s ({seen_by})")
                    }
                    (None, notice) => format!(
                        "open: {}",
                        notice
                            .as_deref()
                            .unwrap_or("AWS was not seen to refuse earlier sessions")
                    ),
                };
                let line = format!("  {}: {line}", sessions.holder);
                self.sessions.push(sessions);
                line
            }
            What::Grant(grant) => {
                let open = if grant.confirmed {
                    ""
                } else {
                    "; AWS was not seen to refuse all of them yet"
                };
                let line = format!("  {}: leases revoked: {}{open}", grant.grant, grant.leases);
                self.grants.push(RevokedGrant {
                    grant: grant.grant,
                    leases: grant.leases,
                    confirmed: grant.confirmed,
                });
                line
            }
            What::Done(_) => String::new(),
        }
    }

    fn end(mut self, done: &Done, out: &mut Output) -> Result<(), CliError> {
        self.denied_before = time(done.denied_before.as_ref());
        self.confirmed = done.confirmed;
        self.notice = (!done.notice.is_empty()).then(|| done.notice.clone());
        if let Some(notice) = &self.notice {
            eprintln!("warning: {notice}");
        }
        let before = self.denied_before.clone().unwrap_or_default();
        if out.format() == Format::Json {
            out.show(&self)?;
        }
        if !self.confirmed {
            let what = format!(
                "the key is replaced, but AWS was not seen to refuse every session issued before {before}; the broker \
                 goes on trying"
            );
            let next = "`credbroker status` lists what is open under open_denials; then see the runbook: services that \
                        do not follow their grants must be restarted";
            return Err(CliError::unavailable(what).next(next));
        }
        if out.format() != Format::Json {
            out.line(&format!(
                "done: AWS was seen to refuse every session issued before {before}; restart the services that do not \
                 follow their grants"
            ))?;
        }
        Ok(())
    }
}

fn from_stdin() -> Result<SecretString, CliError> {
    let mut text = String::new();
    io::stdin().take(INPUT_MAX).read_to_string(&mut text)?;
    Ok(SecretString::from(text))
}

/// Finds id and secret in any of the forms in which AWS hands out keys. The error contains none of
/// the input.
fn read_key(text: &SecretString) -> Result<ImportAdminKeyRequest, CliError> {
    let text = text.expose_secret();
    let found = if text.trim_start().starts_with('{') {
        from_json(text)
    } else {
        from_lines(text)
    };
    let (access_key_id, secret_access_key) = found.ok_or_else(|| {
        CliError::usage("standard input holds no access key id and secret").next(
            "give what `aws iam create-access-key` prints, or a credentials file with \
             aws_access_key_id and aws_secret_access_key",
        )
    })?;
    Ok(ImportAdminKeyRequest {
        access_key_id,
        secret_access_key,
    })
}

fn from_json(text: &str) -> Option<(String, String)> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let key = answer.get("AccessKey").unwrap_or(&answer);
    let field = |name: &str| key.get(name)?.as_str().map(ToOwned::to_owned);
    field("AccessKeyId").zip(field("SecretAccessKey"))
}

fn from_lines(text: &str) -> Option<(String, String)> {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (known, value) = line.trim().split_once('=')?;
            let known = known.trim().trim_start_matches("export ").trim();
            let value = value.trim().trim_matches(['\'', '"']);
            known.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    field("aws_access_key_id").zip(field("aws_secret_access_key"))
}

/// Output of `-o json` for each subcommand.
#[derive(Serialize)]
struct KeyStatus {
    source: &'static str,
    phase: Option<&'static str>,
    access_key_id: Option<String>,
    arn: Option<String>,
    aws_error: Option<String>,
    since: Option<String>,
    age_seconds: Option<i64>,
    phase_since: Option<String>,
    next_step_at: Option<String>,
    other_access_key_ids: Vec<String>,
    attempts: u32,
    failure: Option<String>,
    rotates_at: Option<String>,
}

impl From<proto::AdminKey> for KeyStatus {
    fn from(key: proto::AdminKey) -> Self {
        let phase = match key.phase() {
            AdminKeyPhase::Unspecified => None,
            AdminKeyPhase::Steady => Some("steady"),
            AdminKeyPhase::Creating => Some("creating"),
            AdminKeyPhase::Proving => Some("proving"),
            AdminKeyPhase::Grace => Some("grace"),
            AdminKeyPhase::Retiring => Some("retiring"),
        };
        Self {
            source: if phase.is_some() { "kept" } else { "chain" },
            phase,
            access_key_id: key.access_key_id,
            arn: key.arn,
            aws_error: key.aws_error,
            since: time(key.since.as_ref()),
            age_seconds: key.age.map(|age| age.seconds),
            phase_since: time(key.phase_since.as_ref()),
            next_step_at: time(key.next_step_at.as_ref()),
            other_access_key_ids: key.other_access_key_ids,
            attempts: key.attempts,
            failure: key.failure,
            rotates_at: time(key.rotates_at.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_in_every_form_that_aws_hands_it_out_in() {
        for text in [
            r#"{"AccessKey": {"UserName": "admin", "AccessKeyId": "AKIA1", "SecretAccessKey": "s/+="}}"#,
            r#"{"AccessKeyId": "AKIA1", "SecretAccessKey": "s/+="}"#,
            "[default]\naws_access_key_id = AKIA1\naws_secret_access_key = s/+=\n",
            "export AWS_ACCESS_KEY_ID='AKIA1'\r\nexport AWS_SECRET_ACCESS_KEY='s/+='\r\n",
        ] {
            let key = read_key(&text.into()).unwrap();
            assert_eq!(key.access_key_id, "AKIA1", "{text}");
            assert_eq!(key.secret_access_key, "s/+=", "{text}");
        }
    }

    #[test]
    fn what_is_no_key_is_told_without_being_repeated() {
        for text in ["", "hush", "{hush}", "aws_secret_access_key = hush"] {
            let told = format!("{:?}", read_key(&text.into()).unwrap_err());
            assert!(!told.contains("hush"), "{told}");
        }
    }
}
