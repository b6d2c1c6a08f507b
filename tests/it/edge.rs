//! Peers that do harm: each is gone within ten seconds, what it can hold is bounded, and
//! everybody else is served all the while.

use std::{fs, path::Path, sync::Arc, time::Duration};

use rcgen::{CertificateParams, KeyPair};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{interval, timeout},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use crate::harness::{
    Account, Broker, Run,
    broker::{credbroker, dev},
    emulator::emulator,
    eventually,
    site::{Site, stop},
};

/// How long an offender may stay.
const LIMIT: Duration = Duration::from_secs(10);
/// What the broker may take for all of them, kB.
const MEMORY_MAX: u64 = 256 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

type Stream = TlsStream<TcpStream>;
/// What is sent on a stream of this number.
type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;

impl Broker {
    fn address(&self) -> &str {
        self.setting("CREDBROKER_ADDR")
            .strip_prefix("https://")
            .unwrap()
    }

    async fn h2(&self) -> Stream {
        h2(
            self.address(),
            Path::new(self.setting("CREDBROKER_CA_FILE")),
        )
        .await
    }

    async fn begun(&self) -> Stream {
        begun(self.h2().await).await
    }

    async fn is_served(&self) {
        self.run(&["whoami"]).await.ok();
    }

    /// The most memory that it ever had, kB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }
}

/// A connection that speaks HTTP/2, without a word said.
async fn h2(address: &str, ca: &Path) -> Stream {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.unwrap()
}

/// With preface and settings sent.
async fn begun(mut stream: Stream) -> Stream {
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head[..], payload].concat()
}

/// The headers of a call (RFC 7541, nothing indexed but what the static table has).
fn call(path: &str) -> Vec<u8> {
    let literal = |index: u8, value: &str| {
        let mut header = vec![index];
        header.push(u8::try_from(value.len()).unwrap());
        header.extend(value.as_bytes());
        header
    };
    // POST, https, the path, an authority, a content type.
    let content_type = [&[0x0f, 0x10][..], &literal(0, "application/grpc")[1..]].concat();
    [
        vec![0x83, 0x87],
        literal(0x04, path),
        literal(0x01, "localhost"),
        content_type,
    ]
    .concat()
}

/// Sends until the peer hangs up; writes that it does not take are as good.
async fn gone(stream: &mut (impl AsyncReadExt + Unpin)) {
    let ended = timeout(LIMIT, async {
        let mut answer = vec![0; 64 * 1024];
        while stream.read(&mut answer).await.is_ok_and(|read| read > 0) {}
    });
    ended.await.expect("the offender is gone");
}

#[tokio::test]
async fn whoever_says_nothing_or_little_is_gone() {
    let broker = Broker::start(&Account::new().await).await;
    let mut silent_before = TcpStream::connect(broker.address()).await.unwrap();
    let mut silent_after = broker.h2().await;
    let mut only_the_preface = broker.begun().await;
    let slow = async {
        // One byte a second: of the first words, then of the headers of a call.
        let mut slow = broker.h2().await;
        let words = [
            PREFACE,
            &frame(SETTINGS, 0, 0, &[]),
            &frame(HEADERS, 0, 1, &call("/livez")),
        ]
        .concat();
        let mut seconds = interval(Duration::from_secs(1));
        let sending = async {
            for byte in words {
                seconds.tick().await;
                if slow.write_all(&[byte]).await.is_err() || slow.flush().await.is_err() {
                    return;
                }
            }
        };
        timeout(LIMIT, sending).await.expect("the offender is gone");
    };
    tokio::join!(
        gone(&mut silent_before),
        gone(&mut silent_after),
        gone(&mut only_the_preface),
        slow,
        broker.is_served(),
    );
}

#[tokio::test]
async fn a_request_whose_body_never_ends_is_given_up() {
    let broker = Broker::start(&Account::new().await).await;
    let mut stream = broker.begun().await;
    let bearer = format!("Bearer {}", broker.admin_token());
    let length = u8::try_from(bearer.len()).unwrap();
    let headers = call("/credbroker.v1.IdentityService/WhoAmI");
    // `authorization` is in the static table.
    let headers = [&headers, &[0x0f, 0x08, length][..], bearer.as_bytes()].concat();
    let began = frame(HEADERS, END_HEADERS, 1, &headers);
    let half = frame(DATA, 0, 1, &[0, 0, 0]);
    stream.write_all(&[began, half].concat()).await.unwrap();
    let answered = async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut payload).await.unwrap();
            if head[8] == 1 && [HEADERS, RST_STREAM].contains(&head[3]) {
                return;
            }
        }
    };
    timeout(LIMIT, answered).await.expect("it is given up");
    broker.is_served().await;
}

#[tokio::test]
async fn floods_end_the_connection_and_take_no_memory() {
    let broker = Broker::start(&Account::new().await).await;
    let livez = call("/livez");
    let resets = |stream: u32| {
        let begin = frame(HEADERS, END_HEADERS, stream, &livez);
        [begin, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let unended = |stream: u32| match stream {
        1 => frame(HEADERS, 0, 1, &livez),
        _ => frame(
            CONTINUATION,
            0,
            1,
            &[0x00, 0x01, b'a', 0x01, b'b'].repeat(1000),
        ),
    };
    let large = |stream: u32| {
        let mut headers = livez.clone();
        // Ten kilobytes of one header.
        headers.extend([0x00, 0x01, b'x', 0x7f, 0x91, 0x4d]);
        headers.extend(vec![b'y'; 10_000]);
        frame(HEADERS, END_HEADERS, stream, &headers)
    };
    let many = |stream: u32| {
        frame(
            HEADERS,
            END_HEADERS,
            stream,
            &call("/credbroker.v1.AdminService/GetStatus"),
        )
    };
    let rubbish = |_: u32| frame(0xbe, 0xff, 0, &[0xaa; 16_000]);
    let oversize = |_: u32| frame(DATA, 0, 0, &vec![0; 17 * 1024]);
    let floods: [(&str, Flood<'_>); 6] = [
        ("rapid reset", &resets),
        ("continuation", &unended),
        ("large header", &large),
        ("ten thousand streams", &many),
        ("unknown frames", &rubbish),
        ("oversize frame", &oversize),
    ];
    for (name, next) in floods {
        let stream = broker.begun().await;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sending = async {
            for number in 0..10_000_u32 {
                if writer.write_all(&next(2 * number + 1)).await.is_err() {
                    return;
                }
            }
            let _ = writer.shutdown().await;
        };
        let flood = async { tokio::join!(sending, gone(&mut reader)) };
        tokio::join!(flood, broker.is_served());
        assert!(broker.peak() < MEMORY_MAX, "{name}: {} kB", broker.peak());
    }
    broker.is_served().await;
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_no_more() {
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut stream = begun(h2(&site.address, &site.path("tls.pem")).await).await;
        let headers = frame(HEADERS, END_HEADERS | 1, 1, &call("/livez"));
        stream.write_all(&headers).await.unwrap();
        held.push(stream);
    }
    let more = site.run(&["whoami"]).await;
    more.fails(7, &["cannot reach the broker"]);
    held.truncate(60);
    let served = async || (site.run(&["whoami"]).await.code == 0).then_some(());
    eventually("there is room again", served).await;
    drop(held);
    stop(child).await;
}

#[tokio::test]
async fn without_descriptors_the_broker_waits_and_serves_again() {
    let account = Account::new().await;
    let broker = Broker::start_by(|state| {
        let dev = dev(state, &account.admin, &emulator().endpoint);
        let dev = dev.as_std();
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "ulimit -n 60; exec \"$0\" \"$@\""]);
        command
            .arg(dev.get_program())
            .args(dev.get_args())
            .env_clear();
        command.envs(
            dev.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        command.kill_on_drop(true);
        command
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..60 {
        if let Ok(Ok(stream)) =
            timeout(Duration::from_secs(1), TcpStream::connect(broker.address())).await
        {
            held.push(stream);
        }
    }
    let told = async || {
        let log = broker.log.lock().unwrap().clone();
        log.contains("could not be accepted").then_some(())
    };
    eventually("it has run out", told).await;
    drop(held);
    let served = async || (broker.run(&["whoami"]).await.code == 0).then_some(());
    eventually("it serves again", served).await;
}

#[tokio::test]
async fn the_connections_of_a_service_that_is_shut_out_end() {
    let broker = Broker::start(&Account::new().await).await;
    for (end, name) in [("suspend", "pay"), ("delete", "log"), ("revoke", "web")] {
        let token = broker.service(name).await;
        let client = broker.client(&token).await;
        client
            .identity()
            .who_am_i(credbroker::proto::WhoAmIRequest {})
            .await
            .unwrap();
        let open = async |count: usize| {
            let is_so = async || (connections(&broker) == count).then_some(());
            eventually("so many connections", is_so).await;
        };
        open(1).await;
        let args = if end == "revoke" {
            vec!["revoke", name]
        } else {
            vec!["service", end, name]
        };
        broker.run(&args).await.ok();
        open(0).await;
        drop(client);
    }
}

/// How many are connected to the broker, as the system tells.
fn connections(broker: &Broker) -> usize {
    let (_, port) = broker.address().rsplit_once(':').unwrap();
    let local = format!(":{:04X} ", port.parse::<u16>().unwrap());
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", broker.pid())).unwrap();
    let established = |line: &&str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns
            .get(1)
            .is_some_and(|at| format!("{at} ").ends_with(&local))
            && columns.get(3) == Some(&"01")
    };
    table.lines().filter(established).count()
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_and_a_wrong_one_never() {
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let old = fs::read(site.path("tls.pem")).unwrap();
    // Whoever trusts the old one sees by it which is shown.
    fs::write(site.path("old.pem"), &old).unwrap();
    let trusts_old = async || {
        let mut command = credbroker(&["whoami"]);
        command
            .envs(site.env())
            .env("CREDBROKER_CA_FILE", site.path("old.pem"));
        Run::of(command, "").await.code == 0
    };
    let told = async |words: &str| {
        let told = async || {
            let log = fs::read_to_string(site.path("log")).unwrap();
            log.contains(words).then_some(())
        };
        eventually(words, told).await;
    };
    fs::write(site.path("tls.key"), "rubbish").unwrap();
    told("stays as it was").await;
    assert!(trusts_old().await);
    let key = KeyPair::generate().unwrap();
    let names = ["localhost", "127.0.0.1"].map(ToOwned::to_owned);
    let new = CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    fs::write(site.path("tls.pem"), new.pem()).unwrap();
    fs::write(site.path("tls.key"), key.serialize_pem()).unwrap();
    told("has changed").await;
    site.run(&["whoami"]).await.ok();
    assert!(!trusts_old().await);
    stop(child).await;
}

#[tokio::test]
async fn one_service_has_so_many_connections_and_no_more() {
    let broker = Broker::start(&Account::new().await).await;
    let (token, other) = (broker.service("pay").await, broker.service("billing").await);
    let who = || credbroker::proto::WhoAmIRequest {};
    let mut held = Vec::new();
    for _ in 0..32 {
        let client = broker.client(&token).await;
        client.identity().who_am_i(who()).await.unwrap();
        held.push(client);
    }
    let one_more = broker.client(&token).await;
    let refused = one_more.identity().who_am_i(who()).await.unwrap_err();
    assert_eq!(
        refused.code(),
        tonic::Code::ResourceExhausted,
        "{refused:?}"
    );
    assert!(
        refused.message().contains("as many connections as it may"),
        "{refused:?}"
    );
    // Those that it has go on, and so does everybody else.
    held[0].identity().who_am_i(who()).await.unwrap();
    broker.run_as(Some(&other), &["whoami"]).await.ok();
    held.truncate(31);
    let let_in = async || one_more.identity().who_am_i(who()).await.ok();
    eventually("there is room again", let_in).await;
}
