//! The decision whether credentials are issued. Pure: no I/O, no clock.

use std::time::Duration;

use crate::domain::{
    access::Caller,
    duration::humanize,
    grant::Grant,
    name::{GrantName, Name},
    principal::Identity,
};

/// What a service asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueRequest {
    /// Which grant.
    pub grant: GrantName,
    /// For how long; `None` for the grant's default.
    pub ttl: Option<Duration>,
}

/// Something that [`decide`] has allowed; nothing else builds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorized<T>(T);

impl<T> Authorized<T> {
    /// What was allowed.
    pub const fn get(&self) -> &T {
        &self.0
    }
}

/// An issue with everything settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The grant's current version.
    pub grant: Grant,
    /// How long the credentials live.
    pub ttl: Duration,
}

/// Why nothing is issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Unknown to the caller, or to everybody: one text for both.
    #[error("there is no grant {0} for this service")]
    NoSuchGrant(GrantName),
    /// More was asked for than the grant allows.
    #[error("{} is above the maximum of grant {grant}, {}", humanize(*.asked), humanize(*.maximum))]
    TtlAboveMaximum {
        /// The grant.
        grant: GrantName,
        /// The lifetime asked for.
        asked: Duration,
        /// The grant's maximum.
        maximum: Duration,
    },
    /// Less was asked for than AWS can give.
    #[error("{} is below the minimum of kind {kind}, {}", humanize(*.asked), humanize(*.minimum))]
    TtlBelowMinimum {
        /// The grant's kind.
        kind: &'static str,
        /// The lifetime asked for.
        asked: Duration,
        /// The kind's minimum.
        minimum: Duration,
    },
}

impl Denial {
    /// The machine reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchGrant(_) => "NO_SUCH_GRANT",
            Self::TtlAboveMaximum { .. } => "TTL_ABOVE_MAXIMUM",
            Self::TtlBelowMinimum { .. } => "TTL_BELOW_MINIMUM",
        }
    }
}

/// The caller's own service name; `None` for an operator.
#[must_use]
pub const fn own_service(caller: &Caller) -> Option<&Name> {
    match caller.principal().identity() {
        Identity::Service(name) => Some(name),
        Identity::Operator(..) => None,
    }
}

/// Decides whether `caller` gets what it asks for, given the current version of the
/// grant that it names.
///
/// # Errors
/// The grant is not the caller's or does not exist, or the lifetime is out of bounds.
pub fn decide(
    caller: &Caller,
    request: &IssueRequest,
    grant: Option<Grant>,
) -> Result<Authorized<Issue>, Denial> {
    let own = own_service(caller) == Some(&request.grant.service);
    let Some(grant) = grant.filter(|grant| own && grant.name == request.grant) else {
        return Err(Denial::NoSuchGrant(request.grant.clone()));
    };
    let ttl = request.ttl.unwrap_or(grant.spec.default_ttl);
    let kind = grant.spec.kind();
    let (minimum, _) = kind.ttl_bounds();
    if ttl < minimum {
        return Err(Denial::TtlBelowMinimum {
            kind: kind.as_str(),
            asked: ttl,
            minimum,
        });
    }
    let maximum = grant.spec.max_ttl;
    if ttl > maximum {
        return Err(Denial::TtlAboveMaximum {
            grant: grant.name,
            asked: ttl,
            maximum,
        });
    }
    Ok(Authorized(Issue { grant, ttl }))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::domain::{
        access::admit,
        grant::{GrantSpec, KindSpec},
        principal::{Origin, Principal},
        token::TokenId,
    };

    fn caller(service: &str) -> Caller {
        let method = "credbroker.v1.CredentialService/IssueCredentials".to_owned();
        admit(Principal::proven(
            Identity::Service(service.parse().unwrap()),
            TokenId::parse("abcdefghijklmnop").unwrap(),
            Origin { peer: None, method },
        ))
        .unwrap()
    }

    fn grant() -> Grant {
        Grant {
            name: "payments/uploads".parse().unwrap(),
            version: 1,
            spec: GrantSpec {
                kind: KindSpec::FederationToken {
                    region: None,
                    tags: vec![],
                },
                policy: None,
                managed_policies: vec![],
                default_ttl: Duration::from_secs(3600),
                max_ttl: Duration::from_secs(7200),
                allow_broad: false,
            },
            created_at: Timestamp::UNIX_EPOCH,
            created_by: "ann".parse().unwrap(),
        }
    }

    fn ask(service: &str, ttl: Option<u64>, grant: Option<Grant>) -> Result<u64, &'static str> {
        let request = IssueRequest {
            grant: "payments/uploads".parse().unwrap(),
            ttl: ttl.map(Duration::from_secs),
        };
        decide(&caller(service), &request, grant)
            .map(|allowed| allowed.get().ttl.as_secs())
            .map_err(|denial| denial.reason())
    }

    #[test]
    fn a_service_gets_its_own_grant_for_the_default_lifetime() {
        assert_eq!(ask("payments", None, Some(grant())), Ok(3600));
        assert_eq!(ask("payments", Some(7200), Some(grant())), Ok(7200));
    }

    #[test]
    fn another_services_grant_looks_like_none() {
        assert_eq!(ask("billing", None, Some(grant())), Err("NO_SUCH_GRANT"));
        assert_eq!(ask("payments", None, None), Err("NO_SUCH_GRANT"));
    }

    #[test]
    fn a_lifetime_out_of_bounds_is_refused_and_never_cut() {
        assert_eq!(
            ask("payments", Some(7201), Some(grant())),
            Err("TTL_ABOVE_MAXIMUM")
        );
        assert_eq!(
            ask("payments", Some(899), Some(grant())),
            Err("TTL_BELOW_MINIMUM")
        );
    }
}
