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
    revoking_leases: u64,
    audit_records: u64,
}

pub(super) async fn run(client: &Client, out: &mut Output) -> Result<(), Failure> {
    let status = client
        .admin()
        .get_status(GetStatusRequest {})
        .await?
        .into_inner();
    out.show(&Status {
        version: status.version,
        started_at: time(status.started_at.as_ref()),
        admin_arn: status.admin_arn,
        aws_error: status.aws_error,
        region: status.region,
        services: status.services,
        grants: status.grants,
        live_leases: status.live_leases,
        revoking_leases: status.revoking_leases,
        audit_records: status.audit_records,
    })?;
    Ok(())
}
