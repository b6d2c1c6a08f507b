//! `credbroker lookup`: the owner of an access key or token that was found.

use std::{
    collections::HashSet,
    hash::Hash,
    io::{self, IsTerminal, Read},
};

use clap::Args;

use super::{
    error::CliError,
    output::{Format, Output},
    view::{Found, KeyOwner, TokenOwner},
};
use crate::{
    client::Client,
    domain::{
        credential::KeyId,
        token::{TokenId, visible_parts},
    },
    proto::{LookupAccessKeysRequest, LookupTokensRequest},
};

/// Most keys or tokens in one call.
const BATCH: usize = 1000;
/// Longest text that is searched, bytes.
const INPUT_MAX: u64 = 16 * 1024 * 1024;
/// Length of the shortest id that AWS makes; a shorter word in a text is no id.
const FOUND_MIN: usize = 20;

#[derive(Args, Debug)]
pub(super) struct Lookup {
    /// Ids of access keys, AKIA… or ASIA…, and tokens of the broker, cbs_…, cbo_… or cbe_…, of
    /// which the first 20 characters are enough. Without arguments, or with -, they are searched
    /// for in standard input: any text, such as an alert of GitHub's secret scanning.
    #[arg(value_name = "ACCESS_KEY_ID|TOKEN")]
    found: Vec<String>,
}

/// Keys and tokens to look up, each once.
#[derive(Debug, Default)]
pub(super) struct LookupRequest {
    keys: Vec<KeyId>,
    tokens: Vec<TokenId>,
}

impl Lookup {
    /// Returns the keys and tokens of the arguments, or those in standard input.
    pub(super) fn asked(&self) -> Result<LookupRequest, CliError> {
        let given: Vec<&str> = self.found.iter().map(String::as_str).collect();
        if matches!(given[..], [] | ["-"]) {
            return from_stdin();
        }
        let mut asked = LookupRequest::default();
        for text in given {
            match (visible_parts(text).next(), text.parse()) {
                (Some(token), _) => asked.tokens.push(token),
                (None, Ok(key)) => asked.keys.push(key),
                (None, Err(error)) => {
                    return Err(CliError::usage(format!(
                        "an argument is neither a token of the broker nor an access key id: {error}"
                    ))
                    .next("give ids alone, or - alone to look for them in standard input"));
                }
            }
        }
        Ok(asked.distinct())
    }
}

impl LookupRequest {
    fn distinct(self) -> Self {
        Self {
            keys: distinct(self.keys),
            tokens: distinct(self.tokens),
        }
    }
}

/// Looks up the owners, and prints them. Succeeds if at least one key or token is known.
pub(super) async fn run(
    asked: LookupRequest,
    client: &Client,
    out: &mut Output,
) -> Result<(), CliError> {
    let mut found = Vec::with_capacity(asked.keys.len() + asked.tokens.len());
    for batch in asked.keys.chunks(BATCH) {
        let request = LookupAccessKeysRequest {
            access_key_ids: batch.iter().map(ToString::to_string).collect(),
        };
        let answer = client.leases().lookup_access_keys(request).await?;
        let owners = answer.into_inner().owners.into_iter();
        found.extend(owners.map(|owner| Found::Key(owner.into())));
    }
    for batch in asked.tokens.chunks(BATCH) {
        let request = LookupTokensRequest {
            token_ids: batch.iter().map(ToString::to_string).collect(),
        };
        let answer = client.services().lookup_tokens(request).await?;
        let owners = answer.into_inner().owners.into_iter();
        found.extend(owners.map(|owner| Found::Token(owner.into())));
    }
    if out.format() == Format::Json {
        out.list(&found, &[])?;
    } else {
        for line in found.iter().flat_map(lines) {
            out.line(&line)?;
        }
    }
    let is_known = |found: &Found| match found {
        Found::Key(owner) => owner.known,
        Found::Token(owner) => owner.known,
    };
    if found.iter().any(is_known) {
        return Ok(());
    }
    if asked.keys.is_empty() {
        let what = "this broker knows none of these tokens";
        return Err(CliError::not_found(what)
            .next("they were deleted or used up, or are another deployment's"));
    }
    Err(
        CliError::not_found("this broker knows none of these access keys").next(
            "`aws sts get-access-key-info --access-key-id ID` prints the AWS account of a key",
        ),
    )
}

fn from_stdin() -> Result<LookupRequest, CliError> {
    let mut input = io::stdin();
    if input.is_terminal() {
        eprintln!("looking for access key ids and tokens in standard input; end it with Ctrl-D");
    }
    let mut text = Vec::new();
    input.by_ref().take(INPUT_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > INPUT_MAX {
        let what = "standard input is longer than 16 MiB";
        return Err(CliError::usage(what).next("give it in parts"));
    }
    let asked = LookupRequest {
        keys: keys_in(&text),
        tokens: distinct(visible_parts(&String::from_utf8_lossy(&text))),
    };
    if asked.keys.is_empty() && asked.tokens.is_empty() {
        let what = "standard input holds no access key id, AKIA… or ASIA…, and no token, cbs_…";
        return Err(
            CliError::usage(what).next("give the ids as arguments, or a text with them in it")
        );
    }
    Ok(asked)
}

/// Returns each id of an access key in a text, once. An id ends where its letters and digits end; a
/// small letter may precede it, as in an escaped line feed.
fn keys_in(text: &[u8]) -> Vec<KeyId> {
    let words = text.split(|byte| !byte.is_ascii_uppercase() && !byte.is_ascii_digit());
    let ids = words
        .filter(|word| word.len() >= FOUND_MIN)
        .filter_map(|word| str::from_utf8(word).ok()?.parse().ok());
    distinct(ids)
}

fn distinct<T: Clone + Eq + Hash>(ids: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = HashSet::new();
    ids.into_iter()
        .filter(|id| seen.insert(id.clone()))
        .collect()
}

fn lines(found: &Found) -> Vec<String> {
    match found {
        Found::Key(owner) => lines_of_key(owner),
        Found::Token(owner) => lines_of_token(owner),
    }
}

/// Returns lines for the person on call: the owner of the token, and the commands that end it.
fn lines_of_token(owner: &TokenOwner) -> Vec<String> {
    let mut lines = vec![format!("token {}", owner.token_id)];
    let mut tell = |name: &str, value: Option<&str>| {
        lines.extend(value.map(|value| format!("  {name:8}  {value}")));
    };
    if !owner.known {
        let why = "this broker has no such token, or no longer: it was deleted or used up";
        tell("unknown", Some(why));
        return lines;
    }
    tell("operator", owner.operator.as_deref());
    tell("service", owner.service.as_deref());
    tell("kind", owner.kind);
    tell("created", owner.created_at.as_deref());
    tell("expires", owner.expires_at.as_deref());
    tell("end it", owner.revoke_command.as_deref());
    let name = if owner.revoke_command.is_some() {
        "or"
    } else {
        "end it"
    };
    let alone = owner.delete_command.as_deref();
    let alone = alone.map(|command| format!("{command}   # this token alone"));
    tell(name, alone.as_deref());
    lines
}

/// Returns lines for the person on call: the owner of the key, whether it works, and what ends it.
fn lines_of_key(owner: &KeyOwner) -> Vec<String> {
    let mut lines = vec![owner.access_key_id.clone()];
    let mut tell = |name: &str, value: Option<&str>| {
        lines.extend(value.map(|value| format!("  {name:8}  {value}")));
    };
    if !owner.known {
        tell(
            "unknown",
            Some("this broker has not issued it, or no longer knows"),
        );
        return lines;
    }
    tell(
        "owner",
        owner
            .admin_key
            .then_some("the broker itself: its admin key"),
    );
    tell("service", owner.service.as_deref());
    tell("grant", owner.grant.as_deref());
    tell("lease", owner.lease_id.as_deref());
    tell("kind", owner.kind);
    tell("state", owner.state);
    tell("issued", owner.issued_at.as_deref());
    tell("expires", owner.expires_at.as_deref());
    tell("ended", owner.ended_at.as_deref());
    tell("works", Some(&owner.works()));
    tell("end it", owner.revoke_command.as_deref());
    let live = owner.revoke_command.as_ref().and(owner.lease_id.as_deref());
    let lease = live.map(|lease| format!("credbroker lease revoke {lease}   # this lease alone"));
    tell("or", lease.as_deref());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let keys = keys_in(text.as_bytes());
        keys.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ids_are_found_in_any_text_each_once() {
        let text = r#"[{"token":"AKIAIOSFODNN7EXAMPLE","type":"aws_access_key_id","url":"https://x/ASIAIOSFODNN7EXAMPL2?q"},
            {"content":"id:\nAKIAIOSFODNN7EXAMPL3\nAKIAIOSFODNN7EXAMPLE"}] X-Amz-Credential=ASIAIOSFODNN7EXAMPL4%2F2026"#;
        let ids = [
            "AKIAIOSFODNN7EXAMPLE",
            "ASIAIOSFODNN7EXAMPL2",
            "AKIAIOSFODNN7EXAMPL3",
            "ASIAIOSFODNN7EXAMPL4",
        ];
        assert_eq!(found(text), ids);
        let mut bytes = vec![0xff, 0xfe];
        bytes.extend(b"AKIAIOSFODNN7EXAMPLE\xff");
        assert_eq!(keys_in(&bytes).len(), 1);
    }

    #[test]
    fn what_only_looks_like_an_id_is_not_found() {
        for text in [
            "",
            "AKIA and ASIA",
            "AKIAIOSFODNN7EXAMPL",
            "akiaiosfodnn7example",
            "XAKIAIOSFODNN7EXAMPLE",
            "AROAIOSFODNN7EXAMPLE",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }
}
