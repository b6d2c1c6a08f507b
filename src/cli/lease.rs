//! `credbroker lease …`.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::{
    convert::proto_duration,
    error::CliError,
    issue,
    output::{Format, Output},
    pages, view,
};
use crate::{
    client::Client,
    domain::{duration, random::SystemRandom, request::RequestId},
    proto::{self, GetLeaseRequest, ListLeasesRequest, RenewLeaseRequest, RevokeLeaseRequest},
};

#[derive(Debug, Subcommand)]
pub(super) enum Lease {
    /// List leases, newest first.
    List {
        /// Service whose leases are listed; all if not given.
        #[arg(long, default_value = "")]
        service: String,
        /// State of the leases that are listed; all if not given.
        #[arg(long, value_enum)]
        state: Option<State>,
        /// Maximum number of leases.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Show one lease.
    Show {
        /// Id of the lease.
        lease_id: String,
    },
    /// Renew one of the service's own leases, as a service. An IAM user keeps its key; a session is
    /// followed by a new one, whose credentials are printed.
    Renew {
        /// Id of the lease.
        lease_id: String,
        /// Lifetime from now, e.g. 15m; the grant's default if not given.
        #[arg(long, value_parser = duration::parse)]
        ttl: Option<Duration>,
        /// UUID that names this request: a repeated renewal of a session with the same UUID gets
        /// the same lease. If not given, one is made, and printed if the answer is lost.
        #[arg(long, value_name = "UUID")]
        request_id: Option<RequestId>,
    },
    /// Revoke one lease.
    Revoke {
        /// Id of the lease.
        lease_id: String,
        /// Reason, for the lease and the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum State {
    /// Recorded, not yet handed out.
    Pending,
    /// Handed out.
    Active,
    /// Revocation in progress.
    Revoking,
    /// Revoked, or never handed out.
    Revoked,
    /// Past its end.
    Expired,
    /// AWS keeps refusing the clean-up.
    Quarantined,
}

impl Lease {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let mut leases = client.leases();
        match self {
            Self::List {
                service,
                state,
                limit,
            } => list(client, service, state, limit, out).await,
            Self::Show { lease_id } => {
                let lease = leases
                    .get_lease(GetLeaseRequest { lease_id })
                    .await?
                    .into_inner();
                Ok(out.show(&view::Lease::from(lease))?)
            }
            Self::Renew {
                lease_id,
                ttl,
                request_id,
            } => {
                let id = request_id.unwrap_or_else(|| RequestId::random(&SystemRandom));
                let request = RenewLeaseRequest {
                    lease_id,
                    ttl: ttl.map(proto_duration),
                    request_id: id.to_string(),
                };
                let renewed = client.credentials().renew_lease(request).await;
                let renewed = renewed
                    .map_err(|status| CliError::from(status).of_request(&id))?
                    .into_inner();
                let renewal = view::Renewal::from(renewed);
                match out.format() {
                    Format::Env => out.line(&issue::env(&renewal.exports()))?,
                    _ => out.show(&renewal)?,
                }
                Ok(())
            }
            Self::Revoke { lease_id, reason } => {
                let done = leases
                    .revoke_lease(RevokeLeaseRequest { lease_id, reason })
                    .await?
                    .into_inner();
                Ok(out.show(&view::Lease::revoked(done))?)
            }
        }
    }
}

async fn list(
    client: &Client,
    service: String,
    state: Option<State>,
    limit: u32,
    out: &mut Output,
) -> Result<(), CliError> {
    let state = state
        .map_or(proto::LeaseState::Unspecified, to_proto)
        .into();
    let all = pages::all(limit, async |page_size, page_token| {
        let request = ListLeasesRequest {
            service: service.clone(),
            state,
            page_size,
            page_token,
        };
        let page = client.leases().list_leases(request).await?.into_inner();
        let leases = page.leases.into_iter().map(view::Lease::from);
        Ok((leases.collect(), page.next_page_token))
    })
    .await?;
    Ok(out.list(
        &all,
        &[
            "lease_id",
            "grant",
            "kind",
            "state",
            "access_key_id",
            "issued_at",
            "expires_at",
            "reason",
        ],
    )?)
}

const fn to_proto(state: State) -> proto::LeaseState {
    match state {
        State::Pending => proto::LeaseState::Pending,
        State::Active => proto::LeaseState::Active,
        State::Revoking => proto::LeaseState::Revoking,
        State::Revoked => proto::LeaseState::Revoked,
        State::Expired => proto::LeaseState::Expired,
        State::Quarantined => proto::LeaseState::Quarantined,
    }
}
