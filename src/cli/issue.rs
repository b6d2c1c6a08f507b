//! `credbroker issue` and `release`: commands of a service.

use std::time::Duration;

use clap::Args;

use super::{
    convert::proto_duration,
    error::CliError,
    output::{Format, Output},
    view::{self, Credentials, Exports},
};
use crate::{
    client::Client,
    domain::{duration, random::SystemRandom, request::RequestId},
    proto::{IssueCredentialsRequest, ReleaseLeaseRequest},
};

#[derive(Args, Debug)]
pub(super) struct Issue {
    /// GRANT of the service whose token is used, or SERVICE/GRANT.
    grant: String,
    /// Lifetime, e.g. 15m; the grant's default if not given.
    #[arg(long, value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// UUID that names this request: a repeated request with the same UUID gets the same lease. If
    /// not given, one is made, and printed if the answer is lost.
    #[arg(long, value_name = "UUID")]
    request_id: Option<RequestId>,
}

#[derive(Args, Debug)]
pub(super) struct Release {
    /// Id of the lease.
    lease_id: String,
}

impl Issue {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let credentials = issue(client, self.grant, self.ttl, self.request_id).await?;
        match out.format() {
            Format::Text | Format::Json => out.show(&credentials)?,
            Format::Env => out.line(&env(&credentials.exports()))?,
            Format::CredentialProcess => out.line(&credentials.for_process().to_string())?,
        }
        Ok(())
    }
}

/// Requests credentials, under an id with which the request can be repeated if its answer is lost.
pub(super) async fn issue(
    client: &Client,
    grant: String,
    ttl: Option<Duration>,
    id: Option<RequestId>,
) -> Result<Credentials, CliError> {
    let id = id.unwrap_or_else(|| RequestId::random(&SystemRandom));
    let request = IssueCredentialsRequest {
        grant,
        ttl: ttl.map(proto_duration),
        request_id: id.to_string(),
    };
    let issued = client.credentials().issue_credentials(request).await;
    let issued = issued.map_err(|status| CliError::from(status).of_request(&id))?;
    Ok(Credentials::from(issued.into_inner()))
}

impl Release {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let request = ReleaseLeaseRequest {
            lease_id: self.lease_id,
        };
        let released = client
            .credentials()
            .release_lease(request)
            .await?
            .into_inner();
        Ok(out.show(&view::Lease::released(released))?)
    }
}

/// Returns shell lines that set the variables. Values from AWS contain no quotes; the quotes
/// protect `=` and `/` from the shell.
pub(super) fn env(exports: &Exports<'_>) -> String {
    let mut lines = Vec::new();
    if let Some((access_key_id, secret)) = exports.key {
        lines.push(format!("export AWS_ACCESS_KEY_ID='{access_key_id}'"));
        lines.push(format!("export AWS_SECRET_ACCESS_KEY='{secret}'"));
        lines.push(match exports.session_token {
            Some(token) => format!("export AWS_SESSION_TOKEN='{token}'"),
            None => "unset AWS_SESSION_TOKEN".to_owned(),
        });
    }
    if let Some(expiration) = exports.expiration {
        lines.push(format!("export AWS_CREDENTIAL_EXPIRATION='{expiration}'"));
    }
    lines.push(format!("export CREDBROKER_LEASE_ID='{}'", exports.lease_id));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(session_token: Option<&str>) -> Credentials {
        Credentials {
            service: "payments".to_owned(),
            grant: "payments/uploads".to_owned(),
            kind: "iam_user",
            lease_id: "l".to_owned(),
            access_key_id: "AKIA1".to_owned(),
            secret_access_key: "s/+=".to_owned(),
            session_token: session_token.map(ToOwned::to_owned),
            expiration: Some("2026-01-01T00:00:00Z".to_owned()),
            usable_after_seconds: None,
            redelivered: false,
            receipt: None,
        }
    }

    #[test]
    fn credential_process_output_is_what_sdks_expect() {
        assert_eq!(
            credentials(Some("t")).for_process().to_string(),
            r#"{"Version":1,"AccessKeyId":"AKIA1","SecretAccessKey":"s/+=","Expiration":"2026-01-01T00:00:00Z","SessionToken":"t"}"#
        );
        assert_eq!(credentials(None).for_process().get("SessionToken"), None);
    }

    #[test]
    fn env_output_leaves_no_old_session_token_behind() {
        assert!(env(&credentials(None).exports()).contains("\nunset AWS_SESSION_TOKEN\n"));
        assert!(
            env(&credentials(Some("t")).exports()).contains("\nexport AWS_SESSION_TOKEN='t'\n")
        );
    }
}
