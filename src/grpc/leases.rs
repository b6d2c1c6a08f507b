use tonic::{Request, Response, Status};

use super::{
    Api,
    audit_convert::to_receipt,
    convert::{Fields, parse, parse_optional, parse_reason, parse_state, to_lease, to_time},
    pagination::{build_page, parse_page},
};
use crate::{
    broker::{Error, KeyOwner, SeenEnd, ports::LeaseFilter},
    domain::{self, credential::KeyId, name::LeaseId},
    proto::{
        AccessKeyOwner, GetLeaseRequest, Lease, ListLeasesRequest, ListLeasesResponse,
        LookupAccessKeysRequest, LookupAccessKeysResponse, RevokeLeaseRequest, RevokeLeaseResponse,
        lease_service_server::LeaseService,
    },
};

/// Maximum number of access keys in one lookup.
const KEYS_MAX: usize = 1000;
/// Maximum number of invalid ids named in an error, which has to fit in a header.
const WRONG_KEYS_MAX: usize = 10;

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
            let key = |lease: &domain::lease::Lease| lease.binding.lease_id.clone();
            let (leases, next_page_token) = build_page(&page, &leases, 0, key, to_lease);
            Ok(ListLeasesResponse {
                leases,
                next_page_token,
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
            let (revoked, receipt) = broker
                .revoke_lease(caller, parse("lease_id", &message.lease_id)?, reason)
                .await?;
            Ok(RevokeLeaseResponse {
                lease: Some(to_lease(&revoked.lease)),
                notice: revoked.notice.unwrap_or_default(),
                receipt: receipt.as_ref().map(to_receipt),
                refused_after_seconds: revoked.seen.and_then(SeenEnd::refused_after_seconds),
                gone_after_seconds: revoked.seen.and_then(SeenEnd::gone_after_seconds),
            })
        })
        .await
    }

    async fn lookup_access_keys(
        &self,
        request: Request<LookupAccessKeysRequest>,
    ) -> Result<Response<LookupAccessKeysResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let keys = parse_keys(&message.access_key_ids)?;
            let owners = broker.lookup_access_keys(&caller, &keys).await?;
            let owners = keys.iter().zip(owners);
            Ok(LookupAccessKeysResponse {
                owners: owners.map(|(key, owner)| to_owner(key, owner)).collect(),
            })
        })
        .await
    }
}

fn parse_keys(ids: &[String]) -> Result<Vec<KeyId>, Error> {
    let mut fields = Fields::default();
    if !(1..=KEYS_MAX).contains(&ids.len()) {
        fields.add("access_key_ids", "ask for 1 to 1,000 access keys");
        return fields.done(None);
    }
    let mut keys = Vec::with_capacity(ids.len());
    for (at, id) in ids.iter().enumerate() {
        match id.parse::<KeyId>() {
            Ok(key) => keys.push(key),
            Err(error) if at - keys.len() < WRONG_KEYS_MAX => {
                fields.add(&format!("access_key_ids[{at}]"), error.to_string());
            }
            Err(_) => {}
        }
    }
    fields.done(Some(keys))
}

fn to_owner(key: &KeyId, owner: Option<KeyOwner>) -> AccessKeyOwner {
    let unknown = AccessKeyOwner {
        access_key_id: key.to_string(),
        ..AccessKeyOwner::default()
    };
    match owner {
        None => unknown,
        Some(KeyOwner::Lease {
            lease,
            current,
            issued_at,
            access_may_live_until,
        }) => AccessKeyOwner {
            lease: Some(to_lease(&lease)),
            current,
            issued_at: issued_at.map(to_time),
            access_may_live_until: access_may_live_until.map(to_time),
            ..unknown
        },
        Some(KeyOwner::Admin { current, since }) => AccessKeyOwner {
            current,
            admin_key: true,
            issued_at: since.map(to_time),
            ..unknown
        },
    }
}
