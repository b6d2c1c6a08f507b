//! `credbroker audit reconcile`: compares the log with CloudTrail.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Args;
use flate2::read::MultiGzDecoder;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    checkpoint::{Head, unusable},
    convert::{self, proto_time},
    error::CliError,
    output::{Format, Output},
    pages,
};
use crate::{
    audit::{
        cloudtrail::{Trail, TrailCall},
        files, leaf,
        note::Verifier,
        reconcile::{CallPrincipal, Entry, Finding, Reconciled, SLACK, reconcile},
        tile::{self, WIDTH},
        verify::{Fault, Requirements, read, verify},
    },
    client::Client,
    domain::audit::{AuditRecord as Record, Event},
    proto::{AuditRecord, GetStatusRequest, ListAuditRecordsRequest},
};

#[derive(Args, Debug)]
pub(super) struct Reconcile {
    /// Directory of CloudTrail's log files, *.json and *.json.gz; its subdirectories are read as
    /// well.
    #[arg(long, value_name = "DIR")]
    cloudtrail: PathBuf,
    /// Read the records from an export, verified first, instead of from the broker.
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// Key of the log, for --log; the export's own if not given.
    #[arg(long, requires = "log")]
    key: Option<Verifier>,
    /// ARN of a user or role that the broker works as, besides the one that the broker reports and
    /// those found through the log. May be repeated.
    #[arg(long, value_name = "ARN")]
    principal: Vec<CallPrincipal>,
}

/// Events that name a key of the broker's own, read from the whole log.
const ADMIN_KEYS: [Event; 2] = [Event::AdminKeyImported, Event::AdminKeySwitched];

impl Reconcile {
    pub(super) const fn is_offline(&self) -> bool {
        self.log.is_some()
    }

    pub(super) fn run_offline(self, out: &mut Output) -> Result<(), CliError> {
        let (mut trail, (_, last)) = read_trail(&self.cloudtrail)?;
        let (mut entries, mut end) = (Vec::new(), Timestamp::MIN);
        let mut begin = None;
        let start = read_log(&self.log.unwrap_or_default(), self.key, |record| {
            begin.get_or_insert(record.event.time);
            end = end.max(record.event.time);
            entries.extend(Some(Entry::from(record)).filter(Entry::counts));
        })?;
        if start > 0 {
            leave_out(&mut trail, begin);
        }
        if end < last {
            eprintln!(
                "the export ends at {end:.0}, CloudTrail at {last}: what was called between is in no record"
            );
        }
        compare(&trail, &entries, &self.principal, out)
    }

    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let (mut trail, (first, last)) = read_trail(&self.cloudtrail)?;
        if Head::ask(client).await?.signed.start > 0 {
            leave_out(&mut trail, first_record(client).await?);
        }
        let during = ListAuditRecordsRequest {
            since: first.checked_sub(SLACK).ok().map(proto_time),
            until: last.checked_add(SLACK).ok().map(proto_time),
            ..ListAuditRecordsRequest::default()
        };
        let mut entries = entries(client, during).await?;
        for event in ADMIN_KEYS {
            let ever = ListAuditRecordsRequest {
                event: event.as_str().to_owned(),
                ..ListAuditRecordsRequest::default()
            };
            entries.extend(self::entries(client, ever).await?);
        }
        let mut principals = self.principal;
        let status = client.admin().get_status(GetStatusRequest {}).await?;
        let arn = status.into_inner().admin_arn;
        principals.extend(arn.and_then(|arn| arn.parse().ok()));
        compare(&trail, &entries, &principals, out)
    }
}

/// Passes each record of an export to `each`, after the export is verified. Returns the index of
/// the first record.
fn read_log(
    dir: &Path,
    key: Option<Verifier>,
    mut each: impl FnMut(Record),
) -> Result<u64, CliError> {
    let demands = Requirements {
        key,
        ..Requirements::default()
    };
    let verified = verify(dir, &demands)?;
    let (size, start) = (verified.checkpoint.size, verified.start);
    for index in start / WIDTH..size.div_ceil(WIDTH) {
        let number = index * WIDTH + 1;
        let bytes = read(&dir.join(tile::bundle_path(index, size)))?;
        let bytes = bytes.ok_or(Fault::Missing(number))?;
        for entry in files::entries(&bytes).0 {
            each(leaf::decode(entry).map_err(|_| Fault::Changed(number))?);
        }
    }
    Ok(start)
}

/// Removes calls from before the log's first record, since the remaining records do not cover them.
fn leave_out(trail: &mut Trail, begin: Option<Timestamp>) {
    let Some(begin) = begin else { return };
    let begin = begin.checked_add(SLACK).unwrap_or(begin);
    eprintln!("older records were given up: what was called before {begin:.0} is not compared");
    trail.calls.retain(|call| call.time >= begin);
}

/// Returns the time of the first record that the broker still has.
async fn first_record(client: &Client) -> Result<Option<Timestamp>, CliError> {
    let request = ListAuditRecordsRequest {
        page_size: 1,
        ..ListAuditRecordsRequest::default()
    };
    let page = client
        .audit()
        .list_audit_records(request)
        .await?
        .into_inner();
    let time = page.records.first().and_then(|record| record.time);
    Ok(time.and_then(convert::time))
}

/// Returns the requested records that the comparison looks at.
async fn entries(client: &Client, asked: ListAuditRecordsRequest) -> Result<Vec<Entry>, CliError> {
    pages::all(u32::MAX, async |page_size, page_token| {
        let request = ListAuditRecordsRequest {
            page_size,
            page_token,
            ..asked.clone()
        };
        let answer = client.audit().list_audit_records(request).await?;
        let page = answer.into_inner();
        let entries = page.records.into_iter().filter_map(entry);
        Ok((
            entries.filter(Entry::counts).collect(),
            page.next_page_token,
        ))
    })
    .await
}

/// Returns `None` for an event of a later broker, which the comparison does not look at.
fn entry(record: AuditRecord) -> Option<Entry> {
    let time = record.time?;
    Some(Entry {
        seq: record.seq,
        time: convert::time(time)?,
        event: record.event.parse().ok()?,
        succeeded: record.outcome == "success",
        access_key_id: record.access_key_id,
        aws_request_id: record.aws_request_id,
        aws_name: record.aws_name,
        detail: record.detail,
    })
}

/// Reads CloudTrail's log files. Returns their calls, and the time of the first and of the last.
fn read_trail(dir: &Path) -> Result<(Trail, (Timestamp, Timestamp)), CliError> {
    let mut trail = Trail::default();
    read_dir(dir, &mut trail)?;
    let span = trail.span.ok_or_else(|| {
        CliError::usage(format!(
            "{}: no event of CloudTrail's is there",
            dir.display()
        ))
        .next("copy CloudTrail's log files there: *.json.gz, as CloudTrail leaves them in S3")
    })?;
    Ok((trail, span))
}

fn read_dir(dir: &Path, trail: &mut Trail) -> Result<(), CliError> {
    let failed = |error: io::Error| unusable(dir, &error);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            read_dir(&path, trail)?;
        } else {
            let file = read_file(&path)?;
            trail
                .read(&file)
                .map_err(|error| foreign(&path, &error.to_string()))?;
        }
    }
    Ok(())
}

/// Returns the content of a log file, unpacked.
fn read_file(path: &Path) -> Result<Vec<u8>, CliError> {
    let failed = |error: io::Error| unusable(path, &error);
    let name = path.to_string_lossy();
    if name.ends_with(".json") {
        return fs::read(path).map_err(failed);
    }
    if !name.ends_with(".json.gz") {
        return Err(foreign(
            path,
            "its name ends neither in .json nor in .json.gz",
        ));
    }
    let (packed, mut file) = (fs::File::open(path).map_err(failed)?, Vec::new());
    let unpacked = MultiGzDecoder::new(packed).read_to_end(&mut file);
    unpacked.map_err(|error| foreign(path, &format!("it cannot be unpacked: {error}")))?;
    Ok(file)
}

fn foreign(path: &Path, why: &str) -> CliError {
    CliError::usage(format!("{}: {why}", path.display())).next(
        "leave nothing in the directory but CloudTrail's log files, whole: digests (CloudTrail-Digest) are none",
    )
}

fn compare(
    trail: &Trail,
    entries: &[Entry],
    principals: &[CallPrincipal],
    out: &mut Output,
) -> Result<(), CliError> {
    let reconciled = reconcile(trail, entries, principals).map_err(|error| {
        CliError::usage(error.to_string())
            .next("give the ARN of the broker's user or role: --principal")
    })?;
    show(&reconciled, out)?;
    match reconciled.findings.len() {
        0 => Ok(()),
        count => Err(CliError::verification(format!(
            "CloudTrail and the log differ in {count}: an admin key is used beside the broker, or \
             somebody has changed the log or the trail"
        ))
        .next(
            "find out who made each call; check the log by `credbroker audit verify`, and replace the \
             admin key if it is known to others",
        )),
    }
}

fn show(reconciled: &Reconciled, out: &mut Output) -> Result<(), CliError> {
    let findings = reconciled.findings.iter().map(ReportedFinding::from);
    let (checked_events, checked_records) = (reconciled.checked_calls, reconciled.checked_records);
    if out.format() == Format::Json {
        let told = ReportDocument {
            checked_events,
            checked_records,
            findings: findings.collect(),
        };
        return Ok(out.show(&told)?);
    }
    for finding in findings {
        out.line(&finding.line())?;
    }
    Ok(out.line(&format!(
        "{checked_events} calls in CloudTrail and {checked_records} records compared, {} do not match",
        reconciled.findings.len()
    ))?)
}

/// Output of `-o json`.
#[derive(Serialize)]
struct ReportDocument<'a> {
    checked_events: usize,
    checked_records: usize,
    findings: Vec<ReportedFinding<'a>>,
}

/// Mismatch, as it is shown.
#[derive(Serialize)]
struct ReportedFinding<'a> {
    kind: &'static str,
    time: String,
    /// Name of the call, or of the record's event.
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    aws_name: Option<&'a str>,
    access_key_id: Option<&'a str>,
    aws_request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_arn: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller_access_key_id: Option<&'a str>,
}

impl<'a> From<&'a Finding> for ReportedFinding<'a> {
    fn from(finding: &'a Finding) -> Self {
        match finding {
            Finding::UnrecordedCall(call) => Self::of_call(call),
            Finding::UnseenRecord(entry) => Self::of_record(entry),
        }
    }
}

impl<'a> ReportedFinding<'a> {
    fn of_call(call: &'a TrailCall) -> Self {
        Self {
            kind: "unrecorded_call",
            time: call.time.to_string(),
            event: call.operation.as_str(),
            event_id: Some(&call.event_id),
            seq: None,
            aws_name: call.name.as_deref(),
            access_key_id: call.made_key.as_deref(),
            aws_request_id: call.request_id.as_deref(),
            caller_arn: call.caller.as_deref(),
            caller_access_key_id: call.caller_key.as_deref(),
        }
    }

    fn of_record(entry: &'a Entry) -> Self {
        Self {
            kind: "unseen_record",
            time: format!("{:.3}", entry.time),
            event: entry.event.as_str(),
            event_id: None,
            seq: Some(entry.seq),
            aws_name: entry.aws_name.as_deref(),
            access_key_id: entry.access_key_id.as_deref(),
            aws_request_id: entry.aws_request_id.as_deref(),
            caller_arn: None,
            caller_access_key_id: None,
        }
    }

    fn line(&self) -> String {
        let number = self.seq.map(|seq| seq.to_string());
        let mut line = format!("{:15}  {:24}  {}", self.kind, self.time, self.event);
        for (name, value) in [
            ("record=", number.as_deref()),
            ("name=", self.aws_name),
            ("key=", self.access_key_id),
            ("by=", self.caller_arn),
            ("with=", self.caller_access_key_id),
            ("event=", self.event_id),
            ("request=", self.aws_request_id),
        ] {
            if let Some(value) = value {
                line = line + "  " + name + value;
            }
        }
        line
    }
}
