//! Harmful peers: each is gone within ten seconds, its resources are bounded, and other callers are
//! served all the while.

mod answers;
mod bounds;
mod starvation;

use std::{fs, path::Path, time::Duration};

use credbroker::{client::Client, proto::WhoAmIRequest};
use rcgen::{CertificateParams, KeyPair};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{interval, timeout},
};
use tokio_rustls::rustls::{
    HandshakeKind,
    version::{TLS12, TLS13},
};
use tonic::Code;

use crate::harness::{
    Account, Broker, Run,
    broker::{credbroker, dev},
    emulator::emulator,
    eventually,
    floods::{FLOODS, sent},
    h2::{
        END_HEADERS, END_STREAM, GOAWAY, HEADERS, LIMIT, PREFACE, RST_STREAM, SETTINGS, begun,
        call, connect, connector, frame, gone, h2, half_a_call, localhost, next, tcp,
    },
    site::{Site, stop},
};

/// Memory limit of the broker for all of them, kB.
const MEMORY_MAX: u64 = 256 * 1024;

impl Broker {
    async fn is_served(&self) {
        self.run(&["whoami"]).await.ok();
    }
}

#[tokio::test]
async fn a_silent_or_slow_peer_is_disconnected() {
    let broker = Broker::start(&Account::new().await).await;
    let mut silent_before = TcpStream::connect(broker.address()).await.unwrap();
    let mut silent_after = broker.h2().await;
    let mut only_the_preface = broker.begun().await;
    let slow = async {
        // One byte a second: first of the preface, then of the headers of a call.
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
        gone(&mut silent_before, "silent before"),
        gone(&mut silent_after, "silent after"),
        gone(&mut only_the_preface, "only the preface"),
        slow,
        broker.is_served(),
    );
}

#[tokio::test]
async fn a_first_request_that_comes_late_is_served() {
    let broker = Broker::start(&Account::new().await).await;
    let mut stream = broker.begun().await;
    while next(&mut stream).await.0 != GOAWAY {}
    let livez = frame(HEADERS, END_HEADERS | END_STREAM, 1, &call("/livez"));
    stream.write_all(&livez).await.unwrap();
    let answered = async { while next(&mut stream).await.0 != HEADERS {} };
    timeout(LIMIT, answered).await.expect("it is answered");
}

#[tokio::test]
async fn a_request_whose_body_never_ends_is_given_up() {
    let broker = Broker::start(&Account::new().await).await;
    let mut stream = broker.begun().await;
    let who = "/credbroker.v1.IdentityService/WhoAmI";
    let half = half_a_call(1, who, broker.admin_token());
    stream.write_all(&half).await.unwrap();
    let answered = async {
        loop {
            let (kind, number, _) = next(&mut stream).await;
            if number == 1 && [HEADERS, RST_STREAM].contains(&kind) {
                return;
            }
        }
    };
    timeout(LIMIT, answered).await.expect("it is given up");
    broker.is_served().await;
}

#[tokio::test]
async fn connections_of_one_address_beyond_the_limit_are_refused() {
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut stream = begun(h2(&site.address, &site.path("tls.pem")).await).await;
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &call("/livez"));
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
async fn connections_of_a_suspended_service_are_closed() {
    let broker = Broker::start(&Account::new().await).await;
    for (end, name) in [("suspend", "pay"), ("delete", "log"), ("revoke", "web")] {
        let token = broker.service(name).await;
        let client = broker.client(&token).await;
        client.identity().who_am_i(WhoAmIRequest {}).await.unwrap();
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

#[tokio::test]
async fn a_service_suspended_before_its_first_call_is_refused() {
    let broker = Broker::start(&Account::new().await).await;
    let (pay, web) = (broker.service("pay").await, broker.service("web").await);
    let (by_pay, by_web) = (broker.client(&pay).await, broker.client(&web).await);
    broker.run(&["service", "suspend", "pay"]).await.ok();
    let who = async |client: &Client| client.identity().who_am_i(WhoAmIRequest {}).await;
    let refused = who(&by_pay).await.unwrap_err();
    assert!(refused.message().contains("suspended"), "{refused:?}");
    who(&by_web).await.unwrap();
}

#[tokio::test]
async fn a_service_suspended_during_its_first_login_is_refused() {
    let broker = Broker::start(&Account::new().await).await;
    let token = broker.service("pay").await;
    let (known, new) = (broker.client(&token).await, broker.client(&token).await);
    let who = async |client: &Client| client.identity().who_am_i(WhoAmIRequest {}).await;
    who(&known).await.unwrap();
    // The login reads the table; the later check reads a view that says suspended.
    broker.write_store("DROP VIEW service_overviews").await;
    broker
        .write_store(
            "CREATE VIEW service_overviews AS
             SELECT name, created_at, created_at AS suspended_at, 'meanwhile' AS suspend_reason,
                    0 AS live_leases, NULL AS last_issued_at
             FROM services",
        )
        .await;
    let refused = who(&new).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains("suspended"), "{refused:?}");
    let refusals = broker.audit().await;
    let last = refusals.iter().rfind(|r| r["event"] == "login.failed");
    assert_eq!(last.unwrap()["reason"], "SERVICE_SUSPENDED");
    // A connection that has called before is notified of suspensions, and not checked again.
    who(&known).await.unwrap();
}

/// Number of connections to the broker, from the system's table.
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
async fn a_new_certificate_is_used_without_a_restart_and_an_invalid_one_is_ignored() {
    let account = Account::new().await;
    let site = Site::new();
    let child = site.serving(&account.admin).await;
    let old = fs::read(site.path("tls.pem")).unwrap();
    // A client that trusts the old certificate shows which one the broker presents.
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
    // rcgen's own default is the year 4096.
    let expires = site.metric("credbroker_tls_certificate_expires_at_seconds");
    assert_eq!(expires.await, Some(67_090_118_400.0));
    stop(child).await;
}

#[tokio::test]
async fn connections_of_one_service_beyond_the_limit_are_refused() {
    let broker = Broker::start(&Account::new().await).await;
    let (token, other) = (broker.service("pay").await, broker.service("billing").await);
    let who = || WhoAmIRequest {};
    let mut held = Vec::new();
    for _ in 0..32 {
        let client = broker.client(&token).await;
        client.identity().who_am_i(who()).await.unwrap();
        held.push(client);
    }
    let one_more = broker.client(&token).await;
    let refused = one_more.identity().who_am_i(who()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(
        refused.message().contains("as many connections as it may"),
        "{refused:?}"
    );
    // Existing connections continue, and other callers are served.
    held[0].identity().who_am_i(who()).await.unwrap();
    broker.run_as(Some(&other), &["whoami"]).await.ok();
    held.truncate(31);
    let let_in = async || one_more.identity().who_am_i(who()).await.ok();
    eventually("there is room again", let_in).await;
}

#[tokio::test]
async fn no_session_is_resumed() {
    let broker = Broker::start(&Account::new().await).await;
    let ca = broker.setting("CREDBROKER_CA_FILE");
    let connector = connector(Path::new(ca), &TLS13);
    for _ in 0..2 {
        let stream = connector.connect(localhost(), tcp(broker.address()).await);
        let mut stream = begun(stream.await.unwrap()).await;
        let livez = frame(HEADERS, END_HEADERS | END_STREAM, 1, &call("/livez"));
        stream.write_all(&livez).await.unwrap();
        // A session ticket would come before the answer.
        while next(&mut stream).await.0 != HEADERS {}
        let (_, tls) = stream.get_ref();
        assert_eq!(tls.handshake_kind(), Some(HandshakeKind::Full));
        // Without tickets there is no early data either.
        assert_eq!(tls.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn tls_1_2_is_not_spoken() {
    let broker = Broker::start(&Account::new().await).await;
    let ca = broker.setting("CREDBROKER_CA_FILE");
    for (version, spoken) in [(&TLS13, true), (&TLS12, false)] {
        let connected = connect(broker.address(), Path::new(ca), version).await;
        assert_eq!(connected.is_ok(), spoken, "{version:?}");
    }
}

#[tokio::test]
async fn floods_end_the_connection_and_take_no_memory() {
    let broker = Broker::start(&Account::new().await).await;
    for (name, next) in FLOODS {
        let (mut reader, writer) = tokio::io::split(broker.begun().await);
        let flood = async { tokio::join!(sent(writer, next), gone(&mut reader, name)) };
        tokio::join!(flood, broker.is_served());
        assert!(broker.peak() < MEMORY_MAX, "{name}: {} kB", broker.peak());
    }
    broker.is_served().await;
}
