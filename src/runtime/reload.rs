//! Reload of a running broker at SIGHUP: the limits of services, and the keys of issuers.
//! Certificates, CAs and revocation lists are reloaded without a signal, and a file of a sink is
//! opened for each batch of records.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{authn::Authenticator, broker::Broker, config::Config};

/// The configuration in force, and the signal to reload it.
pub(super) struct Reloading {
    hangup: Signal,
    path: PathBuf,
    config: Config,
}

impl Reloading {
    /// Begins to handle SIGHUP, which from now on does not end the process.
    ///
    /// # Errors
    /// The system does not let the process handle the signal.
    pub(super) fn begin(path: &Path, config: &Config) -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            path: path.to_owned(),
            config: config.clone(),
        })
    }

    /// Reloads at each signal, for ever.
    pub(super) async fn keep(mut self, broker: Arc<Broker>, authenticator: Arc<Authenticator>) {
        while self.hangup.recv().await.is_some() {
            authenticator.issuers.load().await;
            self.reload(&broker);
        }
    }

    fn reload(&mut self, broker: &Broker) {
        let new = match Config::load(&self.path) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, "the configuration stays as it was");
                return;
            }
        };
        if new.limits != self.config.limits {
            broker.set_limits(new.limits);
            self.config.limits = new.limits;
            tracing::info!("the limits of services have changed");
        }
        let waiting = changed(&self.config, &new);
        if waiting.is_empty() {
            tracing::info!("the configuration is read again");
        } else {
            let sections = waiting.join(", ");
            tracing::warn!(%sections, "settings have changed that take a restart");
        }
    }
}

/// Returns the sections, and the settings outside of sections, in which two configurations differ.
fn changed(old: &Config, new: &Config) -> Vec<&'static str> {
    let sections = [
        ("store", old.store != new.store),
        ("listen or bounds", old.listen != new.listen),
        (
            "client_certificates",
            old.client_authorities != new.client_authorities,
        ),
        ("oidc", old.issuers != new.issuers),
        ("enrollment", old.enrollment != new.enrollment),
        ("aws", old.aws != new.aws),
        ("limits", old.limits != new.limits),
        ("admin_key", old.admin_key != new.admin_key),
        ("audit", old.audit != new.audit),
        ("revocation", old.revocation != new.revocation),
        ("operators", old.operators != new.operators),
        ("log", old.log != new.log),
    ];
    let changed = sections.into_iter().filter(|(_, is_so)| *is_so);
    changed.map(|(section, _)| section).collect()
}
