//! `credbroker serve`: production, from a configuration file.

use std::{fs, path::Path, sync::Arc};

use data_encoding::BASE64;
use secrecy::ExposeSecret;
use tokio::{signal::unix::SignalKind, sync::watch};
use tokio_rustls::rustls::ServerConfig;

use super::{
    Addresses, Assembled, BrokerSettings, LogKeeping, StartError, assemble, aws, bind,
    client_ca_reload, file_error, not_sealing, reload::Reloading, run, sealing_key,
    tolerate_silence,
};
use crate::{
    authn::{
        Authenticator,
        oidc::{IssuerSettings, Issuers, OperatorRule, TrustedIssuer},
    },
    aws::{AwsSettings, kms},
    broker::{
        AdminKeyPolicy, NewToken,
        ports::{CertificateAuthority, JwksSource, Sink, TokenReviewer, Witness},
    },
    config::{self, Config, Destination, KeysAt},
    domain::sealing::{SealError, SealingKey},
    http::{
        install_metrics,
        listener::ListenerConfig,
        tls::{self, ClientCertificates},
    },
    process_hardening,
    sink::{
        FileSink, HttpsKeys, HttpsWitness, KeyFile, Server, SetupError, SyslogSink, TokenReview,
        WebhookSink,
    },
    store::checkpoint_file::replace_file,
};

/// Parts made from a configuration, before the store or AWS is called.
struct Prepared {
    tls: Arc<ServerConfig>,
    clients: ClientCertificates,
    authenticator: Arc<Authenticator>,
    trusted: client_ca_reload::CaFiles,
    sinks: Vec<Arc<dyn Sink>>,
}

fn prepare(config: &Config) -> Result<Prepared, StartError> {
    let clients = if config.client_authorities.is_empty() && config.enrollment.is_none() {
        ClientCertificates::NotAsked
    } else {
        ClientCertificates::Asked
    };
    let (cert, key) = (&config.listen.tls_cert_file, &config.listen.tls_key_file);
    let tls = tls::from_files(cert, key, clients)?;
    let authenticator = authenticator(config)?;
    let (configured, enrollment) = (config.client_authorities.clone(), config.enrollment.clone());
    Ok(Prepared {
        tls,
        clients,
        trusted: client_ca_reload::CaFiles::taken(configured, enrollment, &authenticator)?,
        authenticator,
        sinks: sinks(&config.audit.sinks)?,
    })
}

/// Checks a configuration and the files that it names. Calls neither the store nor AWS.
///
/// # Errors
/// A broker would not start with this configuration.
pub fn check(config: &Config) -> Result<(), StartError> {
    prepare(config)?;
    config.audit.witness.as_ref().map(witness).transpose()?;
    match (
        &config.admin_key.sealing_key_file,
        &config.admin_key.sealing_kms_region,
    ) {
        (Some(path), None) => sealing_key(path).map(drop),
        _ => Ok(()),
    }
}

/// Serves until a signal, with the configuration in a file, which SIGHUP reloads.
///
/// # Errors
/// The reason why the broker does not start or fails at its end.
pub async fn serve(path: &Path, config: Config) -> Result<(), StartError> {
    let reloading = Reloading::begin(path, &config).map_err(file_error(path))?;
    process_hardening::seal().map_err(StartError::Memory)?;
    install_metrics();
    let Prepared {
        tls,
        clients,
        authenticator,
        trusted,
        sinks,
    } = prepare(&config)?;
    authenticator.issuers.load().await;
    let may_be_imported = config.admin_key.sealing_key_file.is_some();
    let assembled = assembled(&config, Arc::clone(&authenticator), trusted.own()).await?;
    tolerate_silence(assembled.issuer.check_boundary().await, may_be_imported)?;
    first_operator(&assembled, &config.operators.bootstrap_token_file).await?;
    let listener = bind(config.listen.address).await?;
    let administrative = match config.listen.admin_address {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let address = listener.local_addr().unwrap_or(config.listen.address);
    let trusting = tokio::spawn(trusted.run_reload(Arc::clone(&authenticator)));
    let reloading = reloading.keep(Arc::clone(&assembled.broker), Arc::clone(&authenticator));
    let reloading = tokio::spawn(reloading);
    let issuing = tokio::spawn(async move { authenticator.issuers.keep().await });
    let ready = move || tracing::info!(%address, "serving");
    let (shown, tls) = watch::channel(tls);
    let (cert, key) = (
        config.listen.tls_cert_file.clone(),
        config.listen.tls_key_file.clone(),
    );
    let showing = tokio::spawn(async move { tls::run_reload(&cert, &key, clients, shown).await });
    let bounds = &config.listen.bounds;
    let listening = |listener| ListenerConfig {
        listener,
        tls: tls.clone(),
        bounds: bounds.clone(),
    };
    let at = Addresses {
        all: listening(listener),
        operators: administrative.map(listening),
    };
    let ends = [SignalKind::terminate(), SignalKind::interrupt()];
    let ended = run(assembled, at, sinks, &ends, ready).await;
    trusting.abort();
    issuing.abort();
    reloading.abort();
    showing.abort();
    ended
}

/// Creates the authenticator of tokens: the broker's own, and those of the configured issuers. The
/// CAs for client certificates are added by [`client_ca_reload::CaFiles`].
pub(super) fn authenticator(config: &Config) -> Result<Arc<Authenticator>, StartError> {
    Ok(Arc::new(Authenticator {
        issuers: issuers(&config.issuers)?,
        ..Authenticator::default()
    }))
}

/// Assembles the broker of a configuration, before it serves.
pub(super) async fn assembled(
    config: &Config,
    authenticator: Arc<Authenticator>,
    authority: Option<Arc<dyn CertificateAuthority>>,
) -> Result<Assembled, StartError> {
    let log = LogKeeping {
        anchor: config.audit.checkpoint_file.clone(),
        keep: config.audit.keep,
        witness: config.audit.witness.as_ref().map(witness).transpose()?,
    };
    let custody = custody(config).await?;
    let aws = aws(&settings(&config.aws), config.aws.partition).await;
    let (limits, placements) = (config.limits, config.revocation.clone());
    let own = BrokerSettings {
        custody,
        two_person: config.operators.two_person,
        authority,
        authenticator,
    };
    assemble(&config.store, aws, limits, own, placements, log).await
}

fn sinks(configured: &[config::Sink]) -> Result<Vec<Arc<dyn Sink>>, StartError> {
    let set_up = |configured: &config::Sink| {
        sink(configured).map_err(|source| StartError::Sink {
            name: configured.name.clone(),
            source,
        })
    };
    configured.iter().map(set_up).collect()
}

fn sink(configured: &config::Sink) -> Result<Arc<dyn Sink>, SetupError> {
    let name = configured.name.clone();
    Ok(match &configured.to {
        Destination::File {
            path,
            rotate_mib,
            keep,
        } => {
            let rotate_at = u64::from(*rotate_mib) << 20;
            Arc::new(FileSink::new(name, path.clone(), rotate_at, *keep))
        }
        Destination::Syslog { server: to } => Arc::new(SyslogSink::new(name, server(to)?)),
        Destination::Webhook {
            server: to,
            path,
            token_file,
        } => {
            let (server, path) = (server(to)?, path.clone());
            let sink = WebhookSink::new(name, server, path, token_file.as_deref());
            Arc::new(sink?)
        }
    })
}

fn issuers(configured: &[config::Issuer]) -> Result<Issuers, StartError> {
    let mut issuers = Vec::new();
    for issuer in configured {
        let keys: Arc<dyn JwksSource> = match &issuer.keys {
            KeysAt::File(path) => Arc::new(KeyFile::new(path.clone())),
            KeysAt::Url { server: at, path } => {
                let server = server(at).map_err(unasked(issuer))?;
                Arc::new(HttpsKeys::new(server, path.clone()))
            }
        };
        let rule = |rule: &config::OperatorRule| OperatorRule {
            claim: rule.claim.clone(),
            value: rule.value.clone(),
            role: rule.role,
        };
        let settings = IssuerSettings {
            issuer: issuer.issuer.clone(),
            audiences: issuer.audiences.clone(),
            operators: issuer.operators.iter().map(rule).collect(),
            name_prefix: issuer.operator_prefix.clone().unwrap_or_default(),
            name_claim: issuer.operator_name_claim.clone(),
        };
        let reviewer: Option<Arc<dyn TokenReviewer>> = match &issuer.review {
            Some(review) => {
                let server = server(&review.server).map_err(unasked(issuer))?;
                Some(Arc::new(TokenReview::new(
                    server,
                    review.token_file.clone(),
                )))
            }
            None => None,
        };
        issuers.push(TrustedIssuer {
            settings,
            keys,
            reviewer,
        });
    }
    Ok(Issuers::new(issuers))
}

fn unasked(issuer: &config::Issuer) -> impl FnOnce(SetupError) -> StartError {
    let issuer = issuer.issuer.clone();
    move |source| StartError::Issuer { issuer, source }
}

fn server(to: &config::Server) -> Result<Server, SetupError> {
    Server::new(&to.host, to.port, to.ca_file.as_deref())
}

fn witness(configured: &config::Witness) -> Result<Arc<dyn Witness>, StartError> {
    let server = server(&configured.server).map_err(StartError::Witness)?;
    let witness = HttpsWitness::new(configured.key.clone(), server, &configured.prefix);
    Ok(Arc::new(witness))
}

async fn custody(config: &Config) -> Result<AdminKeyPolicy, StartError> {
    let kept = &config.admin_key;
    let sealing = match (&kept.sealing_key_file, &kept.sealing_kms_region) {
        (None, _) => None,
        (Some(path), None) => Some(sealing_key(path)?),
        (Some(path), Some(region)) => {
            let text = fs::read_to_string(path).map_err(file_error(path))?;
            let ciphertext = BASE64.decode(text.trim().as_bytes());
            let ciphertext = ciphertext.map_err(|_| not_sealing(path)(SealError::Key))?;
            let bytes = kms::decrypt(region, ciphertext).await;
            let bytes = bytes.map_err(StartError::Kms)?;
            Some(SealingKey::from_bytes(&bytes).map_err(not_sealing(path))?)
        }
    };
    Ok(AdminKeyPolicy {
        sealing,
        rotate_every: kept.rotate_every,
    })
}

fn settings(aws: &config::Aws) -> AwsSettings {
    let assumed = AwsSettings::default();
    AwsSettings {
        region: Some(aws.region.clone()),
        endpoint_url: aws.endpoint_url.clone(),
        iam_calls_per_second: aws
            .iam_calls_per_second
            .unwrap_or(assumed.iam_calls_per_second),
        sts_calls_per_second: aws
            .sts_calls_per_second
            .unwrap_or(assumed.sts_calls_per_second),
        ..assumed
    }
}

/// Creates operator `admin` if the store has no operator. The token is in `path` before it is in
/// the store, so that a crash leaves no admin whose token is lost.
async fn first_operator(assembled: &Assembled, path: &Path) -> Result<(), StartError> {
    let keep = |new: &NewToken| {
        let text = new.token.text().expose_secret();
        replace_file(path, text.as_bytes()).map_err(file_error(path))
    };
    if assembled.broker.make_first_admin(keep).await? {
        tracing::warn!(path = %path.display(), "made operator admin; move its token to a safe place");
    }
    Ok(())
}
