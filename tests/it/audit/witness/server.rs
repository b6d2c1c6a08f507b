//! A witness like C2SP tlog-witness describes: it stores the newest checkpoint of each known log,
//! and cosigns its successors. <https://c2sp.org/tlog-witness>

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{Ed25519KeyPair, KeyPair},
};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use credbroker::{
    audit::{
        checkpoint::Checkpoint,
        note::{self, Verifier},
        tree::{EMPTY, Hash, extends},
    },
    domain::connection_limits::ConnectionLimits,
    http::{
        listener::{ListenerConfig, serve},
        tls,
    },
};
use data_encoding::{BASE64, HEXLOWER};
use tokio::{
    net::TcpListener,
    sync::{broadcast::Sender, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::harness::{free_address, listening, site::Site};

const NAME: &str = "witness.example/w1";
const NOT_ITS_SEED: [u8; 32] = [8; 32];

/// A log that the witness knows.
struct Log {
    keys: Vec<Verifier>,
    size: u64,
    root: Hash,
}

#[derive(Clone)]
pub struct Witness {
    port: u16,
    logs: Arc<Mutex<BTreeMap<String, Log>>>,
    /// Status of each answer.
    answered: Arc<Mutex<Vec<u16>>>,
    seed: [u8; 32],
}

/// A running witness.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

impl Witness {
    /// Creates a witness that does not run yet.
    pub fn new() -> Self {
        Self {
            port: free_address().port(),
            logs: Arc::default(),
            answered: Arc::default(),
            seed: [7; 32],
        }
    }

    /// Returns the same witness with a wrong key.
    pub fn with_another_key(&self) -> Self {
        Self {
            seed: NOT_ITS_SEED,
            ..self.clone()
        }
    }

    /// Settings of the broker for this witness.
    pub fn settings(&self, site: &Site) -> String {
        let (port, key, ca) = (self.port, self.key(), site.text("tls.pem"));
        format!(
            "[audit.witness]\nurl = \"https://localhost:{port}/submit/\"\nkey = {key:?}\nca_file = {ca:?}\n"
        )
    }

    /// Key of the witness as tlog-cosignature writes it.
    fn key(&self) -> String {
        let (id, typed) = self.id_and_key();
        format!("{NAME}+{}+{}", HEXLOWER.encode(&id), BASE64.encode(&typed))
    }

    fn id_and_key(&self) -> (Vec<u8>, Vec<u8>) {
        let typed = [&[4], self.pair().public_key().as_ref()].concat();
        let named = [NAME.as_bytes(), b"\n", &typed].concat();
        (digest(&SHA256, &named).as_ref()[..4].to_vec(), typed)
    }

    fn pair(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&self.seed).unwrap()
    }

    /// Binds the witness's address.
    pub async fn listener(&self) -> TcpListener {
        listening(([127, 0, 0, 1], self.port).into()).await
    }

    /// Serves with the certificate of `site`.
    pub async fn start(&self, site: &Site) -> Running {
        let listener = self.listener().await;
        let tls = tls::from_files(
            &site.path("tls.pem"),
            &site.path("tls.key"),
            tls::ClientCertificates::NotAsked,
        )
        .unwrap();
        let router = Router::new()
            .route("/submit/add-checkpoint", post(add_checkpoint))
            .with_state(self.clone());
        let stop = CancellationToken::new();
        let listening = ListenerConfig {
            listener,
            tls: watch::channel(tls).1,
            bounds: ConnectionLimits::default(),
        };
        let task = tokio::spawn(serve(listening, router, Sender::new(1), stop.clone()));
        Running { stop, task }
    }

    /// Adds this key's log to the known logs.
    pub fn trust(&self, key: Verifier) {
        let mut logs = self.logs.lock().unwrap();
        let log = logs.entry(key.name().to_owned()).or_insert(Log {
            keys: Vec::new(),
            size: 0,
            root: EMPTY,
        });
        log.keys.push(key);
    }

    /// Size of the one known log.
    pub fn size(&self) -> u64 {
        self.logs.lock().unwrap().values().map(|log| log.size).sum()
    }

    /// Makes the witness believe that it has seen another log of this size.
    pub fn has_seen_another(&self, size: u64) {
        for log in self.logs.lock().unwrap().values_mut() {
            (log.size, log.root) = (size, [7; 32]);
        }
    }

    /// Number of answers with this status.
    pub fn answered(&self, status: u16) -> usize {
        let answered = self.answered.lock().unwrap();
        answered.iter().filter(|other| **other == status).count()
    }

    fn consider(&self, request: &Request) -> Result<String, Response> {
        let refused = |status: StatusCode| status.into_response();
        let mut logs = self.logs.lock().unwrap();
        let (origin, _) = request.note.split_once('\n').unwrap();
        let log = logs
            .get_mut(origin)
            .ok_or_else(|| refused(StatusCode::NOT_FOUND))?;
        let text = note::open(request.note, &log.keys).map_err(|_| refused(StatusCode::FORBIDDEN));
        let text = text?;
        let Checkpoint { size, root, .. } = Checkpoint::parse(text).unwrap();
        if request.old > size {
            return Err(refused(StatusCode::BAD_REQUEST));
        }
        if request.old != log.size || (request.old == size && root != log.root) {
            let header = [(CONTENT_TYPE, "text/x.tlog.size")];
            let size = format!("{}\n", log.size);
            return Err((StatusCode::CONFLICT, header, size).into_response());
        }
        if !extends(&root, size, &log.root, log.size, &request.proof) {
            return Err(refused(StatusCode::UNPROCESSABLE_ENTITY));
        }
        (log.size, log.root) = (size, root);
        Ok(self.cosign(text, 1_800_000_000 + size))
    }

    fn cosign(&self, text: &str, time: u64) -> String {
        let message = format!("cosignature/v1\ntime {time}\n{text}");
        let signature = self.pair().sign(message.as_bytes());
        let (id, _) = self.id_and_key();
        let bytes = [&id, &time.to_be_bytes()[..], signature.as_ref()].concat();
        // A key that the log does not know has signed as well.
        let unknown = BASE64.encode(&[9; 76]);
        let own = BASE64.encode(&bytes);
        format!("\u{2014} witness.example/w2 {unknown}\n\u{2014} {NAME} {own}\n")
    }
}

/// Parsed request.
struct Request<'a> {
    old: u64,
    proof: Vec<Hash>,
    note: &'a str,
}

impl<'a> Request<'a> {
    fn read(body: &'a str) -> Self {
        let (head, note) = body.split_once("\n\n").unwrap();
        let mut lines = head.split('\n');
        let old = lines.next().unwrap().strip_prefix("old ").unwrap();
        let number: u64 = old.parse().unwrap();
        assert_eq!(old, number.to_string());
        let hash = |line: &str| BASE64.decode(line.as_bytes()).unwrap().try_into().unwrap();
        let proof: Vec<Hash> = lines.map(hash).collect();
        assert!(proof.len() <= 63);
        Self {
            old: number,
            proof,
            note,
        }
    }
}

async fn add_checkpoint(
    State(witness): State<Witness>,
    headers: HeaderMap,
    body: String,
) -> Response {
    assert!(headers.contains_key("host"));
    let answer = match witness.consider(&Request::read(&body)) {
        Ok(lines) => lines.into_response(),
        Err(refused) => refused,
    };
    let status = answer.status().as_u16();
    witness.answered.lock().unwrap().push(status);
    answer
}
