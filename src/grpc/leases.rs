use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{next_page, parse, parse_optional, parse_page, parse_reason, parse_state, to_lease},
    records::to_receipt,
};
use crate::{
    broker::ports::LeaseFilter,
    domain::name::LeaseId,
    proto::{
        GetLeaseRequest, Lease, ListLeasesRequest, ListLeasesResponse, RevokeLeaseRequest,
        RevokeLeaseResponse, lease_service_server::LeaseService,
    },
};

#[tonic::async_trait]
impl LeaseService for Api {
    async fn get_lease(
        &self,
        request: Request<GetLeaseRequest>,
    ) -> Result<Response<Lease>, Status> {
        self.call(request, async |broker, caller, message| {
            Ok(to_lease(
                &broker
                    .lease(&caller, &parse("lease_id", &message.lease_id)?)
                    .await?,
            ))
        })
        .await
    }

    async fn list_leases(
        &self,
        request: Request<ListLeasesRequest>,
    ) -> Result<Response<ListLeasesResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let filter = LeaseFilter {
                service: parse_optional("service", &message.service)?,
                state: parse_state(message.state)?,
            };
            let page = parse_page::<LeaseId>(message.page_size, message.page_token)?;
            let leases = broker.leases(&caller, &filter, &page).await?;
            Ok(ListLeasesResponse {
                next_page_token: next_page(&page, &leases, |lease| {
                    lease.binding.lease_id.to_string()
                }),
                leases: leases.iter().map(to_lease).collect(),
            })
        })
        .await
    }

    async fn revoke_lease(
        &self,
        request: Request<RevokeLeaseRequest>,
    ) -> Result<Response<RevokeLeaseResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let reason = parse_reason(&message.reason)?;
            let (taken, receipt) = broker
                .revoke_lease(caller, parse("lease_id", &message.lease_id)?, reason)
                .await?;
            Ok(RevokeLeaseResponse {
                lease: Some(to_lease(&taken.lease)),
                notice: taken.notice.unwrap_or_default(),
                receipt: receipt.as_ref().map(to_receipt),
            })
        })
        .await
    }
}
