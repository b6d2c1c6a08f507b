//! `credbroker dev`: a broker for trying things out. One directory holds all it needs: the store, a
//! CA of its own, and `env` with the settings of a client.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest;
use data_encoding::{BASE64, HEXLOWER};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch};
use tokio_rustls::rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{
    Addresses, Assembled, Aws, BrokerSettings, LogKeeping, StartError, assemble, aws, bind,
    client_ca_reload, file_error, run, sealing_key, stores, tolerate_silence,
};
use crate::{
    authn::{Authenticator, token},
    aws::{AwsSettings, chain_region},
    broker::AdminKeyPolicy,
    config::{Enrollment, StoreAt},
    domain::{
        arn::Partition,
        connection_limits::ConnectionLimits,
        denial::Placements,
        principal::Origin,
        random::{Random, SystemRandom},
        sealing::SealingKey,
        service::Limits,
    },
    http::{
        install_metrics,
        listener::ListenerConfig,
        tls::{self, ClientCertificates},
    },
    process_hardening,
    store::checkpoint_file::replace_file,
};

/// Domain of the SPIFFE IDs of enrolled hosts.
const TRUST_DOMAIN: &str = "dev.credbroker";
const CERTIFICATE_TTL: Duration = Duration::from_hours(24);

/// Region if the standard AWS chain names none.
const DEFAULT_REGION: &str = "us-east-1";

/// Name of the file of the sealing key.
pub(super) const SEALING_KEY: &str = "seal.key";

/// Name of the checkpoint file.
pub(super) const CHECKPOINT: &str = "checkpoint";

/// Rate that never limits: an emulator accepts all calls, and AWS itself throttles.
const CALLS_PER_SECOND: u32 = 10_000;

/// Options of `credbroker dev`.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// Directory of everything that `dev` stores.
    pub state_dir: PathBuf,
    /// Alternative endpoint for STS and IAM.
    pub aws_endpoint_url: Option<String>,
    /// URL of a PostgreSQL database, to use instead of the embedded store.
    pub database: Option<SecretString>,
}

impl DevOptions {
    fn store(&self, dir: &Path) -> StoreAt {
        let file = dir.join("credbroker.db");
        match &self.database {
            None => StoreAt::File(file),
            Some(url) => StoreAt::Database {
                url: url.clone(),
                emergency_file: file.with_extension("db.emergency"),
            },
        }
    }
}

/// Serves until a signal. A second start with the same directory resumes with the same address, CA
/// and operator token.
///
/// # Errors
/// The reason why the broker does not start or fails at its end.
pub async fn dev(options: DevOptions) -> Result<(), StartError> {
    process_hardening::seal().map_err(StartError::Memory)?;
    install_metrics();
    let dir = &options.state_dir;
    private_dir(dir).map_err(file_error(dir))?;
    let aws = aws_of_chain(AwsSettings {
        endpoint_url: options.aws_endpoint_url.clone(),
        iam_calls_per_second: CALLS_PER_SECOND,
        sts_calls_per_second: CALLS_PER_SECOND,
        ..AwsSettings::default()
    });
    let aws = aws.await;
    let custody = AdminKeyPolicy {
        sealing: Some(own_sealing_key(&dir.join(SEALING_KEY))?),
        rotate_every: None,
    };
    let store = options.store(dir);
    if matches!(store, StoreAt::Database { .. }) {
        stores::migrate(&store).await?;
    }
    let limits = Limits {
        calls_per_second: CALLS_PER_SECOND,
        issues_per_second: CALLS_PER_SECOND,
        users_per_minute: CALLS_PER_SECOND,
        ..Limits::default()
    };
    let log = LogKeeping {
        anchor: Some(dir.join(CHECKPOINT)),
        keep: Duration::ZERO,
        witness: None,
    };
    let (ca_file, tls) = certificates(dir)?;
    let (ca, authority) = client_ca_reload::own(&enrollment(dir)?)?;
    let authenticator = Arc::new(Authenticator::default());
    authenticator.trust.replace(vec![authority]);
    let own = BrokerSettings {
        custody,
        two_person: false,
        authority: Some(Arc::new(ca)),
        authenticator,
    };
    let assembled = assemble(&store, aws, limits, own, Placements::default(), log).await?;
    tolerate_silence(
        assembled.issuer.ensure_boundary().await,
        assembled.keeps_key,
    )?;

    let env_file = dir.join("env");
    let before = Env::read(&env_file)?;
    let listener = listen(before.as_ref()).await?;
    let address = listener.local_addr().map_err(file_error(&env_file))?;
    let token = operator_token(&assembled, before).await?;
    Env { address, token }
        .write(&env_file, &ca_file)
        .map_err(file_error(&env_file))?;
    let listening = ListenerConfig {
        listener,
        tls: watch::channel(tls).1,
        // All clients here are on one machine.
        bounds: ConnectionLimits {
            connections_per_address: ConnectionLimits::default().connections,
            shutdown_delay: Duration::ZERO,
            ..ConnectionLimits::default()
        },
    };
    let at = Addresses {
        all: listening,
        operators: None,
    };
    // SIGHUP comes when the terminal is closed.
    let ends = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ];
    run(assembled, at, Vec::new(), &ends, move || {
        tracing::info!(%address, "serving; in another shell: . {}", env_file.display());
        println!("ready");
    })
    .await
}

/// Returns access to AWS in the region that the standard AWS chain names.
pub(super) async fn aws_of_chain(settings: AwsSettings) -> Aws {
    let region = chain_region().await.unwrap_or(DEFAULT_REGION.to_owned());
    let partition = Partition::for_region(&region);
    let region = Some(region);
    aws(&AwsSettings { region, ..settings }, partition).await
}

/// Returns the sealing key of the directory, created at the first start.
fn own_sealing_key(path: &Path) -> Result<SealingKey, StartError> {
    if !path.exists() {
        let mut bytes = [0; 32];
        SystemRandom.fill(&mut bytes);
        let text = SecretString::from(BASE64.encode(&bytes));
        replace_file(path, text.expose_secret().as_bytes()).map_err(file_error(path))?;
    }
    sealing_key(path)
}

/// Listens on the address of the last start, or on a free port of this machine.
async fn listen(before: Option<&Env>) -> Result<TcpListener, StartError> {
    let address = before.map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |env| {
        env.address
    });
    bind(address).await
}

/// Returns the token of the last start if the store still accepts it, or a new one.
async fn operator_token(
    assembled: &Assembled,
    before: Option<Env>,
) -> Result<SecretString, StartError> {
    if let Some(env) = before {
        let origin = Origin {
            peer: None,
            method: String::new(),
        };
        let header = SecretString::from(format!("Bearer {}", env.token.expose_secret()));
        let broker = &assembled.broker;
        let login = token::authenticate(
            broker.store(),
            broker.now(),
            origin,
            Some(header.expose_secret()),
        )
        .await;
        if login.is_ok() {
            return Ok(env.token);
        }
    }
    let new = assembled.broker.new_admin_token()?;
    assembled.broker.install_admin(&new).await?;
    Ok(new.token.text().clone())
}

/// Settings of a client, from `DIR/env`.
struct Env {
    address: SocketAddr,
    token: SecretString,
}

impl Env {
    fn read(path: &Path) -> Result<Option<Self>, StartError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => SecretString::from(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(path)(error)),
        };
        let value = |name: &str| {
            let line = format!("export {name}='");
            let found = text
                .expose_secret()
                .lines()
                .find_map(|l| l.strip_prefix(line.as_str()));
            found
                .and_then(|rest| rest.strip_suffix('\''))
                .map(ToOwned::to_owned)
        };
        let address = value("CREDBROKER_ADDR").and_then(|url| {
            url.strip_prefix("https://")
                .and_then(|address| address.parse().ok())
        });
        let token = value("CREDBROKER_TOKEN").map(SecretString::from);
        match (address, token) {
            (Some(address), Some(token)) => Ok(Some(Self { address, token })),
            _ => Err(StartError::State {
                path: path.to_owned(),
                detail: "it does not name an address and a token".to_owned(),
            }),
        }
    }

    fn write(&self, path: &Path, ca_file: &Path) -> io::Result<()> {
        let text = format!(
            "export CREDBROKER_ADDR='https://{}'\nexport CREDBROKER_CA_FILE='{}'\nexport CREDBROKER_TOKEN='{}'\n",
            self.address,
            quoted(ca_file),
            self.token.expose_secret(),
        );
        replace_file(path, text.as_bytes())
    }
}

/// Returns a path escaped for single quotes of a shell.
fn quoted(path: &Path) -> String {
    path.display().to_string().replace('\'', r"'\''")
}

/// Returns the settings by which hosts enrol with the CA of the directory.
fn enrollment(dir: &Path) -> Result<Enrollment, StartError> {
    let trust_domain = TRUST_DOMAIN.parse().map_err(|error| StartError::State {
        path: dir.to_owned(),
        detail: format!("{error}"),
    })?;
    Ok(Enrollment {
        trust_domain,
        ca_cert_file: dir.join("ca.pem"),
        ca_key_file: dir.join("ca-key.pem"),
        certificate_ttl: CERTIFICATE_TTL,
    })
}

/// Returns the CA's file in the directory, created at the first start, and TLS settings with a new
/// certificate under the CA. The key of the new certificate is never on the disk.
fn certificates(dir: &Path) -> Result<(PathBuf, Arc<ServerConfig>), StartError> {
    let (ca_file, key_file) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
    let damaged = |error: &dyn std::fmt::Display| StartError::State {
        path: key_file.clone(),
        detail: error.to_string(),
    };
    let ca_key = match fs::read_to_string(&key_file) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|e| damaged(&e))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(|e| damaged(&e))?;
            replace_file(&key_file, key.serialize_pem().as_bytes())
                .map_err(file_error(&key_file))?;
            key
        }
        Err(error) => return Err(file_error(&key_file)(error)),
    };
    let ca = ca_params(&ca_key);
    if !ca_file.exists() {
        let pem = ca.self_signed(&ca_key).map_err(|e| damaged(&e))?.pem();
        replace_file(&ca_file, pem.as_bytes()).map_err(file_error(&ca_file))?;
    }
    let leaf_key = KeyPair::generate().map_err(|e| damaged(&e))?;
    let leaf = leaf_params()
        .and_then(|params| params.signed_by(&leaf_key, &Issuer::new(ca, ca_key)))
        .map_err(|e| damaged(&e))?;
    let private = PrivateKeyDer::from_pem_slice(leaf_key.serialize_pem().as_bytes())
        .map_err(|e| damaged(&e))?;
    let chain = vec![CertificateDer::from(leaf.der().to_vec())];
    let ca_file = fs::canonicalize(&ca_file).map_err(file_error(&ca_file))?;
    Ok((
        ca_file,
        tls::server_config(chain, private, ClientCertificates::Asked)?,
    ))
}

/// Returns the settings of the CA. Its name comes from its key, so that the CAs of two directories
/// are never confused.
fn ca_params(key: &KeyPair) -> CertificateParams {
    let sum = digest::digest(&digest::SHA256, key.public_key_raw());
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!(
        "credbroker dev CA {}",
        HEXLOWER.encode(&sum.as_ref()[..4])
    ));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params() -> Result<CertificateParams, rcgen::Error> {
    let names = ["localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned);
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = named("credbroker dev");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}
