//! `credbroker revoke`: the kill switch.

use clap::Args;

use super::{
    failure::Failure,
    output::{Format, Output},
    view::{Revocation, RevokedLease, RevokedSessions},
};
use crate::{
    client::Client,
    proto::{
        StreamRevocationRequest,
        revocation_progress::{Done, What},
        stream_revocation_request::Target,
    },
};

#[derive(Args, Debug)]
pub(super) struct Revoke {
    /// Which service, or SERVICE/GRANT for what was issued under one grant alone.
    #[arg(value_name = "SERVICE[/GRANT]")]
    target: String,
    /// Why, for the audit log.
    #[arg(long, default_value = "")]
    reason: String,
}

impl Revoke {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
        let target = self.target;
        let is_grant = target.contains('/');
        let request = StreamRevocationRequest {
            target: Some(if is_grant {
                Target::Grant(target.clone())
            } else {
                Target::Service(target.clone())
            }),
            reason: self.reason,
        };
        let mut stream = client
            .revocation()
            .stream_revocation(request)
            .await?
            .into_inner();
        let mut revocation = Revocation::of(&target);
        while let Some(progress) = stream.message().await? {
            let Some(what) = progress.what else { continue };
            if out.format() != Format::Json {
                for line in lines(&target, &what) {
                    out.line(&line)?;
                }
            }
            let done = match &what {
                What::Done(done) => Some(done.clone()),
                _ => None,
            };
            revocation.add(what);
            if let Some(done) = done {
                return end(&target, &done, &revocation, out);
            }
        }
        Err(Failure::unavailable(format!(
            "the broker has ended before it was done; it goes on once it is back: `credbroker revoke {target}` tells"
        )))
    }
}

fn end(
    target: &str,
    done: &Done,
    revocation: &Revocation,
    out: &mut Output,
) -> Result<(), Failure> {
    if out.format() == Format::Json {
        out.show(revocation)?;
    } else if let Some(receipt) = &revocation.receipt {
        out.line(&format!("receipt  {receipt}"))?;
    }
    if !done.notice.is_empty() {
        eprintln!("warning: {}", done.notice);
    }
    if !done.confirmed {
        let service = target.split('/').next().unwrap_or(target);
        eprintln!(
            "warning: not everything is seen to be refused yet; the broker goes on, and `credbroker lease list --service {service} --state revoking` shows what is left"
        );
    }
    Ok(())
}

/// What is told of it while it happens.
fn lines(target: &str, what: &What) -> Vec<String> {
    match what {
        What::Begun(begun) if target.contains('/') => {
            vec![format!("revoking {target}; live leases: {}", begun.leases)]
        }
        What::Begun(begun) => vec![format!(
            "{target} is suspended; live leases: {}",
            begun.leases
        )],
        What::Written(holder) => vec![format!("  {holder}: its sessions are denied")],
        What::Sessions(sessions) => sessions_line(&RevokedSessions::from(sessions.clone())),
        What::Lease(lease) => vec![lease_line(&RevokedLease::from(lease.clone()))],
        What::Done(_) => Vec::new(),
    }
}

fn sessions_line(sessions: &RevokedSessions) -> Vec<String> {
    let holder = &sessions.holder;
    let refused = sessions
        .refused_after_seconds
        .map(|seconds| format!("  {holder}: AWS refuses them after {seconds:.2} s"));
    let notice = sessions
        .notice
        .as_ref()
        .map(|notice| format!("  {holder}: {notice}"));
    refused.into_iter().chain(notice).collect()
}

fn lease_line(lease: &RevokedLease) -> String {
    let RevokedLease {
        lease_id,
        kind,
        state,
        ..
    } = lease;
    match (lease.refused_after_seconds, &lease.notice) {
        (Some(seconds), _) => {
            format!("  {lease_id}  {kind}  {state}: refused after {seconds:.2} s")
        }
        (None, notice) => format!(
            "  {lease_id}  {kind}  {state}: {}",
            notice.as_deref().unwrap_or("not confirmed")
        ),
    }
}
