//! The authorities for client certificates, read from their files: all of them before the
//! broker listens, and again when any has changed.

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

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the PEM that it should be.
    #[error("{path} holds no {what} in PEM: {source}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
        /// Why not.
        source: pem::Error,
    },
    /// The broker's own CA cannot sign.
    #[error("the broker's own CA cannot use {path}: {why}")]
    Own {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// What is in it cannot be used.
    #[error("{path}: {source}")]
    Authority {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: AuthorityError,
    },
}

/// The broker's own CA as it stands now.
struct Own(RwLock<Arc<OwnCa>>);

impl CertificateAuthority for Own {
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

/// What the files held when they were last taken.
pub(super) struct Files {
    configured: Vec<ClientAuthority>,
    enrollment: Option<Enrollment>,
    /// The broker's own, once its files were taken.
    own: Option<Arc<Own>>,
    /// `None` before they were taken for the first time.
    contents: Option<Vec<Vec<u8>>>,
}

impl Files {
    /// Reads the files and has the authenticator trust what they say.
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

    /// The broker's own CA, which follows its files.
    pub(super) fn own(&self) -> Option<Arc<dyn CertificateAuthority>> {
        let own = self.own.as_ref()?;
        Some(Arc::<Own>::clone(own))
    }

    /// Takes the files anew if any has changed. What cannot be used changes nothing.
    fn take(&mut self, authenticator: &Authenticator) -> Result<(), TrustError> {
        let mut contents = Vec::new();
        for authority in &self.configured {
            contents.push(read(&authority.ca_file)?);
            contents.extend(authority.crl_file.as_deref().map(read).transpose()?);
        }
        let pair = self.enrollment.as_ref().map(Pair::read).transpose()?;
        if let Some(pair) = &pair {
            contents.push(pair.certificate.clone());
            // Known again by that; the key itself is not kept here.
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
        // What it signs is trusted before it signs.
        authenticator.trust.replace(authorities);
        if let Some(ca) = signing {
            match &self.own {
                Some(own) => *own.0.write().unwrap_or_else(PoisonError::into_inner) = ca,
                None => self.own = Some(Arc::new(Own(RwLock::new(ca)))),
            }
        }
        self.contents = Some(contents);
        Ok(())
    }

    /// Takes them anew whenever they change, for ever.
    pub(super) async fn keep(mut self, authenticator: Arc<Authenticator>) {
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

/// The broker's own authority: to sign by, and to be trusted.
///
/// # Errors
/// Its files cannot be read or used.
pub(super) fn own(enrollment: &Enrollment) -> Result<(OwnCa, Authority), TrustError> {
    Pair::read(enrollment)?.authority(enrollment)
}

/// What the files of the broker's own authority hold, PEM.
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
        // Those above it vouch for others, too.
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

/// One at least.
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
