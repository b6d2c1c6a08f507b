//! Connection to the broker: the listener, its certificate, and its view of the caller.

use credbroker::{
    domain::clock::wall_time,
    proto::{
        ClientCertificate, EnrollRequest, RenewCertificateRequest, WhoAmIRequest, WhoAmIResponse,
        identity_service_server::{IdentityService, IdentityServiceServer},
    },
};
use jiff::SignedDuration;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};
use tonic::{
    Request, Response, Status, async_trait,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use super::{FULL_URI, Host};
use crate::harness::{Broker, World, broker::BINARY};

/// Identity service that accepts every caller, with a clock that is wrong.
struct Elsewhen(SignedDuration);

#[async_trait]
impl IdentityService for Elsewhen {
    async fn who_am_i(
        &self,
        _: Request<WhoAmIRequest>,
    ) -> Result<Response<WhoAmIResponse>, Status> {
        let mut answer = Response::new(WhoAmIResponse {
            actor: "service:payments-api".to_owned(),
            ..WhoAmIResponse::default()
        });
        let date = wall_time() + self.0;
        let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        answer.metadata_mut().insert("date", date.parse().unwrap());
        Ok(answer)
    }

    async fn enroll(
        &self,
        _: Request<EnrollRequest>,
    ) -> Result<Response<ClientCertificate>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn renew_certificate(
        &self,
        _: Request<RenewCertificateRequest>,
    ) -> Result<Response<ClientCertificate>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Server that is not the broker; stops when dropped.
struct Somebody {
    host: Host,
    task: JoinHandle<()>,
}

impl Drop for Somebody {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Somebody {
    /// Serves with its own certificate, which the host trusts, and a clock that is wrong.
    async fn serving(certificate: CertificateParams, off: SignedDuration) -> Self {
        let key = KeyPair::generate().unwrap();
        let pem = certificate.self_signed(&key).unwrap().pem();
        let (listener, host) = host().await;
        host.write("ca", &pem);
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(pem, key.serialize_pem()));
        let mut server = Server::builder().tls_config(tls).unwrap();
        let server = server.add_service(IdentityServiceServer::new(Elsewhen(off)));
        let incoming = TcpIncoming::from(listener);
        let task = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        Self { host, task }
    }

    /// Serves another protocol.
    async fn greeting() -> Self {
        let (listener, host) = host().await;
        let key = KeyPair::generate().unwrap();
        host.write("ca", &named("127.0.0.1").self_signed(&key).unwrap().pem());
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
            }
        });
        Self { host, task }
    }
}

fn named(name: &str) -> CertificateParams {
    CertificateParams::new([name.to_owned()]).unwrap()
}

/// Creates a host that is directed to a port of this machine.
async fn host() -> (TcpListener, Host) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut host = Host::new("cbs_none");
    let ca = host.path("ca").display().to_string();
    let address = format!("https://{}", listener.local_addr().unwrap());
    host.set("CREDBROKER_ADDR", &address);
    host.set("CREDBROKER_CA_FILE", &ca);
    host.set("CREDBROKER_TOKEN", "cbs_none");
    let process = format!("[default]\ncredential_process = \"{BINARY}\" credential-process role\n");
    host.write(".aws/config", &process);
    (listener, host)
}

#[tokio::test]
async fn a_setting_that_is_missing_or_cannot_be_read_is_found() {
    let world = World::new().await;
    let host = || Host::by_process(&world, "role");
    for name in ["CREDBROKER_ADDR", "CREDBROKER_CA_FILE", "CREDBROKER_TOKEN"] {
        let mut host = host();
        host.env.remove(name);
        host.asks(&[])
            .await
            .finds("problem", "broker_settings", 2, name);
    }
    for (name, value, words) in [
        ("CREDBROKER_ADDR", "127.0.0.1:8443", "https://"),
        ("CREDBROKER_CA_FILE", "/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("CREDBROKER_CA_FILE", "/etc/hostname", "no certificate"),
        ("CREDBROKER_TOKEN_FILE", "/nowhere/token", "/nowhere/token"),
    ] {
        let mut host = host();
        host.set(name, value);
        let said = host.asks(&[]).await;
        said.finds("problem", "broker_settings", 2, words);
        for later in ["broker_name", "broker_tls", "caller", "clock", "grant"] {
            assert_eq!(said.of(later)["state"], "skipped");
        }
    }
    host().asks(&[]).await.is_healthy();
}

#[tokio::test]
async fn each_connection_failure_is_distinguished() {
    let world = World::new().await;
    let mut host = Host::by_process(&world, "role");
    host.set("CREDBROKER_ADDR", "https://nowhere.invalid:8443");
    let nowhere = host.asks(&[]).await;
    nowhere.finds(
        "problem",
        "broker_name",
        7,
        "nowhere.invalid does not resolve",
    );
    // The socket stays open, so that no other process listens there.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
    host.set(
        "CREDBROKER_ADDR",
        &format!("https://{}", closed.local_addr().unwrap()),
    );
    let closed = host.asks(&[]).await;
    closed.finds("problem", "broker_tcp", 7, "no process listens");
    let greeting = Somebody::greeting().await;
    let greeting = greeting.host.asks(&[]).await;
    greeting.finds("problem", "broker_tls", 7, "does not speak TLS");

    let other = Broker::start(&world.account).await;
    let mut host = Host::by_process(&world, "role");
    host.set("CREDBROKER_CA_FILE", other.setting("CREDBROKER_CA_FILE"));
    let said = host.asks(&[]).await;
    said.finds("problem", "broker_tls", 7, "is not of a CA in");
    let skipped = [
        "endpoint_url",
        "endpoint_token",
        "endpoint_trust",
        "caller",
        "endpoint_caller",
        "clock",
        "grant",
    ];
    assert_eq!(said.all("skipped"), skipped);
}

#[tokio::test]
async fn a_certificate_of_another_name_or_time_is_distinguished() {
    let now = SignedDuration::ZERO;
    let mut over = named("127.0.0.1");
    over.not_after = date_time_ymd(2020, 1, 1);
    let mut early = named("127.0.0.1");
    early.not_before = date_time_ymd(4000, 1, 1);
    for (certificate, words) in [
        (named("broker.example"), "for another name than 127.0.0.1"),
        (over, "has expired"),
        (early, "is not valid yet"),
    ] {
        let somebody = Somebody::serving(certificate, now).await;
        let said = somebody.host.asks(&[]).await;
        said.finds("problem", "broker_tls", 7, words);
    }
    let well = Somebody::serving(named("127.0.0.1"), now).await;
    let said = well.host.asks(&[]).await;
    assert_eq!(said.of("caller")["state"], "ok");
}

#[tokio::test]
async fn a_clock_that_is_off_is_found() {
    for (seconds, state, words) in [
        (0, "ok", "agrees"),
        (-60, "warning", "ahead of"),
        (60, "warning", "behind"),
        (600, "problem", "AWS refuses signatures"),
    ] {
        let off = SignedDuration::from_secs(seconds);
        let somebody = Somebody::serving(named("127.0.0.1"), off).await;
        let said = somebody.host.asks(&[]).await;
        let clock = said.of("clock");
        assert_eq!(clock["state"], state, "{clock}");
        assert!(clock["what"].as_str().unwrap().contains(words), "{clock}");
    }
}

#[tokio::test]
async fn a_caller_that_the_broker_does_not_take_for_a_service_is_found() {
    let world = World::new().await;
    let admin = world.broker.admin_token();
    for (token, code, words) in [
        ("cbs_rubbish", 3, "token was not accepted"),
        (admin, 4, "not for a service"),
    ] {
        let mut process = Host::by_process(&world, "role");
        process.set("CREDBROKER_TOKEN", token);
        let said = process.asks(&[]).await;
        said.finds("problem", "caller", code, words);
        assert!(!said.run.stdout.contains(token));

        // The token of the SDKs counts, whatever the program has itself.
        let mut endpoint = Host::by_endpoint(&world, "role");
        endpoint.set("CREDBROKER_ADDR", world.broker.setting("CREDBROKER_ADDR"));
        endpoint.set(
            "CREDBROKER_CA_FILE",
            world.broker.setting("CREDBROKER_CA_FILE"),
        );
        endpoint.set("CREDBROKER_TOKEN", &world.token);
        endpoint.asks(&[]).await.is_healthy();
        endpoint.write("token", token);
        let said = endpoint.asks(&[]).await;
        said.finds("problem", "endpoint_caller", code, words);
        assert_eq!(said.of("grant")["state"], "skipped");
    }
}

#[tokio::test]
async fn an_endpoint_that_the_machine_does_not_trust_or_that_is_another_broker_is_found() {
    let world = World::new().await;
    let other = Broker::start(&world.account).await;
    let mut host = Host::by_endpoint(&world, "role");
    host.set("CREDBROKER_ADDR", world.broker.setting("CREDBROKER_ADDR"));
    host.set(
        "CREDBROKER_CA_FILE",
        world.broker.setting("CREDBROKER_CA_FILE"),
    );
    host.asks(&[]).await.is_healthy();
    host.set("SSL_CERT_FILE", other.setting("CREDBROKER_CA_FILE"));
    let said = host.asks(&[]).await;
    said.finds(
        "warning",
        "endpoint_trust",
        0,
        "certificates of this machine",
    );
    assert_eq!(said.of("grant")["state"], "ok");

    let mut host = Host::by_endpoint(&world, "role");
    host.set("CREDBROKER_ADDR", other.setting("CREDBROKER_ADDR"));
    host.set("CREDBROKER_CA_FILE", other.setting("CREDBROKER_CA_FILE"));
    host.set("CREDBROKER_TOKEN", &other.service("payments-api").await);
    let said = host.asks(&[]).await;
    let settings = said.of("broker_settings");
    assert_eq!(settings["state"], "warning", "{settings}");
    host.set(
        FULL_URI,
        &format!("{}/v1/credentials/role", other.setting("CREDBROKER_ADDR")),
    );
    let said = host.asks(&[]).await;
    assert_eq!(said.of("broker_settings")["state"], "ok");
}
