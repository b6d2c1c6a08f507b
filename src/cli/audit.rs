//! `credbroker audit …`.

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{
    convert::proto_time,
    export::Export,
    failure::Failure,
    output::{Format, Output},
    pages,
    proof::Prove,
    prune::Prune,
    trail::Reconcile,
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
    /// The newest records, and with -f each new one as it is written.
    Tail {
        /// How many past records.
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(0..=1000))]
        lines: i32,
        /// Go on with what comes.
        #[arg(short, long)]
        follow: bool,
    },
    /// Records that match, oldest first.
    Query(Box<Query>),
    /// The log as it is now, signed: a note to keep elsewhere. With -o json the key too.
    Checkpoint,
    /// Gives up the broker's old records that an export holds. What proves the others stays.
    Prune(Prune),
    /// Lets another key sign the log from now on. The log announces it; whoever has an
    /// earlier key goes on with that.
    RotateKey,
    /// The whole log: as plain files (C2SP tlog-tiles), gone on with where it was, or as
    /// lines of JSON. Each form is checked against the broker's signed checkpoint.
    Export(Export),
    /// The records of a lease, each in a file of its own with the proof that it is in the
    /// log (C2SP tlog-proof): whoever has the log's key can check it.
    Prove(Prove),
    /// Whether an export is complete and unchanged, or a proof holds; needs no broker. Exit
    /// status 8 tells what is not.
    Verify(Verify),
    /// Whether CloudTrail shows what the log says was made, and nothing else by the
    /// broker's principal. Exit status 8 tells that something does not match: an admin
    /// key that is used beside the broker, or a log that somebody changed.
    Reconcile(Reconcile),
}

#[derive(Args, Debug)]
pub(super) struct Query {
    /// The service concerned.
    #[arg(long, default_value = "")]
    service: String,
    /// The grant concerned, SERVICE/GRANT.
    #[arg(long, default_value = "")]
    grant: String,
    /// The lease concerned.
    #[arg(long, default_value = "")]
    lease: String,
    /// The access key concerned.
    #[arg(long, default_value = "")]
    access_key_id: String,
    /// Who did it: operator:NAME, service:NAME, broker or unknown.
    #[arg(long, default_value = "")]
    actor: String,
    /// What happened, e.g. lease.issued.
    #[arg(long, default_value = "")]
    event: String,
    /// success, denied or failure.
    #[arg(long, default_value = "")]
    outcome: String,
    /// Not before this time, e.g. 2026-01-31T00:00:00Z.
    #[arg(long)]
    since: Option<Timestamp>,
    /// Before this time.
    #[arg(long)]
    until: Option<Timestamp>,
    /// How many at most.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    limit: u32,
}

impl Audit {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
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
) -> Result<(), Failure> {
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

fn entry(record: AuditRecord, out: &mut Output) -> Result<(), Failure> {
    let record = view::AuditRecord::from(record);
    Ok(out.entry(&record, &record.line())?)
}

impl Query {
    async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
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
