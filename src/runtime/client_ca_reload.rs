//! The CAs for client certificates, read from their files: all of them before the broker listens,
//! and again when any file has changed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretSlice};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer,
    pem::{self, PemObject},
};

use crate::{
    authn::{
        Authenticator,
        certificate::{Authority, AuthorityError, VouchesFor},
    },
    broker::ports::{CertificateAuthority, ClientCertificate, RequestError},
    ca::OwnCa,
    config::{ClientAuthority, Enrollment},
    domain::name::Name,
};

/// Interval between two looks at the files.
const EVERY: Duration = Duration::from_secs(2);

/// Reason why a CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The file does not contain the expected PEM.
    #[error("{path} holds no {what} in PEM: {source}")]
    Pem {
        /// Path of the file.
        path: PathBuf,
        /// Kind of the expected PEM item.
        what: &'static str,
        /// Error of the parser.
        source: pem::Error,
    },
    /// The broker's own CA cannot sign.
    #[error("the broker's own CA cannot use {path}: {why}")]
    Own {
        /// Path of the file.
        path: PathBuf,
        /// Description of the defect.
        why: String,
    },
    /// The content of the file cannot be used.
    #[error("{path}: {source}")]
    Authority {
        /// Path of the file.
        path: PathBuf,
        /// Defect of the content.
        source: AuthorityError,
    },
}

/// The broker's own CA, as last loaded.
struct ReloadedCa(RwLock<Arc<OwnCa>>);

impl CertificateAuthority for ReloadedCa {
    fn sign(
        &self,
        request: &[u8],
        service: &Name,
        now: Timestamp,
    ) -> Result<ClientCertificate, RequestError> {
        let ca = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        ca.sign(request, service, now)
    }
}

/// Files of the CAs, with their content when they were last loaded.
pub(super) struct CaFiles {
    configured: Vec<ClientAuthority>,
    enrollment: Option<Enrollment>,
    /// The broker's own CA, once its files were loaded.
    own: Option<Arc<ReloadedCa>>,
    /// Content of the files; `None` before the first load.
    contents: Option<Vec<Vec<u8>>>,
}

impl CaFiles {
    /// Reads the files and makes the authenticator trust their CAs.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub(super) fn taken(
        configured: Vec<ClientAuthority>,
        enrollment: Option<Enrollment>,
        authenticator: &Authenticator,
    ) -> Result<Self, TrustError> {
        let mut files = Self {
            configured,
            enrollment,
            own: None,
            contents: None,
        };
        files.take(authenticator)?;
        Ok(files)
    }

    /// Returns the broker's own CA, which follows its files.
    pub(super) fn own(&self) -> Option<Arc<dyn CertificateAuthority>> {
        let own = self.own.as_ref()?;
        Some(Arc::<ReloadedCa>::clone(own))
    }

    /// Loads the files if any has changed. Files that cannot be used change nothing.
    fn take(&mut self, authenticator: &Authenticator) -> Result<(), TrustError> {
        let mut contents = Vec::new();
        for authority in &self.configured {
            contents.push(read(&authority.ca_file)?);
            contents.extend(authority.crl_file.as_deref().map(read).transpose()?);
        }
        let pair = self.enrollment.as_ref().map(Pair::read).transpose()?;
        if let Some(pair) = &pair {
            contents.push(pair.certificate.clone());
            // The digest shows whether the key has changed; the key itself is not kept here.
            let digest = digest(&SHA256, pair.key.expose_secret());
            contents.push(digest.as_ref().to_vec());
        }
        if self.contents.as_ref() == Some(&contents) {
            return Ok(());
        }
        let mut left = contents.iter();
        let mut next = || left.next().map_or(&[][..], Vec::as_slice);
        let mut authorities = Vec::new();
        for configured in &self.configured {
            let bundle = next();
            let revoked = configured.crl_file.as_deref().map(|path| (path, next()));
            authorities.push(authority(configured, bundle, revoked)?);
        }
        let mut signing = None;
        if let Some((enrollment, pair)) = self.enrollment.as_ref().zip(pair) {
            let (ca, authority) = pair.authority(enrollment)?;
            authorities.push(authority);
            signing = Some(Arc::new(ca));
        }
        // The authenticator must trust the CA before the CA signs.
        authenticator.trust.replace(authorities);
        if let Some(ca) = signing {
            match &self.own {
                Some(own) => *own.0.write().unwrap_or_else(PoisonError::into_inner) = ca,
                None => self.own = Some(Arc::new(ReloadedCa(RwLock::new(ca)))),
            }
        }
        self.contents = Some(contents);
        Ok(())
    }

    /// Loads the files whenever they change, forever. Each new error is logged once.
    pub(super) async fn run_reload(mut self, authenticator: Arc<Authenticator>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            ticks.tick().await;
            let taken = self.take(&authenticator);
            let wrong = taken.err().map(|error| error.to_string());
            if let Some(wrong) = wrong.as_ref().filter(|wrong| told.as_ref() != Some(*wrong)) {
                tracing::error!(%wrong, "authorities for client certificates stay as they were");
            }
            told = wrong;
        }
    }
}

/// Returns the broker's own CA: to sign with, and to be trusted.
///
/// # Errors
/// The files cannot be read or used.
pub(super) fn own(enrollment: &Enrollment) -> Result<(OwnCa, Authority), TrustError> {
    Pair::read(enrollment)?.authority(enrollment)
}

/// Content of the files of the broker's own CA, PEM.
struct Pair {
    certificate: Vec<u8>,
    key: SecretSlice<u8>,
}

impl Pair {
    fn read(enrollment: &Enrollment) -> Result<Self, TrustError> {
        Ok(Self {
            certificate: read(&enrollment.ca_cert_file)?,
            key: read(&enrollment.ca_key_file)?.into(),
        })
    }

    fn authority(self, enrollment: &Enrollment) -> Result<(OwnCa, Authority), TrustError> {
        let (cert_file, key_file) = (&enrollment.ca_cert_file, &enrollment.ca_key_file);
        let pem = &self.certificate;
        let mut bundle = parse::<CertificateDer<'static>>(cert_file, pem, "certificate")?;
        // Only the broker's CA itself: the CAs that signed it vouch for other parties, too.
        bundle.truncate(1);
        let vouches_for = VouchesFor::Enrolled(enrollment.trust_domain.clone());
        let authority = Authority::new(vouches_for, &bundle, Vec::new());
        let authority = authority.map_err(|source| TrustError::Authority {
            path: cert_file.clone(),
            source,
        })?;
        let ca = OwnCa::new(
            text(cert_file, pem)?.to_owned(),
            text(key_file, self.key.expose_secret())?,
            enrollment.trust_domain.clone(),
            enrollment.certificate_ttl,
        );
        let ca = ca.map_err(|error| TrustError::Own {
            path: key_file.clone(),
            why: error.to_string(),
        })?;
        Ok((ca, authority))
    }
}

fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, TrustError> {
    str::from_utf8(bytes).map_err(|_| TrustError::Own {
        path: path.to_owned(),
        why: "it is not PEM".to_owned(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    fs::read(path).map_err(|source| TrustError::Read {
        path: path.to_owned(),
        source,
    })
}

fn authority(
    configured: &ClientAuthority,
    bundle: &[u8],
    revoked: Option<(&Path, &[u8])>,
) -> Result<Authority, TrustError> {
    let path = &configured.ca_file;
    let bundle = parse::<CertificateDer<'static>>(path, bundle, "certificate")?;
    let revoked = revoked.map(|(path, pem)| {
        parse::<CertificateRevocationListDer<'static>>(path, pem, "revocation list")
    });
    let vouches_for = match &configured.trust_domain {
        Some(domain) => VouchesFor::TrustDomain(domain.clone()),
        None => VouchesFor::DnsNames,
    };
    let revoked = revoked.transpose()?.unwrap_or_default();
    Authority::new(vouches_for, &bundle, revoked).map_err(|source| TrustError::Authority {
        path: path.clone(),
        source,
    })
}

/// Parses the items of one kind. At least one must be there.
fn parse<T: PemObject>(path: &Path, pem: &[u8], what: &'static str) -> Result<Vec<T>, TrustError> {
    let items: Result<Vec<T>, _> = T::pem_slice_iter(pem).collect();
    let items = items.and_then(|items| {
        let some = (!items.is_empty()).then_some(items);
        some.ok_or(pem::Error::NoItemsFound)
    });
    items.map_err(|source| TrustError::Pem {
        path: path.to_owned(),
        what,
        source,
    })
}
