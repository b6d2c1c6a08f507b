//! Sinks: the audit log, as lines in a file, as syslog messages or by a webhook. And its
//! witness, and the keys of issuers: whoever is asked over HTTPS.

mod file;
mod keys;
mod post;
mod review;
mod syslog;
mod tls;
mod webhook;
mod witness;

use std::{io, path::PathBuf};

use tokio_rustls::rustls;

pub use self::{
    file::FileSink,
    keys::{HttpsKeys, KeyFile},
    review::TokenReview,
    syslog::SyslogSink,
    tls::Server,
    webhook::WebhookSink,
    witness::HttpsWitness,
};

/// Why a sink cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// What vouches for its server cannot be read.
    #[error("cannot read certificates from {path}: {source}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// No certificate vouches for its server.
    #[error("there are no certificates to trust; set ca_file")]
    NoRoots,
    /// Its server's name is none.
    #[error("{0:?} is not a host")]
    Host(String),
    /// Its token cannot be read.
    #[error("cannot read {path}: {source}")]
    Token {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in its token's file cannot be sent as one.
    #[error("{0} does not hold a token: one line of visible ASCII characters")]
    NoToken(PathBuf),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}
