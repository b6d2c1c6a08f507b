//! `credbroker revoke`: the kill switch.

use clap::Args;
use tonic::{
    Status,
    codegen::tokio_stream::{Stream, StreamExt},
};

use super::{
    break_glass::BreakGlass,
    failure::Failure,
    output::{Format, Output},
    view::{Revocation, RevokedLease, RevokedSessions},
};
use crate::{
    client::Client,
    proto::{
        RevocationProgress, StreamRevocationRequest,
        revocation_progress::{Done, What},
        stream_revocation_request::Target,
    },
};

#[derive(Args, Debug)]
pub(super) struct Revoke {
    /// Which service, or SERVICE/GRANT for what was issued under one grant alone.
    #[arg(value_name = "SERVICE[/GRANT]")]
    pub(super) target: String,
    /// Why, for the audit log.
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    pub(super) break_glass: BreakGlass,
}

impl Revoke {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
        let stream = client
            .revocation()
            .stream_revocation(self.request())
            .await?;
        follow(&self.target, stream.into_inner(), "the broker goes on", out).await
    }

    pub(super) fn request(&self) -> StreamRevocationRequest {
        let target = self.target.clone();
        StreamRevocationRequest {
            target: Some(if target.contains('/') {
                Target::Grant(target)
            } else {
                Target::Service(target)
            }),
            reason: self.reason.clone(),
        }
    }
}

/// Tells what happens until it is done. `later` says who sees to what is still open then.
pub(super) async fn follow(
    target: &str,
    mut stream: impl Stream<Item = Result<RevocationProgress, Status>> + Unpin,
    later: &str,
    out: &mut Output,
) -> Result<(), Failure> {
    let mut revocation = Revocation::of(target);
    while let Some(progress) = stream.next().await {
        let Some(what) = progress?.what else { continue };
        if out.format() != Format::Json {
            for line in lines(target, &what) {
                out.line(&line)?;
            }
        }
        let done = match &what {
            What::Done(done) => Some(done.clone()),
            _ => None,
        };
        revocation.add(what);
        if let Some(done) = done {
            return end(target, &done, &revocation, later, out);
        }
    }
    Err(Failure::unavailable(format!(
        "the broker has ended before it was done; it goes on once it is back: `credbroker revoke {target}` tells"
    )))
}

fn end(
    target: &str,
    done: &Done,
    revocation: &Revocation,
    later: &str,
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
            "warning: not everything is seen to be refused yet; {later}, and `credbroker lease list --service {service} --state revoking` shows what is left"
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
