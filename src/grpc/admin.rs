use secrecy::ExposeSecret;
use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{parse, parse_role, to_operator, to_time},
};
use crate::broker;
use crate::proto::{
    self, CreateOperatorRequest, CreateOperatorResponse, DeleteOperatorRequest,
    DeleteOperatorResponse, GetStatusRequest, ListOperatorsRequest, ListOperatorsResponse,
    admin_service_server::AdminService,
};

#[tonic::async_trait]
impl AdminService for Api {
    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<proto::Status>, Status> {
        self.call(request, async |broker, caller, _| {
            let status = broker.status(&caller).await?;
            let (admin_arn, aws_error) = match status.admin {
                Ok(arn) => (Some(arn), None),
                Err(failure) => (None, Some(failure.message)),
            };
            Ok(proto::Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: Some(to_time(status.started_at)),
                admin_arn,
                aws_error,
                region: status.region,
                services: status.counts.services,
                grants: status.counts.grants,
                live_leases: status.counts.live_leases,
                revoking_leases: status.counts.revoking_leases,
                audit_records: status.counts.audit_records,
                pending_leases: status.counts.pending_leases,
                quarantined_leases: status.counts.quarantined_leases,
                reconciliation: status.reconciliation.as_ref().map(to_reconciliation),
            })
        })
        .await
    }

    async fn create_operator(
        &self,
        request: Request<CreateOperatorRequest>,
    ) -> Result<Response<CreateOperatorResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let (name, role) = (parse("name", &message.name)?, parse_role(message.role)?);
            let new = broker.create_operator(&caller, name, role).await?;
            Ok(CreateOperatorResponse {
                operator: Some(to_operator(&new.operator)),
                token: new.token.text().expose_secret().to_owned(),
            })
        })
        .await
    }

    async fn list_operators(
        &self,
        request: Request<ListOperatorsRequest>,
    ) -> Result<Response<ListOperatorsResponse>, Status> {
        self.call(request, async |broker, caller, _| {
            let operators = broker.operators(&caller).await?;
            Ok(ListOperatorsResponse {
                operators: operators.iter().map(to_operator).collect(),
            })
        })
        .await
    }

    async fn delete_operator(
        &self,
        request: Request<DeleteOperatorRequest>,
    ) -> Result<Response<DeleteOperatorResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            broker
                .delete_operator(&caller, &parse("name", &message.name)?)
                .await?;
            Ok(DeleteOperatorResponse {})
        })
        .await
    }
}

/// Most names of one sort that an answer tells.
const TOLD_MAX: usize = 100;

fn to_reconciliation(found: &broker::Reconciliation) -> proto::Reconciliation {
    let told = |ids: &mut dyn Iterator<Item = String>| ids.take(TOLD_MAX).collect();
    proto::Reconciliation {
        time: Some(to_time(found.at)),
        users: found.users as u64,
        orphans_removed: found.orphans_removed as u64,
        keys_removed: found.keys_removed as u64,
        strangers: told(&mut found.strangers.iter().cloned()),
        vanished_leases: told(&mut found.vanished.iter().map(ToString::to_string)),
    }
}
