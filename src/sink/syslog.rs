//! The audit log as syslog messages (RFC 5424) over TLS (RFC 5425).
//!
//! Syslog has no acknowledgement: a message counts as delivered when the connection has accepted
//! it. The batch that a broken connection may have lost is sent again once, with the batch that
//! follows.

use std::{net::IpAddr, process, time::Duration};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::Server;
use crate::{
    audit::leaf,
    broker::ports::{Sink, SinkError},
    domain::{
        audit::{AuditRecord, Outcome},
        name::Name,
    },
};

/// Facility "log audit", RFC 5424 section 6.2.1.
const FACILITY: u8 = 13;
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;

/// A syslog server.
pub struct SyslogSink {
    name: Name,
    server: Server,
    line: Mutex<SyslogFrame>,
}

/// Connection to the server, and the last batch.
#[derive(Default)]
struct SyslogFrame {
    /// `None` also while a message may be half written.
    stream: Option<TlsStream<TcpStream>>,
    /// The batch that was sent last.
    sent: Vec<Vec<u8>>,
}

impl SyslogSink {
    /// Creates a sink that sends to this server, over one connection that is replaced when it
    /// breaks.
    #[must_use]
    pub fn new(name: Name, server: Server) -> Self {
        Self {
            name,
            server,
            line: Mutex::default(),
        }
    }
}

#[async_trait]
impl Sink for SyslogSink {
    fn name(&self) -> &Name {
        &self.name
    }

    async fn deliver(&self, leaves: &[Vec<u8>]) -> Result<(), SinkError> {
        let mut line = self.line.lock().await;
        let kept = match line.stream.take() {
            Some(mut stream) => is_open(&mut stream).await.then_some(stream),
            None => None,
        };
        let (mut stream, again) = match kept {
            Some(stream) => (stream, &[][..]),
            None => (self.server.connect().await?, line.sent.as_slice()),
        };
        let broken = |error| SinkError(format!("the connection broke: {error}"));
        let host = stream.get_ref().0.local_addr().map_err(broken)?.ip();
        let frames: Vec<u8> = again
            .iter()
            .chain(leaves)
            .flat_map(|leaf| frame(leaf, host))
            .collect();
        stream.write_all(&frames).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        line.stream = Some(stream);
        line.sent = leaves.to_vec();
        Ok(())
    }
}

/// Returns whether the connection is open: a server sends nothing, and a read succeeds or fails
/// only at the end of the connection.
async fn is_open(stream: &mut TlsStream<TcpStream>) -> bool {
    timeout(Duration::ZERO, stream.read(&mut [0]))
        .await
        .is_err()
}

/// Returns a record as a message, with its length before it. The text is JSON, which begins without
/// a byte order mark (RFC 8259 section 8.1): syslog's MSG-ANY.
fn frame(leaf: &[u8], host: IpAddr) -> Vec<u8> {
    let header = header(leaf::decode(leaf).ok().as_ref(), host);
    let length = header.len() + leaf.len();
    [format!("{length} {header}").as_bytes(), leaf].concat()
}

/// Returns the header, an empty STRUCTURED-DATA and the space before the text. A leaf that is not a
/// record gets a header of an error, without time and event.
fn header(record: Option<&AuditRecord>, host: IpAddr) -> String {
    let (severity, time, event) = match record.map(|record| &record.event) {
        Some(event) => {
            let time = format!("{:.6}", event.time);
            (severity(event.outcome), time, event.event.as_str())
        }
        None => (ERROR, "-".to_owned(), "-"),
    };
    let (priority, pid) = (FACILITY * 8 + severity, process::id());
    format!("<{priority}>1 {time} {host} credbroker {pid} {event} - ")
}

const fn severity(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Success => NOTICE,
        Outcome::Denied => WARNING,
        Outcome::Failure => ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use jiff::Timestamp;

    use super::*;
    use crate::domain::audit::{AuditEvent, Event};

    fn framed(leaf: &[u8]) -> String {
        String::from_utf8(frame(leaf, Ipv4Addr::LOCALHOST.into())).unwrap()
    }

    #[test]
    fn the_severity_follows_the_outcome() {
        for (outcome, priority) in [
            (Outcome::Success, 109),
            (Outcome::Denied, 108),
            (Outcome::Failure, 107),
        ] {
            let mut event = AuditEvent::by_broker(Event::LeaseDenied, Timestamp::UNIX_EPOCH);
            event.outcome = outcome;
            let leaf = leaf::encode(&AuditRecord { seq: 7, event }).unwrap();
            let (framed, pid) = (framed(&leaf), process::id());
            let (length, message) = framed.split_once(' ').unwrap();
            assert_eq!(length, message.len().to_string());
            let head = format!(
                "<{priority}>1 1970-01-01T00:00:00.000000Z 127.0.0.1 credbroker {pid} lease.denied - {{\"seq\":7,"
            );
            assert!(message.starts_with(&head), "{message}");
        }
    }

    #[test]
    fn a_leaf_that_is_no_record_is_sent_as_an_error() {
        let (framed, pid) = (framed(b"{}"), process::id());
        let message = format!("<107>1 - 127.0.0.1 credbroker {pid} - - {{}}");
        assert_eq!(framed, format!("{} {message}", message.len()));
    }
}
