//! Revocation without a running broker: the store is opened, and the broker works in this process
//! for as long as one revocation takes.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use secrecy::SecretString;

use super::{
    Assembled, BrokerSettings, LogKeeping, StartError, assemble, begin, close,
    dev::{CHECKPOINT, SEALING_KEY, aws_of_chain},
    finish, sealing_key, serve, stores,
};
use crate::{
    aws::{self, AwsSettings},
    broker::{self, AdminKeyPolicy, ports::RevokeTarget},
    config::{Config, StoreAt},
    domain::{
        clock::wall_time,
        denial::Placements,
        name::{GrantName, Name},
        service::Limits,
    },
    grpc::in_process::InProcess,
    process_hardening,
    store::sqlite,
};

/// The broker whose store is opened.
#[derive(Clone, Debug)]
pub enum Whose {
    /// The broker that `serve` starts with this configuration.
    Configured(Box<Config>),
    /// The broker of this store. Its sealing key and checkpoint file are used if they are beside
    /// it, under the names that `dev` gives them.
    Stored {
        /// The SQLite file.
        store: PathBuf,
        /// Alternative endpoint for AWS.
        aws_endpoint_url: Option<String>,
    },
}

/// A broker that listens nowhere.
pub struct Offline(Assembled);

impl Offline {
    /// Opens the store. No broker may be using a store file.
    ///
    /// # Errors
    /// A broker is running, or would not start either, or the store does not exist.
    pub async fn open(whose: Whose) -> Result<Self, StartError> {
        process_hardening::seal().map_err(StartError::Memory)?;
        stores::existing(&whose.store())?;
        let assembled = match whose {
            Whose::Configured(config) => {
                let authenticator = serve::authenticator(&config)?;
                serve::assembled(&config, authenticator, None).await
            }
            Whose::Stored {
                store,
                aws_endpoint_url,
            } => stored(store, aws_endpoint_url).await,
        };
        let assembled = assembled.map_err(|error| match error {
            StartError::Store(sqlite::OpenError::InUse(store)) => {
                StartError::Running(store.display().to_string())
            }
            StartError::File { path, source } if source.kind() == io::ErrorKind::ResourceBusy => {
                StartError::Running(path.display().to_string())
            }
            error => error,
        })?;
        assembled.broker.preserve_unknown_denials();
        begin(&assembled.broker).await;
        Ok(Self(assembled))
    }

    /// Returns the broker, as the holder of `token` may call it.
    #[must_use]
    pub fn called_by(&self, token: SecretString) -> InProcess {
        InProcess::new(&self.0.broker, token)
    }

    /// Ends the broker in order.
    ///
    /// # Errors
    /// The store's error.
    pub async fn close(self) -> Result<(), StartError> {
        let Assembled {
            broker,
            store,
            in_step,
            stop,
            ..
        } = self.0;
        stop.cancel();
        finish(&broker).await;
        close(&broker, store.as_ref(), in_step).await
    }
}

/// Returns the script that does in AWS what a revocation of a service, or of one of its grants,
/// would do; `None` if the store does not know the target. Only reads the store, so a broker may be
/// using it.
///
/// # Errors
/// The store does not exist or cannot be read.
pub async fn script(
    whose: &Whose,
    service: Name,
    grant: Option<Name>,
) -> Result<Option<String>, StartError> {
    let store = whose.store();
    stores::existing(&store)?;
    let target = match grant {
        None => RevokeTarget::Service(service),
        Some(grant) => RevokeTarget::Grant(GrantName { service, grant }),
    };
    let now = wall_time();
    let held = stores::held(&store, &target, now).await?;
    let script = held.map(|held| aws::revoke_script::script(&target, &held, now));
    let incomplete = |_| broker::Error::Internal("a denial has no policy".to_owned());
    Ok(script.transpose().map_err(incomplete)?)
}

impl Whose {
    fn store(&self) -> StoreAt {
        match self {
            Self::Configured(config) => config.store.clone(),
            Self::Stored { store, .. } => StoreAt::File(store.clone()),
        }
    }
}

async fn stored(store: PathBuf, endpoint_url: Option<String>) -> Result<Assembled, StartError> {
    let beside = |name| Some(store.with_file_name(name)).filter(|path| path.exists());
    let sealing = beside(SEALING_KEY)
        .as_deref()
        .map(sealing_key)
        .transpose()?;
    let custody = AdminKeyPolicy {
        sealing,
        rotate_every: None,
    };
    let log = LogKeeping {
        anchor: beside(CHECKPOINT),
        keep: Duration::ZERO,
        witness: None,
    };
    let settings = AwsSettings {
        endpoint_url,
        ..AwsSettings::default()
    };
    let (aws, limits, placements) = (
        aws_of_chain(settings).await,
        Limits::default(),
        Placements::default(),
    );
    let own = BrokerSettings {
        two_person: false,
        custody,
        authority: None,
        authenticator: Arc::default(),
    };
    let store = StoreAt::File(store);
    assemble(&store, aws, limits, own, placements, log).await
}
