//! `credbroker enroll`: a key and a client certificate for this host.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use x509_parser::pem::parse_x509_pem;

use super::{Connection, error::CliError, output::Output, view};
use crate::{
    client::read_secret,
    domain::clock::wall_time,
    proto::{ClientCertificate, EnrollRequest, RenewCertificateRequest},
};

/// Get a client certificate for this host, for a key that the command creates.
///
/// Needs the token of `service enroll-token create`, once; later, use --renew. The certificate is
/// written to --client-cert-file, the key to --client-key-file. Every other command then uses them
/// instead of a token.
#[derive(Args, Debug)]
pub(super) struct Enroll {
    /// Get another certificate for the same key, if half the life of the existing one is over.
    /// Needs no token; meant for a timer.
    #[arg(long)]
    renew: bool,
}

#[derive(Serialize)]
struct Enrolled<'a> {
    cert_file: &'a Path,
    key_file: &'a Path,
    expires_at: Option<String>,
    renewed: bool,
}

/// Paths of this host's key and certificate.
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

impl Enroll {
    pub(super) async fn run(
        self,
        connection: &Connection,
        out: &mut Output,
    ) -> Result<(), CliError> {
        let files = Files::of(connection)?;
        let made = if self.renew {
            if let Some(until) = files.renewed_until()? {
                return Ok(out.show(&files.told(Some(format!("{until:.3}")), false))?);
            }
            let request = RenewCertificateRequest {
                certificate_request: files.request(&files.known_key()?)?,
            };
            let client = connection.connect_by_certificate().await?;
            client.identity().renew_certificate(request).await?
        } else {
            let client = connection.connect().await?;
            let request = EnrollRequest {
                certificate_request: files.request(&files.key()?)?,
            };
            client.identity().enroll(request).await?
        };
        let ClientCertificate {
            certificate_chain,
            expires_at,
        } = made.into_inner();
        replace(&files.cert, &certificate_chain)?;
        let until = view::time(expires_at.as_ref());
        Ok(out.show(&files.told(until, true))?)
    }
}

impl Files {
    fn of(connection: &Connection) -> Result<Self, CliError> {
        let named = |path: &Option<PathBuf>, variable, flag| {
            path.clone().ok_or_else(|| CliError::unset(variable, flag))
        };
        Ok(Self {
            cert: named(
                &connection.client_cert_file,
                "CREDBROKER_CLIENT_CERT_FILE",
                "--client-cert-file",
            )?,
            key: named(
                &connection.client_key_file,
                "CREDBROKER_CLIENT_KEY_FILE",
                "--client-key-file",
            )?,
        })
    }

    fn told(&self, expires_at: Option<String>, renewed: bool) -> Enrolled<'_> {
        Enrolled {
            cert_file: &self.cert,
            key_file: &self.key,
            expires_at,
            renewed,
        }
    }

    /// Returns the existing key, or else a new one. An enrolment that failed can thus be repeated.
    fn key(&self) -> Result<KeyPair, CliError> {
        if self.key.exists() {
            return self.known_key();
        }
        let key = KeyPair::generate().map_err(|error| CliError::unexpected(error.to_string()))?;
        let pem = SecretString::from(key.serialize_pem());
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.key)
            .map_err(|error| unusable(&self.key, &error))?;
        file.write_all(pem.expose_secret().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| unusable(&self.key, &error))?;
        Ok(key)
    }

    fn known_key(&self) -> Result<KeyPair, CliError> {
        let pem = read_secret(&self.key)?;
        KeyPair::from_pem(pem.expose_secret()).map_err(|error| unusable(&self.key, &error))
    }

    fn request(&self, key: &KeyPair) -> Result<Vec<u8>, CliError> {
        let request = CertificateParams::default().serialize_request(key);
        let request = request.map_err(|error| unusable(&self.key, &error))?;
        Ok(request.der().to_vec())
    }

    /// Returns the end of the certificate, if less than half of its life is over.
    fn renewed_until(&self) -> Result<Option<Timestamp>, CliError> {
        let wrong = |error: &dyn std::fmt::Display| unusable(&self.cert, error);
        let pem = fs::read(&self.cert).map_err(|error| wrong(&error))?;
        let (_, pem) = parse_x509_pem(&pem).map_err(|error| wrong(&error))?;
        let certificate = pem.parse_x509().map_err(|error| wrong(&error))?;
        let validity = certificate.validity();
        let (from, until) = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        let is_young = wall_time().as_second() < from.midpoint(until);
        let until = Timestamp::from_second(until).map_err(|error| wrong(&error))?;
        Ok(is_young.then_some(until))
    }
}

/// Replaces the file atomically: a reader sees the old one or the new one, complete.
fn replace(path: &Path, pem: &str) -> Result<(), CliError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    fs::write(&new, pem)
        .and_then(|()| fs::File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError::usage(format!("cannot use {}: {error}", path.display()))
}
