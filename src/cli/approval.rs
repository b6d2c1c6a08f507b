//! `credbroker approval …`.

use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;

use super::{error::CliError, output::Output, pages, view};
use crate::{
    client::Client,
    proto::{self, ApproveChangeRequest, ListApprovalsRequest, RejectChangeRequest},
};

#[derive(Debug, Subcommand)]
pub(super) enum Approval {
    /// List changes that wait for a second operator, or for the operator who wants to make them.
    List,
    /// Show a change in full: for a grant, everything that it would contain.
    Show {
        /// Id of the approval.
        id: String,
    },
    /// Approve a change that another operator wants to make.
    Approve {
        /// Id of the approval.
        id: String,
    },
    /// Reject a change, even one that is approved already.
    Reject {
        /// Id of the approval.
        id: String,
    },
}

#[derive(Serialize)]
struct Shown {
    approval_id: String,
    summary: String,
    change: Value,
    requested_by: String,
    requested_at: Option<String>,
    expires_at: Option<String>,
    approved_by: Option<String>,
}

impl From<proto::Approval> for Shown {
    fn from(approval: proto::Approval) -> Self {
        Self {
            approval_id: approval.approval_id,
            summary: approval.summary,
            change: serde_json::from_str(&approval.change).unwrap_or(Value::Null),
            requested_by: approval.requested_by,
            requested_at: view::time(approval.requested_at.as_ref()),
            expires_at: view::time(approval.expires_at.as_ref()),
            approved_by: (!approval.approved_by.is_empty()).then_some(approval.approved_by),
        }
    }
}

impl Approval {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let mut admin = client.admin();
        match self {
            Self::List => {
                let listed: Vec<_> = listed(client).await?.collect();
                let columns = [
                    "approval_id",
                    "summary",
                    "requested_by",
                    "expires_at",
                    "approved_by",
                ];
                out.list(&listed, &columns)?;
            }
            Self::Show { id } => {
                let found = listed(client).await?.find(|shown| shown.approval_id == id);
                let none = || CliError::not_found(format!("there is no approval {id}"));
                out.show(&found.ok_or_else(none)?)?;
            }
            Self::Approve { id } => {
                let request = ApproveChangeRequest { approval_id: id };
                let given = admin.approve_change(request).await?.into_inner();
                out.show(&Shown::from(given))?;
            }
            Self::Reject { id } => {
                let request = RejectChangeRequest {
                    approval_id: id.clone(),
                };
                admin.reject_change(request).await?;
                out.deleted("approval", &id)?;
            }
        }
        Ok(())
    }
}

async fn listed(client: &Client) -> Result<impl Iterator<Item = Shown>, CliError> {
    let approvals = pages::all(u32::MAX, async |page_size, page_token| {
        let request = ListApprovalsRequest {
            page_size,
            page_token,
        };
        let page = client.admin().list_approvals(request).await?.into_inner();
        Ok((page.approvals, page.next_page_token))
    });
    Ok(approvals.await?.into_iter().map(Shown::from))
}
