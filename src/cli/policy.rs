//! `credbroker policy …`.

use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;

use super::{
    error::CliError,
    grant::parameters,
    output::{Format, Output},
};
use crate::{
    client::Client,
    proto::{ListPolicyTemplatesRequest, PolicyTemplate, RenderPolicyTemplateRequest, TemplateUse},
};

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// List the ready policies.
    List,
    /// Show one of them: its parameters, or with --param the document.
    Show {
        /// Name of the policy.
        name: String,
        /// Parameter; may be repeated.
        #[arg(long, value_name = "NAME=VALUE", value_parser = super::grant::pair)]
        param: Vec<(String, String)>,
    },
}

#[derive(Serialize)]
struct Template {
    name: String,
    summary: String,
    parameters: Vec<Parameter>,
}

#[derive(Serialize)]
struct Parameter {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    required: bool,
    summary: String,
    example: String,
}

impl From<PolicyTemplate> for Template {
    fn from(template: PolicyTemplate) -> Self {
        let parameters = template.parameters.into_iter().map(|parameter| Parameter {
            name: parameter.name,
            kind: parameter.r#type,
            required: parameter.required,
            summary: parameter.summary,
            example: parameter.example,
        });
        Self {
            name: template.name,
            summary: template.summary,
            parameters: parameters.collect(),
        }
    }
}

impl Policy {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        match self {
            Self::List => Ok(out.list(&templates(client).await?, &["name", "summary"])?),
            Self::Show { name, param } if param.is_empty() => {
                let known = templates(client).await?;
                let template = known.into_iter().find(|template| template.name == name);
                let template = template
                    .ok_or_else(|| CliError::not_found(format!("there is no policy {name}")))?;
                show(&template, out)
            }
            Self::Show { name, param } => {
                let template = Some(TemplateUse {
                    name,
                    parameters: parameters(&param)?,
                });
                let request = RenderPolicyTemplateRequest { template };
                let document = client
                    .grants()
                    .render_policy_template(request)
                    .await?
                    .into_inner()
                    .document;
                let document: Value =
                    serde_json::from_str(&document).map_err(std::io::Error::from)?;
                match out.format() {
                    Format::Json => Ok(out.show(&document)?),
                    _ => Ok(out.line(&format!("{document:#}"))?),
                }
            }
        }
    }
}

async fn templates(client: &Client) -> Result<Vec<Template>, CliError> {
    let answer = client
        .grants()
        .list_policy_templates(ListPolicyTemplatesRequest {})
        .await?;
    Ok(answer
        .into_inner()
        .policy_templates
        .into_iter()
        .map(Template::from)
        .collect())
}

fn show(template: &Template, out: &mut Output) -> Result<(), CliError> {
    if out.format() == Format::Json {
        return Ok(out.show(template)?);
    }
    out.line(&template.summary)?;
    out.list(
        &template.parameters,
        &["name", "type", "required", "example", "summary"],
    )?;
    let example: Vec<String> = template
        .parameters
        .iter()
        .filter(|parameter| parameter.required)
        .map(|parameter| format!("--param {}={}", parameter.name, parameter.example))
        .collect();
    Ok(out.line(&format!(
        "\ncredbroker policy show {} {}",
        template.name,
        example.join(" ")
    ))?)
}
