//! `credbroker doctor`: finds out, on a service's host, why its AWS SDK gets no credentials.

mod aws_profile;
mod broker;
mod endpoint;
mod environment;
mod grant_check;
mod host;
mod report;

use clap::Args;

use self::{
    host::{Host, Program},
    report::Report,
};
use super::{Connection, error::CliError, output::Output};
use crate::domain::clock::wall_time;

/// Find out why the AWS SDK on this host gets no credentials, and what cures that.
///
/// Checks the variables and files that SDKs read, in their order, and the connection to the broker;
/// gets and releases credentials once. Run it as the service, with the service's environment. It
/// shows no secret and changes nothing on the host.
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// Grant to try, as for `issue`; the one of AWS_CONTAINER_CREDENTIALS_FULL_URI or of
    /// credential_process if not given.
    grant: Option<String>,
}

impl Doctor {
    pub(super) async fn run(
        self,
        connection: &Connection,
        out: &mut Output,
    ) -> Result<(), CliError> {
        let (host, mut report) = (Host::look(), Report::default());
        environment::judge(&host, wall_time(), &mut report);
        let process = aws_profile::judge(&host, Program::look, &mut report);
        let asked = endpoint::judge(&host, process.as_ref(), &mut report);
        let callers = broker::judge(connection, &host, &asked, &mut report).await;
        let trial = grant_check::GrantCheck::of(self.grant, &asked, process);
        grant_check::judge(trial, &callers, &mut report).await;
        report.write(out)?;
        report.outcome()
    }
}
