use secrecy::{ExposeSecret, SecretString};
use tonic::{Request, Response, Status};

use super::{
    Api,
    audit_convert::to_receipt,
    convert::{Fields, parse, parse_optional, parse_ttl, to_duration, to_lease, to_time},
    watch::{NoticeStream, follow, notices, parse_leases},
};
use crate::{
    broker::{Error, IssuedLease},
    domain::{
        access::Caller,
        decide::{IssueRequest, RenewRequest, own_service},
        name::GrantName,
    },
    proto::{
        IssueCredentialsRequest, IssueCredentialsResponse, ReleaseLeaseRequest,
        ReleaseLeaseResponse, RenewLeaseRequest, RenewLeaseResponse, RevocationNotice,
        WatchCredentialsRequest, WatchCredentialsResponse, WatchRevocationsRequest,
        credential_service_server::CredentialService,
    },
};

#[tonic::async_trait]
impl CredentialService for Api {
    async fn issue_credentials(
        &self,
        request: Request<IssueCredentialsRequest>,
    ) -> Result<Response<IssueCredentialsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let grant = parse_grant(&caller, &message.grant)?;
            let ttl = parse_ttl("ttl", message.ttl.as_ref())?;
            let id = parse_optional("request_id", &message.request_id)?;
            let request = IssueRequest::new(grant, ttl, id);
            let issued = broker.issue(caller, request).await?;
            Ok(to_issued(&issued))
        })
        .await
    }

    async fn renew_lease(
        &self,
        request: Request<RenewLeaseRequest>,
    ) -> Result<Response<RenewLeaseResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let ttl = parse_ttl("ttl", message.ttl.as_ref())?;
            let id = parse_optional("request_id", &message.request_id)?;
            let lease_id = parse("lease_id", &message.lease_id)?;
            let renewed = broker
                .renew(caller, RenewRequest::new(lease_id, ttl, id))
                .await?;
            let expose = |secret: &SecretString| secret.expose_secret().to_owned();
            let credentials = renewed.credentials.as_ref();
            Ok(RenewLeaseResponse {
                lease: Some(to_lease(&renewed.lease)),
                secret_access_key: credentials.map(|made| expose(&made.secret_access_key)),
                session_token: credentials.and_then(|made| made.session_token.as_ref().map(expose)),
                expiration: renewed
                    .lease
                    .issued()
                    .map(|issued| to_time(issued.expires_at)),
                receipt: Some(to_receipt(&renewed.receipt)),
            })
        })
        .await
    }

    async fn release_lease(
        &self,
        request: Request<ReleaseLeaseRequest>,
    ) -> Result<Response<ReleaseLeaseResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let (taken, receipt) = broker
                .release(caller, parse("lease_id", &message.lease_id)?)
                .await?;
            Ok(ReleaseLeaseResponse {
                lease: Some(to_lease(&taken.lease)),
                notice: taken.notice.unwrap_or_default(),
                receipt: Some(to_receipt(&receipt)),
            })
        })
        .await
    }

    type WatchCredentialsStream = NoticeStream<WatchCredentialsResponse>;

    async fn watch_credentials(
        &self,
        request: Request<WatchCredentialsRequest>,
    ) -> Result<Response<Self::WatchCredentialsStream>, Status> {
        self.call(request, async |broker, caller, message| {
            let grant = parse_grant(&caller, &message.grant)?;
            let ttl = parse_ttl("ttl", message.ttl.as_ref())?;
            let held = parse_optional("lease_id", &message.lease_id)?;
            let following = broker.follow(caller, grant, ttl, held).await?;
            Ok(follow(broker, following))
        })
        .await
    }

    type WatchRevocationsStream = NoticeStream<RevocationNotice>;

    async fn watch_revocations(
        &self,
        request: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        self.call(request, async |broker, caller, message| {
            let held = parse_leases(&message.lease_ids)?;
            let watch = broker.watch(&caller, &held).await?;
            Ok(notices(broker, caller, watch))
        })
        .await
    }
}

/// Parses the name of one of the caller's own grants.
fn parse_grant(caller: &Caller, grant: &str) -> Result<GrantName, Error> {
    let service = own_service(caller).ok_or(Error::Unauthenticated)?;
    let mut fields = Fields::default();
    let grant = GrantName::within(service, grant);
    let grant = grant
        .map_err(|error| fields.add("grant", error.to_string()))
        .ok();
    fields.done(grant)
}

pub(super) fn to_issued(issued: &IssuedLease) -> IssueCredentialsResponse {
    let credentials = &issued.credentials;
    IssueCredentialsResponse {
        lease: Some(to_lease(&issued.lease)),
        secret_access_key: credentials.secret_access_key.expose_secret().to_owned(),
        session_token: credentials
            .session_token
            .as_ref()
            .map(|token| token.expose_secret().to_owned()),
        expiration: credentials
            .expires_at
            .or(issued.lease.issued().map(|issued| issued.expires_at))
            .map(to_time),
        redelivered: issued.redelivered,
        usable_after: credentials.usable_after.map(to_duration),
        receipt: Some(to_receipt(&issued.receipt)),
    }
}
