//! `[enrollment]`: the broker's own CA for client certificates of hosts.

use std::{path::PathBuf, time::Duration};

use super::{ClientAuthority, Lifetime, Reader};
use crate::domain::{duration::HOUR, spiffe::TrustDomain};

/// Default lifetime of a certificate.
const TTL: Duration = Duration::from_hours(24);
const TTL_MAX: Duration = Duration::from_hours(7 * 24);

/// The broker's own CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrollment {
    /// Domain of the SPIFFE IDs in the certificates that the CA issues.
    pub trust_domain: TrustDomain,
    /// Certificate of the CA, PEM, followed by the certificates above it.
    pub ca_cert_file: PathBuf,
    /// Private key of the CA, PEM.
    pub ca_key_file: PathBuf,
    /// Lifetime of the certificates that the CA issues, 1 hour to 7 days.
    pub certificate_ttl: Duration,
}

pub(super) fn read(reader: &mut Reader, others: &[ClientAuthority]) -> Option<Enrollment> {
    const SECTION: &str = "enrollment";
    if !reader.table.contains_key(SECTION) {
        return None;
    }
    let trust_domain: Option<TrustDomain> = reader.required(SECTION, "trust_domain");
    let ca_cert_file = reader.required(SECTION, "ca_cert_file");
    let ca_key_file = reader.required(SECTION, "ca_key_file");
    let ttl: Option<Lifetime> = reader.optional(SECTION, "certificate_ttl");
    let certificate_ttl = ttl.map_or(TTL, |Lifetime(ttl)| ttl);
    if !(HOUR..=TTL_MAX).contains(&certificate_ttl) {
        reader.wrong("enrollment.certificate_ttl", "must be 1h to 7d");
    }
    let is_anothers = |other: &ClientAuthority| {
        other.trust_domain.is_some() && other.trust_domain == trust_domain
    };
    if others.iter().any(is_anothers) {
        let message = "an authority of [client_certificates] has it: choose one of its own";
        reader.wrong("enrollment.trust_domain", message);
    }
    Some(Enrollment {
        trust_domain: trust_domain?,
        ca_cert_file: ca_cert_file?,
        ca_key_file: ca_key_file?,
        certificate_ttl,
    })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const EXAMPLE: &str = include_str!("../../deploy/credbroker.example.toml");

    #[test]
    fn hosts_enrol_where_a_ca_is_named() {
        assert_eq!(Config::parse(EXAMPLE).unwrap().enrollment, None);
        let text = format!(
            "{EXAMPLE}\n[enrollment]\ntrust_domain = \"broker.example\"\nca_cert_file = \"a.pem\"\n\
             ca_key_file = \"a.key\"\n"
        );
        let enrollment = Config::parse(&text).unwrap().enrollment.unwrap();
        assert_eq!(enrollment.certificate_ttl.as_secs(), 86_400);
    }

    #[test]
    fn every_mistake_of_it_is_told_at_once() {
        let text = format!(
            "{EXAMPLE}\n[[client_certificates.authorities]]\ntrust_domain = \"a\"\nca_file = \"a.pem\"\n\
             [enrollment]\ntrust_domain = \"a\"\ncertificate_ttl = \"30d\"\ncolour = \"x\"\n"
        );
        let mistakes = Config::parse(&text).unwrap_err();
        for setting in [
            "trust_domain",
            "ca_cert_file",
            "ca_key_file",
            "certificate_ttl",
            "colour",
        ] {
            let told = |m: &&String| m.starts_with(&format!("enrollment.{setting}:"));
            assert_eq!(
                mistakes.iter().filter(told).count(),
                1,
                "{setting} in {mistakes:#?}"
            );
        }
    }
}
