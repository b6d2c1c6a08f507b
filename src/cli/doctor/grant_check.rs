//! Check of the grant: gets credentials under it, and releases them.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    aws_profile::Process,
    broker::Callers,
    endpoint::EndpointAnswer,
    report::{Report, Verdict, doubtful, fine},
};
use crate::{
    cli::{error::CliError, issue::issue},
    client::Client,
    proto::ReleaseLeaseRequest,
};

/// Longest wait for credentials, as in `credential-process`.
const LIMIT: Duration = Duration::from_secs(60);
/// Shortest lifetime of credentials from the endpoint.
const LEAST: Duration = Duration::from_mins(20);

/// Grant to try.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GrantCheck {
    grant: String,
    /// True: the session is requested as the endpoint does, with the token that SDKs send there.
    by_endpoint: bool,
}

impl GrantCheck {
    /// Returns the given grant, or else the one that SDKs are configured for.
    pub(super) fn of(
        given: Option<String>,
        asked: &EndpointAnswer,
        process: Option<Process>,
    ) -> Option<Self> {
        let at_endpoint = asked.endpoint.as_ref().ok();
        let at_endpoint = at_endpoint.map(|endpoint| endpoint.grant.to_string());
        let named = at_endpoint.clone();
        let grant = given
            .or(named)
            .or_else(|| process.and_then(|process| process.grant))?;
        let alone = grant.rsplit('/').next();
        Some(Self {
            by_endpoint: at_endpoint.as_deref() == alone,
            grant,
        })
    }
}

pub(super) async fn judge(trial: Option<GrantCheck>, callers: &Callers, report: &mut Report) {
    let Some(trial) = trial else {
        // No other check depends on this finding.
        let _ = report.skip::<()>("grant", "no grant is named: give one to have it tried");
        return;
    };
    let client = if trial.by_endpoint {
        &callers.endpoint
    } else {
        &callers.own
    };
    let tried = async |client: &Client| match timeout(LIMIT, trial.run(client)).await {
        Ok(verdict) => verdict,
        Err(_) => Err(CliError::unavailable(format!(
            "no credentials within {} s",
            LIMIT.as_secs()
        ))
        .next("look at `credbroker status` as an operator, then try again")),
    };
    let _ = report.after(client, "grant", tried).await;
}

impl GrantCheck {
    async fn run(&self, client: &Client) -> Verdict {
        let ttl = self.by_endpoint.then_some(LEAST);
        let issued = issue(client, self.grant.clone(), ttl, None).await;
        let issued = issued.map_err(|failure| self.refused(failure))?;
        // The lease is released before the result is checked.
        let released = release(client, &issued.lease_id).await;
        let grant = &issued.grant;
        if self.by_endpoint && issued.kind == "iam_user" {
            let what = format!(
                "grant {grant} is of kind iam_user, which has no session token: the endpoint refuses it"
            );
            return Err(CliError::conflict(what)
                .next("use credential_process, or have an operator put a grant of another kind"));
        }
        match released {
            Ok(()) => fine(format!(
                "{} was issued under {grant} and handed back",
                issued.access_key_id
            )),
            Err(failure) => doubtful(
                format!(
                    "{} was issued under {grant}, but not handed back: {}",
                    issued.access_key_id,
                    failure.message().0
                ),
                format!(
                    "credbroker release {}, or leave it to its end",
                    issued.lease_id
                ),
            ),
        }
    }

    fn refused(&self, failure: CliError) -> CliError {
        if self.by_endpoint && failure.reason() == Some("TTL_ABOVE_MAXIMUM") {
            let what = format!(
                "grant {} allows less than the 20 minutes that SDKs need of the endpoint",
                self.grant
            );
            return CliError::conflict(what).next("have an operator raise its --max-ttl");
        }
        failure
    }
}

async fn release(client: &Client, lease: &str) -> Result<(), CliError> {
    let request = ReleaseLeaseRequest {
        lease_id: lease.to_owned(),
    };
    client.credentials().release_lease(request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::doctor::endpoint::Endpoint, client::diagnose::BrokerAddress};

    #[test]
    fn the_grant_is_the_one_given_or_the_one_that_sdks_are_led_to() {
        let asked = |led: bool| EndpointAnswer {
            is_set: led,
            endpoint: led
                .then(|| Endpoint {
                    place: BrokerAddress::of("https://b").unwrap(),
                    grant: "uploads".parse().unwrap(),
                })
                .ok_or_else(String::new),
            token: Err(String::new()),
        };
        let process = || {
            Some(Process {
                program: "credbroker".to_owned(),
                grant: Some("invoices".to_owned()),
            })
        };
        for (given, led, process, grant, by_endpoint) in [
            (None, true, process(), "uploads", true),
            (None, false, process(), "invoices", false),
            (Some("uploads"), true, None, "uploads", true),
            (Some("pay/uploads"), true, None, "pay/uploads", true),
            (Some("other"), true, process(), "other", false),
            (Some("uploads"), false, None, "uploads", false),
        ] {
            let trial = GrantCheck::of(given.map(ToOwned::to_owned), &asked(led), process);
            let grant = grant.to_owned();
            assert_eq!(trial, Some(GrantCheck { grant, by_endpoint }));
        }
        assert_eq!(GrantCheck::of(None, &asked(false), None), None);
    }
}
