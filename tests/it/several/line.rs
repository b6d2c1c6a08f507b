//! A line to a server that can fail like a network: nothing passes any more, and neither end is
//! notified.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub struct Line {
    /// Address of the near end.
    pub address: String,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy)]
struct State {
    is_whole: bool,
    /// Number of times that all connections were forgotten.
    forgotten: u32,
}

/// A connection over the line.
#[derive(Clone)]
struct Connection {
    /// Value of `forgotten` when the connection was made.
    since: u32,
    state: watch::Receiver<State>,
}

impl Connection {
    /// Waits until data may pass. Returns false once the line is gone.
    async fn is_carried(&mut self) -> bool {
        let since = self.since;
        let carried = |state: &State| state.is_whole && state.forgotten == since;
        self.state.wait_for(carried).await.is_ok()
    }
}

impl Line {
    /// Creates a line to this address.
    pub async fn to(far: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (state, seen) = watch::channel(State {
            is_whole: true,
            forgotten: 0,
        });
        let far = far.to_owned();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (state, since) = (seen.clone(), seen.borrow().forgotten);
                tokio::spawn(carry(near, far.clone(), Connection { since, state }));
            }
        });
        Self { address, state }
    }

    pub fn cut(&self) {
        self.state.send_modify(|state| state.is_whole = false);
    }

    /// Restores the line. Data sent meanwhile arrives late.
    pub fn mend(&self) {
        self.state.send_modify(|state| state.is_whole = true);
    }

    /// Forgets all connections, like a firewall that has lost its table: they receive nothing any
    /// more.
    pub fn forget(&self) {
        self.state.send_modify(|state| state.forgotten += 1);
    }
}

async fn carry(near: TcpStream, far: String, mut connection: Connection) {
    if !connection.is_carried().await {
        return;
    }
    let Ok(far) = TcpStream::connect(far).await else {
        return;
    };
    let ((from_near, to_near), (from_far, to_far)) = (split(near), split(far));
    tokio::select! {
        () = pass(from_near, to_far, connection.clone()) => {}
        () = pass(from_far, to_near, connection) => {}
    }
}

/// Forwards all data while the line is whole.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut connection: Connection,
) {
    let mut bytes = vec![0; 1 << 14];
    loop {
        let count = from.read(&mut bytes).await.unwrap_or_default();
        if !connection.is_carried().await {
            return;
        }
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
