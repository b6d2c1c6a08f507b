//! `credbroker whoami`.

use super::{error::CliError, output::Output, view};
use crate::{client::Client, proto::WhoAmIRequest};

pub(super) async fn run(client: &Client, out: &mut Output) -> Result<(), CliError> {
    let known = client.identity().who_am_i(WhoAmIRequest {}).await?;
    Ok(out.show(&view::WhoAmI::from(known.into_inner()))?)
}
