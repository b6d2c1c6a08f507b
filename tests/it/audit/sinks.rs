//! Sinks: the log streamed to a file, a syslog server and a webhook. Each record arrives at least
//! once and in its order, whatever the receiver does.

mod collector;
mod syslogd;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use credbroker::domain::audit::{AuditEvent, DETAIL_MAX, Event};
use jiff::Timestamp;
use serde_json::Value;
use tokio::task::JoinSet;

use self::{
    collector::{Collector, Mood},
    syslogd::Syslogd,
};
use crate::harness::{
    Account, Run, eventually,
    site::{Site, stop},
};

/// Most records that a sink gets at once.
const BATCH: usize = 256;

impl Site {
    /// Returns the log of the site as it is now.
    async fn leaves(&self) -> Vec<Vec<u8>> {
        self.stored.leaves().await
    }

    /// Returns a metric of a sink.
    async fn sink_metric(&self, name: &str, sink: &str) -> Option<f64> {
        let name = format!("credbroker_audit_sink_{name}{{sink=\"{sink}\"}}");
        self.metric(&name).await
    }

    /// Waits until a sink has failed this many times since the start.
    async fn fails(&self, sink: &str, times: f64) {
        let failed = async || {
            let failures = self.sink_metric("failures_total", sink).await;
            failures.filter(|failures| *failures >= times)
        };
        eventually("failures of the sink", failed).await;
    }

    /// Waits until a sink has received all current records. Returns their number.
    async fn catches_up(&self, sink: &str) -> usize {
        let size = self.leaves().await.len();
        let delivered = async || {
            let cursor = sqlx::query_scalar("SELECT seq FROM audit_sinks WHERE name = $1");
            let mut store = self.store().await;
            let cursor: Option<i64> = cursor.bind(sink).fetch_optional(&mut store).await.unwrap();
            let cursor = usize::try_from(cursor.unwrap_or(0)).unwrap();
            (cursor >= size).then_some(())
        };
        eventually("the sink has the records", delivered).await;
        let caught_up = async || {
            self.sink_metric("lag_records", sink)
                .await
                .filter(|lag| *lag == 0.0)
        };
        eventually("no lag of the sink", caught_up).await;
        size
    }
}

/// Asserts that the stream is the log from its beginning, with at most one batch repeated at a
/// time. Returns the number of records.
fn assert_streamed<L: AsRef<[u8]>>(lines: &[L], leaves: &[Vec<u8>]) -> usize {
    let mut last = 0;
    for line in lines {
        let record: Value = serde_json::from_slice(line.as_ref()).unwrap();
        let seq = usize::try_from(record["seq"].as_u64().unwrap()).unwrap();
        assert!(seq <= last + 1, "{seq} follows {last}");
        assert!(seq + BATCH > last, "{seq} is repeated after {last}");
        assert_eq!(line.as_ref(), leaves[seq - 1]);
        last = seq;
    }
    last
}

/// Adds large records, some three megabytes, to the log of a stopped broker.
async fn fill(site: &Site) {
    let store = site.stored.open().await;
    let mut writers = JoinSet::new();
    for _ in 0..5000 {
        let read = AuditEvent::by_broker(Event::StatusRead, Timestamp::UNIX_EPOCH);
        let (read, store) = (read.detail(&"x".repeat(DETAIL_MAX)), Arc::clone(&store));
        writers.spawn(async move { store.record(read).await.unwrap() });
    }
    writers.join_all().await;
    store.close().await;
}

/// The files of a sink, the oldest first.
fn files(newest: &Path) -> Vec<PathBuf> {
    let numbered = |n: u32| PathBuf::from(format!("{}.{n}", newest.display()));
    let all = (1..=9).rev().map(numbered).chain([newest.to_owned()]);
    all.filter(|path| path.exists()).collect()
}

fn lines(files: &[PathBuf]) -> Vec<String> {
    let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
    texts
        .flat_map(|text| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>())
        .collect()
}

#[tokio::test]
async fn a_file_holds_every_record_over_rotations_and_deaths() {
    let account = Account::new().await;
    let site = Site::with_audit(|site| {
        let path = site.text("audit.jsonl");
        format!(
            "[[audit.sinks]]\nname = \"archive\"\nkind = \"file\"\npath = {path:?}\nrotate_mib = 1\nkeep = 9"
        )
    });
    let path = site.path("audit.jsonl");
    let child = site.serving(&account.admin).await;
    site.catches_up("archive").await;
    stop(child).await;
    fill(&site).await;

    // The broker is killed in the middle, with half a line in the file.
    let mut child = site.serving(&account.admin).await;
    let rotated = async || (files(&path).len() > 1).then_some(());
    eventually("a rotation", rotated).await;
    child.kill().await.unwrap();
    // Killed between two files, the broker has left no file of this name.
    let torn = fs::read_to_string(&path).unwrap_or_default() + "{\"seq\":1,\"ti";
    fs::write(&path, torn).unwrap();
    let child = site.serving(&account.admin).await;
    site.catches_up("archive").await;
    site.create("payments-api").await;
    let all = site.catches_up("archive").await;
    stop(child).await;

    let files = files(&path);
    assert!(files.len() > 3, "{files:?}");
    for file in &files {
        let found = fs::metadata(file).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert!(found.len() <= 1 << 20, "{file:?}");
    }
    assert!(assert_streamed(&lines(&files), &site.leaves().await) >= all);
}

fn webhook(site: &Site, port: u16) -> String {
    fs::write(
        site.path("collector-token"),
        "a-token-that-nobody-may-see\n",
    )
    .unwrap();
    let (ca, token) = (site.text("tls.pem"), site.text("collector-token"));
    format!(
        "[[audit.sinks]]\nname = \"collector\"\nkind = \"webhook\"\nurl = \"https://localhost:{port}/audit?from=here\"\nca_file = {ca:?}\ntoken_file = {token:?}"
    )
}

#[tokio::test]
async fn a_failing_webhook_loses_no_record_and_a_hanging_one_delays_no_call() {
    let (account, listener) = (Account::new().await, Collector::listener().await);
    let port = listener.local_addr().unwrap().port();
    let site = Site::with_audit(|site| webhook(site, port));
    let collector = Collector::start(listener, &site);
    collector.be(Mood::Silent);
    let child = site.serving(&account.admin).await;
    let token = site.payments_api().await;
    site.assert_issues(&token).await;
    let lag = site.sink_metric("lag_records", "collector").await.unwrap();
    assert!(lag > 0.0, "{lag}");
    site.fails("collector", 1.0).await;
    assert_eq!(collector.taken(), Vec::<String>::new());

    collector.be(Mood::Refusing);
    site.fails("collector", 3.0).await;
    collector.be(Mood::Taking);
    site.catches_up("collector").await;
    site.create("billing").await;
    let all = site.catches_up("collector").await;
    stop(child).await;
    assert!(assert_streamed(&collector.taken(), &site.leaves().await) >= all);
    let log = fs::read_to_string(site.path("log")).unwrap();
    for word in [
        "did not answer within 2.5 s",
        "it answered 503",
        "sink=collector",
    ] {
        assert!(log.contains(word), "{word} in {log}");
    }
    assert!(!log.contains("nobody-may-see"));

    // The next start continues at the end of this one.
    let child = site.serving(&account.admin).await;
    let all = site.catches_up("collector").await;
    stop(child).await;
    assert!(assert_streamed(&collector.taken(), &site.leaves().await) >= all);
}

fn syslog(site: &Site, address: &str) -> String {
    let ca = site.text("tls.pem");
    format!(
        "[[audit.sinks]]\nname = \"siem\"\nkind = \"syslog\"\naddress = {address:?}\nca_file = {ca:?}"
    )
}

#[tokio::test]
async fn a_syslog_server_gets_every_record_over_connections_that_break() {
    let account = Account::new().await;
    let mut server = Syslogd::new();
    let site = Site::with_audit(|site| syslog(site, &server.address()));
    server.start(&site).await;
    let child = site.serving(&account.admin).await;
    site.catches_up("siem").await;

    // Records that the server has accepted and not read are sent again on the next connection.
    server.be_deaf(true);
    server.hang_up();
    site.create("payments-api").await;
    let unread = site.catches_up("siem").await;
    assert!(server.records().len() < unread);
    server.be_deaf(false);
    // The server is down for a while.
    server.end().await;
    site.create("billing").await;
    site.fails("siem", 1.0).await;
    server.start(&site).await;
    let all = site.catches_up("siem").await;
    let leaves = site.leaves().await;
    let received = async || (assert_streamed(&server.records(), &leaves) >= all).then_some(());
    eventually("the records have arrived", received).await;
    stop(child).await;
    server.end().await;
}

#[tokio::test]
async fn a_wrong_sink_setting_is_reported_before_the_start() {
    let account = Account::new().await;
    let fails = async |sinks: &dyn Fn(&Site) -> String, words: &[&str]| {
        let site = Site::with_audit(sinks);
        Run::of(site.serve(&account.admin), "")
            .await
            .fails(2, words);
        assert!(!site.path("credbroker.db").exists());
    };
    fails(
        &|_| {
            "[[audit.sinks]]\nname = \"one\"\nkind = \"pigeon\"\n[[audit.sinks]]\nname = \"two\"\nkind = \"webhook\"\nurl = \"http://h.example\"".to_owned()
        },
        &[
            "mistakes: 2",
            "audit.sinks[1].kind: choose file, syslog or webhook",
            "audit.sinks[2].url: write it like https://",
        ],
    )
    .await;
    let untrusted = |site: &Site| {
        let sink = syslog(site, "localhost:6514");
        fs::write(site.path("empty.pem"), "").unwrap();
        sink.replace("tls.pem", "empty.pem")
    };
    let words = [
        "the audit sink siem cannot be set up",
        "no certificates to trust",
    ];
    fails(&untrusted, &words).await;
    let missing = |site: &Site| syslog(site, "localhost:6514").replace("tls.pem", "none.pem");
    fails(&missing, &["cannot read certificates from", "none.pem"]).await;
    let no_token = |site: &Site| {
        let sink = webhook(site, 443);
        fs::write(site.path("collector-token"), "hush hush").unwrap();
        sink
    };
    fails(&no_token, &["collector-token does not hold a token"]).await;
    let no_file = |site: &Site| webhook(site, 443).replace("collector-token", "none");
    fails(
        &no_file,
        &["the audit sink collector", "cannot read", "none"],
    )
    .await;

    let fine = Site::with_audit(|site| syslog(site, "localhost:1"));
    let child = fine.serving(&account.admin).await;
    fine.fails("siem", 1.0).await;
    stop(child).await;
}
