//! `credbroker grant …`.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum, builder::PossibleValuesParser};

use super::{convert::proto_duration, error::CliError, output::Output, pages, view};
use crate::{
    client::Client,
    domain::{duration, grant::Reuse, probe::Probe},
    proto::{
        self, DeleteGrantRequest, GetGrantRequest, InlinePolicy, ListGrantsRequest,
        PutGrantRequest, Tag, TemplateUse, inline_policy::Source,
    },
};

/// Size from which a policy document is refused, white space included; bytes.
const POLICY_MAX: u64 = 32 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum Grant {
    /// Create a grant, or give it a new version.
    Put(Box<Put>),
    /// List the current grants, of one service or all.
    List {
        /// Service whose grants are listed; all if not given.
        #[arg(long, default_value = "")]
        service: String,
    },
    /// Show one grant, with the policy as AWS gets it.
    Show {
        /// SERVICE/GRANT.
        grant: String,
    },
    /// Delete a grant; its leases stay valid until they end.
    Delete {
        /// SERVICE/GRANT.
        grant: String,
    },
}

/// Kinds of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Kind {
    /// An STS session on a role, narrowed by a session policy.
    AssumeRole,
    /// An STS session derived from the broker's own IAM user.
    FederationToken,
    /// An IAM user and key made for one lease.
    IamUser,
}

#[derive(Args, Debug)]
pub(super) struct Put {
    /// SERVICE/GRANT.
    grant: String,
    /// Kind of credentials; assume_role if --role-arn is given.
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Policy document, JSON; - reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "policy")]
    policy_file: Option<PathBuf>,
    /// Policy of the catalogue (see `credbroker policy list`).
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Parameter of --policy; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    param: Vec<(String, String)>,
    /// Managed policy; may be repeated, up to 10.
    #[arg(long, value_name = "ARN")]
    managed_policy: Vec<String>,
    /// Lifetime if the service requests none, e.g. 1h.
    #[arg(long, value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Longest lifetime that a service may request, e.g. 12h.
    #[arg(long, value_parser = duration::parse)]
    max_ttl: Option<Duration>,
    /// Tag of the session or user; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    tag: Vec<(String, String)>,
    /// Confirm that the grant may be broad.
    #[arg(long)]
    allow_broad: bool,
    /// assume_role: ARN of the role.
    #[arg(long, value_name = "ARN")]
    role_arn: Option<String>,
    /// assume_role: external id that the role's trust policy demands.
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// assume_role: set the service as source identity; the role's trust policy must allow it.
    #[arg(long)]
    source_identity: bool,
    /// assume_role: tag that role chaining passes on; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    transitive_tag: Vec<(String, String)>,
    /// STS kinds: region of the STS endpoint; the broker's if not given.
    #[arg(long)]
    region: Option<String>,
    /// STS kinds: harmless call by which AWS is seen to refuse a revoked session; sqs:ListQueues if
    /// not given. May be repeated: AWS must refuse each.
    #[arg(long, value_name = "ACTION", value_parser = PossibleValuesParser::new(Probe::ALL.map(Probe::as_str)))]
    probe: Vec<String>,
    /// STS kinds: region besides --region in which AWS is seen to refuse a revoked session; may be
    /// repeated. Up to 9 calls: each probe in each region.
    #[arg(long, value_name = "REGION")]
    probe_region: Vec<String>,
    /// STS kinds: the session policy denies everything after the session's end, so that a console
    /// session or a token made from it does not live longer. Takes 121 of the 2,048 characters.
    #[arg(long)]
    end_by_policy: bool,
    /// STS kinds: callers of the service with the same proof of identity share a session while it
    /// is fresh; if not given, each caller gets its own.
    #[arg(long, value_name = "WHO", value_parser = PossibleValuesParser::new([Reuse::PerService.as_str()]))]
    reuse: Option<String>,
    /// iam_user: group that the user joins; may be repeated, up to 10.
    #[arg(long)]
    group: Vec<String>,
    /// iam_user: path below /credbroker/.
    #[arg(long)]
    path: Option<String>,
    /// iam_user: permissions boundary other than the broker's; the policy of the admin user must
    /// allow it as well.
    #[arg(long, value_name = "ARN")]
    permissions_boundary: Option<String>,
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Returns the parameters by name. Each may be given once.
pub(super) fn parameters(pairs: &[(String, String)]) -> Result<HashMap<String, String>, CliError> {
    let mut parameters = HashMap::new();
    for (name, value) in pairs {
        if parameters.insert(name.clone(), value.clone()).is_some() {
            return Err(CliError::usage(format!("--param {name} is given twice")));
        }
    }
    Ok(parameters)
}

/// Reads a policy document from a file, or from standard input if the path is `-`.
fn read_text(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().take(POLICY_MAX).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(POLICY_MAX).read_to_string(&mut text))
    };
    match read {
        Ok(size) if size as u64 == POLICY_MAX => Err(CliError::usage(format!(
            "{} is too large for a policy document",
            path.display()
        ))),
        Ok(_) => Ok(text),
        Err(error) => Err(CliError::usage(format!(
            "cannot read {}: {error}",
            path.display()
        ))),
    }
}

impl Grant {
    pub(super) async fn run(self, client: &Client, out: &mut Output) -> Result<(), CliError> {
        let mut grants = client.grants();
        match self {
            Self::Put(put) => {
                let request = PutGrantRequest {
                    grant: Some(put.grant()?),
                };
                let done = grants.put_grant(request).await?.into_inner();
                let grant = done.grant.unwrap_or_default();
                for reason in &grant.breadth {
                    eprintln!("warning: broad: {reason}");
                }
                if is_unnarrowed(&grant) {
                    eprintln!(
                        "warning: no policy narrows this grant: its sessions can do all that the role may, but make further credentials"
                    );
                }
                if !done.changed {
                    eprintln!("nothing to change: version {} says the same", grant.version);
                }
                out.show(&view::Grant::from(grant))?;
            }
            Self::List { service } => list(client, service, out).await?,
            Self::Show { grant } => {
                let grant = grants
                    .get_grant(GetGrantRequest { name: grant })
                    .await?
                    .into_inner();
                out.show(&view::Grant::from(grant))?;
            }
            Self::Delete { grant } => {
                grants
                    .delete_grant(DeleteGrantRequest {
                        name: grant.clone(),
                    })
                    .await?;
                out.deleted("grant", &grant)?;
            }
        }
        Ok(())
    }
}

fn is_unnarrowed(grant: &proto::Grant) -> bool {
    matches!(grant.kind, Some(proto::grant::Kind::AssumeRole(_)))
        && grant.policy.is_none()
        && grant.managed_policy_arns.is_empty()
        && !grant.allow_broad
}

async fn list(client: &Client, service: String, out: &mut Output) -> Result<(), CliError> {
    let all = pages::all(u32::MAX, async |page_size, page_token| {
        let request = ListGrantsRequest {
            service: service.clone(),
            page_size,
            page_token,
        };
        let page = client.grants().list_grants(request).await?.into_inner();
        let grants = page.grants.into_iter().map(view::Grant::from);
        Ok((grants.collect(), page.next_page_token))
    })
    .await?;
    Ok(out.list(
        &all,
        &[
            "name",
            "version",
            "kind",
            "default_ttl_seconds",
            "max_ttl_seconds",
            "allow_broad",
            "breadth",
        ],
    )?)
}

impl Put {
    fn grant(self) -> Result<proto::Grant, CliError> {
        let kind = self
            .kind
            .or_else(|| self.role_arn.as_ref().map(|_| Kind::AssumeRole));
        let kind =
            kind.ok_or_else(|| CliError::usage("say --kind, or --role-arn for a role's session"))?;
        self.refuse_strangers(kind)?;
        let mut probes = self.probe.clone().into_iter();
        Ok(proto::Grant {
            policy: self.inline_policy()?,
            kind: Some(self.of_kind(kind)?),
            name: self.grant,
            managed_policy_arns: self.managed_policy,
            default_ttl: self.ttl.map(proto_duration),
            max_ttl: self.max_ttl.map(proto_duration),
            allow_broad: self.allow_broad,
            probe: probes.next(),
            further_probes: probes.collect(),
            probe_regions: self.probe_region,
            ends_by_policy: self.end_by_policy,
            reuse: self.reuse,
            ..proto::Grant::default()
        })
    }

    /// Refuses a flag of another kind of grant: ignoring it would hide a mistake.
    fn refuse_strangers(&self, kind: Kind) -> Result<(), CliError> {
        let (role, federation, user) = (
            kind == Kind::AssumeRole,
            kind == Kind::FederationToken,
            kind == Kind::IamUser,
        );
        let given = [
            ("--role-arn", self.role_arn.is_some(), role),
            ("--external-id", self.external_id.is_some(), role),
            ("--source-identity", self.source_identity, role),
            ("--transitive-tag", !self.transitive_tag.is_empty(), role),
            ("--region", self.region.is_some(), role || federation),
            ("--probe", !self.probe.is_empty(), role || federation),
            (
                "--probe-region",
                !self.probe_region.is_empty(),
                role || federation,
            ),
            ("--reuse", self.reuse.is_some(), role || federation),
            ("--end-by-policy", self.end_by_policy, role || federation),
            ("--group", !self.group.is_empty(), user),
            ("--path", self.path.is_some(), user),
            (
                "--permissions-boundary",
                self.permissions_boundary.is_some(),
                user,
            ),
        ];
        match given.iter().find(|(_, given, fits)| *given && !fits) {
            Some((flag, ..)) => Err(CliError::usage(format!(
                "{flag} does not go with this kind of grant"
            ))),
            None => Ok(()),
        }
    }

    fn inline_policy(&self) -> Result<Option<InlinePolicy>, CliError> {
        if self.policy.is_none() && !self.param.is_empty() {
            return Err(CliError::usage("--param goes with --policy NAME"));
        }
        let source = match (&self.policy_file, &self.policy) {
            (Some(path), _) => Source::Document(read_text(path)?),
            (None, Some(name)) => Source::Template(TemplateUse {
                name: name.clone(),
                parameters: parameters(&self.param)?,
            }),
            (None, None) => return Ok(None),
        };
        Ok(Some(InlinePolicy {
            source: Some(source),
        }))
    }

    fn of_kind(&self, kind: Kind) -> Result<proto::grant::Kind, CliError> {
        let tag = |transitive| {
            move |(key, value): &(String, String)| Tag {
                key: key.clone(),
                value: value.clone(),
                transitive,
            }
        };
        let tags: Vec<Tag> = self
            .tag
            .iter()
            .map(tag(false))
            .chain(self.transitive_tag.iter().map(tag(true)))
            .collect();
        Ok(match kind {
            Kind::AssumeRole => proto::grant::Kind::AssumeRole(proto::AssumeRole {
                role_arn: self
                    .role_arn
                    .clone()
                    .ok_or_else(|| CliError::usage("assume_role needs --role-arn"))?,
                external_id: self.external_id.clone(),
                source_identity: self.source_identity,
                region: self.region.clone(),
                tags,
            }),
            Kind::FederationToken => proto::grant::Kind::FederationToken(proto::FederationToken {
                region: self.region.clone(),
                tags,
            }),
            Kind::IamUser => proto::grant::Kind::IamUser(proto::IamUser {
                groups: self.group.clone(),
                path: self.path.clone(),
                permissions_boundary_arn: self.permissions_boundary.clone(),
                tags,
            }),
        })
    }
}
