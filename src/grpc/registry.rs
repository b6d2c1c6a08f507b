use std::collections::BTreeMap;

use secrecy::ExposeSecret;
use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{Fields, parse, parse_reason, parse_ttl, to_binding, to_service, to_time, to_token},
    pagination::{CreatedCursor, build_page, parse_page, part_of},
};
use crate::{
    broker::{Error, ports::TokenOwner},
    domain::{
        self,
        binding::{BindingId, KnownBy},
        grant::validate::Violation,
        name::Name,
        oidc_rule::OidcIdentity,
        service::ServiceOverview,
        token::{StoredToken, TokenId},
    },
    proto::{
        self, CreateEnrollmentTokenRequest, CreateEnrollmentTokenResponse,
        CreateServiceBindingRequest, CreateServiceRequest, CreateServiceTokenRequest,
        CreateServiceTokenResponse, DeleteServiceBindingRequest, DeleteServiceBindingResponse,
        DeleteServiceRequest, DeleteServiceResponse, DeleteServiceTokenRequest,
        DeleteServiceTokenResponse, GetServiceRequest, ListServiceBindingsRequest,
        ListServiceBindingsResponse, ListServiceTokensRequest, ListServiceTokensResponse,
        ListServicesRequest, ListServicesResponse, LookupTokensRequest, LookupTokensResponse,
        ReinstateServiceRequest, Service, ServiceBinding, SuspendServiceRequest,
        create_service_binding_request, service_registry_server::ServiceRegistry,
        token_owner::Owner,
    },
};

/// Maximum number of tokens in one lookup.
const TOKENS_LOOKED_UP_MAX: usize = 1000;

#[tonic::async_trait]
impl ServiceRegistry for Api {
    async fn create_service(
        &self,
        request: Request<CreateServiceRequest>,
    ) -> Result<Response<Service>, Status> {
        self.call(request, async |broker, caller, message| {
            let overview = broker
                .create_service(&caller, parse("name", &message.name)?)
                .await?;
            Ok(to_service(&overview))
        })
        .await
    }

    async fn get_service(
        &self,
        request: Request<GetServiceRequest>,
    ) -> Result<Response<Service>, Status> {
        self.call(request, async |broker, caller, message| {
            Ok(to_service(
                &broker
                    .service(&caller, &parse("name", &message.name)?)
                    .await?,
            ))
        })
        .await
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let page = parse_page::<Name>(message.page_size, message.page_token)?;
            let services = broker.services(&caller, &page).await?;
            let key = |overview: &ServiceOverview| overview.service.name.clone();
            let (services, next_page_token) = build_page(&page, &services, 0, key, to_service);
            Ok(ListServicesResponse {
                services,
                next_page_token,
            })
        })
        .await
    }

    async fn suspend_service(
        &self,
        request: Request<SuspendServiceRequest>,
    ) -> Result<Response<Service>, Status> {
        self.call(request, async |broker, caller, message| {
            let reason = parse_reason(&message.reason)?;
            Ok(to_service(
                &broker
                    .suspend_service(&caller, &parse("name", &message.name)?, &reason)
                    .await?,
            ))
        })
        .await
    }

    async fn reinstate_service(
        &self,
        request: Request<ReinstateServiceRequest>,
    ) -> Result<Response<Service>, Status> {
        self.call(request, async |broker, caller, message| {
            Ok(to_service(
                &broker
                    .reinstate_service(&caller, &parse("name", &message.name)?)
                    .await?,
            ))
        })
        .await
    }

    async fn delete_service(
        &self,
        request: Request<DeleteServiceRequest>,
    ) -> Result<Response<DeleteServiceResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            broker
                .delete_service(&caller, &parse("name", &message.name)?)
                .await?;
            Ok(DeleteServiceResponse {})
        })
        .await
    }

    async fn create_service_token(
        &self,
        request: Request<CreateServiceTokenRequest>,
    ) -> Result<Response<CreateServiceTokenResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Name = parse("service", &message.service)?;
            let ttl = parse_ttl("ttl", message.ttl.as_ref())?;
            let new = broker.create_token(&caller, &service, ttl).await?;
            Ok(CreateServiceTokenResponse {
                service_token: Some(to_token(service.as_str(), &new.stored)),
                token: new.token.text().expose_secret().to_owned(),
            })
        })
        .await
    }

    async fn list_service_tokens(
        &self,
        request: Request<ListServiceTokensRequest>,
    ) -> Result<Response<ListServiceTokensResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Name = parse("service", &message.service)?;
            let tokens = broker.tokens(&caller, &service).await?;
            Ok(ListServiceTokensResponse {
                service_tokens: tokens
                    .iter()
                    .map(|token| to_token(service.as_str(), token))
                    .collect(),
            })
        })
        .await
    }

    async fn lookup_tokens(
        &self,
        request: Request<LookupTokensRequest>,
    ) -> Result<Response<LookupTokensResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let ids = parse_token_ids(&message.token_ids)?;
            let owners = broker.lookup_tokens(&caller, &ids).await?;
            let owners = ids.iter().zip(owners);
            Ok(LookupTokensResponse {
                owners: owners.map(|(id, owner)| to_owner(id, owner)).collect(),
            })
        })
        .await
    }

    async fn delete_service_token(
        &self,
        request: Request<DeleteServiceTokenRequest>,
    ) -> Result<Response<DeleteServiceTokenResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Name = parse("service", &message.service)?;
            let id = TokenId::parse(&message.token_id).ok_or_else(|| {
                Error::Invalid(vec![Violation::new(
                    "token_id",
                    "a token id has 16 characters a-z and 2-7",
                )])
            })?;
            broker.delete_token(&caller, &service, &id).await?;
            Ok(DeleteServiceTokenResponse {})
        })
        .await
    }

    async fn create_enrollment_token(
        &self,
        request: Request<CreateEnrollmentTokenRequest>,
    ) -> Result<Response<CreateEnrollmentTokenResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Name = parse("service", &message.service)?;
            let ttl = parse_ttl("ttl", message.ttl.as_ref())?;
            let new = broker
                .create_enrollment_token(&caller, &service, ttl)
                .await?;
            Ok(CreateEnrollmentTokenResponse {
                token_id: new.stored.id.to_string(),
                service: service.to_string(),
                token: new.token.text().expose_secret().to_owned(),
                expires_at: new.stored.expires_at.map(to_time),
            })
        })
        .await
    }

    async fn create_service_binding(
        &self,
        request: Request<CreateServiceBindingRequest>,
    ) -> Result<Response<ServiceBinding>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Name = parse("service", &message.service)?;
            let known_by = parse_known_by(message.known_by.as_ref())?;
            let binding = broker.bind(&caller, service, known_by).await?;
            Ok(to_binding(&binding))
        })
        .await
    }

    async fn list_service_bindings(
        &self,
        request: Request<ListServiceBindingsRequest>,
    ) -> Result<Response<ListServiceBindingsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Name = parse("service", &message.service)?;
            let page = parse_page::<CreatedCursor>(message.page_size, message.page_token)?;
            let key = |bound: &domain::binding::ServiceBinding| {
                CreatedCursor::new(bound.created_at, &bound.id)
            };
            let bindings = part_of(&page, broker.bindings(&caller, &service).await?, key);
            let (service_bindings, next_page_token) =
                build_page(&page, &bindings, 0, key, to_binding);
            Ok(ListServiceBindingsResponse {
                service_bindings,
                next_page_token,
            })
        })
        .await
    }

    async fn delete_service_binding(
        &self,
        request: Request<DeleteServiceBindingRequest>,
    ) -> Result<Response<DeleteServiceBindingResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Name = parse("service", &message.service)?;
            let id: BindingId = parse("binding_id", &message.binding_id)?;
            broker.unbind(&caller, &service, &id).await?;
            Ok(DeleteServiceBindingResponse {})
        })
        .await
    }
}

fn parse_known_by(
    known_by: Option<&create_service_binding_request::KnownBy>,
) -> Result<KnownBy, Error> {
    use create_service_binding_request::KnownBy as Asked;
    let mut fields = Fields::default();
    let known_by = match known_by {
        Some(Asked::SpiffeId(id)) => fields.parse("spiffe_id", id).map(KnownBy::SpiffeId),
        Some(Asked::DnsName(name)) => fields.parse("dns_name", name).map(KnownBy::DnsName),
        Some(Asked::Oidc(rule)) => parse_rule(&mut fields, rule).map(KnownBy::Oidc),
        None => {
            fields.add(
                "known_by",
                "one of `spiffe_id`, `dns_name` or `oidc` is required",
            );
            None
        }
    };
    fields.done(known_by)
}

fn parse_rule(fields: &mut Fields, asked: &proto::OidcIdentity) -> Option<OidcIdentity> {
    if !asked.issuer.starts_with("https://") {
        fields.add("oidc.issuer", "write it as the tokens have it: https://…");
    }
    let subject = fields.parse("oidc.subject", &asked.subject);
    let mut claims = BTreeMap::new();
    for (name, pattern) in &asked.claims {
        let pattern = fields.parse(&format!("oidc.claims[{name:?}]"), pattern);
        claims.extend(pattern.map(|pattern| (name.clone(), pattern)));
    }
    let rule = OidcIdentity {
        issuer: asked.issuer.clone(),
        subject: subject?,
        audience: (!asked.audience.is_empty()).then(|| asked.audience.clone()),
        claims,
    };
    match rule.check() {
        Ok(()) => Some(rule),
        Err(wrong) => {
            fields.add("oidc.claims", wrong);
            None
        }
    }
}

fn parse_token_ids(ids: &[String]) -> Result<Vec<TokenId>, Error> {
    let parsed: Option<Vec<_>> = ids.iter().map(|id| TokenId::parse(id)).collect();
    match parsed {
        Some(ids) if (1..=TOKENS_LOOKED_UP_MAX).contains(&ids.len()) => Ok(ids),
        _ => Err(Error::Invalid(vec![Violation::new(
            "token_ids",
            "ask for 1 to 1,000 ids of 16 characters [a-z2-7], which follow cbs_, cbo_ or cbe_ in a token",
        )])),
    }
}

fn to_owner(id: &TokenId, owner: Option<(StoredToken, TokenOwner)>) -> proto::TokenOwner {
    let unknown = proto::TokenOwner {
        token_id: id.to_string(),
        ..proto::TokenOwner::default()
    };
    let Some((token, owner)) = owner else {
        return unknown;
    };
    proto::TokenOwner {
        owner: Some(match owner {
            TokenOwner::Service(service) => Owner::Service(service.name.to_string()),
            TokenOwner::Operator(operator) => Owner::Operator(operator.name.to_string()),
            TokenOwner::Enrollee(service) => Owner::Enrolls(service.name.to_string()),
        }),
        created_at: Some(to_time(token.created_at)),
        expires_at: token.expires_at.map(to_time),
        ..unknown
    }
}
