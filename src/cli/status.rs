//! `credbroker status`.

use serde::Serialize;

use super::{error::CliError, output::Output, view::time};
use crate::{
    client::Client,
    proto::{self, GetStatusRequest},
};

#[derive(Serialize)]
struct Status {
    version: String,
    started_at: Option<String>,
    admin_arn: Option<String>,
    aws_error: Option<String>,
    region: String,
    brokers: u64,
    clock_uncertain: bool,
    services: u64,
    grants: u64,
    live_leases: u64,
    pending_leases: u64,
    revoking_leases: u64,
    quarantined_leases: u64,
    audit_records: u64,
    denials: u64,
    open_denials: Vec<OpenDenial>,
    unreadable_denials: u64,
    reconciled_at: Option<String>,
    users_in_aws: Option<u64>,
    orphans_removed: Option<u64>,
    keys_removed: Option<u64>,
    strangers: Vec<String>,
    vanished_leases: Vec<String>,
}

#[derive(Serialize)]
struct OpenDenial {
    holder: String,
    against: String,
    asked_at: Option<String>,
    failure: Option<String>,
}

impl From<proto::OpenDenial> for OpenDenial {
    fn from(denial: proto::OpenDenial) -> Self {
        Self {
            holder: denial.holder,
            against: denial.against,
            asked_at: time(denial.asked_at.as_ref()),
            failure: (!denial.failure.is_empty()).then_some(denial.failure),
        }
    }
}

pub(super) async fn run(client: &Client, out: &mut Output) -> Result<(), CliError> {
    let status = client
        .admin()
        .get_status(GetStatusRequest {})
        .await?
        .into_inner();
    let found = status.reconciliation.as_ref();
    let open = status.open_denials.len();
    out.show(&Status {
        version: status.version,
        started_at: time(status.started_at.as_ref()),
        admin_arn: status.admin_arn,
        aws_error: status.aws_error,
        region: status.region,
        brokers: status.brokers,
        clock_uncertain: status.clock_uncertain,
        services: status.services,
        grants: status.grants,
        live_leases: status.live_leases,
        pending_leases: status.pending_leases,
        revoking_leases: status.revoking_leases,
        quarantined_leases: status.quarantined_leases,
        audit_records: status.audit_records,
        denials: status.denials,
        open_denials: status
            .open_denials
            .into_iter()
            .map(OpenDenial::from)
            .collect(),
        unreadable_denials: status.unreadable_denials,
        reconciled_at: found.and_then(|found| time(found.time.as_ref())),
        users_in_aws: found.map(|found| found.users),
        orphans_removed: found.map(|found| found.orphans_removed),
        keys_removed: found.map(|found| found.keys_removed),
        strangers: found
            .map(|found| found.strangers.clone())
            .unwrap_or_default(),
        vanished_leases: found
            .map(|found| found.vanished_leases.clone())
            .unwrap_or_default(),
    })?;
    if open > 0 {
        eprintln!(
            "warning: AWS is not seen yet to refuse sessions that were revoked; the broker goes on trying"
        );
    }
    if status.clock_uncertain {
        eprintln!(
            "warning: AWS's answers do not agree on the time; nothing is issued until they do, revocation works"
        );
    }
    if status.unreadable_denials > 0 {
        eprintln!(
            "warning: denials in the store cannot be read; what AWS denies now stays denied. Update this broker if a \
             newer one works on the store, else restore the store from a good copy"
        );
    }
    if status.quarantined_leases > 0 {
        eprintln!(
            "warning: AWS keeps refusing to let some leases go; `credbroker lease list --state quarantined` shows them"
        );
    }
    Ok(())
}
