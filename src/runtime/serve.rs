//! `credbroker serve`: production, from a configuration file.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use secrecy::ExposeSecret;

use super::{Assembled, StartError, assemble, bind, clients, file_error, run, tolerate_silence};
use crate::{config::Config, http::tls};

/// Serves until told to stop.
///
/// # Errors
/// Why it does not start.
pub async fn serve(config: Config) -> Result<(), StartError> {
    let tls = tls::from_files(&config.listen.tls_cert_file, &config.listen.tls_key_file)?;
    let clients = clients(Some(config.aws.region), config.aws.endpoint_url).await;
    let assembled = assemble(&config.store, clients, config.aws.partition).await?;
    tolerate_silence(assembled.issuer.check_boundary().await)?;
    first_operator(&assembled, &config.operators.bootstrap_token_file).await?;
    let listener = bind(config.listen.address).await?;
    let address = config.listen.address;
    run(
        assembled,
        listener,
        tls,
        move || tracing::info!(%address, "serving"),
    )
    .await
}

/// With no operator in the store, makes `admin` and writes its token to `path`.
async fn first_operator(assembled: &Assembled, path: &Path) -> Result<(), StartError> {
    let known = assembled
        .broker
        .store()
        .operators()
        .await
        .map_err(crate::broker::Error::from)?;
    if !known.is_empty() {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(file_error(path))?;
    let token = assembled.broker.reset_admin().await?;
    file.write_all(token.text().expose_secret().as_bytes())
        .map_err(file_error(path))?;
    file.sync_all().map_err(file_error(path))?;
    tracing::warn!(path = %path.display(), "made operator admin; move its token to a safe place");
    Ok(())
}
