//! `credbroker audit …`.

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{
    convert::proto_time,
    error::CliError,
    export::Export,
    output::{Format, Output},
    pages,
    proof::Prove,
    prune::Prune,
    reconcile::Reconcile,
    verify::Verify,
    view,
};
use crate::{
    client::Client,
    proto::{
        AuditRecord, GetCheckpointRequest, ListAuditRecordsRequest, RotateLogKeyRequest,
        TailAuditRecordsRequest,
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Show the newest records; with -f, also each new one as it is written.
    Tail {
        /// Number of past records.
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(0..=1000))]
        lines: i32,
        /// Continue with new records.
        #[arg(short, long)]
        follow: bool,
    },
    /// Show the records that match, oldest first.
    Query(Box<Query>),
    /// Show the signed checkpoint: the log as it is now, a note to keep elsewhere. With -o json
    /// also the key.
    Checkpoint,
    /// Delete old records from the broker that an export contains. The broker keeps what proves the
    /// other records.
    Prune(Prune),
    /// Sign the log with another key from now on. The log announces the new key, so a holder of an
    /// earlier key can go on with that key.
    RotateKey,
    /// Export the whole log: as plain files (C2SP tlog-tiles), continued where an earlier export
    /// ended, or as lines of JSON. Each form is checked against the broker's signed checkpoint.
    Export(Export),
    /// Write each record of a lease into its own file, with the proof that the record is in the log
    /// (C2SP tlog-proof). A holder of the log's key can check it.
    Prove(Prove),
    /// Check that an export is complete and unchanged, or that a proof holds; needs no broker. If
    /// not, the exit status is 8, and the error says what is wrong.
    Verify(Verify),
    /// Check that CloudTrail shows the calls that the log records, and no others by the broker's
    /// principal. Exit status 8 means that something does not match: the admin key is used beside
    /// the broker, or the log was changed.
    Reconcile(Reconcile),
}

#[derive(Args, Debug)]
pub(super) struct Query {
    /// Service that the records concern.
    #[arg(long, default_value = "")]
    service: String,
    /// Grant that the records concern, SERVICE/GRANT.
    #[arg(long, default_value = "")]
    grant: String,
    /// Lease that the records concern.
    #[arg(long, default_value = "")]
    lease: String,
    /// Access key that the records concern.
    #[arg(long, default_value = "")]
    access_key_id: String,
    /// Actor: operator:NAME, service:NAME, broker or unknown.
    #[arg(long, default_value = "")]
    actor: String,
    /// Event, e.g. lease.issued.
    #[arg(long, default_value = "")]
    event: String,
    /// Outcome: success, denied or failure.
    #[arg(long, default_value = "")]
    outcome: String,
    /// Start of the time range, e.g. 2026-01-31T00:00:00Z.
    #[arg(long)]
    since: Option<Timestamp>,
    /// End of the time range, exclusive.
    #[arg(long)]
    until: Option<Timestamp>,
    /// Maximum number of records.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    limit: u32,
}

impl Audit {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        match self {
            Self::Tail { lines, follow } => {
                tail(client, TailAuditRecordsRequest { lines, follow }, out).await
            }
            Self::Query(query) => query.run(client, out).await,
            Self::Export(export) => export.run(client, out).await,
            Self::Prove(prove) => prove.run(client, out).await,
            Self::Verify(verify) => verify.run(out),
            Self::Prune(prune) => prune.run(client, out).await,
            Self::RotateKey => {
                let mut audit = client.audit();
                let signed = audit.rotate_log_key(RotateLogKeyRequest {}).await?;
                let signed = signed.into_inner();
                match out.format() {
                    Format::Json => out.show(&view::Checkpoint::from(signed))?,
                    _ => out.line(&signed.verifier_key)?,
                }
                Ok(())
            }
            Self::Reconcile(reconcile) => reconcile.run(client, out).await,
            Self::Checkpoint => {
                let mut audit = client.audit();
                let signed = audit.get_checkpoint(GetCheckpointRequest {}).await?;
                let signed = signed.into_inner();
                match out.format() {
                    Format::Json => out.show(&view::Checkpoint::from(signed))?,
                    _ => out.line(signed.note.trim_end())?,
                }
                Ok(())
            }
        }
    }
}

async fn tail(
    client: &Client,
    request: TailAuditRecordsRequest,
    out: &mut Output,
) -> Result<(), CliError> {
    let mut records = client
        .audit()
        .tail_audit_records(request)
        .await?
        .into_inner();
    while let Some(record) = records.message().await? {
        entry(record, out)?;
    }
    Ok(())
}

fn entry(record: AuditRecord, out: &mut Output) -> Result<(), CliError> {
    let record = view::AuditRecord::from(record);
    Ok(out.entry(&record, &record.line())?)
}

impl Query {
    async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let (limit, request) = (self.limit, self.request());
        let records = pages::all(limit, async |page_size, page_token| {
            let request = ListAuditRecordsRequest {
                page_size,
                page_token,
                ..request.clone()
            };
            let page = client
                .audit()
                .list_audit_records(request)
                .await?
                .into_inner();
            Ok((page.records, page.next_page_token))
        })
        .await?;
        if out.format() == Format::Json {
            let records: Vec<_> = records.into_iter().map(view::AuditRecord::from).collect();
            return Ok(out.list(&records, &[])?);
        }
        if records.is_empty() {
            eprintln!("none");
        }
        records
            .into_iter()
            .try_for_each(|record| entry(record, out))
    }

    fn request(self) -> ListAuditRecordsRequest {
        ListAuditRecordsRequest {
            service: self.service,
            grant: self.grant,
            lease_id: self.lease,
            access_key_id: self.access_key_id,
            actor: self.actor,
            event: self.event,
            outcome: self.outcome,
            since: self.since.map(proto_time),
            until: self.until.map(proto_time),
            page_size: 0,
            page_token: String::new(),
        }
    }
}
