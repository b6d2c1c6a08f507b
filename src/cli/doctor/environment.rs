//! Checks of variables that SDKs prefer to the broker, in the order in which SDKs read them.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html>

use jiff::Timestamp;
use secrecy::ExposeSecret;

use super::{
    host::{Environment, Host},
    report::{Report, Verdict, doubtful, fine, wrong},
};
use crate::cli::error::CliError;

const UNSET_KEYS: &str = "unset AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN where the service is started";

pub(super) fn judge(host: &Host, now: Timestamp, report: &mut Report) {
    let env = &host.env;
    let checks = [
        ("environment_keys", keys(env, now)),
        ("profile_variable", profile(env)),
        ("web_identity", web_identity(env)),
        ("container_uri", container_uri(env)),
        ("container_token", container_token(host)),
    ];
    for (check, verdict) in checks {
        // No other check depends on this finding.
        let _ = report.add(check, verdict);
    }
}

fn keys(env: &Environment, now: Timestamp) -> Verdict {
    let (id, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
    match (env.has(id), env.has(secret)) {
        (true, true) => match env.get("CREDBROKER_LEASE_ID") {
            Some(_) => issued_keys(env, now),
            None => wrong(
                format!(
                    "AWS_ACCESS_KEY_ID{} and AWS_SECRET_ACCESS_KEY are set: SDKs take them before anything else",
                    env.get(id).map(shown_key).unwrap_or_default()
                ),
                UNSET_KEYS,
            ),
        },
        (true, false) => half(id, secret),
        (false, true) => half(secret, id),
        (false, false) if env.has("AWS_SESSION_TOKEN") => doubtful(
            "AWS_SESSION_TOKEN is set without a key: it is left from an earlier session",
            UNSET_KEYS,
        ),
        (false, false) => fine("there are no keys in the environment"),
    }
}

fn half(there: &str, missing: &str) -> Verdict {
    let what = format!("{there} is set without {missing}: some SDKs fail at that");
    wrong(what, UNSET_KEYS)
}

/// Checks keys of `credbroker issue -o env`. They are intended, but are not renewed.
fn issued_keys(env: &Environment, now: Timestamp) -> Verdict {
    let end = env.get("AWS_CREDENTIAL_EXPIRATION");
    let end = end.and_then(|end| end.parse::<Timestamp>().ok());
    let cure = "let SDKs ask for themselves: credential_process, or the broker's endpoint; then unset the keys";
    match end {
        Some(end) if end <= now => wrong(
            format!("the keys of `credbroker issue -o env` in the environment have ended at {end}"),
            cure,
        ),
        _ => doubtful(
            "keys of `credbroker issue -o env` are in the environment: SDKs take them before anything else, and nothing renews them",
            cure,
        ),
    }
}

/// Returns the id of an access key for display. Ids are no secret; a value that is there by mistake
/// may be one, and is left out.
pub(super) fn shown_key(id: &str) -> String {
    let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit();
    if id.starts_with('A') && (16..=24).contains(&id.len()) && id.bytes().all(plain) {
        format!(" ({id})")
    } else {
        String::new()
    }
}

fn profile(env: &Environment) -> Verdict {
    match (env.get("AWS_PROFILE"), env.get("AWS_DEFAULT_PROFILE")) {
        (None, None) => fine("AWS_PROFILE is not set: the profile is default"),
        (Some(one), Some(other)) if one != other => doubtful(
            format!(
                "AWS_PROFILE is {one}, AWS_DEFAULT_PROFILE is {other}: Python takes the latter, others the former"
            ),
            "unset AWS_DEFAULT_PROFILE",
        ),
        (Some(profile), _) => fine(format!("the profile is {profile}, by AWS_PROFILE")),
        (None, Some(profile)) => doubtful(
            format!("AWS_DEFAULT_PROFILE is {profile}: Python alone reads it"),
            "set AWS_PROFILE in its place",
        ),
    }
}

fn web_identity(env: &Environment) -> Verdict {
    let (file, role) = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN");
    let cure = "unset AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN; in EKS take the annotation eks.amazonaws.com/role-arn off the service account";
    match (env.has(file), env.has(role)) {
        (true, true) => wrong(
            "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN are set: SDKs assume that role before they ask a container's endpoint",
            cure,
        ),
        (true, false) => wrong(
            "AWS_WEB_IDENTITY_TOKEN_FILE is set without AWS_ROLE_ARN: some SDKs fail at that",
            cure,
        ),
        (false, _) => fine("AWS_WEB_IDENTITY_TOKEN_FILE is not set"),
    }
}

fn container_uri(env: &Environment) -> Verdict {
    let cure =
        "unset AWS_CONTAINER_CREDENTIALS_RELATIVE_URI; in ECS run the task without a task role";
    let relative = env.has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    match (relative, env.has("AWS_CONTAINER_CREDENTIALS_FULL_URI")) {
        (true, true) => wrong(
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI stands beside AWS_CONTAINER_CREDENTIALS_FULL_URI: most SDKs take the former, which is of ECS, Go takes the latter",
            cure,
        ),
        (true, false) => doubtful(
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is set, which is of ECS: SDKs that find nothing of the broker's take the task's role",
            cure,
        ),
        (false, true) => fine("AWS_CONTAINER_CREDENTIALS_FULL_URI stands alone"),
        (false, false) => fine("no container's endpoint is set"),
    }
}

fn container_token(host: &Host) -> Verdict {
    let (token, file) = (
        host.env.secret("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        &host.token_file,
    );
    let (Some(token), Some(file)) = (token, file) else {
        return fine("there are not two tokens for a container's endpoint");
    };
    let same = file
        .text
        .as_ref()
        .is_ok_and(|text| text.expose_secret() == token.expose_secret());
    let cure = "unset AWS_CONTAINER_AUTHORIZATION_TOKEN";
    if same {
        doubtful(
            "AWS_CONTAINER_AUTHORIZATION_TOKEN stands beside its file, with the same token: Java takes it even when the file has a newer one",
            cure,
        )
    } else {
        Err(CliError::usage(
            "AWS_CONTAINER_AUTHORIZATION_TOKEN stands beside its file, with another token: Java takes the variable, others the file",
        )
        .next(cure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::{
        host::TokenFile,
        report::State::{self, Ok as Fine, Problem, Warning},
    };

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn found(variables: &[(&str, &str)], file: Option<&str>, check: &str) -> (State, String) {
        let variables = variables.iter();
        let host = Host {
            env: Environment::of(
                variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
            ),
            token_file: file.map(|text| TokenFile {
                text: Ok(text.into()),
                mode: 0o600,
            }),
            ..Host::default()
        };
        let mut report = Report::default();
        judge(&host, "2026-01-01T12:00:00Z".parse().unwrap(), &mut report);
        let found = report
            .findings
            .into_iter()
            .find(|found| found.check == check);
        let found = found.unwrap();
        assert_eq!(found.cure.is_some(), found.state != Fine, "{found:?}");
        (found.state, found.what)
    }

    #[test]
    fn what_stands_before_the_broker_in_the_environment_is_told() {
        const ID: (&str, &str) = ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
        const KEY: (&str, &str) = ("AWS_SECRET_ACCESS_KEY", "hush");
        const LEASE: (&str, &str) = ("CREDBROKER_LEASE_ID", "l");
        const WEB: (&str, &str) = ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t");
        const ROLE: (&str, &str) = ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r");
        const RELATIVE: (&str, &str) = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2");
        const FULL: (&str, &str) = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "https://b/");
        let end = |at| ("AWS_CREDENTIAL_EXPIRATION", at);
        let keys = "environment_keys";
        #[rustfmt::skip]
        let table: &[(&str, Variables<'_>, State, &str)] = &[
            (keys, &[], Fine, "no keys"),
            (keys, &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")], Fine, "no keys"),
            (keys, &[ID, KEY], Problem, "(AKIAIOSFODNN7EXAMPLE)"),
            (keys, &[("AWS_ACCESS_KEY_ID", "hush"), KEY], Problem, "AWS_ACCESS_KEY_ID and"),
            (keys, &[ID], Problem, "without AWS_SECRET_ACCESS_KEY"),
            (keys, &[KEY], Problem, "without AWS_ACCESS_KEY_ID"),
            (keys, &[("AWS_SESSION_TOKEN", "hush")], Warning, "without a key"),
            (keys, &[ID, KEY, LEASE, end("2026-01-01T12:00:01Z")], Warning, "nothing renews"),
            (keys, &[ID, KEY, LEASE, end("2026-01-01T12:00:00Z")], Problem, "have ended"),
            ("profile_variable", &[], Fine, "default"),
            ("profile_variable", &[("AWS_PROFILE", "x")], Fine, "is x"),
            ("profile_variable", &[("AWS_DEFAULT_PROFILE", "x")], Warning, "Python alone"),
            ("profile_variable", &[("AWS_PROFILE", "x"), ("AWS_DEFAULT_PROFILE", "y")], Warning, "Python takes"),
            ("profile_variable", &[("AWS_PROFILE", "x"), ("AWS_DEFAULT_PROFILE", "x")], Fine, "is x"),
            ("web_identity", &[], Fine, "not set"),
            ("web_identity", &[ROLE], Fine, "not set"),
            ("web_identity", &[WEB, ROLE], Problem, "before"),
            ("web_identity", &[WEB], Problem, "without AWS_ROLE_ARN"),
            ("container_uri", &[], Fine, "no container"),
            ("container_uri", &[FULL], Fine, "alone"),
            ("container_uri", &[RELATIVE], Warning, "ECS"),
            ("container_uri", &[RELATIVE, FULL], Problem, "Go takes the latter"),
        ];
        for (check, variables, state, words) in table {
            let (found, what) = found(variables, None, check);
            assert_eq!(found, *state, "{check} {variables:?}: {what}");
            assert!(what.contains(words), "{words} in {what}");
            assert!(!what.contains("hush"), "{what}");
        }
    }

    #[test]
    fn of_two_tokens_for_the_endpoint_it_is_told_whether_they_differ() {
        let token = [("AWS_CONTAINER_AUTHORIZATION_TOKEN", "hush")];
        for (variables, file, state) in [
            (&token[..], Some("hush"), Warning),
            (&token, Some("other"), Problem),
            (&token, None, Fine),
            (&[], Some("hush"), Fine),
        ] {
            let (found, what) = found(variables, file, "container_token");
            assert_eq!(found, state, "{what}");
            assert!(!what.contains("hush"), "{what}");
        }
    }
}
