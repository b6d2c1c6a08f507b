//! Common parts of the targets: a broker's authentication, without the rest.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use credbroker::{
    authn::{
        Authentication, Authenticator, Login, PresentedCredentials,
        certificate::{Authority, VouchesFor},
        oidc::{IssuerSettings, Issuers, OperatorRule, TrustedIssuer},
    },
    broker::ports::JwksSource,
    domain::{operator::Role, principal::Origin},
    store::sqlite::SqliteStore,
};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_rustls::rustls::pki_types::CertificateDer;

/// Time at which the seeds' certificates and tokens are valid.
const NOW: i64 = 1_767_225_600;
const CA: &[u8] = include_bytes!("../seeds/ca.der");
const KEYS: &[u8] = include_bytes!("../seeds/jwks/es256.json");

/// Authentication of callers over an empty store.
pub struct Doors {
    runtime: Runtime,
    store: SqliteStore,
    _directory: TempDir,
}

struct FixedKeys(Vec<u8>);

#[async_trait]
impl JwksSource for FixedKeys {
    async fn read(&self) -> Result<Vec<u8>, String> {
        Ok(self.0.clone())
    }

    fn every(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn again_after(&self) -> Duration {
        Duration::from_secs(600)
    }
}

impl Doors {
    /// Creates an empty store.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let store = runtime.block_on(SqliteStore::open(&directory.path().join("store.db")));
        Self {
            runtime,
            store: store.expect("a store"),
            _directory: directory,
        }
    }

    /// Returns an authenticator with one authority, and one issuer with these keys.
    pub fn authenticator(&self, keys: Option<&[u8]>) -> Authenticator {
        let issuer = IssuerSettings {
            issuer: "https://issuer.example".to_owned(),
            audiences: vec!["https://broker.example".to_owned()],
            operators: vec![OperatorRule {
                claim: "groups".to_owned(),
                value: "platform".to_owned(),
                role: Role::Admin,
            }],
            name_prefix: "acme-".to_owned(),
            name_claim: "sub".to_owned(),
        };
        let keys: Arc<dyn JwksSource> = Arc::new(FixedKeys(keys.unwrap_or(KEYS).to_vec()));
        let authenticator = Authenticator {
            issuers: Issuers::new(vec![TrustedIssuer {
                settings: issuer,
                keys,
                reviewer: None,
            }]),
            ..Authenticator::default()
        };
        self.runtime.block_on(authenticator.issuers.load());
        let domain = VouchesFor::TrustDomain("prod.example".parse().expect("a trust domain"));
        let bundle = [CertificateDer::from(CA)];
        let authority = Authority::new(domain, &bundle, Vec::new());
        authenticator
            .trust
            .replace(vec![authority.expect("an authority")]);
        authenticator
    }

    /// Authenticates a caller that shows this.
    pub fn login(&self, authenticator: &Authenticator, shown: PresentedCredentials) -> Login {
        let shown = Arc::new(shown);
        let origin = Origin {
            peer: Some(SocketAddr::from(([127, 0, 0, 1], 1))),
            method: "credbroker.v1.IdentityService/WhoAmI".to_owned(),
        };
        let login = authenticator.login(&self.store, now(), origin, &shown);
        self.runtime.block_on(login)
    }
}

/// Time at which the seeds are valid.
pub fn now() -> Timestamp {
    Timestamp::from_second(NOW).expect("a time")
}

/// Splits bytes into parts; two bytes before each part have its length.
pub fn parts(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let [high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (part, left) = rest.split_at(length);
        parts.push(part);
        bytes = left;
    }
    parts
}
