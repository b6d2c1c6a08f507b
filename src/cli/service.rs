//! `credbroker service …`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{
    convert::proto_duration, error::CliError, output::Output, pages, reinstate::Reinstate, view,
};
use crate::{
    client::Client,
    domain::duration,
    proto::{
        CreateEnrollmentTokenRequest, CreateServiceBindingRequest, CreateServiceRequest,
        CreateServiceTokenRequest, DeleteServiceBindingRequest, DeleteServiceRequest,
        DeleteServiceTokenRequest, GetServiceRequest, ListServiceBindingsRequest,
        ListServiceTokensRequest, ListServicesRequest, OidcIdentity, SuspendServiceRequest,
        create_service_binding_request,
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// Register a service.
    Create {
        /// Name: 2 to 32 lower-case letters, digits and hyphens.
        name: String,
    },
    /// List all services.
    List,
    /// Show one service, with what it holds.
    Show {
        /// Name of the service.
        name: String,
    },
    /// Suspend a service: the broker refuses it from now on. Credentials that it holds stay valid
    /// (see `revoke`).
    Suspend {
        /// Name of the service.
        name: String,
        /// Reason, for the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Lift a suspension; the service's tokens and bindings work again.
    Reinstate(Reinstate),
    /// Delete a service with its tokens and grants; it may hold no live lease.
    Delete {
        /// Name of the service.
        name: String,
    },
    /// Bind a service to the name in its client certificate, or to its issuer's tokens.
    Bind {
        /// Name of the service.
        name: String,
        #[command(flatten)]
        known_by: KnownBy,
        #[command(flatten)]
        claims: Claims,
    },
    /// Manage tokens with which hosts of a service enrol.
    #[command(subcommand)]
    EnrollToken(EnrollToken),
    /// Manage bindings: proofs of a service's identity besides its tokens.
    #[command(subcommand)]
    Binding(Binding),
    /// Manage the tokens with which a service proves its identity.
    #[command(subcommand)]
    Token(Token),
}

/// Identity of the service, exactly one.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct KnownBy {
    /// The certificate's only URI, e.g. spiffe://prod.example/ns/shop/sa/pay.
    #[arg(long, value_name = "URI")]
    spiffe_id: Option<String>,
    /// The certificate's only DNS name; the certificate may contain no URI.
    #[arg(long, value_name = "NAME")]
    dns_name: Option<String>,
    /// Issuer of the service's signed tokens, as the broker's configuration names it.
    #[arg(long, value_name = "URL", requires = "oidc_subject")]
    oidc_issuer: Option<String>,
}

/// Claims that the service's signed tokens must have.
#[derive(Args, Debug)]
pub(super) struct Claims {
    /// The claim `sub`; `*` stands for any part of it.
    #[arg(long, value_name = "SUBJECT", requires = "oidc_issuer")]
    oidc_subject: Option<String>,
    /// Audience that the claim `aud` must contain besides the broker's own.
    #[arg(long, value_name = "AUDIENCE", requires = "oidc_issuer")]
    oidc_audience: Option<String>,
    /// Another claim and its value, in which `*` stands for any part; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", requires = "oidc_issuer", value_parser = claim)]
    oidc_claim: Vec<(String, String)>,
}

fn claim(text: &str) -> Result<(String, String), &'static str> {
    let split = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    split.map(owned).ok_or("write it like repository_id=4711")
}

#[derive(Debug, Subcommand)]
pub(super) enum EnrollToken {
    /// Create a token with which one host enrols, once; the token is shown once (see `enroll`).
    Create {
        /// Name of the service.
        name: String,
        /// Lifetime, up to 10m.
        #[arg(long, value_parser = duration::parse)]
        ttl: Option<Duration>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Binding {
    /// List the bindings of a service.
    List {
        /// Name of the service.
        name: String,
    },
    /// Delete a binding; this takes effect at once.
    Delete {
        /// Name of the service.
        name: String,
        /// Id of the binding.
        binding_id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Create a token; it is shown once.
    Create {
        /// Name of the service.
        name: String,
        /// Lifetime, e.g. 90d; if not given, the token does not expire.
        #[arg(long, value_parser = duration::parse)]
        ttl: Option<Duration>,
    },
    /// List the tokens of a service, without their secrets.
    List {
        /// Name of the service.
        name: String,
    },
    /// Delete a token; this takes effect at once.
    Delete {
        /// Name of the service.
        name: String,
        /// Id of the token.
        token_id: String,
    },
}

impl Service {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let mut services = client.services();
        let service = match self {
            Self::Create { name } => {
                services
                    .create_service(CreateServiceRequest { name })
                    .await?
            }
            Self::Show { name } => services.get_service(GetServiceRequest { name }).await?,
            Self::Suspend { name, reason } => {
                services
                    .suspend_service(SuspendServiceRequest { name, reason })
                    .await?
            }
            Self::Reinstate(reinstate) => reinstate.run(client, out.format()).await?,
            Self::List => return list(client, out).await,
            Self::Delete { name } => {
                services
                    .delete_service(DeleteServiceRequest { name: name.clone() })
                    .await?;
                return Ok(out.deleted("service", &name)?);
            }
            Self::Bind {
                name,
                known_by,
                claims,
            } => {
                let request = CreateServiceBindingRequest {
                    service: name,
                    known_by: known_by.asked(claims),
                };
                let made = services.create_service_binding(request).await?;
                return Ok(out.show(&view::Binding::from(made.into_inner()))?);
            }
            Self::EnrollToken(EnrollToken::Create { name, ttl }) => {
                let request = CreateEnrollmentTokenRequest {
                    service: name,
                    ttl: ttl.map(proto_duration),
                };
                let made = services.create_enrollment_token(request).await?;
                eprintln!("the token is shown once; give it to the host, for `credbroker enroll`");
                return Ok(out.show(&view::NewToken::from(made.into_inner()))?);
            }
            Self::Binding(binding) => return binding.run(client, out).await,
            Self::Token(token) => return token.run(client, out).await,
        };
        Ok(out.show(&view::Service::from(service.into_inner()))?)
    }
}

/// Returns the bindings of a service.
pub(super) async fn bindings(
    client: &Client,
    service: &str,
) -> Result<Vec<view::Binding>, CliError> {
    pages::all(u32::MAX, async |page_size, page_token| {
        let request = ListServiceBindingsRequest {
            service: service.to_owned(),
            page_size,
            page_token,
        };
        let answer = client.services().list_service_bindings(request).await?;
        let page = answer.into_inner();
        let bindings = page.service_bindings.into_iter().map(view::Binding::from);
        Ok((bindings.collect(), page.next_page_token))
    })
    .await
}

pub(super) async fn tokens(client: &Client, service: &str) -> Result<Vec<view::Token>, CliError> {
    let request = ListServiceTokensRequest {
        service: service.to_owned(),
    };
    let answer = client.services().list_service_tokens(request).await?;
    let tokens = answer.into_inner().service_tokens.into_iter();
    Ok(tokens.map(view::Token::from).collect())
}

async fn list(client: &Client, out: &mut Output) -> Result<(), CliError> {
    let all = pages::all(u32::MAX, async |page_size, page_token| {
        let request = ListServicesRequest {
            page_size,
            page_token,
        };
        let page = client.services().list_services(request).await?.into_inner();
        let services = page.services.into_iter().map(view::Service::from);
        Ok((services.collect(), page.next_page_token))
    })
    .await?;
    Ok(out.list(
        &all,
        &["name", "suspended", "live_leases", "last_issued_at"],
    )?)
}

impl KnownBy {
    fn asked(self, claims: Claims) -> Option<create_service_binding_request::KnownBy> {
        use create_service_binding_request::KnownBy as Asked;
        let by_token = self.oidc_issuer.map(|issuer| {
            Asked::Oidc(OidcIdentity {
                issuer,
                subject: claims.oidc_subject.unwrap_or_default(),
                audience: claims.oidc_audience.unwrap_or_default(),
                claims: claims.oidc_claim.into_iter().collect(),
            })
        });
        let by_id = self.spiffe_id.map(Asked::SpiffeId);
        by_id.or(self.dns_name.map(Asked::DnsName)).or(by_token)
    }
}

impl Binding {
    async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let mut services = client.services();
        match self {
            Self::List { name } => {
                let bindings = bindings(client, &name).await?;
                let columns = [
                    "binding_id",
                    "spiffe_id",
                    "dns_name",
                    "enrolled_key_sha256",
                    "oidc",
                    "created_at",
                    "expires_at",
                ];
                out.list(&bindings, &columns)?;
            }
            Self::Delete { name, binding_id } => {
                let request = DeleteServiceBindingRequest {
                    service: name,
                    binding_id: binding_id.clone(),
                };
                services.delete_service_binding(request).await?;
                out.deleted("binding", &binding_id)?;
            }
        }
        Ok(())
    }
}

impl Token {
    async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let mut services = client.services();
        match self {
            Self::Create { name, ttl } => {
                let request = CreateServiceTokenRequest {
                    service: name,
                    ttl: ttl.map(proto_duration),
                };
                let created = services.create_service_token(request).await?.into_inner();
                eprintln!("the token is shown once; keep it where only the service can read it");
                out.show(&view::NewToken::from(created))?;
            }
            Self::List { name } => {
                let tokens = tokens(client, &name).await?;
                out.list(&tokens, &["token_id", "created_at", "expires_at"])?;
            }
            Self::Delete { name, token_id } => {
                let request = DeleteServiceTokenRequest {
                    service: name,
                    token_id: token_id.clone(),
                };
                services.delete_service_token(request).await?;
                out.deleted("token", &token_id)?;
            }
        }
        Ok(())
    }
}
