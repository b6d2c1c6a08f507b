//! Sinks of the audit log: lines in a file, syslog messages, a webhook. Also the other servers that
//! the broker calls by HTTPS: the log's witness, issuers of keys, and reviewers of tokens.

mod file;
mod https_client;
mod jwks;
mod syslog;
mod tls;
mod token_review;
mod webhook;
mod witness;

use std::{io, path::PathBuf};

use tokio_rustls::rustls;

pub use self::{
    file::FileSink,
    jwks::{HttpsKeys, KeyFile},
    syslog::SyslogSink,
    tls::Server,
    token_review::TokenReview,
    webhook::WebhookSink,
    witness::HttpsWitness,
};

/// Reason why a sink or its server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The server's CA certificates cannot be read.
    #[error("cannot read certificates from {path}: {source}")]
    Pem {
        /// File of the certificates.
        path: PathBuf,
        /// Cause, from the PEM reader.
        source: rustls::pki_types::pem::Error,
    },
    /// The CA certificates that could vouch for the server are missing.
    #[error("there are no certificates to trust; set ca_file")]
    NoRoots,
    /// The server's name is invalid.
    #[error("{0:?} is not a host")]
    Host(String),
    /// The token's file cannot be read.
    #[error("cannot read {path}: {source}")]
    Token {
        /// File of the token.
        path: PathBuf,
        /// Cause, from the file system.
        source: io::Error,
    },
    /// The token's file contains no token that can be sent.
    #[error("{0} does not hold a token: one line of visible ASCII characters")]
    NoToken(PathBuf),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}
