//! Attacks by peers that speak HTTP/2 as they should, as fast as they can.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
};

use axum::{body::Bytes, http::Request};
use h2::client::SendRequest;
use tokio::{net::TcpSocket, runtime, task::JoinSet};
use tokio_rustls::rustls::version::TLS13;
use tokio_util::sync::CancellationToken;

use super::{
    h2::{Stream, connector, localhost},
    site::Site,
};

/// Calls at a time over one connection.
const AT_A_TIME: usize = 32;
/// Empty message of a call: not compressed, no bytes.
const EMPTY: [u8; 5] = [0; 5];

/// Calls that an attacker repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Calls that never send their message.
    SilentBodies,
    /// Calls that the broker answers.
    WhoAmI,
    /// Calls of methods that services may not call.
    Refused,
    /// Streams that stay open.
    Watches,
}

/// Worst attacks that one token allows.
pub const ATTACKS: [Attack; 4] = [
    Attack::SilentBodies,
    Attack::WhoAmI,
    Attack::Refused,
    Attack::Watches,
];

impl Attack {
    const fn path(self) -> &'static str {
        match self {
            Self::SilentBodies | Self::WhoAmI => "/credbroker.v1.IdentityService/WhoAmI",
            Self::Refused => "/credbroker.v1.AdminService/GetStatus",
            Self::Watches => "/credbroker.v1.CredentialService/WatchRevocations",
        }
    }
}

/// A broker, and the address and token of its attacker.
#[derive(Clone)]
pub struct Attacker {
    pub broker: SocketAddr,
    pub ca_file: PathBuf,
    pub from: Ipv4Addr,
    pub token: String,
    pub attack: Attack,
}

impl Attacker {
    pub fn new(site: &Site, from: Ipv4Addr, token: &str, attack: Attack) -> Self {
        Self {
            broker: site.address.parse().unwrap(),
            ca_file: site.path("tls.pem"),
            from,
            token: token.to_owned(),
            attack,
        }
    }

    /// Attacks over one connection after another.
    async fn goes_on(&self) {
        loop {
            if let Ok(stream) = self.connected().await {
                // Any end of the connection is accepted.
                let _ = self.over(stream).await;
            }
        }
    }

    /// Opens a TCP connection from the attacker's address.
    pub async fn tcp(&self) -> io::Result<tokio::net::TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from, 0).into())?;
        socket.connect(self.broker).await
    }

    pub async fn connected(&self) -> io::Result<Stream> {
        let connector = connector(&self.ca_file, &TLS13);
        connector.connect(localhost(), self.tcp().await?).await
    }

    /// Attacks over this connection until it ends.
    pub async fn over(&self, stream: Stream) -> Result<(), h2::Error> {
        let (client, connection) = h2::client::handshake(stream).await?;
        let mut calls = JoinSet::new();
        for _ in 0..AT_A_TIME {
            calls.spawn(self.clone().calls(client.clone()));
        }
        connection.await
    }

    async fn calls(self, mut client: SendRequest<Bytes>) -> Result<(), h2::Error> {
        let request = Request::post(format!("https://localhost{}", self.attack.path()))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", self.token))
            .body(())
            .unwrap();
        loop {
            client = client.ready().await?;
            let (answer, mut message) = client.send_request(request.clone(), false)?;
            if self.attack != Attack::SilentBodies {
                message.send_data(Bytes::from_static(&EMPTY), true)?;
            }
            let mut answer = answer.await?.into_body();
            while let Some(data) = answer.data().await {
                answer.flow_control().release_capacity(data?.len())?;
            }
        }
    }
}

/// Attackers in a thread of their own, with the lowest priority that the system has.
pub struct Attackers {
    stop: CancellationToken,
    thread: thread::JoinHandle<()>,
}

impl Attackers {
    pub fn begin(attackers: Vec<Attacker>) -> Self {
        let stop = CancellationToken::new();
        let told = stop.clone();
        let thread = thread::spawn(move || {
            rustix::process::nice(19).unwrap();
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let attacks = async {
                let mut going_on = JoinSet::new();
                for attacker in attackers {
                    going_on.spawn(async move { attacker.goes_on().await });
                }
                going_on.join_all().await;
            };
            let _ = runtime.unwrap().block_on(told.run_until_cancelled(attacks));
        });
        Self { stop, thread }
    }

    pub fn end(self) {
        self.stop.cancel();
        self.thread.join().unwrap();
    }
}
