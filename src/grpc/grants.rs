use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{parse, parse_grant, parse_optional, render, to_grant},
    pagination::{build_page, parse_page},
};
use crate::{
    broker::Error,
    domain::{
        grant::validate::Violation,
        name::{GrantName, Name},
        templates::{self, Template},
    },
    proto::{
        DeleteGrantRequest, DeleteGrantResponse, GetGrantRequest, Grant, ListGrantsRequest,
        ListGrantsResponse, ListPolicyTemplatesRequest, ListPolicyTemplatesResponse,
        PolicyParameter, PolicyTemplate, PutGrantRequest, PutGrantResponse,
        RenderPolicyTemplateRequest, RenderPolicyTemplateResponse,
        grant_service_server::GrantService,
    },
};

#[tonic::async_trait]
impl GrantService for Api {
    async fn put_grant(
        &self,
        request: Request<PutGrantRequest>,
    ) -> Result<Response<PutGrantResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let grant = message.grant.unwrap_or_default();
            let (name, spec) = parse_grant(grant, broker.partition())?;
            let (grant, changed) = broker.put_grant(&caller, name, spec).await?;
            Ok(PutGrantResponse {
                grant: Some(to_grant(&grant)),
                changed,
            })
        })
        .await
    }

    async fn get_grant(
        &self,
        request: Request<GetGrantRequest>,
    ) -> Result<Response<Grant>, Status> {
        self.call(request, async |broker, caller, message| {
            let name = parse("name", &message.name)?;
            Ok(to_grant(&*broker.grant(&caller, &name).await?))
        })
        .await
    }

    async fn list_grants(
        &self,
        request: Request<ListGrantsRequest>,
    ) -> Result<Response<ListGrantsResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let service: Option<Name> = parse_optional("service", &message.service)?;
            let page = parse_page::<GrantName>(message.page_size, message.page_token)?;
            let grants = broker.grants(&caller, service.as_ref(), &page).await?;
            let (grants, next_page_token) =
                build_page(&page, &grants, 0, |grant| grant.name.clone(), to_grant);
            Ok(ListGrantsResponse {
                grants,
                next_page_token,
            })
        })
        .await
    }

    async fn delete_grant(
        &self,
        request: Request<DeleteGrantRequest>,
    ) -> Result<Response<DeleteGrantResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            broker
                .delete_grant(&caller, &parse("name", &message.name)?)
                .await?;
            Ok(DeleteGrantResponse {})
        })
        .await
    }

    async fn list_policy_templates(
        &self,
        request: Request<ListPolicyTemplatesRequest>,
    ) -> Result<Response<ListPolicyTemplatesResponse>, Status> {
        self.call(request, async |broker, caller, _| {
            broker.catalogue_read(&caller, "").await?;
            let policy_templates = templates::templates().iter().map(to_template).collect();
            Ok(ListPolicyTemplatesResponse { policy_templates })
        })
        .await
    }

    async fn render_policy_template(
        &self,
        request: Request<RenderPolicyTemplateRequest>,
    ) -> Result<Response<RenderPolicyTemplateResponse>, Status> {
        self.call(request, async |broker, caller, message| {
            let template = message.template.unwrap_or_default();
            let rendered = render(&template, broker.partition());
            let document = rendered
                .map_err(|wrong| Error::Invalid(vec![Violation::new("template", wrong)]))?;
            broker.catalogue_read(&caller, &template.name).await?;
            Ok(RenderPolicyTemplateResponse {
                document: document.to_json(),
            })
        })
        .await
    }
}

fn to_template(template: &Template) -> PolicyTemplate {
    let to_parameter = |parameter: &templates::Parameter| PolicyParameter {
        name: parameter.name.to_owned(),
        r#type: parameter.kind.to_string(),
        required: parameter.required,
        summary: parameter.summary.to_owned(),
        example: parameter.kind.example().to_owned(),
    };
    PolicyTemplate {
        name: template.name.to_owned(),
        summary: template.summary.to_owned(),
        parameters: template.parameters.iter().map(to_parameter).collect(),
    }
}
