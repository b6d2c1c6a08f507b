//! Checks of the variables that point SDKs to a container's endpoint: the broker's
//! `/v1/credentials/GRANT`.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::net::IpAddr;

use secrecy::{ExposeSecret, SecretString};
use tonic::codegen::http::Uri;

use super::{
    aws_profile::Process,
    host::{Host, TokenFile},
    report::{Report, Step, Verdict, doubtful, fine, wrong},
};
use crate::{client::diagnose::BrokerAddress, domain::name::Name};

const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
const WRITTEN: &str = "write it https://BROKER:8443/v1/credentials/GRANT";
const PATH: &str = "/v1/credentials/";
/// Hosts of ECS and EKS: besides loopback the only ones that SDKs call over http.
const METADATA: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

/// Broker endpoint that SDKs call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) place: BrokerAddress,
    pub(super) grant: Name,
}

/// Settings of SDKs for the endpoint.
pub(super) struct EndpointAnswer {
    /// True if the URL is set, valid or not.
    pub(super) is_set: bool,
    pub(super) endpoint: Step<Endpoint>,
    pub(super) token: Step<SecretString>,
}

pub(super) fn judge(host: &Host, process: Option<&Process>, report: &mut Report) -> EndpointAnswer {
    // No other check depends on this finding.
    let _ = report.add("way_to_broker", way(host, process));
    let Some(written) = host.env.get(FULL_URI) else {
        let why = format!("{FULL_URI} is not set");
        return EndpointAnswer {
            is_set: false,
            endpoint: report.skip("endpoint_url", &why),
            token: report.skip("endpoint_token", &why),
        };
    };
    let endpoint = report.add("endpoint_url", url(written));
    let is_near = matches!(endpoint, Ok(None));
    let elsewhere = || format!("{FULL_URI} does not lead to a broker");
    let endpoint = endpoint.and_then(|endpoint| endpoint.ok_or_else(elsewhere));
    let has_token = host.token_file.is_some() || host.env.secret(TOKEN).is_some();
    let token = if is_near && !has_token {
        // An agent needs no token.
        report.skip(
            "endpoint_token",
            "an endpoint on this machine may take none",
        )
    } else {
        report.add("endpoint_token", token(host))
    };
    EndpointAnswer {
        is_set: true,
        endpoint,
        token,
    }
}

/// Checks that a setting leads SDKs to the broker.
fn way(host: &Host, process: Option<&Process>) -> Verdict {
    let env = &host.env;
    if process.is_some() {
        return fine("SDKs find credential_process");
    }
    if env.has(FULL_URI) {
        return fine(format!("SDKs find {FULL_URI}"));
    }
    if env.has("CREDBROKER_LEASE_ID") && env.has("AWS_SECRET_ACCESS_KEY") {
        return fine("SDKs find the keys of `credbroker issue -o env`");
    }
    wrong(
        format!(
            "nothing leads SDKs to the broker: no credential_process in the profile, no {FULL_URI}"
        ),
        "set one of the two for the service; docs/guide/services.md, \"Get credentials without a change of code\", shows both",
    )
}

/// Checks the URL. `None`: the URL leads to an endpoint that is not a broker.
fn url(written: &str) -> Verdict<Option<Endpoint>> {
    let Ok(uri) = written.parse::<Uri>() else {
        return wrong(format!("{FULL_URI} is not a URL"), WRITTEN);
    };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return wrong(format!("{FULL_URI} is not a whole URL"), WRITTEN);
    };
    if authority.as_str().contains('@') {
        let what = format!("{FULL_URI} carries a name or a password before the host");
        return wrong(what, "leave that out: the token is in a file of its own");
    }
    match scheme {
        "https" => broker(written, &uri),
        "http" if is_near(authority.host()) => {
            // The path of an agent's URL is a secret, so the text leaves it out.
            let what = format!("{FULL_URI} leads to http://{authority}, which is no broker");
            let cure = "see that `credbroker agent` listens there, or what else is meant; the broker itself is https";
            doubtful(what, cure).map(|told| told.with(None))
        }
        "http" => wrong(
            format!(
                "{FULL_URI} is http to {}: SDKs ask that of loopback alone",
                authority.host()
            ),
            WRITTEN,
        ),
        other => wrong(format!("{FULL_URI} is of the scheme {other}"), WRITTEN),
    }
}

fn broker(written: &str, uri: &Uri) -> Verdict<Option<Endpoint>> {
    let Ok(place) = BrokerAddress::of(written) else {
        return wrong(format!("{FULL_URI} names no host"), WRITTEN);
    };
    if uri.query().is_some() || written.contains('#') {
        return wrong(format!("{FULL_URI} goes on after its path"), WRITTEN);
    }
    let grant = uri.path().strip_prefix(PATH);
    let Some(Ok(grant)) = grant.map(str::parse::<Name>) else {
        return wrong(
            format!(
                "{FULL_URI} has the path {}, where the broker has nothing",
                uri.path()
            ),
            format!("{WRITTEN}, the grant without its service"),
        );
    };
    let told = fine(format!(
        "{FULL_URI} asks {} for the grant {grant}",
        place.url()
    ));
    let endpoint = Endpoint { place, grant };
    told.map(|told| told.with(Some(endpoint)))
}

/// Returns whether SDKs call this host over http.
fn is_near(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let loopback = host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    loopback || host == "localhost" || METADATA.contains(&host)
}

/// Checks the token. The file takes precedence over the variable, as for most SDKs.
fn token(host: &Host) -> Verdict<SecretString> {
    let variable = host.env.secret(TOKEN);
    match (&host.token_file, variable) {
        (Some(file), _) => in_file(file, host.env.get(TOKEN_FILE).unwrap_or_default()),
        (None, Some(token)) => {
            sendable(token, TOKEN, &format!("set {TOKEN_FILE} in its place"))?;
            fine(format!("{TOKEN} holds a token")).map(|told| told.with(token.clone()))
        }
        (None, None) => wrong(
            format!("SDKs have no token to send: neither {TOKEN_FILE} nor {TOKEN} is set"),
            format!("write the service's token into a file and name it by {TOKEN_FILE}"),
        ),
    }
}

fn in_file(file: &TokenFile, path: &str) -> Verdict<SecretString> {
    let text = match &file.text {
        Ok(text) => text,
        Err(why) => {
            return wrong(
                format!("{path} of {TOKEN_FILE} cannot be read: {why}"),
                "write the token there, for the user that the service runs as",
            );
        }
    };
    sendable(text, path, &format!("printf %s \"$TOKEN\" > {path}"))?;
    let told = if file.mode & 0o004 == 0 {
        fine(format!("{path} holds a token"))
    } else {
        doubtful(
            format!("{path} holds a token that every user of this host can read"),
            format!("chmod o-r {path}"),
        )
    };
    told.map(|told| told.with(text.clone()))
}

/// Checks that SDKs can send the token. They send it unchanged, and refuse characters that a header
/// may not contain.
fn sendable(token: &SecretString, holder: &str, cure: &str) -> Verdict {
    let text = token.expose_secret();
    let ends = |c| matches!(c, '\r' | '\n');
    let trimmed = text.trim_end_matches(ends);
    if trimmed.is_empty() {
        return wrong(format!("{holder} is empty"), cure);
    }
    if trimmed != text {
        return wrong(
            format!("{holder} has a line end after its token: SDKs refuse it"),
            format!("write it without one: {cure}"),
        );
    }
    if text.contains(|c: char| !(c.is_ascii_graphic() || c == ' ')) {
        return wrong(
            format!("{holder} has line ends or characters that no token has"),
            format!("write the token alone: {cure}"),
        );
    }
    fine(format!("{holder} holds a token"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::{
        host::Environment,
        report::State::{self, Ok as Fine, Problem, Skipped, Warning},
    };

    fn host(variables: &[(&str, &str)], file: Option<(Result<&str, &str>, u32)>) -> Host {
        let variables = variables.iter();
        Host {
            env: Environment::of(
                variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
            ),
            token_file: file.map(|(text, mode)| TokenFile {
                text: text.map(Into::into).map_err(ToOwned::to_owned),
                mode,
            }),
            ..Host::default()
        }
    }

    #[track_caller]
    fn assert_found(host: &Host, check: &str, state: State, words: &str) -> EndpointAnswer {
        let mut report = Report::default();
        let asked = judge(host, None, &mut report);
        let found = report.findings.iter().find(|found| found.check == check);
        let found = found.unwrap();
        assert_eq!(found.state, state, "{found:?}");
        assert!(found.what.contains(words), "{words} in {found:?}");
        let shown = format!("{report:?}");
        assert!(!shown.contains("hush"), "{shown}");
        asked
    }

    #[test]
    fn the_url_is_https_to_a_grant_or_http_to_what_is_near() {
        #[rustfmt::skip]
        let table = [
            ("https://broker.example:8443/v1/credentials/uploads", Fine, "grant uploads"),
            ("https://[::1]:8443/v1/credentials/uploads", Fine, "https://[::1]:8443"),
            ("https://broker.example/v1/credentials/uploads", Fine, "broker.example:443"),
            ("https://broker.example/v1/credentials/", Problem, "the broker has nothing"),
            ("https://broker.example/v1/credentials/uploads/", Problem, "the broker has nothing"),
            ("https://broker.example/v1/credentials/pay/uploads", Problem, "the broker has nothing"),
            ("https://broker.example/", Problem, "the broker has nothing"),
            ("https://broker.example/v1/credentials/uploads?token=hush", Problem, "goes on"),
            ("https://me:hush@broker.example/v1/credentials/uploads", Problem, "before the host"),
            ("http://broker.example/v1/credentials/uploads", Problem, "loopback alone"),
            ("http://10.0.0.1/v1/credentials/uploads", Problem, "loopback alone"),
            ("http://localhost:1/v1/credentials/uploads", Warning, "http://localhost:1"),
            ("http://127.0.0.2:7773/hush/uploads", Warning, "http://127.0.0.2:7773"),
            ("http://[::1]/x", Warning, "http://[::1]"),
            ("http://169.254.170.23/v1/credentials", Warning, "169.254.170.23"),
            ("http://[fd00:ec2::23]/v1/credentials", Warning, "fd00:ec2::23"),
            ("ftp://broker.example/", Problem, "ftp"),
            ("broker.example", Problem, "not a whole URL"),
            ("a b", Problem, "not a URL"),
        ];
        for (url, state, words) in table {
            let asked = assert_found(
                &host(&[(FULL_URI, url)], None),
                "endpoint_url",
                state,
                words,
            );
            assert_eq!(asked.endpoint.is_ok(), state == Fine, "{url}");
        }
        assert_found(&host(&[], None), "endpoint_url", Skipped, "not set");
    }

    #[test]
    fn the_token_is_one_that_sdks_can_send() {
        let full = (FULL_URI, "https://b/v1/credentials/x");
        let file = [full, (TOKEN_FILE, "/run/token")];
        let variable = |token| [full, (TOKEN, token)];
        let check = "endpoint_token";
        for (text, mode, state, words) in [
            (Ok("hush"), 0o600, Fine, "/run/token holds"),
            (Ok("Bearer hush"), 0o640, Fine, "/run/token holds"),
            (Ok("hush"), 0o644, Warning, "every user"),
            (Ok("hush\n"), 0o600, Problem, "line end"),
            (Ok("hush\r\n"), 0o600, Problem, "line end"),
            (Ok("hush\nhush"), 0o600, Problem, "no token has"),
            (Ok("hüsh"), 0o600, Problem, "no token has"),
            (Ok(""), 0o600, Problem, "is empty"),
            (Ok("\n"), 0o600, Problem, "is empty"),
            (Err("no such file"), 0, Problem, "no such file"),
        ] {
            let asked = assert_found(&host(&file, Some((text, mode))), check, state, words);
            assert_eq!(asked.token.is_ok(), state != Problem, "{words}");
        }
        assert_found(&host(&variable("hush"), None), check, Fine, "holds a token");
        assert_found(&host(&variable("hush\n"), None), check, Problem, "line end");
        assert_found(&host(&[full], None), check, Problem, "no token to send");
        let agent = (FULL_URI, "http://127.0.0.1:7773/hush/x");
        assert_found(&host(&[agent], None), check, Skipped, "may take none");
        let both = [agent, (TOKEN, "hush\n")];
        assert_found(&host(&both, None), check, Problem, "line end");
        assert_found(&host(&[], None), check, Skipped, "not set");
    }

    #[test]
    fn something_leads_sdks_to_the_broker() {
        let full = (FULL_URI, "https://b/v1/credentials/x");
        let lease = ("CREDBROKER_LEASE_ID", "l");
        let key = ("AWS_SECRET_ACCESS_KEY", "hush");
        for (variables, state) in [
            (&[][..], Problem),
            (&[full], Fine),
            (&[key], Problem),
            (&[lease], Problem),
            (&[lease, key], Fine),
        ] {
            assert_found(&host(variables, None), "way_to_broker", state, "");
        }
        let process = Process {
            program: "/bin/credbroker".to_owned(),
            grant: None,
        };
        assert!(way(&host(&[], None), Some(&process)).is_ok());
    }
}
