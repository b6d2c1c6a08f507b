//! `[client_certificates]`: CAs for the certificates by which services authenticate.

use std::path::PathBuf;

use toml::Table;

use super::{Reader, path};
use crate::domain::spiffe::TrustDomain;

/// A CA for client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuthority {
    /// Domain of the SPIFFE IDs that the CA vouches for; `None` if the CA vouches for DNS names.
    pub trust_domain: Option<TrustDomain>,
    /// Certificates of the CA, PEM.
    pub ca_file: PathBuf,
    /// Revocation list of the CA, PEM; `None` if the CA publishes none.
    pub crl_file: Option<PathBuf>,
}

pub(super) fn read(reader: &mut Reader) -> Vec<ClientAuthority> {
    let mut authorities: Vec<ClientAuthority> = Vec::new();
    let tables = reader.tables("client_certificates", "authorities");
    for (index, table) in tables.into_iter().enumerate() {
        // Position in the file; the first is 1.
        let section = format!("client_certificates.authorities[{}]", index + 1);
        match authority(&section, table) {
            Ok(authority) => {
                let domain = authority.trust_domain.as_ref();
                let same = |other: &ClientAuthority| other.trust_domain.as_ref() == domain;
                if domain.is_some() && authorities.iter().any(same) {
                    let message = "it stands there twice: put all its CAs into one file";
                    reader.wrong(&path(&section, "trust_domain"), message);
                }
                authorities.push(authority);
            }
            Err(mistakes) => reader.mistakes.extend(mistakes),
        }
    }
    authorities
}

fn authority(section: &str, table: Table) -> Result<ClientAuthority, Vec<String>> {
    let mut reader = Reader::of(Table::from_iter([(section.to_owned(), table.into())]));
    let trust_domain = reader.optional(section, "trust_domain");
    let ca_file: Option<PathBuf> = reader.required(section, "ca_file");
    let crl_file = reader.optional(section, "crl_file");
    let authority = ca_file.map(|ca_file| ClientAuthority {
        trust_domain,
        ca_file,
        crl_file,
    });
    reader.finish(authority, &[section])
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const EXAMPLE: &str = include_str!("../../deploy/credbroker.example.toml");

    #[test]
    fn authorities_are_for_trust_domains_or_for_dns_names() {
        let text = format!(
            "{EXAMPLE}\n[[client_certificates.authorities]]\ntrust_domain = \"prod.example\"\n\
             ca_file = \"a.pem\"\ncrl_file = \"a.crl\"\n\
             [[client_certificates.authorities]]\nca_file = \"b.pem\"\n"
        );
        let authorities = Config::parse(&text).unwrap().client_authorities;
        let [spiffe, dns] = authorities.as_slice() else {
            panic!("{authorities:?}")
        };
        assert_eq!(
            spiffe.trust_domain.as_ref().unwrap().as_str(),
            "prod.example"
        );
        assert_eq!((&dns.trust_domain, &dns.crl_file), (&None, &None));
    }

    #[test]
    fn mistakes_of_an_authority_are_told_with_its_place() {
        let text = format!(
            "{EXAMPLE}\n[[client_certificates.authorities]]\ntrust_domain = \"Prod\"\nca = \"x\"\n\
             [[client_certificates.authorities]]\ntrust_domain = \"a\"\nca_file = \"a.pem\"\n\
             [[client_certificates.authorities]]\ntrust_domain = \"a\"\nca_file = \"a.pem\"\n"
        );
        let mistakes = Config::parse(&text).unwrap_err();
        for setting in [
            "client_certificates.authorities[1].trust_domain",
            "client_certificates.authorities[1].ca_file",
            "client_certificates.authorities[1].ca",
            "client_certificates.authorities[3].trust_domain",
        ] {
            let told = |m: &&String| m.starts_with(&format!("{setting}:"));
            assert_eq!(
                mistakes.iter().filter(told).count(),
                1,
                "{setting} in {mistakes:#?}"
            );
        }
    }
}
