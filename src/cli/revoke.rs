//! `credbroker revoke`: the kill switch.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use tonic::{
    Status,
    codegen::tokio_stream::{Stream, StreamExt},
};

use super::{
    Connection,
    convert::proto_duration,
    emergency_revoke::BreakGlass,
    error::CliError,
    output::{Format, Output},
    view::{Revocation, RevokedSessions},
};
use crate::{
    domain::duration,
    proto::{
        RevocationProgress, StreamRevocationRequest, revocation_progress::What,
        stream_revocation_request::Target,
    },
};

#[derive(Args, Debug)]
pub(super) struct Revoke {
    /// Service, or SERVICE/GRANT for what was issued under one grant alone.
    #[arg(value_name = "SERVICE[/GRANT]")]
    pub(super) target: String,
    /// Reason, for the audit log.
    #[arg(long, default_value = "")]
    reason: String,
    /// Wait until AWS was seen to refuse everything, at most this long; 15m if no time is given.
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "15m",
        value_parser = duration::parse,
        conflicts_with = "print_aws_commands"
    )]
    wait: Option<Duration>,
    /// List what would be revoked, and change nothing.
    #[arg(long, conflicts_with_all = ["reason", "wait", "print_aws_commands"])]
    dry_run: bool,
    #[command(flatten)]
    pub(super) break_glass: BreakGlass,
}

impl Revoke {
    pub(super) async fn run(
        self,
        connection: &Connection,
        out: &mut Output,
    ) -> Result<(), CliError> {
        let told = |failure: CliError| self.with_ways_without_the_broker(failure);
        let client = connection.connect().await.map_err(told)?;
        let stream = client.revocation().stream_revocation(self.request()).await;
        let stream = stream.map_err(|status| told(status.into()))?;
        let stream = stream.into_inner();
        self.follow(stream, "the broker goes on", out).await
    }

    /// Adds the ways to revoke without a broker, if no broker answers.
    fn with_ways_without_the_broker(&self, failure: CliError) -> CliError {
        if !failure.is_unavailable() || failure.reason().is_some() {
            return failure;
        }
        let (target, config) = (&self.target, "--config /etc/credbroker/credbroker.toml");
        let reason = match self.reason.as_str() {
            "" => String::new(),
            reason => format!(" --reason '{}'", reason.replace('\'', r"'\''")),
        };
        failure.next(format!(
            "if the broker is down, do it on its host: `credbroker revoke {target} --offline {config}{reason}`; or let \
             an IAM administrator do it: `credbroker revoke {target} --print-aws-commands {config} > revoke.sh`"
        ))
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
            wait: self.wait.map(proto_duration),
            dry_run: self.dry_run,
        }
    }

    /// Prints progress until the revocation is done. `later` says who completes what is still open
    /// then.
    pub(super) async fn follow(
        &self,
        mut stream: impl Stream<Item = Result<RevocationProgress, Status>> + Unpin,
        later: &str,
        out: &mut Output,
    ) -> Result<(), CliError> {
        let target = &self.target;
        let mut revocation = Revocation::of(target);
        while let Some(progress) = stream.next().await {
            let Some(what) = progress?.what else { continue };
            if out.format() != Format::Json && !self.dry_run {
                for line in lines(target, &what) {
                    out.line(&line)?;
                }
            }
            let is_done = matches!(what, What::Done(_));
            revocation.add(what);
            if is_done && self.dry_run {
                return preview(target, &revocation, out);
            }
            if is_done {
                return end(target, &revocation, later, out);
            }
        }
        Err(CliError::unavailable(format!(
            "the broker ended before it was done, and continues when it is back: repeat `credbroker revoke {target}` to see the result"
        )))
    }
}

/// Prints what would be revoked.
fn preview(target: &str, revocation: &Revocation, out: &mut Output) -> Result<(), CliError> {
    let reach = revocation.reach();
    if out.format() == Format::Json {
        return Ok(out.show(&reach)?);
    }
    let suspended = if target.contains('/') {
        ""
    } else {
        "it would be suspended; "
    };
    out.line(&format!(
        "nothing is changed; of {target}: {suspended}live leases: {}",
        revocation.leases.len()
    ))?;
    for told in revocation.sessions.values() {
        let until = told.denied_until.as_deref().unwrap_or_default();
        out.line(&format!(
            "  {}: its sessions would be denied until {until}",
            told.holder
        ))?;
    }
    for (kind, count) in &reach.kinds {
        out.line(&format!("  leases of {kind}: {count}"))?;
    }
    Ok(())
}

fn end(
    target: &str,
    revocation: &Revocation,
    later: &str,
    out: &mut Output,
) -> Result<(), CliError> {
    if out.format() == Format::Json {
        out.show(revocation)?;
    } else {
        for line in summary(revocation) {
            out.line(&line)?;
        }
        if let Some(receipt) = &revocation.receipt {
            out.line(&format!("receipt  {receipt}"))?;
        }
    }
    if let Some(notice) = &revocation.notice {
        eprintln!("warning: {notice}");
    }
    if !revocation.confirmed {
        return Err(not_confirmed(target, revocation, later));
    }
    if out.format() != Format::Json {
        out.line(&done(target, revocation))?;
    }
    Ok(())
}

/// Returns the verdict if everything was seen to have ended.
fn done(target: &str, revocation: &Revocation) -> String {
    let leases = revocation.leases.values();
    let refused = leases.clone().map(|lease| lease.refused_after_seconds);
    let sessions = revocation.sessions.values();
    let refused = refused.chain(sessions.map(|told| told.refused_after_seconds));
    let refused = refused.flatten().reduce(f64::max);
    let gone = leases.map(|lease| lease.gone_after_seconds);
    let gone = gone.flatten().reduce(f64::max);
    match (refused, gone) {
        (None, None) => format!("done: nothing that {target} held can still work"),
        (Some(last), None) => {
            format!(
                "done: AWS was seen to refuse all that {target} held, the last after {last:.2} s"
            )
        }
        (None, Some(last)) => {
            format!("done: all that {target} held is gone in AWS, the last after {last:.2} s")
        }
        (Some(refused), Some(gone)) => format!(
            "done: AWS was seen to refuse the sessions that {target} held, the last after {refused:.2} s, and the rest is \
             gone in AWS, the last after {gone:.2} s"
        ),
    }
}

/// Returns the verdict if something was not seen to have ended.
fn not_confirmed(target: &str, revocation: &Revocation, later: &str) -> CliError {
    let open: usize = revocation.open.iter().map(|open| open.leases).sum();
    let all = revocation.leases.len();
    let until = revocation
        .open
        .iter()
        .filter_map(|open| open.until.as_deref())
        .max();
    let until = until.map_or_else(String::new, |until| {
        format!(", until {until} at the latest")
    });
    CliError::unavailable(format!(
        "{target} gets nothing any more, but AWS was not seen to refuse all that it held; leases that may still work: \
         {open} of {all}{until}; {later}"
    ))
    .next(format!("`credbroker revoke {target} --wait` stays until AWS refuses all of it"))
}

/// Limits of a denial, printed if there is one.
const NOT_REACHED: &str = "  not reached by denials until the sessions expire: logins that only ask who a session is (EKS, Vault), and open \
                           connections; see \"What a denial does not reach\" in the guide";

/// Returns a line for the leases of each kind that ended in one way, and one for each reason why
/// others were not seen to end.
fn summary(revocation: &Revocation) -> Vec<String> {
    let mut ended: BTreeMap<(&str, &str), (usize, f64)> = BTreeMap::new();
    for lease in revocation.leases.values() {
        let refused = lease.refused_after_seconds.map(|after| ("refused", after));
        let gone = lease.gone_after_seconds.map(|after| ("gone", after));
        if let Some((how, after)) = refused.or(gone) {
            let (count, last) = ended.entry((lease.kind, how)).or_default();
            *count += 1;
            *last = last.max(after);
        }
    }
    let ended = ended.into_iter().map(|((kind, how), (count, last))| {
        format!("  leases of {kind}: {count} {how}, the last after {last:.2} s")
    });
    let open = revocation.open.iter().map(|open| {
        let holders = open.holders.join(", ");
        let until = open
            .until
            .as_deref()
            .map_or_else(String::new, |until| format!(", until {until}"));
        let of = if holders.is_empty() {
            String::new()
        } else {
            format!(" of {holders}")
        };
        format!(
            "  open{of}; leases that may work: {}{until}: {}",
            open.leases, open.why
        )
    });
    let not_reached = (!revocation.sessions.is_empty()).then(|| NOT_REACHED.to_owned());
    ended.chain(open).chain(not_reached).collect()
}

/// Returns the lines that are printed for a progress message.
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
        What::Lease(_) | What::Done(_) => Vec::new(),
    }
}

fn sessions_line(sessions: &RevokedSessions) -> Vec<String> {
    let holder = &sessions.holder;
    let refused = sessions.refused_after_seconds;
    let refused = refused.map(|seconds| {
        let mut line = format!("  {holder}: AWS refuses them after {seconds:.2} s");
        if let Some(seen_by) = &sessions.seen_by {
            line = format!("{line} ({seen_by})");
        }
        if let Some(notice) = &sessions.notice {
            line = format!("{line}; {notice}");
        }
        line
    });
    refused.into_iter().collect()
}
