//! `credbroker operator …`.

use clap::{Subcommand, ValueEnum};

use super::{error::CliError, output::Output, pages, view};
use crate::{
    client::Client,
    proto::{self, CreateOperatorRequest, DeleteOperatorRequest, ListOperatorsRequest},
};

#[derive(Debug, Subcommand)]
pub(super) enum Operator {
    /// Add an operator; its token is shown once.
    Create {
        /// Name: 2 to 32 lower-case letters, digits and hyphens.
        name: String,
        /// Role of the operator: what it may do.
        #[arg(long, value_enum)]
        role: Role,
    },
    /// List all operators.
    List,
    /// Delete an operator and its token.
    Delete {
        /// Name of the operator.
        name: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Role {
    /// Reads services, grants, leases and status.
    Viewer,
    /// Reads the audit log as well.
    Auditor,
    /// A viewer that manages services, tokens and grants.
    GrantAdmin,
    /// An auditor that may suspend, revoke and reinstate.
    Responder,
    /// Everything, operators included.
    Admin,
}

impl Operator {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let mut admin = client.admin();
        match self {
            Self::Create { name, role } => {
                let request = CreateOperatorRequest {
                    name,
                    role: to_proto(role).into(),
                };
                let created = admin.create_operator(request).await?.into_inner();
                eprintln!("the token is shown once; keep it where only the operator can read it");
                let operator = view::Operator::from(created.operator.unwrap_or_default());
                out.show(&operator.with_token(created.token))?;
            }
            Self::List => {
                let operators = pages::all(u32::MAX, async |page_size, page_token| {
                    let request = ListOperatorsRequest {
                        page_size,
                        page_token,
                    };
                    let page = client.admin().list_operators(request).await?.into_inner();
                    let operators = page.operators.into_iter().map(view::Operator::from);
                    Ok((operators.collect(), page.next_page_token))
                })
                .await?;
                out.list(&operators, &["name", "role", "token_id", "created_at"])?;
            }
            Self::Delete { name } => {
                admin
                    .delete_operator(DeleteOperatorRequest { name: name.clone() })
                    .await?;
                out.deleted("operator", &name)?;
            }
        }
        Ok(())
    }
}

const fn to_proto(role: Role) -> proto::Role {
    match role {
        Role::Viewer => proto::Role::Viewer,
        Role::Auditor => proto::Role::Auditor,
        Role::GrantAdmin => proto::Role::GrantAdmin,
        Role::Responder => proto::Role::Responder,
        Role::Admin => proto::Role::Admin,
    }
}
