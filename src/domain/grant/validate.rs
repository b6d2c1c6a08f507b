//! Checks of a grant's fields. A grant that AWS would refuse when credentials are issued is refused
//! when it is put. Limits are from AssumeRole, GetFederationToken and CreateUser in the AWS STS and
//! IAM API references, and "IAM and AWS STS quotas".

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;

use crate::domain::{
    arn::{Partition, is_region},
    duration::humanize,
    grant::{GrantSpec, Kind, KindSpec, OWN_TAG_PREFIX, OWN_TAGS, Tag},
    policy::{
        self, SESSION_POLICY_ARNS_MAX, SESSION_POLICY_MAX, TAGS_MAX, USER_GROUPS_MAX,
        USER_INLINE_MAX, USER_POLICY_ARNS_MAX,
    },
    probe::Probe,
};

/// Maximum number of calls that test a revocation, each probe in each region: a call takes a
/// quarter of a second.
const PROBE_CALLS_MAX: usize = 9;

/// Field with an invalid value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, as in the proto message.
    pub field: String,
    /// Sentence that says what is wrong and what would be right.
    pub message: String,
}

impl Violation {
    /// Returns a violation of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Returns every reason why `spec` cannot be a grant of a broker in `partition`.
#[must_use]
pub fn violations(spec: &GrantSpec, partition: Partition) -> Vec<Violation> {
    let mut found = Violations(Vec::new());
    found.lifetimes(spec);
    found.policies(spec, partition);
    found.tags(spec.tags(), spec.kind());
    found.kind(spec, partition);
    found.breadth(spec);
    found.of_sessions_alone(spec);
    found.probe_calls(spec, partition);
    found.0
}

struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, field: &str, message: impl Into<String>) {
        self.0
            .push(Violation::new(format!("grant.{field}"), message));
    }

    fn refuse_unless(&mut self, good: bool, field: &str, message: impl FnOnce() -> String) {
        if !good {
            self.add(field, message());
        }
    }

    fn lifetimes(&mut self, spec: &GrantSpec) {
        let (shortest, longest) = spec.kind().ttl_bounds();
        let bounds = format!("{} to {}", humanize(shortest), humanize(longest));
        for (field, ttl) in [("default_ttl", spec.default_ttl), ("max_ttl", spec.max_ttl)] {
            self.refuse_unless((shortest..=longest).contains(&ttl), field, || {
                format!(
                    "{} is outside the bounds of {}: {bounds}",
                    humanize(ttl),
                    spec.kind()
                )
            });
        }
        self.refuse_unless(spec.default_ttl <= spec.max_ttl, "default_ttl", || {
            format!(
                "the default {} is above the maximum {}",
                humanize(spec.default_ttl),
                humanize(spec.max_ttl)
            )
        });
    }

    fn policies(&mut self, spec: &GrantSpec, partition: Partition) {
        let arns = &spec.managed_policies;
        let most = if spec.kind().is_session() {
            SESSION_POLICY_ARNS_MAX
        } else {
            USER_POLICY_ARNS_MAX
        };
        self.refuse_unless(arns.len() <= most, "managed_policy_arns", || {
            format!("{} managed policies; AWS takes {most} at most", arns.len())
        });
        let distinct: BTreeSet<_> = arns.iter().collect();
        self.refuse_unless(distinct.len() == arns.len(), "managed_policy_arns", || {
            "the same managed policy twice".to_owned()
        });
        for arn in arns.iter().filter(|arn| arn.partition() != partition) {
            self.add(
                "managed_policy_arns",
                format!("{arn} is not in partition {partition}, where this broker works"),
            );
        }
        self.policy_size(spec);
        let grants_something = match &spec.kind {
            KindSpec::AssumeRole { .. } => true,
            KindSpec::FederationToken { .. } => spec.policy.is_some() || !arns.is_empty(),
            KindSpec::IamUser { groups, .. } => {
                spec.policy.is_some() || !arns.is_empty() || !groups.is_empty()
            }
        };
        self.refuse_unless(grants_something, "policy", || {
            format!(
                "{} credentials without any policy can do nothing: give the grant one",
                spec.kind()
            )
        });
    }

    /// Checks the size of the policy. AWS counts the text of inline and managed session policies
    /// together. AWS counts an inline user policy without white space.
    fn policy_size(&mut self, spec: &GrantSpec) {
        let Some(document) = spec.session_policy(Timestamp::UNIX_EPOCH) else {
            return;
        };
        if spec.kind().is_session() {
            let arns: usize = spec.managed_policies.iter().map(|a| a.as_str().len()).sum();
            let size = document.to_json().chars().count() + arns;
            self.refuse_unless(size <= SESSION_POLICY_MAX, "policy", || {
                format!(
                    "the session policy has {size} characters with the broker's guard and the \
                     managed ARNs; AWS takes {SESSION_POLICY_MAX}: shorten it or use a managed policy"
                )
            });
        } else {
            // The limit is for all inline policies of a user together, and the removal of the user
            // begins with one more policy.
            let most = USER_INLINE_MAX - policy::deny_all().size();
            let size = document.size();
            self.refuse_unless(size <= most, "policy", || {
                format!(
                    "the inline policy has {size} characters without white space; a user can have \
                     {most} beside the denial that ends it: use a managed policy"
                )
            });
        }
    }

    fn tags(&mut self, tags: &[Tag], kind: Kind) {
        let most = TAGS_MAX - OWN_TAGS;
        self.refuse_unless(tags.len() <= most, "tags", || {
            format!(
                "{} tags; AWS takes {TAGS_MAX} and the broker sets {OWN_TAGS} of them",
                tags.len()
            )
        });
        let distinct: BTreeSet<_> = tags.iter().map(|t| t.key.to_lowercase()).collect();
        self.refuse_unless(distinct.len() == tags.len(), "tags", || {
            "the same tag key twice; AWS does not tell upper from lower case".to_owned()
        });
        for tag in tags {
            self.tag(tag, kind);
        }
    }

    fn tag(&mut self, tag: &Tag, kind: Kind) {
        let shown: String = tag.key.chars().take(40).collect();
        let key = tag.key.to_lowercase();
        let good_key = (1..=128).contains(&tag.key.chars().count())
            && tag.key.chars().all(is_tag_character)
            && !key.starts_with("aws:");
        self.refuse_unless(good_key, "tags", || {
            format!(
                "{shown:?} is no tag key: 1 to 128 letters, digits, spaces and _.:/=+-@, not aws:…"
            )
        });
        self.refuse_unless(!key.starts_with(OWN_TAG_PREFIX), "tags", || {
            format!("{shown:?}: keys under {OWN_TAG_PREFIX} are the broker's own")
        });
        let good_value =
            tag.value.chars().count() <= 256 && tag.value.chars().all(is_tag_character);
        self.refuse_unless(good_value, "tags", || {
            format!("the value of {shown:?} must be up to 256 letters, digits, spaces and _.:/=+-@")
        });
        self.refuse_unless(!tag.transitive || kind == Kind::AssumeRole, "tags", || {
            format!(
                "{shown:?} cannot be transitive: only assume_role sessions have transitive tags"
            )
        });
    }

    fn kind(&mut self, spec: &GrantSpec, partition: Partition) {
        match &spec.kind {
            KindSpec::AssumeRole {
                role_arn,
                external_id,
                region,
                ..
            } => {
                self.refuse_unless(
                    role_arn.partition() == partition,
                    "assume_role.role_arn",
                    || {
                        format!(
                            "{role_arn} is not in partition {partition}, where this broker works"
                        )
                    },
                );
                for arn in &spec.managed_policies {
                    let there = arn
                        .account()
                        .is_none_or(|account| account == role_arn.account());
                    self.refuse_unless(there, "managed_policy_arns", || {
                        format!(
                            "{arn} must be in the role's own account, {}",
                            role_arn.account()
                        )
                    });
                }
                if let Some(id) = external_id {
                    let good = (2..=1224).contains(&id.chars().count())
                        && id.chars().all(|c| is_word(c) || "+=,.@:/-".contains(c));
                    self.refuse_unless(good, "assume_role.external_id", || {
                        "an external id has 2 to 1,224 letters, digits and _+=,.@:/-".to_owned()
                    });
                }
                self.region(region.as_deref(), "assume_role.region", partition);
            }
            KindSpec::FederationToken { region, .. } => {
                self.region(region.as_deref(), "federation_token.region", partition);
            }
            KindSpec::IamUser {
                groups,
                path,
                permissions_boundary,
                ..
            } => {
                self.groups(groups);
                self.refuse_unless(is_path(path), "iam_user.path", || {
                    "a path is / or /name/…/, up to 200 letters, digits and _+=,.@-".to_owned()
                });
                for arn in permissions_boundary
                    .iter()
                    .filter(|arn| arn.partition() != partition)
                {
                    self.add(
                        "iam_user.permissions_boundary_arn",
                        format!("{arn} is not in partition {partition}"),
                    );
                }
            }
        }
    }

    fn groups(&mut self, groups: &[String]) {
        self.refuse_unless(groups.len() <= USER_GROUPS_MAX, "iam_user.groups", || {
            format!(
                "{} groups; AWS takes {USER_GROUPS_MAX} at most",
                groups.len()
            )
        });
        let distinct: BTreeSet<_> = groups.iter().map(|g| g.to_lowercase()).collect();
        self.refuse_unless(distinct.len() == groups.len(), "iam_user.groups", || {
            "the same group twice".to_owned()
        });
        for group in groups {
            let good = (1..=128).contains(&group.len()) && group.chars().all(is_iam_name);
            self.refuse_unless(good, "iam_user.groups", || {
                let shown: String = group.chars().take(40).collect();
                format!("{shown:?} is no group name: 1 to 128 letters, digits and _+=,.@-")
            });
        }
    }

    fn region(&mut self, region: Option<&str>, field: &str, partition: Partition) {
        let Some(region) = region else { return };
        self.refuse_unless(is_region(region), field, || {
            let shown: String = region.chars().take(40).collect();
            format!("{shown:?} is no region: write it like eu-central-1")
        });
        self.refuse_unless(Partition::for_region(region) == partition, field, || {
            format!("{region} is not in partition {partition}, where this broker works")
        });
    }

    fn of_sessions_alone(&mut self, spec: &GrantSpec) {
        for (is_given, field, instead) in [
            (spec.probe.is_some(), "probe", "deleted, not probed"),
            (
                !spec.further_probes.is_empty(),
                "further_probes",
                "deleted, not probed",
            ),
            (
                !spec.probe_regions.is_empty(),
                "probe_regions",
                "deleted, not probed",
            ),
            (spec.reuse.is_some(), "reuse", "for one caller"),
            (
                spec.ends_by_policy,
                "ends_by_policy",
                "deleted at their end",
            ),
        ] {
            let fits = !is_given || spec.kind().is_session();
            self.refuse_unless(fits, field, || {
                format!("{} credentials are {instead}", spec.kind())
            });
        }
    }

    fn probe_calls(&mut self, spec: &GrantSpec, partition: Partition) {
        let (probes, regions) = (spec.probes(), &spec.probe_regions);
        let calls = probes.len().saturating_mul(regions.len() + 1);
        self.refuse_unless(calls <= PROBE_CALLS_MAX, "probe_regions", || {
            format!(
                "{calls} calls to probe by, each probe in each region: at most {PROBE_CALLS_MAX}"
            )
        });
        let distinct: HashSet<Probe> = probes.iter().copied().collect();
        self.refuse_unless(distinct.len() == probes.len(), "further_probes", || {
            let first = probes[0];
            format!("a probe is named twice; the first is {first}")
        });
        let distinct: BTreeSet<&String> = regions.iter().collect();
        self.refuse_unless(distinct.len() == regions.len(), "probe_regions", || {
            "a region is named twice".to_owned()
        });
        for region in regions.iter().take(PROBE_CALLS_MAX) {
            self.region(Some(region.as_str()), "probe_regions", partition);
        }
    }

    fn breadth(&mut self, spec: &GrantSpec) {
        if !spec.allow_broad {
            for reason in spec.breadth() {
                self.add(
                    "allow_broad",
                    format!(
                        "too broad: {reason}; narrow it, or say --allow-broad if it must be so"
                    ),
                );
            }
        }
    }
}

fn is_path(path: &str) -> bool {
    path == "/"
        || (path.len() <= 200
            && path.len() > 2
            && path.starts_with('/')
            && path.ends_with('/')
            && path[1..path.len() - 1]
                .split('/')
                .all(|part| !part.is_empty() && part.chars().all(is_iam_name)))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_iam_name(c: char) -> bool {
    is_word(c) || "+=,.@-".contains(c)
}

/// Returns whether AWS accepts the character in a tag: `[\p{L}\p{Z}\p{N}_.:/=+\-@]`.
fn is_tag_character(c: char) -> bool {
    c.is_alphanumeric() || (c.is_whitespace() && !c.is_control()) || "_.:/=+-@".contains(c)
}

#[cfg(test)]
mod tests;
