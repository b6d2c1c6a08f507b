//! `credbroker agent`: credentials for the SDKs of this machine, over HTTP on loopback.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        process::parent_id,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::interval,
};

use super::{Connection, failure::Failure, output::Output, profile::Profile};
use crate::{
    client::{
        Credentials, Missing,
        endpoint::{Endpoint, secret},
        read_secret,
    },
    domain::{duration, name::Name},
};

/// How long the first credentials may take where somebody waits for them.
const FIRST_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether the parent lives.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Serve credentials to the SDKs of this machine, on a loopback address.
///
/// For SDKs and languages that take no https, or no private CA. For each grant there is a file
/// GRANT.env that sets AWS_CONTAINER_CREDENTIALS_FULL_URI; whoever can read it can have the
/// credentials. The next ones are there before the old end, the last ones serve through an
/// outage of the broker until they end, and what is revoked is dropped at once.
#[derive(Args, Debug)]
pub(super) struct Agent {
    /// GRANT of the service whose token is used, or SERVICE/GRANT; may be given many times.
    #[arg(long, required = true)]
    grant: Vec<String>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Lifetime of each session, e.g. 1h; the grant's default if not given.
    #[arg(long, value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Where the files are; $XDG_RUNTIME_DIR/credbroker if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keeps a profile of this name in the AWS credentials file as well, for programs that
    /// read nothing else; with one grant alone.
    #[arg(long, value_name = "NAME")]
    write_profile: Option<String>,
    /// Ends with the process that started it, and tells it the address alone.
    #[arg(long, hide = true, conflicts_with_all = ["dir", "write_profile"])]
    for_parent: bool,
}

/// What is told of a grant.
#[derive(Serialize)]
struct Served<'a> {
    grant: &'a str,
    env_file: PathBuf,
}

impl Agent {
    pub(super) async fn run(
        self,
        connection: &Connection,
        out: &mut Output,
    ) -> Result<(), Failure> {
        let parent = parent_id();
        let grants = self.grants(connection)?;
        if self.for_parent {
            return self.serve_parent(grants, parent, out).await;
        }
        let home = Home::of(self.dir.as_deref())?;
        let profile = self.profile(&grants)?;
        let endpoint = Endpoint::bind(self.listen, home.secret()?, grants.clone()).await;
        let endpoint = endpoint.map_err(|error| self.cannot_listen(&error))?;
        for grant in grants.keys() {
            let env_file = home.tell(grant, &endpoint.url(grant))?;
            out.show(&Served { grant, env_file })?;
        }
        for (grant, credentials) in &grants {
            tokio::spawn(tell(grant.clone(), credentials.clone()));
        }
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            () = endpoint.serve() => {}
            () = keep(profile.as_ref()) => {}
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        if let Some((profile, _)) = profile {
            profile.remove()?;
        }
        for grant in grants.keys() {
            home.forget(grant);
        }
        Ok(())
    }

    fn grants(&self, connection: &Connection) -> Result<BTreeMap<String, Credentials>, Failure> {
        let settings = connection.settings()?;
        let mut grants = BTreeMap::new();
        for grant in &self.grant {
            let name: Result<Name, _> = grant.rsplit('/').next().unwrap_or(grant).parse();
            let name = name.map_err(|error| Failure::usage(format!("grant {grant:?}: {error}")))?;
            let credentials = Credentials::living(settings.clone(), grant, self.ttl);
            if grants.insert(name.to_string(), credentials).is_some() {
                return Err(Failure::usage(format!("grant {name} is given twice")));
            }
        }
        Ok(grants)
    }

    fn profile(
        &self,
        grants: &BTreeMap<String, Credentials>,
    ) -> Result<Option<(Profile, Credentials)>, Failure> {
        let Some(name) = &self.write_profile else {
            return Ok(None);
        };
        let mut credentials = grants.values();
        match (credentials.next(), credentials.next()) {
            (Some(credentials), None) => Ok(Some((Profile::named(name)?, credentials.clone()))),
            _ => Err(Failure::usage("--write-profile goes with one --grant")
                .next("start an agent for each profile")),
        }
    }

    fn cannot_listen(&self, error: &io::Error) -> Failure {
        Failure::usage(format!("cannot listen on {}: {error}", self.listen))
    }

    /// Tells where the credentials are once there are some.
    async fn serve_parent(
        &self,
        grants: BTreeMap<String, Credentials>,
        parent: u32,
        out: &mut Output,
    ) -> Result<(), Failure> {
        let endpoint = Endpoint::bind(self.listen, secret(), grants.clone()).await;
        let endpoint = endpoint.map_err(|error| self.cannot_listen(&error))?;
        for (grant, credentials) in &grants {
            let first = credentials.current(FIRST_LIMIT).await;
            let first = first.map_err(|missing| match missing {
                Missing::Refused(why) => Failure::denied(why),
                Missing::Unavailable(why) => Failure::unavailable(why),
            })?;
            if first.session_token.is_none() {
                let why = format!(
                    "grant {grant} is of kind iam_user, whose keys SDKs take from no endpoint"
                );
                return Err(Failure::conflict(why).next("run it without --refresh"));
            }
            out.line(endpoint.url(grant).expose_secret())?;
        }
        let mut looks = interval(LOOK_EVERY);
        let orphaned = async {
            while parent_id() == parent {
                looks.tick().await;
            }
        };
        tokio::select! {
            () = endpoint.serve() => {}
            () = orphaned => {}
        }
        Ok(())
    }
}

/// Where the agent's files are.
struct Home(PathBuf);

impl Home {
    fn of(dir: Option<&Path>) -> Result<Self, Failure> {
        let runtime =
            || env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("credbroker"));
        let unset = || Failure::usage("XDG_RUNTIME_DIR is not set").next("set it, or give --dir");
        let dir = dir.map(Path::to_owned).or_else(runtime).ok_or_else(unset)?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| unusable(&dir, &error))?;
        Ok(Self(dir))
    }

    /// The secret of an earlier agent, so that what was told then stays true; or a new one.
    fn secret(&self) -> Result<SecretString, Failure> {
        let path = self.0.join("secret");
        if path.exists() {
            return Ok(read_secret(&path)?);
        }
        let secret = secret();
        write(&path, &secret)?;
        Ok(secret)
    }

    /// Writes the file of a grant.
    fn tell(&self, grant: &str, url: &SecretString) -> Result<PathBuf, Failure> {
        let path = self.0.join(format!("{grant}.env"));
        let url = url.expose_secret();
        let line = format!("AWS_CONTAINER_CREDENTIALS_FULL_URI={url}\n");
        write(&path, &SecretString::from(line))?;
        Ok(path)
    }

    fn forget(&self, grant: &str) {
        // Somebody may have removed it.
        let _ = fs::remove_file(self.0.join(format!("{grant}.env")));
    }
}

/// A file for its owner alone; whoever reads sees the old or the new, whole.
fn write(path: &Path, text: &SecretString) -> Result<(), Failure> {
    let new = path.with_extension("new");
    // Its mode may be another's.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&new);
    file.and_then(|mut file| file.write_all(text.expose_secret().as_bytes()))
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot use {}: {error}", path.display()))
}

/// Tells standard error what becomes of the credentials, and no secret of them.
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

/// Keeps the profile what the credentials are, for ever.
async fn keep(profile: Option<&(Profile, Credentials)>) {
    let Some((profile, credentials)) = profile else {
        return std::future::pending().await;
    };
    let mut credentials = credentials.clone();
    loop {
        let kept = match credentials.current(Duration::ZERO).await {
            Ok(issued) => profile.write(&issued),
            Err(_) => profile.remove(),
        };
        if let Err(failure) = kept {
            failure.report();
        }
        credentials.changed().await;
    }
}
