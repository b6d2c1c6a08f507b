use secrecy::ExposeSecret;
use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{Fields, parse, parse_ttl, to_lease, to_time},
};
use crate::{
    broker::Error,
    domain::{
        decide::{IssueRequest, own_service},
        name::GrantName,
    },
    proto::{
        IssueCredentialsRequest, IssueCredentialsResponse, ReleaseLeaseRequest,
        ReleaseLeaseResponse, credential_service_server::CredentialService,
    },
};

#[tonic::async_trait]
impl CredentialService for Api {
    async fn issue_credentials(
        &self,
        request: Request<IssueCredentialsRequest>,
    ) -> Result<Response<IssueCredentialsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service = own_service(&caller).ok_or(Error::Unauthenticated)?;
            let mut fields = Fields::default();
            let grant = GrantName::within(service, &message.grant);
            let grant = grant
                .map_err(|error| fields.wrong("grant", error.to_string()))
                .ok();
            let grant = fields.done(grant)?;
            let ttl = parse_ttl("ttl", message.ttl.as_ref())?;
            let issued = broker.issue(caller, IssueRequest { grant, ttl }).await?;
            let credentials = &issued.credentials;
            Ok(IssueCredentialsResponse {
                lease: Some(to_lease(&issued.lease)),
                secret_access_key: credentials.secret_access_key.expose_secret().to_owned(),
                session_token: credentials
                    .session_token
                    .as_ref()
                    .map(|token| token.expose_secret().to_owned()),
                expiration: issued
                    .lease
                    .issued()
                    .map(|issued| to_time(issued.expires_at)),
            })
        })
        .await
    }

    async fn release_lease(
        &self,
        request: Request<ReleaseLeaseRequest>,
    ) -> Result<Response<ReleaseLeaseResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let taken = broker
                .release(caller, parse("lease_id", &message.lease_id)?)
                .await?;
            Ok(ReleaseLeaseResponse {
                lease: Some(to_lease(&taken.lease)),
                notice: taken.notice.unwrap_or_default(),
            })
        })
        .await
    }
}
