//! Output of `revoke -o json`.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::{kind, receipt, state, time};
use crate::proto::{self, revocation_progress::What};

#[derive(Serialize)]
pub(in crate::cli) struct Revocation {
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspended_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<String>,
    /// Leases by id.
    #[serde(serialize_with = "values")]
    pub(in crate::cli) leases: BTreeMap<String, RevokedLease>,
    /// Sessions by role or user.
    #[serde(serialize_with = "values")]
    pub(in crate::cli) sessions: BTreeMap<String, RevokedSessions>,
    pub(in crate::cli) confirmed: bool,
    pub(in crate::cli) open: Vec<Open>,
    pub(in crate::cli) receipt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) notice: Option<String>,
}

fn values<T: Serialize, S: Serializer>(
    map: &BTreeMap<String, T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map.values())
}

/// Credentials that may still work, for one reason.
#[derive(Default, Serialize)]
pub(in crate::cli) struct Open {
    /// ARNs of the roles and users whose sessions may still work.
    pub(in crate::cli) holders: Vec<String>,
    pub(in crate::cli) leases: usize,
    /// Time at which AWS ends the credentials by itself, if it does.
    pub(in crate::cli) until: Option<String>,
    pub(in crate::cli) why: String,
}

#[derive(Serialize)]
pub(in crate::cli) struct RevokedLease {
    pub(in crate::cli) lease_id: String,
    pub(in crate::cli) kind: &'static str,
    pub(in crate::cli) state: &'static str,
    pub(in crate::cli) refused_after_seconds: Option<f64>,
    pub(in crate::cli) gone_after_seconds: Option<f64>,
    pub(in crate::cli) notice: Option<String>,
    pub(in crate::cli) expires_at: Option<String>,
}

impl RevokedLease {
    /// Returns whether the end of the lease was seen.
    fn is_over(&self) -> bool {
        self.refused_after_seconds.is_some() || self.gone_after_seconds.is_some()
    }
}

#[derive(Serialize)]
pub(in crate::cli) struct RevokedSessions {
    pub(in crate::cli) holder: String,
    pub(in crate::cli) refused_after_seconds: Option<f64>,
    pub(in crate::cli) notice: Option<String>,
    pub(in crate::cli) denied_until: Option<String>,
    pub(in crate::cli) seen_by: Option<String>,
}

/// Output of `revoke --dry-run -o json`.
#[derive(Serialize)]
pub(in crate::cli) struct Reach<'a> {
    dry_run: bool,
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<&'a str>,
    /// Number of live leases of each kind.
    pub(in crate::cli) kinds: BTreeMap<&'static str, usize>,
    leases: Vec<&'a str>,
    sessions: Vec<Denied<'a>>,
}

#[derive(Serialize)]
struct Denied<'a> {
    holder: &'a str,
    denied_until: Option<&'a str>,
}

impl Revocation {
    /// Returns the reach of a dry run.
    pub(in crate::cli) fn reach(&self) -> Reach<'_> {
        let mut kinds = BTreeMap::new();
        for lease in self.leases.values() {
            *kinds.entry(lease.kind).or_default() += 1;
        }
        let leases = self.leases.keys().map(String::as_str);
        let sessions = self.sessions.values().map(|told| Denied {
            holder: &told.holder,
            denied_until: told.denied_until.as_deref(),
        });
        Reach {
            dry_run: true,
            service: &self.service,
            grant: self.grant.as_deref(),
            kinds,
            leases: leases.collect(),
            sessions: sessions.collect(),
        }
    }

    /// Creates the revocation of a service, or of SERVICE/GRANT, before any progress.
    pub(in crate::cli) fn of(target: &str) -> Self {
        let (service, grant) = match target.split_once('/') {
            Some((service, _)) => (service, Some(target.to_owned())),
            None => (target, None),
        };
        Self {
            service: service.to_owned(),
            grant,
            suspended_at: None,
            revoked_at: None,
            leases: BTreeMap::new(),
            sessions: BTreeMap::new(),
            confirmed: false,
            open: Vec::new(),
            receipt: None,
            notice: None,
        }
    }

    /// Adds a progress message.
    pub(in crate::cli) fn add(&mut self, what: What) {
        match what {
            What::Begun(_) | What::Written(_) => {}
            What::Sessions(sessions) => {
                let told = RevokedSessions::from(sessions);
                self.sessions.insert(told.holder.clone(), told);
            }
            What::Lease(lease) => {
                let told = RevokedLease::from(lease);
                self.leases.insert(told.lease_id.clone(), told);
            }
            What::Done(done) => {
                let at = time(done.at.as_ref());
                if self.grant.is_some() {
                    self.revoked_at = at;
                } else {
                    self.suspended_at = at;
                }
                self.confirmed = done.confirmed;
                self.receipt = receipt(done.receipt);
                self.notice = (!done.notice.is_empty()).then_some(done.notice);
                self.open = open(self.sessions.values(), self.leases.values());
            }
        }
    }
}

/// Groups by reason what AWS was not seen to refuse.
fn open<'a>(
    sessions: impl Iterator<Item = &'a RevokedSessions>,
    leases: impl Iterator<Item = &'a RevokedLease>,
) -> Vec<Open> {
    let mut by_reason: BTreeMap<&str, Open> = BTreeMap::new();
    for told in sessions {
        if told.refused_after_seconds.is_none() {
            let open = by_reason.entry(why(told.notice.as_ref())).or_default();
            open.holders.push(told.holder.clone());
            open.until = open.until.take().max(told.denied_until.clone());
        }
    }
    for told in leases {
        if !told.is_over() {
            let open = by_reason.entry(why(told.notice.as_ref())).or_default();
            open.leases += 1;
            // An IAM user works until it is deleted, so the end of its lease is no bound.
            let ends = told.expires_at.clone().filter(|_| told.kind != "iam_user");
            open.until = open.until.take().max(ends);
        }
    }
    let named = by_reason.into_iter().map(|(why, open)| Open {
        why: why.to_owned(),
        ..open
    });
    named.collect()
}

fn why(notice: Option<&String>) -> &str {
    notice.map_or("AWS was not seen to refuse it", String::as_str)
}

impl From<proto::RevokedLease> for RevokedLease {
    fn from(lease: proto::RevokedLease) -> Self {
        Self {
            kind: kind(lease.kind),
            state: state(lease.state),
            lease_id: lease.lease_id,
            refused_after_seconds: lease.refused_after_seconds,
            gone_after_seconds: lease.gone_after_seconds,
            notice: (!lease.notice.is_empty()).then_some(lease.notice),
            expires_at: time(lease.expires_at.as_ref()),
        }
    }
}

impl From<proto::RevokedSessions> for RevokedSessions {
    fn from(sessions: proto::RevokedSessions) -> Self {
        Self {
            holder: sessions.holder,
            refused_after_seconds: sessions.refused_after_seconds,
            notice: (!sessions.notice.is_empty()).then_some(sessions.notice),
            denied_until: time(sessions.denied_until.as_ref()),
            seen_by: (!sessions.seen_by.is_empty()).then_some(sessions.seen_by),
        }
    }
}
