//! HTTP/2 by hand: frames that no well-behaved client sends.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
        version::TLS13,
    },
};

use super::Broker;

/// Longest time that an offender may stay.
pub const LIMIT: Duration = Duration::from_secs(10);
pub type Stream = TlsStream<TcpStream>;
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const CONTINUATION: u8 = 9;
pub const END_HEADERS: u8 = 4;

pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const END_STREAM: u8 = 1;

/// Opens a connection that speaks HTTP/2, without sending anything.
pub async fn h2(address: &str, ca: &Path) -> Stream {
    connect(address, ca, &TLS13).await.unwrap()
}

/// Opens such a connection with this version of TLS.
pub async fn connect(
    address: &str,
    ca: &Path,
    version: &'static SupportedProtocolVersion,
) -> io::Result<Stream> {
    connector(ca, version)
        .connect(localhost(), tcp(address).await)
        .await
}

/// Returns a connector. All connections of one connector resume a session if they can.
pub fn connector(ca: &Path, version: &'static SupportedProtocolVersion) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[version]).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

pub async fn tcp(address: &str) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

pub fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Sends preface and settings.
pub async fn begun(mut stream: Stream) -> Stream {
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// RFC 9113 section 4.1.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head[..], payload].concat()
}

/// Headers of a call (RFC 7541, nothing indexed but the static table).
pub fn call(path: &str) -> Vec<u8> {
    let literal = |index: u8, value: &str| {
        let mut header = vec![index];
        header.push(u8::try_from(value.len()).unwrap());
        header.extend(value.as_bytes());
        header
    };
    // Fields: POST, https, the path, an authority, a content type.
    let content_type = [&[0x0f, 0x10][..], &literal(0, "application/grpc")[1..]].concat();
    [
        vec![0x83, 0x87],
        literal(0x04, path),
        literal(0x01, "localhost"),
        content_type,
    ]
    .concat()
}

/// A call of a method with this bearer token; its message has begun and never ends.
pub fn half_a_call(stream: u32, path: &str, token: &str) -> Vec<u8> {
    let bearer = format!("Bearer {token}");
    let length = u8::try_from(bearer.len()).unwrap();
    // `authorization` is in the static table.
    let headers = [&call(path), &[0x0f, 0x08, length][..], bearer.as_bytes()].concat();
    let began = frame(HEADERS, END_HEADERS, stream, &headers);
    [began, frame(DATA, 0, stream, &[0, 0, 0])].concat()
}

/// Reads the next frame: its type, its stream and its payload.
pub async fn next(stream: &mut (impl AsyncReadExt + Unpin)) -> (u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).await.unwrap();
    let number = u32::from_be_bytes(head[5..].try_into().unwrap());
    (head[3], number, payload)
}

/// Sends a GET, and grants no window for its answer.
pub async fn ask_without_a_window(stream: &mut Stream, path: &str) {
    // SETTINGS_INITIAL_WINDOW_SIZE is 4 (RFC 9113 section 6.5.2).
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let get = [&[0x82], &call(path)[1..]].concat();
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 1, &get);
    let words = [PREFACE, &no_window, &ask].concat();
    stream.write_all(&words).await.unwrap();
}

impl Broker {
    pub fn address(&self) -> &str {
        self.setting("CREDBROKER_ADDR")
            .strip_prefix("https://")
            .unwrap()
    }

    pub async fn h2(&self) -> Stream {
        h2(
            self.address(),
            Path::new(self.setting("CREDBROKER_CA_FILE")),
        )
        .await
    }

    /// Opens a connection, and sends preface and settings.
    pub async fn begun(&self) -> Stream {
        begun(self.h2().await).await
    }

    /// Peak memory of the broker, kB.
    pub fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }
}

/// Waits until the peer closes the connection.
pub async fn gone(stream: &mut (impl AsyncReadExt + Unpin), offender: &str) {
    let ended = timeout(LIMIT, async {
        let mut answer = vec![0; 64 * 1024];
        while stream.read(&mut answer).await.is_ok_and(|read| read > 0) {}
    });
    let ended = ended.await;
    ended.unwrap_or_else(|_| panic!("still there: {offender}"));
}
