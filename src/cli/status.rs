//! `credbroker status`.

use serde::Serialize;

use super::{failure::Failure, output::Output, view::time};
use crate::{client::Client, proto::GetStatusRequest};

#[derive(Serialize)]
struct Status {
    version: String,
    started_at: Option<String>,
    admin_arn: Option<String>,
    aws_error: Option<String>,
    region: String,
    services: u64,
    grants: u64,
    live_leases: u64,
    pending_leases: u64,
    revoking_leases: u64,
    quarantined_leases: u64,
    audit_records: u64,
    reconciled_at: Option<String>,
    users_in_aws: Option<u64>,
    orphans_removed: Option<u64>,
    keys_removed: Option<u64>,
    strangers: Vec<String>,
    vanished_leases: Vec<String>,
}

pub(super) async fn run(client: &Client, out: &mut Output) -> Result<(), Failure> {
    let status = client
        .admin()
        .get_status(GetStatusRequest {})
        .await?
        .into_inner();
    let found = status.reconciliation.as_ref();
    out.show(&Status {
        version: status.version,
        started_at: time(status.started_at.as_ref()),
        admin_arn: status.admin_arn,
        aws_error: status.aws_error,
        region: status.region,
        services: status.services,
        grants: status.grants,
        live_leases: status.live_leases,
        pending_leases: status.pending_leases,
        revoking_leases: status.revoking_leases,
        quarantined_leases: status.quarantined_leases,
        audit_records: status.audit_records,
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
    if status.quarantined_leases > 0 {
        eprintln!(
            "warning: AWS keeps refusing to let some leases go; `credbroker lease list --state quarantined` shows them"
        );
    }
    Ok(())
}
