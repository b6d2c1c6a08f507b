//! `credbroker revoke`: the kill switch.

use clap::Args;

use super::{
    failure::Failure,
    output::{Format, Output},
    view::{Revocation, RevokedLease},
};
use crate::{client::Client, proto::RevokeServiceRequest};

#[derive(Args, Debug)]
pub(super) struct Revoke {
    /// Which service.
    service: String,
    /// Why, for the audit log.
    #[arg(long, default_value = "")]
    reason: String,
}

impl Revoke {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), Failure> {
        let request = RevokeServiceRequest {
            service: self.service,
            reason: self.reason,
        };
        let answer = client
            .revocation()
            .revoke_service(request)
            .await?
            .into_inner();
        let (service, confirmed) = (answer.service.clone(), answer.confirmed);
        let revocation = Revocation::from(answer);
        if out.format() == Format::Json {
            out.show(&revocation)?;
        } else {
            let leases = &revocation.leases;
            out.line(&format!(
                "{service} is suspended; live leases: {}",
                leases.len()
            ))?;
            for lease in leases {
                out.line(&line(lease))?;
            }
            if let Some(receipt) = &revocation.receipt {
                out.line(&format!("receipt  {receipt}"))?;
            }
        }
        if let Some(notice) = &revocation.notice {
            eprintln!("warning: {notice}");
        }
        if !confirmed {
            eprintln!(
                "warning: not everything is gone yet; `credbroker lease list --service {service} --state revoking` shows what is left"
            );
        }
        Ok(())
    }
}

fn line(lease: &RevokedLease) -> String {
    let RevokedLease {
        lease_id,
        kind,
        state,
        ..
    } = lease;
    match (lease.refused_after_seconds, &lease.notice) {
        (Some(seconds), _) => {
            format!("  {lease_id}  {kind}  {state}: AWS shows it gone after {seconds:.2} s")
        }
        (None, notice) => format!(
            "  {lease_id}  {kind}  {state}: {}",
            notice.as_deref().unwrap_or("not confirmed")
        ),
    }
}
