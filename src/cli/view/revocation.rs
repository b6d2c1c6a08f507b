//! `revoke -o json`.

use serde::Serialize;

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
    leases: Vec<RevokedLease>,
    sessions: Vec<RevokedSessions>,
    confirmed: bool,
    pub(in crate::cli) receipt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
}

#[derive(Serialize)]
pub(in crate::cli) struct RevokedLease {
    pub(in crate::cli) lease_id: String,
    pub(in crate::cli) kind: &'static str,
    pub(in crate::cli) state: &'static str,
    pub(in crate::cli) refused_after_seconds: Option<f64>,
    pub(in crate::cli) notice: Option<String>,
}

#[derive(Serialize)]
pub(in crate::cli) struct RevokedSessions {
    pub(in crate::cli) holder: String,
    pub(in crate::cli) refused_after_seconds: Option<f64>,
    pub(in crate::cli) notice: Option<String>,
}

impl Revocation {
    /// Of a service, or of SERVICE/GRANT, before anything is known of it.
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
            leases: Vec::new(),
            sessions: Vec::new(),
            confirmed: false,
            receipt: None,
            notice: None,
        }
    }

    /// Takes in what has happened.
    pub(in crate::cli) fn add(&mut self, what: What) {
        match what {
            What::Begun(_) | What::Written(_) => {}
            What::Sessions(sessions) => self.sessions.push(sessions.into()),
            What::Lease(lease) => self.leases.push(lease.into()),
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
                self.leases.sort_by(|a, b| a.lease_id.cmp(&b.lease_id));
                self.sessions.sort_by(|a, b| a.holder.cmp(&b.holder));
            }
        }
    }
}

impl From<proto::RevokedLease> for RevokedLease {
    fn from(lease: proto::RevokedLease) -> Self {
        Self {
            kind: kind(lease.kind),
            state: state(lease.state),
            lease_id: lease.lease_id,
            refused_after_seconds: lease.refused_after_seconds,
            notice: (!lease.notice.is_empty()).then_some(lease.notice),
        }
    }
}

impl From<proto::RevokedSessions> for RevokedSessions {
    fn from(sessions: proto::RevokedSessions) -> Self {
        Self {
            holder: sessions.holder,
            refused_after_seconds: sessions.refused_after_seconds,
            notice: (!sessions.notice.is_empty()).then_some(sessions.notice),
        }
    }
}
