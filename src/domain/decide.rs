//! The decision whether credentials are issued or renewed. Pure: no I/O; the time is passed in.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::domain::{
    access::Caller,
    duration::humanize,
    grant::Grant,
    lease::{Lease, LeaseState},
    name::{GrantName, LeaseId, Name},
    principal::Identity,
    request::{IdempotencyKey, RequestId},
};

/// A service's request for credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueRequest {
    /// Grant to issue credentials under.
    pub grant: GrantName,
    /// Requested lifetime; `None`: the grant's default.
    pub ttl: Option<Duration>,
    /// Id and digest that identify an idempotent repeat.
    pub named: Option<IdempotencyKey>,
    /// Least remaining lifetime of a shared session that may answer the request.
    pub least_left: Duration,
    /// Lease that must not be handed out again, where sessions are shared: its holder asks for the
    /// next.
    pub other_than: Option<LeaseId>,
}

impl IssueRequest {
    /// Creates a request for credentials under `grant`. `id` identifies an idempotent repeat.
    #[must_use]
    pub fn new(grant: GrantName, ttl: Option<Duration>, id: Option<RequestId>) -> Self {
        let asked = ["issue", &grant.to_string(), &seconds(ttl)];
        let named = id.map(|id| IdempotencyKey::new(id, &asked));
        Self {
            grant,
            ttl,
            named,
            least_left: Duration::ZERO,
            other_than: None,
        }
    }
}

/// A service's request to renew a lease that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewRequest {
    /// Lease to renew.
    pub lease_id: LeaseId,
    /// Requested lifetime from now on; `None`: the grant's default.
    pub ttl: Option<Duration>,
    /// Id and digest that identify an idempotent repeat.
    pub named: Option<IdempotencyKey>,
}

impl RenewRequest {
    /// Creates a request to renew a lease. `id` identifies an idempotent repeat.
    #[must_use]
    pub fn new(lease_id: LeaseId, ttl: Option<Duration>, id: Option<RequestId>) -> Self {
        let asked = ["renew", lease_id.as_str(), &seconds(ttl)];
        let named = id.map(|id| IdempotencyKey::new(id, &asked));
        Self {
            lease_id,
            ttl,
            named,
        }
    }

    /// Returns the equivalent request for credentials under the lease's grant.
    #[must_use]
    pub fn as_issue(&self, grant: &GrantName) -> IssueRequest {
        IssueRequest {
            grant: grant.clone(),
            ttl: self.ttl,
            named: self.named.clone(),
            least_left: Duration::ZERO,
            other_than: None,
        }
    }
}

fn seconds(ttl: Option<Duration>) -> String {
    ttl.map(|ttl| ttl.as_secs().to_string()).unwrap_or_default()
}

/// An action that [`decide`] has allowed. No other module can build it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorized<T>(T);

impl<T> Authorized<T> {
    /// Returns the allowed action.
    pub const fn get(&self) -> &T {
        &self.0
    }
}

impl Authorized<Issue> {
    /// Returns the same action for at most `ttl`. A shorter lifetime needs no new decision.
    #[must_use]
    pub fn for_at_most(&self, ttl: Duration) -> Self {
        let Issue {
            grant,
            ttl: allowed,
        } = &self.0;
        Self(Issue {
            grant: Arc::clone(grant),
            ttl: ttl.min(*allowed),
        })
    }
}

/// An issue with all values decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Current version of the grant.
    pub grant: Arc<Grant>,
    /// Lifetime of the credentials.
    pub ttl: Duration,
}

/// A renewal with all values decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// New end of the lease's IAM user; `None`: the lease already lasts as long.
    LivesUntil(Option<Timestamp>),
    /// A session cannot be extended: the lease continues with a new session.
    NewSession(Box<Authorized<Issue>>),
}

/// Reason why the broker issues or renews nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueRefusal {
    /// The grant is unknown to the caller, or does not exist. Both have the same text.
    #[error("there is no grant {0} for this service")]
    NoSuchGrant(GrantName),
    /// The requested lifetime is longer than the grant allows.
    #[error("{} is above the maximum of grant {grant}, {}", humanize(*.asked), humanize(*.maximum))]
    TtlAboveMaximum {
        /// The grant.
        grant: GrantName,
        /// Requested lifetime.
        asked: Duration,
        /// The grant's maximum.
        maximum: Duration,
    },
    /// The requested lifetime is below the minimum of the grant's kind.
    #[error("{} is below the minimum of kind {kind}, {}", humanize(*.asked), humanize(*.minimum))]
    TtlBelowMinimum {
        /// The grant's kind.
        kind: &'static str,
        /// Requested lifetime.
        asked: Duration,
        /// The kind's minimum.
        minimum: Duration,
    },
    /// The lease was issued under an earlier version of the grant.
    #[error("lease {lease_id} was issued under an earlier version of its grant")]
    GrantChanged {
        /// Id of the lease.
        lease_id: LeaseId,
    },
    /// The lease has ended: it cannot be renewed or handed out again.
    #[error("lease {lease_id} is {state}")]
    LeaseOver {
        /// Id of the lease.
        lease_id: LeaseId,
        /// State of the lease.
        state: &'static str,
    },
    /// The renewed lease of a user would be longer than its grant allows, counted from the first
    /// request.
    #[error(
        "lease {lease_id} can live until {latest:.0} at the latest: {} after it was asked for, as its grant allows",
        humanize(*.maximum)
    )]
    RenewalAboveMaximum {
        /// Id of the lease.
        lease_id: LeaseId,
        /// Latest end of the lease.
        latest: Timestamp,
        /// The grant's maximum.
        maximum: Duration,
    },
}

impl IssueRefusal {
    /// Returns the reason code.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchGrant(_) => "NO_SUCH_GRANT",
            Self::TtlAboveMaximum { .. } => "TTL_ABOVE_MAXIMUM",
            Self::TtlBelowMinimum { .. } => "TTL_BELOW_MINIMUM",
            Self::GrantChanged { .. } => "GRANT_CHANGED",
            Self::LeaseOver { .. } => "LEASE_ENDED",
            Self::RenewalAboveMaximum { .. } => "RENEWAL_ABOVE_MAXIMUM",
        }
    }
}

/// Returns the name of the calling service; `None` for an operator or a host that enrols.
#[must_use]
pub const fn own_service(caller: &Caller) -> Option<&Name> {
    match caller.principal().identity() {
        Identity::Service(name) => Some(name),
        Identity::Operator(..) | Identity::Enrollee(_) => None,
    }
}

/// Decides whether `caller` gets the requested credentials, given the current version of the grant.
///
/// # Errors
/// The grant is not the caller's or does not exist, or the lifetime is out of bounds.
pub fn decide(
    caller: &Caller,
    request: &IssueRequest,
    grant: Option<Arc<Grant>>,
) -> Result<Authorized<Issue>, IssueRefusal> {
    let own = own_service(caller) == Some(&request.grant.service);
    let Some(grant) = grant.filter(|grant| own && grant.name == request.grant) else {
        return Err(IssueRefusal::NoSuchGrant(request.grant.clone()));
    };
    let ttl = request.ttl.unwrap_or(grant.spec.default_ttl);
    let kind = grant.spec.kind();
    let (minimum, _) = kind.ttl_bounds();
    if ttl < minimum {
        return Err(IssueRefusal::TtlBelowMinimum {
            kind: kind.as_str(),
            asked: ttl,
            minimum,
        });
    }
    let maximum = grant.spec.max_ttl;
    if ttl > maximum {
        return Err(IssueRefusal::TtlAboveMaximum {
            grant: grant.name.clone(),
            asked: ttl,
            maximum,
        });
    }
    Ok(Authorized(Issue { grant, ttl }))
}

/// Decides whether `caller`'s lease is renewed at `now`, given the current version of its grant.
///
/// # Errors
/// The grant does not exist any more or has changed, the lease has ended, or the lifetime is out of
/// bounds.
pub fn decide_renewal(
    caller: &Caller,
    request: &RenewRequest,
    lease: &Lease,
    grant: Option<Arc<Grant>>,
    now: Timestamp,
) -> Result<Renewal, IssueRefusal> {
    let issue = decide(caller, &request.as_issue(&lease.binding.grant), grant)?;
    let lease_id = || lease.binding.lease_id.clone();
    let LeaseState::Active { issued, .. } = &lease.state else {
        return Err(IssueRefusal::LeaseOver {
            lease_id: lease_id(),
            state: lease.state.as_str(),
        });
    };
    if issued.expires_at <= now {
        return Err(IssueRefusal::LeaseOver {
            lease_id: lease_id(),
            state: "expired",
        });
    }
    if lease.binding.kind.is_session() {
        return Ok(Renewal::NewSession(Box::new(issue)));
    }
    let Issue { grant, ttl } = issue.get();
    if grant.version != lease.binding.grant_version {
        return Err(IssueRefusal::GrantChanged {
            lease_id: lease_id(),
        });
    }
    let maximum = grant.spec.max_ttl;
    let latest = after(lease.requested_at, maximum);
    let wanted = after(now, *ttl);
    let too_late = wanted > latest && (request.ttl.is_some() || latest <= issued.expires_at);
    if too_late {
        return Err(IssueRefusal::RenewalAboveMaximum {
            lease_id: lease_id(),
            latest,
            maximum,
        });
    }
    let until = wanted.min(latest);
    Ok(Renewal::LivesUntil(
        (until > issued.expires_at).then_some(until),
    ))
}

/// Returns `time` plus `ttl`, at most the latest time that a timestamp can hold.
fn after(time: Timestamp, ttl: Duration) -> Timestamp {
    time.saturating_add(ttl).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        access::{Surface, admit},
        grant::{GrantSpec, KindSpec},
        lease::{EndReason, Issuance, IssuedCredentials},
        name::tests::Counting,
        principal::{Origin, Principal, tests::by_token},
    };

    fn caller(service: &str) -> Caller {
        let method = "credbroker.v1.CredentialService/IssueCredentials".to_owned();
        admit(
            Principal::proven(
                Identity::Service(service.parse().unwrap()),
                by_token(),
                Origin { peer: None, method },
            ),
            Surface::Whole,
        )
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
                probe: None,
                further_probes: Vec::new(),
                probe_regions: Vec::new(),
                ends_by_policy: false,
                reuse: None,
            },
            created_at: Timestamp::UNIX_EPOCH,
            created_by: "ann".parse().unwrap(),
        }
    }

    fn ask(service: &str, ttl: Option<u64>, grant: Option<Grant>) -> Result<u64, &'static str> {
        let name = "payments/uploads".parse().unwrap();
        let request = IssueRequest::new(name, ttl.map(Duration::from_secs), None);
        decide(&caller(service), &request, grant.map(Arc::new))
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

    fn user_grant() -> Grant {
        let kind = KindSpec::IamUser {
            groups: vec![],
            path: "/".to_owned(),
            permissions_boundary: None,
            tags: vec![],
        };
        let spec = GrantSpec {
            kind,
            ..grant().spec
        };
        Grant { spec, ..grant() }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Returns a lease that was requested at 1,000 and issued until 4,600.
    fn lease(grant: &Grant) -> Lease {
        let id = LeaseId::new(second(1_000), &Counting);
        let lease = Lease::request(Issuance::new(id, grant, None, None), None, second(1_000));
        let issued = IssuedCredentials {
            access_key_id: "AKIA1".to_owned(),
            at: second(1_000),
            expires_at: second(4_600),
        };
        lease.activate(issued).unwrap()
    }

    fn renew(
        lease: &Lease,
        grant: Grant,
        ttl: Option<u64>,
        now: i64,
    ) -> Result<Renewal, &'static str> {
        let id = lease.binding.lease_id.clone();
        let request = RenewRequest::new(id, ttl.map(Duration::from_secs), None);
        let caller = caller("payments");
        decide_renewal(&caller, &request, lease, Some(Arc::new(grant)), second(now))
            .map_err(|denial| denial.reason())
    }

    #[test]
    fn a_user_is_renewed_up_to_the_grants_maximum_after_it_was_asked_for() {
        let (grant, lease) = (user_grant(), lease(&user_grant()));
        let until = |ttl, now| renew(&lease, grant.clone(), ttl, now);
        let lives = |at| Ok(Renewal::LivesUntil(Some(second(at))));
        assert_eq!(until(None, 2_000), lives(5_600));
        assert_eq!(until(Some(6_200), 2_000), lives(8_200));
        assert_eq!(until(Some(6_201), 2_000), Err("RENEWAL_ABOVE_MAXIMUM"));
        // Without a requested lifetime the lease gets the rest of the maximum.
        assert_eq!(until(None, 4_599), lives(8_199));
        assert_eq!(until(Some(60), 2_000), Ok(Renewal::LivesUntil(None)));
        assert_eq!(until(None, 4_600), Err("LEASE_ENDED"));
        let longest = lease.clone().extend(second(8_200), second(2_000)).unwrap();
        assert_eq!(
            renew(&longest, grant.clone(), None, 5_000),
            Err("RENEWAL_ABOVE_MAXIMUM")
        );
    }

    #[test]
    fn a_user_of_an_earlier_version_or_a_lease_that_is_over_is_not_renewed() {
        let held = lease(&user_grant());
        let changed = Grant {
            version: 2,
            ..user_grant()
        };
        assert_eq!(renew(&held, changed, None, 2_000), Err("GRANT_CHANGED"));
        let over = held.begin_revocation(EndReason::Released, second(1_500));
        assert_eq!(
            renew(&over.unwrap(), user_grant(), None, 2_000),
            Err("LEASE_ENDED")
        );
        let elsewhere = Grant {
            name: "payments/other".parse().unwrap(),
            ..user_grant()
        };
        assert_eq!(
            renew(&lease(&user_grant()), elsewhere, None, 2_000),
            Err("NO_SUCH_GRANT")
        );
    }

    #[test]
    fn a_session_is_renewed_by_a_new_one_under_the_grant_as_it_stands() {
        let held = lease(&grant());
        let changed = Grant {
            version: 2,
            ..grant()
        };
        match renew(&held, changed, Some(1_800), 2_000) {
            Ok(Renewal::NewSession(issue)) => {
                assert_eq!(
                    (issue.get().grant.version, issue.get().ttl.as_secs()),
                    (2, 1_800)
                );
            }
            other => panic!("{other:?}"),
        }
    }
}
