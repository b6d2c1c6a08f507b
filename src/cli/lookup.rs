//! `credbroker lookup`: whose access key was found.

use std::{
    collections::HashSet,
    io::{self, IsTerminal, Read},
};

use clap::Args;

use super::{
    failure::Failure,
    output::{Format, Output},
    view::KeyOwner,
};
use crate::{client::Client, domain::credential::KeyId, proto::LookupAccessKeysRequest};

/// Most keys of one call.
const BATCH: usize = 1000;
/// Longest text that is searched, bytes.
const INPUT_MAX: u64 = 16 * 1024 * 1024;
/// The shortest id that AWS makes; what is shorter in a text is a word.
const FOUND_MIN: usize = 20;

#[derive(Args, Debug)]
pub(super) struct Lookup {
    /// Ids of access keys, AKIA… or ASIA…. Without any, or with -, they are looked for in
    /// standard input: any text, such as an alert of GitHub's secret scanning.
    #[arg(value_name = "ACCESS_KEY_ID")]
    access_key_ids: Vec<String>,
}

impl Lookup {
    /// Each key that is asked for, once.
    pub(super) fn keys(&self) -> Result<Vec<KeyId>, Failure> {
        let given: Vec<&str> = self.access_key_ids.iter().map(String::as_str).collect();
        if matches!(given[..], [] | ["-"]) {
            return from_stdin();
        }
        let keys: Result<Vec<KeyId>, _> = given.iter().map(|id| id.parse()).collect();
        let keys = keys.map_err(|error| {
            Failure::usage(format!("not every argument is an access key id: {error}"))
                .next("give ids alone, or - alone to look for them in standard input")
        })?;
        Ok(distinct(keys))
    }
}

/// Asks whose keys these are. Found are they if one of them is known.
pub(super) async fn run(
    keys: Vec<KeyId>,
    client: &Client,
    out: &mut Output,
) -> Result<(), Failure> {
    let mut owners = Vec::with_capacity(keys.len());
    for batch in keys.chunks(BATCH) {
        let request = LookupAccessKeysRequest {
            access_key_ids: batch.iter().map(ToString::to_string).collect(),
        };
        let answer = client.leases().lookup_access_keys(request).await?;
        owners.extend(answer.into_inner().owners.into_iter().map(KeyOwner::from));
    }
    if out.format() == Format::Json {
        out.list(&owners, &[])?;
    } else {
        for line in owners.iter().flat_map(lines) {
            out.line(&line)?;
        }
    }
    if owners.iter().any(|owner| owner.known) {
        return Ok(());
    }
    Err(
        Failure::not_found("this broker knows none of these access keys").next(
            "`aws sts get-access-key-info --access-key-id ID` tells the AWS account of a key",
        ),
    )
}

fn from_stdin() -> Result<Vec<KeyId>, Failure> {
    let mut input = io::stdin();
    if input.is_terminal() {
        eprintln!("looking for access key ids in standard input; end it with Ctrl-D");
    }
    let mut text = Vec::new();
    input.by_ref().take(INPUT_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > INPUT_MAX {
        let what = "standard input is longer than 16 MiB";
        return Err(Failure::usage(what).next("give it in parts"));
    }
    let keys = found_in(&text);
    if keys.is_empty() {
        return Err(
            Failure::usage("standard input holds no access key id, AKIA… or ASIA…")
                .next("give the ids as arguments, or a text with them in it"),
        );
    }
    Ok(keys)
}

/// Each id in a text, once. It ends where its letters and digits do; before it may stand a
/// small letter, as of an escaped line feed.
fn found_in(text: &[u8]) -> Vec<KeyId> {
    let words = text.split(|byte| !byte.is_ascii_uppercase() && !byte.is_ascii_digit());
    let ids = words
        .filter(|word| word.len() >= FOUND_MIN)
        .filter_map(|word| str::from_utf8(word).ok()?.parse().ok());
    distinct(ids)
}

fn distinct(keys: impl IntoIterator<Item = KeyId>) -> Vec<KeyId> {
    let mut seen = HashSet::new();
    keys.into_iter()
        .filter(|key| seen.insert(key.clone()))
        .collect()
}

/// For the person on call: whose it is, whether it works, and what ends it.
fn lines(owner: &KeyOwner) -> Vec<String> {
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
        let keys = found_in(text.as_bytes());
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
        assert_eq!(found_in(&bytes).len(), 1);
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
