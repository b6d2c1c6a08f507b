use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{parse, parse_reason, to_kind, to_state, to_time},
    records::to_receipt,
};
use crate::{
    broker,
    domain::name::Name,
    proto::{
        RevokeServiceRequest, RevokeServiceResponse, RevokedLease,
        revocation_service_server::RevocationService,
    },
};

#[tonic::async_trait]
impl RevocationService for Api {
    async fn revoke_service(
        &self,
        request: Request<RevokeServiceRequest>,
    ) -> Result<Response<RevokeServiceResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Name = parse("service", &message.service)?;
            let reason = parse_reason(&message.reason)?;
            let revocation = broker
                .revoke_service(caller, service.clone(), reason)
                .await?;
            Ok(RevokeServiceResponse {
                service: service.to_string(),
                suspended_at: Some(to_time(revocation.suspension.at)),
                confirmed: revocation.confirmed(),
                receipt: revocation.receipt.as_ref().map(to_receipt),
                notice: revocation.notice.clone().unwrap_or_default(),
                leases: revocation.leases.iter().map(to_revoked).collect(),
            })
        })
        .await
    }
}

fn to_revoked(revoked: &broker::RevokedLease) -> RevokedLease {
    let binding = &revoked.lease.binding;
    RevokedLease {
        lease_id: binding.lease_id.to_string(),
        kind: to_kind(binding.kind).into(),
        state: to_state(&revoked.lease.state).into(),
        refused_after_seconds: revoked.refused_after_seconds,
        notice: revoked.notice.clone().unwrap_or_default(),
    }
}
