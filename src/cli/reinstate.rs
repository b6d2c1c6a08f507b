//! `credbroker service reinstate`: lists the proofs of identity that work again with it, since one
//! of them may be the reason for the suspension.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use clap::Args;
use tonic::Response;

use super::{
    error::CliError,
    output::Format,
    service::{bindings, tokens},
};
use crate::{
    client::Client,
    proto::{GetServiceRequest, ReinstateServiceRequest, Service},
};

/// Longest answer that is read, bytes.
const ANSWER_MAX: u64 = 256;

#[derive(Args, Debug)]
pub(super) struct Reinstate {
    /// Name of the service.
    name: String,
    /// Skip the question for the name, asked on a terminal before tokens and bindings work again.
    #[arg(long)]
    yes: bool,
}

impl Reinstate {
    pub(super) async fn run(
        self,
        client: &Client,
        format: Format,
    ) -> Result<Response<Service>, CliError> {
        let Self { name, yes } = self;
        let asks = !yes && format != Format::Json && io::stdin().is_terminal();
        if asks && is_suspended(client, &name).await? {
            let proofs = proofs(client, &name).await?;
            if !proofs.is_empty() {
                warn(&name, &proofs);
                ask(&name)?;
            }
        }
        let request = ReinstateServiceRequest { name: name.clone() };
        let reinstated = client.services().reinstate_service(request).await?;
        if !asks {
            warn(&name, &proofs(client, &name).await?);
        }
        Ok(reinstated)
    }
}

async fn is_suspended(client: &Client, service: &str) -> Result<bool, CliError> {
    let name = service.to_owned();
    let mut services = client.services();
    let shown = services.get_service(GetServiceRequest { name }).await?;
    Ok(shown.into_inner().suspended)
}

/// Returns kind and id of each token and binding of a service.
async fn proofs(client: &Client, service: &str) -> Result<Vec<(&'static str, String)>, CliError> {
    let tokens = tokens(client, service).await?.into_iter();
    let bindings = bindings(client, service).await?.into_iter();
    let tokens = tokens.map(|token| ("token", token.token_id));
    let bindings = bindings.map(|binding| ("binding", binding.binding_id));
    Ok(tokens.chain(bindings).collect())
}

fn warn(service: &str, proofs: &[(&str, String)]) {
    for (kind, id) in proofs {
        eprintln!(
            "warning: {kind} {id} works again; if it may have leaked: `credbroker service {kind} delete {service} {id}`"
        );
    }
}

/// Asks for the name of the service, and refuses any other answer.
fn ask(service: &str) -> Result<(), CliError> {
    eprint!("to reinstate the service with all of them, type its name: ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().take(ANSWER_MAX).read_line(&mut answer)?;
    if answer.trim() == service {
        return Ok(());
    }
    let what = format!("the answer is not {service}: it stays suspended");
    Err(CliError::usage(what).next("delete what may have leaked, then repeat the command"))
}
