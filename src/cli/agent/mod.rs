//! `credbroker agent`: credentials for the SDKs of this machine, over HTTP on loopback.

mod process;
mod profile;
mod runtime_dir;

use std::{
    collections::BTreeMap,
    io::{self, Read},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use rustix::process::Pid;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use self::{
    process::{detach, end_of, told_to_end},
    profile::Profile,
    runtime_dir::Home,
};
use super::{Connection, error::CliError, output::Output};
use crate::{
    client::{
        Credentials, Missing, Settings,
        endpoint::{Endpoint, secret},
    },
    domain::{duration, name::Name},
    process_hardening,
};

/// Longest wait for the first credentials while another process waits for them.
const FIRST_LIMIT: Duration = Duration::from_secs(60);
/// Longest token read from standard input, bytes.
const TOKEN_MAX: u64 = 16 * 1024;

/// Serve credentials to the SDKs of this machine, on a loopback address.
///
/// Meant for SDKs and languages that support no https or no private CA. Each grant gets a file
/// GRANT.env that sets AWS_CONTAINER_CREDENTIALS_FULL_URI; any process that can read the file can
/// get the credentials. The agent has the next credentials before the old ones end. During an
/// outage of the broker it serves the last ones until they end. It drops revoked credentials at
/// once.
#[derive(Args, Debug)]
pub(super) struct Agent {
    /// GRANT of the service whose token is used, or SERVICE/GRANT; may be given many times.
    #[arg(long, required = true)]
    grant: Vec<String>,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT", value_parser = loopback)]
    listen: SocketAddr,
    /// Lifetime of each session, e.g. 1h; the grant's default if not given.
    #[arg(long, value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Directory of the files; $XDG_RUNTIME_DIR/credbroker if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Maintain a profile of this name in the AWS credentials file as well, for programs that read
    /// nothing else; with exactly one --grant.
    #[arg(long, value_name = "NAME")]
    write_profile: Option<String>,
    /// End with this process, read a token from standard input if there is one, and print the
    /// address alone.
    #[arg(long, hide = true, value_name = "PID", conflicts_with_all = ["dir", "write_profile"])]
    for_process: Option<i32>,
    /// Run as an agent that is not a child of that process.
    #[arg(long, hide = true, requires = "for_process")]
    detached: bool,
}

/// Output for a served grant.
#[derive(Serialize)]
struct Served<'a> {
    grant: &'a str,
    env_file: PathBuf,
}

/// Parses an address that only processes of this machine reach.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "not ADDRESS:PORT".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("credentials are served on a loopback address alone, e.g. 127.0.0.1:0".to_owned())
    }
}

impl Agent {
    pub(super) async fn run(
        self,
        connection: &Connection,
        out: &mut Output,
    ) -> Result<(), CliError> {
        process_hardening::seal()?;
        match self.for_process {
            Some(pid) if self.detached => self.serve_process(connection, pid, out).await,
            Some(_) => detach().await,
            None => self.serve(connection, out).await,
        }
    }

    /// Serves until a signal ends the agent.
    async fn serve(self, connection: &Connection, out: &mut Output) -> Result<(), CliError> {
        let grants = self.grants(&connection.settings()?)?;
        let home = Home::of(self.dir.as_deref())?;
        let profile = self.profile(&grants).await?;
        let secret = home.secret(self.listen.port() != 0)?;
        let endpoint = Endpoint::bind(self.listen, secret, grants.clone()).await;
        let endpoint = endpoint.map_err(|error| self.cannot_listen(&error))?;
        for grant in grants.keys() {
            let env_file = home.tell(grant, &endpoint.url(grant))?;
            out.show(&Served { grant, env_file })?;
        }
        for (grant, credentials) in &grants {
            tokio::spawn(tell(grant.clone(), credentials.clone()));
        }
        let kept = profile.clone();
        let keeping = tokio::spawn(async move { keep(kept.as_ref()).await });
        let serving = tokio::spawn(endpoint.serve());
        told_to_end().await?;
        serving.abort();
        keeping.abort();
        if let Some((profile, _)) = profile {
            profile.remove().await?;
        }
        for grant in grants.keys() {
            home.forget(grant);
        }
        Ok(())
    }

    fn grants(&self, settings: &Settings) -> Result<BTreeMap<String, Credentials>, CliError> {
        let mut grants = BTreeMap::new();
        for grant in &self.grant {
            let name: Result<Name, _> = grant.rsplit('/').next().unwrap_or(grant).parse();
            let name =
                name.map_err(|error| CliError::usage(format!("grant {grant:?}: {error}")))?;
            let credentials = Credentials::living(settings.clone(), grant, self.ttl);
            if grants.insert(name.to_string(), credentials).is_some() {
                return Err(CliError::usage(format!("grant {name} is given twice")));
            }
        }
        Ok(grants)
    }

    async fn profile(
        &self,
        grants: &BTreeMap<String, Credentials>,
    ) -> Result<Option<(Profile, Credentials)>, CliError> {
        let Some(name) = &self.write_profile else {
            return Ok(None);
        };
        let mut credentials = grants.values();
        match (credentials.next(), credentials.next()) {
            (Some(credentials), None) => {
                let profile = Profile::named(name).await?;
                Ok(Some((profile, credentials.clone())))
            }
            _ => Err(CliError::usage("--write-profile goes with one --grant")
                .next("start an agent for each profile")),
        }
    }

    fn cannot_listen(&self, error: &io::Error) -> CliError {
        CliError::usage(format!("cannot listen on {}: {error}", self.listen))
    }

    /// Prints the URL of each grant once it has credentials, and serves until process `pid` ends.
    async fn serve_process(
        &self,
        connection: &Connection,
        pid: i32,
        out: &mut Output,
    ) -> Result<(), CliError> {
        let no_process = || CliError::usage(format!("there is no process {pid}"));
        let process = Pid::from_raw(pid).ok_or_else(no_process)?;
        let mut token = String::new();
        io::stdin().take(TOKEN_MAX).read_to_string(&mut token)?;
        let token =
            Some(SecretString::from(token)).filter(|token| !token.expose_secret().is_empty());
        let settings = connection.settings_or(token)?;
        let grants = self.grants(&settings)?;
        let endpoint = Endpoint::bind(self.listen, secret(), grants.clone()).await;
        let endpoint = endpoint.map_err(|error| self.cannot_listen(&error))?;
        for (grant, credentials) in &grants {
            let first = credentials.current(FIRST_LIMIT).await;
            let first = first.map_err(|missing| match missing {
                Missing::Refused { code, why } => CliError::refused(code, why),
                Missing::Unavailable(why) => CliError::unavailable(why),
            })?;
            if first.session_token.is_none() {
                let why = format!(
                    "grant {grant} is of kind iam_user, whose keys SDKs take from no endpoint"
                );
                return Err(CliError::conflict(why).next("run it without --refresh"));
            }
            out.line(endpoint.url(grant).expose_secret())?;
        }
        tokio::select! {
            () = endpoint.serve() => {}
            () = end_of(process) => {}
        }
        Ok(())
    }
}
/// Prints each change of the credentials to standard error, without any secret.
async fn tell(grant: String, mut credentials: Credentials) {
    loop {
        match credentials.current(Duration::ZERO).await {
            Ok(issued) => eprintln!(
                "{grant}: lease {} until {:.0}",
                issued.lease_id, issued.expires_at
            ),
            Err(missing) => eprintln!("{grant}: no credentials: {missing}"),
        }
        credentials.changed().await;
    }
}

/// Writes the profile at each change of the credentials, and removes it while there are none. Never
/// returns.
async fn keep(profile: Option<&(Profile, Credentials)>) {
    let Some((profile, credentials)) = profile else {
        return std::future::pending().await;
    };
    let mut credentials = credentials.clone();
    loop {
        let kept = match credentials.current(Duration::ZERO).await {
            Ok(issued) => profile.write(&issued).await,
            Err(_) => profile.remove().await,
        };
        if let Err(failure) = kept {
            failure.report();
        }
        credentials.changed().await;
    }
}
