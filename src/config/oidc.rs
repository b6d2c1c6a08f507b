//! `[[oidc.issuers]]`: issuers whose signed tokens authenticate a caller.

use std::path::PathBuf;

use toml::{Table, Value};

use super::{Reader, Server, audit::Url, path};
use crate::domain::{name::Name, operator::Role};

/// An issuer whose signed tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// Exact value of the claim `iss`.
    pub issuer: String,
    /// Accepted audiences, of which the claim `aud` must contain one.
    pub audiences: Vec<String>,
    /// Location of the issuer's JWK set.
    pub keys: KeysAt,
    /// Cluster that reviews each token of the issuer.
    pub review: Option<Review>,
    /// Prefix of the names of the issuer's operators; `None` if it has no operators.
    pub operator_prefix: Option<String>,
    /// Claim that contains an operator's name.
    pub operator_name_claim: String,
    /// Rules that make the holders of tokens operators.
    pub operators: Vec<OperatorRule>,
}

/// Location of an issuer's JWK set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysAt {
    /// A file.
    File(PathBuf),
    /// A URL.
    Url {
        /// Server of the URL.
        server: Server,
        /// Path and query.
        path: String,
    },
}

/// A Kubernetes cluster that reviews its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// API server of the cluster.
    pub server: Server,
    /// File of the broker's own token for the API server.
    pub token_file: PathBuf,
}

/// Rule that makes the holder of a token an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorRule {
    /// Claim whose value is a text or a list of texts.
    pub claim: String,
    /// Text that the claim must be or contain.
    pub value: String,
    /// Role of the operator.
    pub role: Role,
}

pub(super) fn read(reader: &mut Reader) -> Vec<Issuer> {
    let mut issuers: Vec<Issuer> = Vec::new();
    let tables = reader.tables("oidc", "issuers");
    for (index, table) in tables.into_iter().enumerate() {
        // Position in the file; the first is 1.
        let section = format!("oidc.issuers[{}]", index + 1);
        match issuer(&section, table) {
            Ok(issuer) => {
                if issuers.iter().any(|other| other.issuer == issuer.issuer) {
                    reader.wrong(&path(&section, "issuer"), "it stands there twice");
                }
                if issuers.iter().any(|other| share_names(other, &issuer)) {
                    let message = "another issuer's begins like it, so that operators of both could have one name";
                    reader.wrong(&path(&section, "operator_prefix"), message);
                }
                issuers.push(issuer);
            }
            Err(mistakes) => reader.mistakes.extend(mistakes),
        }
    }
    issuers
}

/// Returns whether operators of both may have the same name.
fn share_names(one: &Issuer, other: &Issuer) -> bool {
    match (&one.operator_prefix, &other.operator_prefix) {
        (Some(one), Some(other)) => one.starts_with(other) || other.starts_with(one),
        _ => false,
    }
}

fn issuer(section: &str, table: Table) -> Result<Issuer, Vec<String>> {
    let mut reader = Reader::of(Table::from_iter([(section.to_owned(), table.into())]));
    let issuer: Option<String> = reader.required(section, "issuer");
    if issuer
        .as_deref()
        .is_some_and(|issuer| !issuer.starts_with("https://"))
    {
        reader.wrong(
            &path(section, "issuer"),
            "write it as the tokens have it: https://…",
        );
    }
    let audiences = audiences(&mut reader, section);
    let ca_file: Option<PathBuf> = reader.optional(section, "ca_file");
    let keys = keys(&mut reader, section, ca_file.clone());
    let review = review(&mut reader, section, ca_file);
    let prefix: Option<String> = reader.optional(section, "operator_prefix");
    let name_claim = reader.optional(section, "operator_name_claim");
    let operators = operators(&mut reader, section);
    let is_beginning = |prefix: &String| format!("{prefix}x").parse::<Name>().is_ok();
    if prefix.as_ref().is_some_and(|prefix| !is_beginning(prefix)) {
        let message = "operators' names are of lower-case letters, digits and hyphens, up to 32: write it like acme-";
        reader.wrong(&path(section, "operator_prefix"), message);
    }
    if prefix.is_none() && !operators.is_empty() {
        let message =
            "is missing: with it no operator of this issuer is taken for one of the broker's own";
        reader.wrong(&path(section, "operator_prefix"), message);
    }
    let issuer = issuer.zip(keys).map(|(issuer, keys)| Issuer {
        issuer,
        audiences,
        keys,
        review,
        operator_prefix: prefix,
        operator_name_claim: name_claim.unwrap_or_else(|| "sub".to_owned()),
        operators,
    });
    reader.finish(issuer, &[section])
}

fn audiences(reader: &mut Reader, section: &str) -> Vec<String> {
    let listed = reader.take(section, "audiences");
    let listed = listed.as_ref().and_then(Value::as_array);
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(ToOwned::to_owned)
    };
    let texts: Option<Vec<String>> = listed.and_then(|listed| listed.iter().map(text).collect());
    match texts {
        Some(texts) if !texts.is_empty() => texts,
        _ => {
            let message = "write what its tokens for this broker have as audience: [\"https://broker.example\"]";
            reader.wrong(&path(section, "audiences"), message);
            Vec::new()
        }
    }
}

fn review(reader: &mut Reader, section: &str, ca_file: Option<PathBuf>) -> Option<Review> {
    let before = reader.mistakes.len();
    let url: Option<Url> = reader.optional(section, "token_review_url");
    let token_file: Option<PathBuf> = reader.optional(section, "token_review_token_file");
    if url.as_ref().is_some_and(|url| url.path != "/") {
        let message = "write it without a path, like https://kubernetes.default.svc";
        reader.wrong(&path(section, "token_review_url"), message);
    }
    if url.is_some() != token_file.is_some() && reader.mistakes.len() == before {
        let message = "give it with token_review_token_file, or leave both out";
        reader.wrong(&path(section, "token_review_url"), message);
    }
    Some(Review {
        server: url?.address.with(ca_file),
        token_file: token_file?,
    })
}

fn keys(reader: &mut Reader, section: &str, ca_file: Option<PathBuf>) -> Option<KeysAt> {
    let file: Option<PathBuf> = reader.optional(section, "jwks_file");
    let before = reader.mistakes.len();
    let url: Option<Url> = reader.optional(section, "jwks_url");
    match (file, url) {
        (Some(file), None) => Some(KeysAt::File(file)),
        (None, Some(Url { address, path })) => Some(KeysAt::Url {
            server: address.with(ca_file),
            path,
        }),
        _ => {
            if reader.mistakes.len() == before {
                reader.wrong(
                    &path(section, "jwks_url"),
                    "give this or jwks_file, and not both",
                );
            }
            None
        }
    }
}

fn operators(reader: &mut Reader, section: &str) -> Vec<OperatorRule> {
    let mut rules = Vec::new();
    for (index, table) in reader.tables(section, "operators").into_iter().enumerate() {
        let section = format!("{section}.operators[{}]", index + 1);
        let mut one = Reader::of(Table::from_iter([(section.clone(), table.into())]));
        let claim = one.required(&section, "claim");
        let value = one.required(&section, "value");
        let role: Option<Role> = one.required(&section, "role");
        let all = claim.zip(value).zip(role);
        let all = all.map(|((claim, value), role)| OperatorRule { claim, value, role });
        match one.finish(all, &[&section]) {
            Ok(one) => rules.push(one),
            Err(mistakes) => reader.mistakes.extend(mistakes),
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::KeysAt;
    use crate::{config::Config, domain::operator::Role};

    const EXAMPLE: &str = include_str!("../../deploy/credbroker.example.toml");

    #[test]
    fn an_issuer_has_its_keys_and_its_operators() {
        let text = format!(
            "{EXAMPLE}\n[[oidc.issuers]]\nissuer = \"https://login.example\"\naudiences = [\"a\", \"b\"]\n\
             jwks_url = \"https://login.example:8443/keys\"\noperator_prefix = \"acme-\"\n\
             [[oidc.issuers.operators]]\nclaim = \"groups\"\nvalue = \"platform\"\nrole = \"admin\"\n\
             [[oidc.issuers]]\nissuer = \"https://k8s\"\naudiences = [\"a\"]\njwks_file = \"keys.json\"\n"
        );
        let issuers = Config::parse(&text).unwrap().issuers;
        assert_eq!(issuers[0].audiences, ["a", "b"]);
        let KeysAt::Url { server, path } = &issuers[0].keys else {
            panic!("{issuers:?}")
        };
        assert_eq!(
            (server.host.as_str(), server.port, path.as_str()),
            ("login.example", 8443, "/keys")
        );
        assert_eq!(issuers[0].operators[0].role, Role::Admin);
        assert_eq!(issuers[0].operator_name_claim, "sub");
        assert_eq!(issuers[1].keys, KeysAt::File("keys.json".into()));
    }

    #[test]
    fn no_two_issuers_give_operators_the_same_names() {
        let issuer = |name: &str, prefix: &str| {
            format!(
                "[[oidc.issuers]]\nissuer = \"https://{name}\"\naudiences = [\"a\"]\njwks_file = \"f\"\n\
                 operator_prefix = \"{prefix}\"\n"
            )
        };
        for (prefix, good) in [
            ("acme-", false),
            ("acme-two-", false),
            ("ac", false),
            ("b-", true),
        ] {
            let text = format!("{EXAMPLE}\n{}{}", issuer("a", "acme-"), issuer("b", prefix));
            let told = Config::parse(&text).err().unwrap_or_default();
            let told = told
                .iter()
                .any(|m| m.starts_with("oidc.issuers[2].operator_prefix:"));
            assert_eq!(told, !good, "{prefix}");
        }
    }

    #[test]
    fn every_mistake_of_every_issuer_is_told_at_once() {
        let text = format!(
            "{EXAMPLE}\n[[oidc.issuers]]\nissuer = \"http://login.example\"\naudiences = []\ncolour = \"x\"\n\
             [[oidc.issuers.operators]]\nclaim = \"groups\"\nrole = \"king\"\n\
             [[oidc.issuers]]\nissuer = \"https://a\"\naudiences = [\"a\"]\njwks_file = \"f\"\n\
             jwks_url = \"https://a\"\noperator_prefix = \"A \"\n\
             [[oidc.issuers.operators]]\nclaim = \"groups\"\nvalue = \"x\"\nrole = \"admin\"\n\
             [[oidc.issuers]]\nissuer = \"https://b\"\naudiences = [\"a\"]\njwks_url = \"http://b\"\n\
             [[oidc.issuers]]\nissuer = \"https://c\"\naudiences = [\"a\"]\njwks_file = \"f\"\n\
             [[oidc.issuers.operators]]\nclaim = \"groups\"\nvalue = \"x\"\nrole = \"admin\"\n"
        );
        let mistakes = Config::parse(&text).unwrap_err();
        for setting in [
            "oidc.issuers[1].issuer",
            "oidc.issuers[1].audiences",
            "oidc.issuers[1].jwks_url",
            "oidc.issuers[1].colour",
            "oidc.issuers[1].operators[1].value",
            "oidc.issuers[1].operators[1].role",
            "oidc.issuers[2].jwks_url",
            "oidc.issuers[2].operator_prefix",
            "oidc.issuers[3].jwks_url",
            "oidc.issuers[4].operator_prefix",
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
