use std::{pin::Pin, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::mpsc, time::interval};
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::{Stream, wrappers::ReceiverStream},
};

use super::{
    Api,
    convert::{Fields, parse, parse_optional, parse_ttl, to_duration, to_lease, to_time},
    records::to_receipt,
    status::status,
};
use crate::{
    broker::{Broker, Error, Watch},
    domain::{
        access::Caller,
        decide::{IssueRequest, RenewRequest, own_service},
        denial::Scope,
        grant::check::Violation,
        name::{GrantName, LeaseId, Name},
    },
    proto::{
        IssueCredentialsRequest, IssueCredentialsResponse, ReleaseLeaseRequest,
        ReleaseLeaseResponse, RenewLeaseRequest, RenewLeaseResponse, RevocationNotice,
        WatchRevocationsRequest, credential_service_server::CredentialService,
        revocation_notice::What,
    },
};

/// Most leases that somebody may ask about who begins to watch.
const HELD_MAX: usize = 1000;
/// How often it is looked whether a watcher may still watch.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many notices wait for a slow watcher.
const BUFFER: usize = 64;

type Notices = mpsc::Sender<Result<RevocationNotice, Status>>;

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
            let id = parse_optional("request_id", &message.request_id)?;
            let request = IssueRequest::new(grant, ttl, id);
            let issued = broker.issue(caller, request).await?;
            let credentials = &issued.credentials;
            Ok(IssueCredentialsResponse {
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
            })
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

    type WatchRevocationsStream =
        Pin<Box<dyn Stream<Item = Result<RevocationNotice, Status>> + Send>>;

    async fn watch_revocations(
        &self,
        request: Request<WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        self.call(request, async |broker, caller, message| {
            let held = parse_leases(&message.lease_ids)?;
            let watch = broker.watch(&caller, &held).await?;
            let (sender, receiver) = mpsc::channel(BUFFER);
            tokio::spawn(async move {
                if let Err(error) = notify(&broker, &caller, watch, &sender).await {
                    // A reader who has left needs no error.
                    let _ = sender.send(Err(status(&error))).await;
                }
            });
            let stream: Self::WatchRevocationsStream = Box::pin(ReceiverStream::new(receiver));
            Ok(stream)
        })
        .await
    }
}

fn parse_leases(ids: &[String]) -> Result<Vec<LeaseId>, Error> {
    if ids.len() > HELD_MAX {
        let wrong = Violation::new("lease_ids", format!("up to {HELD_MAX} of them"));
        return Err(Error::Invalid(vec![wrong]));
    }
    ids.iter().map(|id| parse("lease_ids", id)).collect()
}

/// Tells a service what of its own is revoked, until it leaves, or may watch no longer.
async fn notify(
    broker: &Broker,
    caller: &Caller,
    mut watch: Watch,
    sender: &Notices,
) -> Result<(), Error> {
    for id in std::mem::take(&mut watch.over) {
        if sender
            .send(Ok(to_notice(What::LeaseId(id.to_string()))))
            .await
            .is_err()
        {
            return Ok(());
        }
    }
    let mut looks = interval(LOOK_EVERY);
    loop {
        let ended = tokio::select! {
            () = sender.closed() => return Ok(()),
            () = broker.stopped() => return Ok(()),
            _ = looks.tick() => {
                still_admitted(broker, caller, &watch.service).await?;
                continue;
            }
            ended = watch.news.recv() => ended.map_err(|_| too_slow())?,
        };
        if ended.service != watch.service {
            continue;
        }
        let what = match &ended.scope {
            Scope::Service => What::Everything(true),
            Scope::Grant(grant) => What::Grant(format!("{}/{grant}", ended.service)),
            Scope::Lease(id) => What::LeaseId(id.to_string()),
        };
        if sender.send(Ok(to_notice(what))).await.is_err() {
            return Ok(());
        }
        still_admitted(broker, caller, &watch.service).await?;
    }
}

async fn still_admitted(broker: &Broker, caller: &Caller, service: &Name) -> Result<(), Error> {
    if broker.is_still_admitted(caller).await? && !broker.is_shut_out(service) {
        return Ok(());
    }
    let known = broker.store().service(service).await?;
    let suspended = known.is_some_and(|known| known.service.suspension.is_some());
    Err(if suspended || broker.is_shut_out(service) {
        Error::Suspended(service.clone())
    } else {
        Error::Unauthenticated
    })
}

fn too_slow() -> Error {
    Error::Limited {
        reason: "WATCHER_TOO_SLOW",
        message: "more was revoked than this watcher has read".to_owned(),
        next: "watch again, with the leases that are held".to_owned(),
        retry_after: None,
    }
}

const fn to_notice(what: What) -> RevocationNotice {
    RevocationNotice { what: Some(what) }
}
