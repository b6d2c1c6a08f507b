use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{to_binding, to_role, to_time},
};
use crate::{
    broker::ports,
    domain::principal::Identity,
    proto::{
        ClientCertificate, EnrollRequest, RenewCertificateRequest, WhoAmIRequest, WhoAmIResponse,
        identity_service_server::IdentityService,
    },
};

#[tonic::async_trait]
impl IdentityService for Api {
    async fn who_am_i(
        &self,
        request: Request<WhoAmIRequest>,
    ) -> Result<Response<WhoAmIResponse>, Status> {
        self.call(request, async |broker, caller, _| {
            let binding = broker.who_am_i(&caller).await?;
            let principal = caller.principal();
            let (actor, role) = match principal.identity() {
                Identity::Service(name) | Identity::Enrollee(name) => {
                    (format!("service:{name}"), None)
                }
                Identity::Operator(name, role) => (format!("operator:{name}"), Some(*role)),
            };
            let proof = principal.proof();
            let token_id = proof.evidence.token_id();
            Ok(WhoAmIResponse {
                actor,
                role: role.map(|role| to_role(role).into()),
                token_id: token_id.map(ToString::to_string),
                evidence: token_id.is_none().then(|| proof.evidence.to_string()),
                binding: binding.as_ref().map(to_binding),
                expires_at: proof.expires_at.map(to_time),
                peer: principal.origin().peer.map(|peer| peer.to_string()),
            })
        })
        .await
    }

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<ClientCertificate>, Status> {
        self.call(request, async |broker, caller, message| {
            let made = broker.enroll(&caller, &message.certificate_request).await?;
            Ok(to_certificate(made))
        })
        .await
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<ClientCertificate>, Status> {
        self.call(request, async |broker, caller, message| {
            let request = &message.certificate_request;
            let made = broker.renew_certificate(&caller, request).await?;
            Ok(to_certificate(made))
        })
        .await
    }
}

fn to_certificate(made: ports::ClientCertificate) -> ClientCertificate {
    ClientCertificate {
        certificate_chain: made.chain,
        expires_at: Some(to_time(made.expires_at)),
    }
}
