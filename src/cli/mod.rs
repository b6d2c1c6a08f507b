//! The command line: a file per noun, output as text or JSON.

mod admin_key;
mod agent;
mod approval;
mod audit;
#[cfg(feature = "server")]
mod broker;
mod checkpoint;
mod convert;
mod credential_cache;
mod credential_process;
mod doctor;
mod emergency_revoke;
mod enroll;
mod error;
mod exec;
mod export;
mod file_permissions;
mod grant;
mod issue;
mod jsonl;
mod lease;
mod lookup;
mod operator;
mod output;
mod pages;
mod policy;
mod proof;
mod prune;
mod reconcile;
mod reinstate;
mod revoke;
mod service;
mod status;
#[cfg(feature = "server")]
mod store;
mod verify;
mod view;
mod whoami;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use secrecy::SecretString;

use self::{
    error::CliError,
    output::{Format, Output},
};
use crate::client::{Client, Evidence, Settings};

/// Give each service its own narrow, short-lived AWS credentials, from one broker. Only the broker
/// holds the admin key.
#[derive(Debug, Parser)]
#[command(
    name = "credbroker",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connection: Connection,
    /// Format of results on standard output.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Address of the broker, and proof of the caller's identity. `. DIR/env` of `credbroker dev` sets
/// address, CA and token.
#[derive(Args, Debug)]
#[command(next_help_heading = "Connection")]
struct Connection {
    /// Address of the broker, https://host:port.
    #[arg(
        long,
        global = true,
        env = "CREDBROKER_ADDR",
        value_name = "URL",
        hide_env_values = true
    )]
    addr: Option<String>,
    /// CA of the broker's certificate, PEM.
    #[arg(
        long,
        global = true,
        env = "CREDBROKER_CA_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    ca_file: Option<PathBuf>,
    /// File that contains the token; the token itself goes into CREDBROKER_TOKEN.
    #[arg(
        long,
        global = true,
        env = "CREDBROKER_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    token_file: Option<PathBuf>,
    /// Client certificate, PEM, instead of a token.
    #[arg(
        long,
        global = true,
        env = "CREDBROKER_CLIENT_CERT_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    client_cert_file: Option<PathBuf>,
    /// Private key of the client certificate, PEM.
    #[arg(
        long,
        global = true,
        env = "CREDBROKER_CLIENT_KEY_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    client_key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker for trying things: embedded store, own CA, ready in seconds.
    #[cfg(feature = "server")]
    Dev(broker::Dev),
    /// Run a broker for production.
    #[cfg(feature = "server")]
    Serve(broker::Serve),
    /// Bring the tables of a broker's store to this version.
    #[cfg(feature = "server")]
    Migrate(broker::Migrate),
    /// Work on the store of a broker that is down.
    #[cfg(feature = "server")]
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Show the broker's version and state.
    Status,
    /// Show who you are to the broker, and by which proof of identity.
    Whoami,
    Enroll(enroll::Enroll),
    /// Register, show, suspend and delete services.
    #[command(subcommand)]
    Service(service::Service),
    /// Manage grants: the credentials that a service may get.
    #[command(subcommand)]
    Grant(grant::Grant),
    /// Show the catalogue of ready policies.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Get credentials, as a service.
    Issue(issue::Issue),
    CredentialProcess(credential_process::CredentialProcess),
    Exec(exec::Exec),
    Agent(agent::Agent),
    Doctor(doctor::Doctor),
    /// Release credentials before they end, as a service.
    Release(issue::Release),
    /// Show, renew and revoke leases: the records of what was issued.
    #[command(subcommand)]
    Lease(lease::Lease),
    /// Suspend one service now, and revoke everything that it holds.
    Revoke(revoke::Revoke),
    /// Find the owner of an access key or token, whether it still works, and what ends it.
    Lookup(lookup::Lookup),
    /// Read, export and check the audit log.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Manage the broker's own AWS key.
    #[command(subcommand)]
    AdminKey(admin_key::AdminKey),
    /// Manage operators, who manage the broker.
    #[command(subcommand)]
    Operator(operator::Operator),
    /// Approve or reject changes that need a second operator.
    #[command(subcommand)]
    Approval(approval::Approval),
    /// Print a completion script for a shell.
    Completion {
        /// Name of the shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return CliError::unexpected(error.to_string()).report(),
    };
    let done = runtime.block_on(run(cli));
    // A file system that does not answer must not delay the exit.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

impl Command {
    const fn prints(&self, format: Format) -> bool {
        match format {
            Format::Text | Format::Json => true,
            Format::Env => matches!(
                self,
                Self::Issue(_) | Self::Lease(lease::Lease::Renew { .. })
            ),
            Format::CredentialProcess => {
                matches!(self, Self::Issue(_) | Self::CredentialProcess(_))
            }
        }
    }
}

async fn run(cli: Cli) -> Result<(), CliError> {
    let mut out = Output::new(cli.output, Box::new(io::stdout()));
    if !cli.command.prints(cli.output) {
        return Err(CliError::usage(
            "-o env is for `credbroker issue` and `credbroker lease renew`, -o credential-process for `issue`",
        ));
    }
    let connection = &cli.connection;
    match cli.command {
        #[cfg(feature = "server")]
        Command::Dev(dev) => dev.run().await,
        #[cfg(feature = "server")]
        Command::Serve(serve) => serve.run(&mut out).await,
        #[cfg(feature = "server")]
        Command::Migrate(migrate) => migrate.run(&mut out).await,
        #[cfg(feature = "server")]
        Command::Store(command) => command.run(&mut out).await,
        Command::Status => status::run(&connection.connect().await?, &mut out).await,
        Command::Whoami => whoami::run(&connection.connect().await?, &mut out).await,
        Command::Enroll(command) => command.run(connection, &mut out).await,
        Command::Service(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::Grant(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::Policy(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::Issue(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::CredentialProcess(command) => command.run(connection, &mut out).await,
        Command::Exec(command) => command.run(connection).await,
        Command::Agent(command) => command.run(connection, &mut out).await,
        Command::Doctor(command) => command.run(connection, &mut out).await,
        Command::Release(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::Lease(command) => command.run(&connection.connect().await?, &mut out).await,
        #[cfg(not(feature = "server"))]
        Command::Revoke(command) if command.break_glass.is_asked_for() => {
            Err(emergency_revoke::refused())
        }
        #[cfg(feature = "server")]
        Command::Revoke(command) if command.break_glass.is_asked_for() => {
            command.break_glass(connection, &mut out).await
        }
        Command::Revoke(command) => command.run(connection, &mut out).await,
        Command::Lookup(command) => {
            let asked = command.asked()?;
            lookup::run(asked, &connection.connect().await?, &mut out).await
        }
        Command::Audit(audit::Audit::Verify(verify)) => verify.run(&mut out),
        Command::Audit(audit::Audit::Reconcile(reconcile)) if reconcile.is_offline() => {
            reconcile.run_offline(&mut out)
        }
        Command::Audit(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::AdminKey(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::Operator(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::Approval(command) => command.run(&connection.connect().await?, &mut out).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "credbroker", &mut script);
            io::stdout().write_all(&script)?;
            Ok(())
        }
    }
}

impl Connection {
    async fn connect(&self) -> Result<Client, CliError> {
        self.connect_with(self.evidence()?).await
    }

    /// Connects with the client certificate, even if there is a token.
    async fn connect_by_certificate(&self) -> Result<Client, CliError> {
        let certificate = self.certificate();
        let unset = || CliError::unset("CREDBROKER_CLIENT_CERT_FILE", "--client-cert-file");
        self.connect_with(certificate.ok_or_else(unset)?).await
    }

    async fn connect_with(&self, evidence: Evidence) -> Result<Client, CliError> {
        Ok(Client::connect(&self.settings_with(evidence)?).await?)
    }

    fn settings(&self) -> Result<Settings, CliError> {
        self.settings_with(self.evidence()?)
    }

    /// Returns the settings with this token, if there is one.
    fn settings_or(&self, token: Option<SecretString>) -> Result<Settings, CliError> {
        match token {
            Some(token) => self.settings_with(Evidence::Token(token)),
            None => self.settings(),
        }
    }

    fn settings_with(&self, evidence: Evidence) -> Result<Settings, CliError> {
        Ok(Settings {
            address: self
                .addr
                .clone()
                .ok_or_else(|| CliError::unset("CREDBROKER_ADDR", "--addr"))?,
            ca_file: self
                .ca_file
                .clone()
                .ok_or_else(|| CliError::unset("CREDBROKER_CA_FILE", "--ca-file"))?,
            evidence,
        })
    }

    /// Passes the same settings to another process of this program. Returns a token that is in no
    /// file, since other processes can read the environment of a process.
    fn hand_on(
        &self,
        command: &mut std::process::Command,
    ) -> Result<Option<SecretString>, CliError> {
        let files = [
            ("CREDBROKER_CA_FILE", &self.ca_file),
            ("CREDBROKER_TOKEN_FILE", &self.token_file),
            ("CREDBROKER_CLIENT_CERT_FILE", &self.client_cert_file),
            ("CREDBROKER_CLIENT_KEY_FILE", &self.client_key_file),
        ];
        let files = files.into_iter();
        command.envs(files.filter_map(|(name, file)| file.as_ref().map(|file| (name, file))));
        command.envs(self.addr.as_ref().map(|addr| ("CREDBROKER_ADDR", addr)));
        command.env_remove("CREDBROKER_TOKEN");
        Ok(match self.evidence()? {
            Evidence::Token(token) => Some(token),
            Evidence::TokenFile(_) | Evidence::Certificate { .. } => None,
        })
    }

    fn evidence(&self) -> Result<Evidence, CliError> {
        let has_token = self.token_file.is_some() || std::env::var_os("CREDBROKER_TOKEN").is_some();
        match self.certificate() {
            Some(certificate) if !has_token => Ok(certificate),
            _ => self.token(),
        }
    }

    fn certificate(&self) -> Option<Evidence> {
        Some(Evidence::Certificate {
            cert_file: self.client_cert_file.clone()?,
            key_file: self.client_key_file.clone()?,
        })
    }

    fn token(&self) -> Result<Evidence, CliError> {
        if let Some(path) = &self.token_file {
            return Ok(Evidence::TokenFile(path.clone()));
        }
        match std::env::var("CREDBROKER_TOKEN") {
            Ok(token) => Ok(Evidence::Token(SecretString::from(token))),
            Err(_) => Err(CliError::unset(
                "CREDBROKER_TOKEN or CREDBROKER_TOKEN_FILE",
                "--token-file",
            )),
        }
    }
}

#[cfg(test)]
mod tests;
