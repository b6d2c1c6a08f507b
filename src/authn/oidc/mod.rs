//! Signed tokens of issuers that the configuration names: OpenID Connect
//! (<https://openid.net/specs/openid-connect-core-1_0.html#IDTokenValidation>), Kubernetes'
//! service-account tokens, JWT-SVIDs.
//!
//! The issuer that a token names is compared by exact text, before any file or server is read.
//! The rest of a token leads to no file and to no network.

mod keys;
mod source;
mod token;

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use self::{source::JwksCache, token::Token};
use super::{Login, LoginError, of_service};
use crate::{
    broker::ports::{JwksSource, Store, TokenReviewer},
    domain::{
        binding::KnownBy,
        name::Name,
        operator::Role,
        principal::{Evidence, Identity, Origin, Principal, Proof},
    },
};

/// Largest difference between clocks, seconds.
const LEEWAY: f64 = 60.0;
/// Longest life that a token may have, seconds.
const LIFE_MAX: f64 = 24.0 * 3600.0;
/// Longest subject, bytes.
const SUBJECT_MAX: usize = 1024;

/// Rule by which tokens of an issuer make their bearer an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorRule {
    /// Name of a claim that is a text or a list of texts.
    pub claim: String,
    /// Text that the claim must be, or must contain in its list.
    pub value: String,
    /// Role of the operator.
    pub role: Role,
}

/// An issuer of tokens.
#[derive(Clone, Debug)]
pub struct IssuerSettings {
    /// Value of the claim `iss`, compared exactly.
    pub issuer: String,
    /// Accepted audiences: the claim `aud` must contain one of them.
    pub audiences: Vec<String>,
    /// Rules for operators; of several rules that match, the most powerful role applies.
    pub operators: Vec<OperatorRule>,
    /// Prefix of operators' names, before the value of `name_claim`.
    pub name_prefix: String,
    /// Claim that contains an operator's name.
    pub name_claim: String,
}

/// An issuer, with its keys and its reviewer.
pub struct TrustedIssuer {
    /// Requirements on the issuer's tokens.
    pub settings: IssuerSettings,
    /// Source of the issuer's keys.
    pub keys: Arc<dyn JwksSource>,
    /// Reviewer that is asked about each valid token; `None`: no review.
    pub reviewer: Option<Arc<dyn TokenReviewer>>,
}

struct Issuer {
    settings: IssuerSettings,
    keys: JwksCache,
    reviewer: Option<Arc<dyn TokenReviewer>>,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

/// The issuers of the configuration.
#[derive(Debug, Default)]
pub struct Issuers(Vec<Arc<Issuer>>);

/// Claims of a valid token.
#[derive(Debug)]
struct TokenClaims<'a> {
    subject: String,
    audiences: Vec<String>,
    expires_at: Timestamp,
    all: &'a Map<String, Value>,
}

impl Issuers {
    /// Creates the set of trusted issuers.
    #[must_use]
    pub fn new(issuers: Vec<TrustedIssuer>) -> Self {
        let issuer = |trusted: TrustedIssuer| {
            let keys = JwksCache::new(trusted.settings.issuer.clone(), trusted.keys);
            Arc::new(Issuer {
                settings: trusted.settings,
                keys,
                reviewer: trusted.reviewer,
            })
        };
        Self(issuers.into_iter().map(issuer).collect())
    }

    /// Reads the keys of all issuers, once. A failure is logged, and a later read tries again.
    pub async fn load(&self) {
        let mut loading = JoinSet::new();
        for issuer in &self.0 {
            let issuer = Arc::clone(issuer);
            loading.spawn(async move { issuer.keys.load().await });
        }
        loading.join_all().await;
    }

    /// Reads the keys of all issuers again from time to time, forever.
    pub async fn keep(&self) {
        let mut keeping = JoinSet::new();
        for issuer in &self.0 {
            let issuer = Arc::clone(issuer);
            keeping.spawn(async move { issuer.keys.keep().await });
        }
        keeping.join_all().await;
    }

    /// Authenticates the bearer of a signed token.
    pub(super) async fn authenticate(
        &self,
        store: &dyn Store,
        now: Timestamp,
        origin: Origin,
        text: &str,
    ) -> Login {
        let refused = |reason, evidence| LoginError::Refused { reason, evidence };
        let token = Token::parse(text).map_err(|reason| refused(reason, None))?;
        let claimed = |name: &str| token.claims.get(name).and_then(Value::as_str);
        let named = claimed("iss").and_then(|iss| self.0.iter().find(|i| i.settings.issuer == iss));
        let evidence = Evidence::Jwt {
            issuer: claimed("iss").unwrap_or_default().to_owned(),
            subject: claimed("sub").map(ToOwned::to_owned),
        };
        let wrong = |reason| refused(reason, Some(evidence.clone()));
        let issuer = named.ok_or_else(|| wrong("JWT_ISSUER_UNKNOWN"))?;
        let claims = issuer.verify(&token, now).await.map_err(wrong)?;
        issuer.review(text).await.map_err(wrong)?;
        let operator = issuer.settings.operator(&claims).map_err(wrong)?;
        let mut services = Vec::new();
        for (binding, service) in store.bound_by_issuer(&issuer.settings.issuer).await? {
            if let KnownBy::Oidc(rule) = &binding.known_by
                && rule.matches(&claims.subject, &claims.audiences, claims.all)
            {
                services.push((binding, service));
            }
        }
        let proof = |binding| Proof {
            evidence: evidence.clone(),
            binding,
            expires_at: Some(claims.expires_at),
        };
        if let Some((name, role)) = operator {
            // No caller is an operator and a service at once.
            if !services.is_empty() {
                return Err(wrong("IDENTITY_AMBIGUOUS"));
            }
            let operators = store.operators().await?;
            if operators.iter().any(|known| known.name == name) {
                return Err(wrong("OPERATOR_NAME_TAKEN"));
            }
            return Ok(Principal::proven(
                Identity::Operator(name, role),
                proof(None),
                origin,
            ));
        }
        let (binding, service) = services.pop().ok_or_else(|| wrong("IDENTITY_UNBOUND"))?;
        if services
            .iter()
            .any(|(other, _)| other.service != binding.service)
        {
            return Err(wrong("IDENTITY_AMBIGUOUS"));
        }
        of_service(service, proof(Some(binding.id)), origin)
    }
}

impl Issuer {
    async fn verify<'a>(
        &self,
        token: &'a Token<'_>,
        now: Timestamp,
    ) -> Result<TokenClaims<'a>, &'static str> {
        let set = self.keys.for_token(token).await?;
        let key = set.find(token).ok_or("JWT_KEY_UNKNOWN")?;
        if !key.verifies(token) {
            return Err("JWT_SIGNATURE_WRONG");
        }
        claims(&token.claims, &self.settings.audiences, now)
    }

    /// Checks that the reviewer, if there is one, still accepts a valid token.
    async fn review(&self, text: &str) -> Result<(), &'static str> {
        let Some(reviewer) = &self.reviewer else {
            return Ok(());
        };
        match reviewer.stands_by(text, &self.settings.audiences).await {
            Ok(true) => Ok(()),
            Ok(false) => Err("TOKEN_REVIEW_DENIED"),
            Err(why) => {
                tracing::warn!(
                    issuer = self.settings.issuer,
                    why,
                    "a token could not be reviewed"
                );
                Err("TOKEN_REVIEW_FAILED")
            }
        }
    }
}

/// Returns the claims of a signed token, if they are valid at `now` and for this broker.
fn claims<'a>(
    all: &'a Map<String, Value>,
    ours: &[String],
    now: Timestamp,
) -> Result<TokenClaims<'a>, &'static str> {
    let expiry = number(all, "exp", "JWT_EXPIRY_INVALID")?.ok_or("JWT_EXPIRY_MISSING")?;
    let issued = number(all, "iat", "JWT_ISSUED_AT_INVALID")?.ok_or("JWT_ISSUED_AT_MISSING")?;
    let not_before = number(all, "nbf", "JWT_NOT_BEFORE_INVALID")?;
    #[expect(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
    let now = now.as_second() as f64;
    if expiry + LEEWAY <= now {
        return Err("JWT_EXPIRED");
    }
    if issued > now + LEEWAY || not_before.is_some_and(|from| from > now + LEEWAY) {
        return Err("JWT_NOT_VALID_YET");
    }
    if expiry <= issued || expiry - issued > LIFE_MAX {
        return Err("JWT_LIFE_WRONG");
    }
    let audiences = audiences(all)?;
    if !audiences.iter().any(|audience| ours.contains(audience)) {
        return Err("JWT_AUDIENCE_WRONG");
    }
    let subject = all.get("sub").ok_or("JWT_SUBJECT_MISSING")?.as_str();
    let subject = subject.filter(|sub| (1..=SUBJECT_MAX).contains(&sub.len()));
    #[expect(clippy::cast_possible_truncation, reason = "a day from now at most")]
    let expires_at = Timestamp::from_second(expiry as i64).map_err(|_| "JWT_EXPIRY_INVALID")?;
    Ok(TokenClaims {
        subject: subject.ok_or("JWT_SUBJECT_INVALID")?.to_owned(),
        audiences,
        expires_at,
        all,
    })
}

/// Reads a NumericDate (RFC 7519 section 2): a JSON number, not a text.
fn number(
    all: &Map<String, Value>,
    name: &str,
    wrong: &'static str,
) -> Result<Option<f64>, &'static str> {
    let Some(value) = all.get(name) else {
        return Ok(None);
    };
    // The limit is before the year 3000; a larger number is a mistake, or milliseconds.
    let number = value.as_f64().filter(|number| (0.0..32e9).contains(number));
    number.map(Some).ok_or(wrong)
}

fn audiences(all: &Map<String, Value>) -> Result<Vec<String>, &'static str> {
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let listed = match all.get("aud").ok_or("JWT_AUDIENCE_MISSING")? {
        Value::Array(several) => several.iter().map(text).collect(),
        one => text(one).map(|one| vec![one]),
    };
    listed.ok_or("JWT_AUDIENCE_INVALID")
}

impl IssuerSettings {
    /// Returns the operator that a token makes of its bearer, if any.
    fn operator(&self, claims: &TokenClaims<'_>) -> Result<Option<(Name, Role)>, &'static str> {
        let has = |rule: &&OperatorRule| match claims.all.get(&rule.claim) {
            Some(Value::Array(several)) => several.iter().any(|one| *one == rule.value.as_str()),
            Some(one) => *one == rule.value.as_str(),
            None => false,
        };
        let roles: Vec<Role> = self
            .operators
            .iter()
            .filter(has)
            .map(|rule| rule.role)
            .collect();
        let Some(role) = Role::ALL.into_iter().rfind(|role| roles.contains(role)) else {
            return Ok(None);
        };
        let name = claims.all.get(&self.name_claim).and_then(Value::as_str);
        let name = name.map(|name| format!("{}{name}", self.name_prefix).parse());
        match name {
            Some(Ok(name)) => Ok(Some((name, role))),
            _ => Err("OPERATOR_NAME_INVALID"),
        }
    }
}
