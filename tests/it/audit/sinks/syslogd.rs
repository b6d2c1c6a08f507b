//! A syslog server over TLS that checks each message strictly against RFC 5424 and RFC 5425.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use credbroker::http::tls;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpStream,
    sync::broadcast,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::harness::{free_address, listening, site::Site};

pub struct Syslogd {
    address: SocketAddr,
    records: Arc<Mutex<Vec<String>>>,
    hang_up: broadcast::Sender<()>,
    deaf: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Syslogd {
    /// Creates a server that does not run yet.
    pub fn new() -> Self {
        Self {
            address: free_address(),
            records: Arc::default(),
            hang_up: broadcast::channel(1).0,
            deaf: Arc::default(),
            serving: None,
        }
    }

    pub fn address(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    /// Serves with the certificate of `site`.
    pub async fn start(&mut self, site: &Site) {
        let config = tls::from_files(
            &site.path("tls.pem"),
            &site.path("tls.key"),
            tls::ClientCertificates::NotAsked,
        );
        let acceptor = TlsAcceptor::from(config.unwrap());
        let listener = listening(self.address).await;
        let (records, hang_up) = (Arc::clone(&self.records), self.hang_up.clone());
        let deaf = Arc::clone(&self.deaf);
        self.serving = Some(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut told = hang_up.subscribe();
                let deaf = deaf.load(Ordering::Relaxed);
                let serving = receive(acceptor.clone(), stream, deaf, Arc::clone(&records));
                tokio::spawn(async move {
                    tokio::select! {
                        () = serving => {}
                        _ = told.recv() => {}
                    }
                });
            }
        }));
    }

    /// Stops or resumes reading from connections that begin from now on.
    pub fn be_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    /// Closes every connection.
    pub fn hang_up(&self) {
        // The server may have no connections.
        let _ = self.hang_up.send(());
    }

    /// Closes every connection and accepts no others.
    pub async fn end(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
        self.hang_up();
    }

    /// The texts of all messages.
    pub fn records(&self) -> Vec<String> {
        self.records.lock().unwrap().clone()
    }
}

async fn receive(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    deaf: bool,
    records: Arc<Mutex<Vec<String>>>,
) {
    let mut stream = BufReader::new(acceptor.accept(stream).await.unwrap());
    if deaf {
        std::future::pending::<()>().await;
    }
    while let Some(message) = frame(&mut stream).await {
        records.lock().unwrap().push(record(&message).to_owned());
    }
}

/// RFC 5425 section 4.3: MSG-LEN SP SYSLOG-MSG.
async fn frame(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut length = Vec::new();
    stream.read_until(b' ', &mut length).await.ok()?;
    let length = String::from_utf8(length).unwrap();
    let digits = length.strip_suffix(' ')?;
    assert!(!digits.starts_with('0'), "{length}");
    let mut message = vec![0; digits.parse().unwrap()];
    stream.read_exact(&mut message).await.ok()?;
    Some(String::from_utf8(message).unwrap())
}

/// RFC 5424 section 6: `<PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID SD MSG`.
fn record(message: &str) -> &str {
    let (priority, rest) = message.strip_prefix('<').unwrap().split_once('>').unwrap();
    let parts: Vec<&str> = rest.splitn(8, ' ').collect();
    let [version, time, host, app, process, id, data, text] = parts[..] else {
        panic!("{message}");
    };
    let record: Value = serde_json::from_str(text).unwrap();
    let severity = match record["outcome"].as_str().unwrap() {
        "success" => 5,
        "denied" => 4,
        _ => 3,
    };
    assert_eq!(priority.parse(), Ok(13 * 8 + severity), "{message}");
    assert_eq!((version, app, data), ("1", "credbroker", "-"), "{message}");
    assert_eq!(record["time"], time);
    time.parse::<Timestamp>().unwrap();
    host.parse::<IpAddr>().unwrap();
    process.parse::<u32>().unwrap();
    assert_eq!(record["event"], id);
    text
}
