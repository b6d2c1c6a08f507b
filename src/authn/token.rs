//! Bearer tokens: `authorization: Bearer cbs_…`, `cbo_…` or `cbe_…` (RFC 6750).

use jiff::Timestamp;

use super::{Login, LoginError, of_service};
use crate::{
    broker::ports::{Store, TokenOwner},
    domain::{
        principal::{Evidence, Identity, Origin, Principal, Proof},
        token::Token,
    },
};

/// Authenticates the bearer by `authorization`, the header's value.
///
/// # Errors
/// The token is absent, malformed, unknown or expired; its service is suspended; or the store's
/// error.
pub async fn authenticate(
    store: &dyn Store,
    now: Timestamp,
    origin: Origin,
    authorization: Option<&str>,
) -> Login {
    let text = bearer(authorization)?;
    let token = Token::parse(text).ok_or(refused("TOKEN_MALFORMED"))?;
    let refused = |reason| LoginError::Refused {
        reason,
        evidence: Some(Evidence::Token(token.id().clone())),
    };
    let found = store.token_owner(token.id()).await?;
    let (stored, owner) = found.ok_or_else(|| refused("TOKEN_UNKNOWN"))?;
    if !stored.digest.matches(&token.digest()) {
        return Err(refused("TOKEN_SECRET_WRONG"));
    }
    if stored.expires_at.is_some_and(|expiry| expiry <= now) {
        return Err(refused("TOKEN_EXPIRED"));
    }
    let proof = Proof {
        evidence: Evidence::Token(stored.id),
        binding: None,
        expires_at: stored.expires_at,
    };
    let proven = |identity| Ok(Principal::proven(identity, proof.clone(), origin.clone()));
    match owner {
        TokenOwner::Enrollee(service) if service.suspension.is_none() => {
            proven(Identity::Enrollee(service.name))
        }
        TokenOwner::Service(service) | TokenOwner::Enrollee(service) => {
            of_service(service, proof, origin)
        }
        TokenOwner::Operator(operator) => proven(Identity::Operator(operator.name, operator.role)),
    }
}

const fn refused(reason: &'static str) -> LoginError {
    LoginError::Refused {
        reason,
        evidence: None,
    }
}

pub(super) fn bearer(authorization: Option<&str>) -> Result<&str, LoginError> {
    let header = authorization.ok_or(refused("TOKEN_ABSENT"))?;
    match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token),
        _ => Err(refused("NOT_A_BEARER_TOKEN")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_is_taken() {
        assert_eq!(bearer(Some("Bearer abc")).unwrap(), "abc");
        assert_eq!(bearer(Some("bearer abc")).unwrap(), "abc");
        for wrong in [None, Some(""), Some("abc"), Some("Basic abc")] {
            assert!(bearer(wrong).is_err(), "{wrong:?}");
        }
    }
}
