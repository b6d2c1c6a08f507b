//! Check for policies that grant more than a single service should hold.

use std::fmt;

use super::error::excerpt;
use super::guard::{MINTING_ACTIONS, OUTLIVING_ACTIONS};
use super::wildcard::{covers, intersects};
use super::{Actions, Effect, Resources, Statement, Texts};
use crate::domain::arn::PolicyArn;

/// Shape of an action. A pattern that covers this one covers every action: the only wildcard for
/// the service is `*` alone, and no action of AWS is shorter than `GET`.
const EVERY_ACTION: &str = "??*:???*";
/// Shape of a resource, which is an ARN. A statement takes nothing else but `*`.
const EVERY_RESOURCE: &str = "arn:*:*:*:*:*";

/// Statement that grants too much, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breadth {
    /// Index of the statement, from 0.
    pub statement: usize,
    /// Reason why the statement is broad.
    pub what: OverbroadReason,
}

impl fmt::Display for Breadth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Statement[{}] {}", self.statement, self.what)
    }
}

/// Reason why a policy is broad. `Display` gives the reason in words.
///
/// An action pattern from the policy is shortened to 40 characters and escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverbroadReason {
    /// The policy allows every action on every resource.
    Everything {
        /// Action pattern that covers every action.
        action: String,
    },
    /// The policy allows some action of IAM.
    Iam {
        /// Action pattern that matches an action of IAM.
        action: String,
    },
    /// The policy allows some action of STS that makes credentials.
    Minting {
        /// Action pattern that matches such an action.
        action: String,
        /// Pattern of such actions, for example `sts:Assume*`, which `action` intersects.
        mints: &'static str,
    },
    /// The policy names an action that makes access which outlives the lease. A broader wildcard
    /// that matches such an action does not count. The guard denies the action, so the grant could
    /// not be used for it.
    Outliving {
        /// Action pattern that the policy names.
        action: String,
    },
    /// `NotAction` does not exclude IAM or the credentials of STS.
    NotActionKeeps {
        /// Pattern that `NotAction` does not exclude.
        kept: &'static str,
    },
    /// `NotAction` applies to every resource.
    NotActionEverywhere,
    /// The policy allows every action on all resources but a few.
    NotResource {
        /// Action pattern that covers every action, or `NotAction`.
        action: String,
    },
}

impl fmt::Display for OverbroadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything { action } => {
                write!(f, "allows every action (\"{action}\") on every resource: name the actions and resources the service needs")
            }
            Self::Iam { action } => {
                write!(f, "reaches IAM by \"{action}\", where a service could give itself further rights or keys")
            }
            Self::Minting { action, mints } => {
                write!(f, "can make further credentials ({mints}) by \"{action}\", beyond the reach of the lease")
            }
            Self::Outliving { action } => {
                write!(f, "names \"{action}\", which makes access that outlives the lease and that no revocation reaches, and which is denied for that reason, to a role by its boundary as well: leave it out, or hand it out knowingly")
            }
            Self::NotActionKeeps { kept } => {
                write!(f, "leaves {kept} allowed, since its NotAction does not exclude it: name the actions in Action instead")
            }
            Self::NotActionEverywhere => {
                f.write_str("allows all but a few actions on every resource: name the actions in Action instead of NotAction")
            }
            Self::NotResource { action } => {
                write!(f, "allows every action (\"{action}\") on all but a few resources: name the resources in Resource instead")
            }
        }
    }
}

/// Returns why a policy managed by AWS is too broad for one service, as far as its name shows.
///
/// `None` says nothing about a customer's policy, whose document must be read, or about a policy
/// that is not listed here.
/// <https://docs.aws.amazon.com/aws-managed-policy/latest/reference/policy-list.html>
#[must_use]
pub fn breadth_of_managed(policy: &PolicyArn) -> Option<OverbroadReason> {
    if !policy.is_aws_managed() {
        return None;
    }
    let name = policy.path_and_name();
    match name {
        "AdministratorAccess" => Some(OverbroadReason::Everything {
            action: "*".to_owned(),
        }),
        "PowerUserAccess" => Some(OverbroadReason::NotActionEverywhere),
        _ => {
            let (_, action) = REACH_IAM.iter().find(|(listed, _)| *listed == name)?;
            Some(OverbroadReason::Iam {
                action: (*action).to_owned(),
            })
        }
    }
}

/// Policies managed by AWS that allow an action of IAM, each with its furthest-reaching one.
const REACH_IAM: [(&str, &str); 25] = [
    ("AdministratorAccess-AWSElasticBeanstalk", "iam:PassRole"),
    ("AdministratorAccess-Amplify", "iam:CreateRole"),
    ("AWSGlueConsoleFullAccess", "iam:PassRole"),
    ("AWSLambda_FullAccess", "iam:PassRole"),
    ("AWSStepFunctionsConsoleFullAccess", "iam:PassRole"),
    ("AmazonEC2FullAccess", "iam:CreateServiceLinkedRole"),
    ("AmazonECS_FullAccess", "iam:PassRole"),
    ("AmazonRDSFullAccess", "iam:CreateServiceLinkedRole"),
    ("AmazonSSMFullAccess", "iam:CreateServiceLinkedRole"),
    ("AmazonSageMakerFullAccess", "iam:PassRole"),
    ("IAMAccessAnalyzerFullAccess", "iam:CreateServiceLinkedRole"),
    ("IAMFullAccess", "iam:*"),
    ("IAMReadOnlyAccess", "iam:Get*"),
    (
        "IAMSelfManageServiceSpecificCredentials",
        "iam:CreateServiceSpecificCredential",
    ),
    ("IAMUserChangePassword", "iam:ChangePassword"),
    ("IAMUserSSHKeys", "iam:UploadSSHPublicKey"),
    ("ReadOnlyAccess", "iam:Get*"),
    ("SecurityAudit", "iam:Get*"),
    (
        "ElasticLoadBalancingFullAccess",
        "iam:CreateServiceLinkedRole",
    ),
    ("job-function/DataScientist", "iam:PassRole"),
    ("job-function/DatabaseAdministrator", "iam:PassRole"),
    ("job-function/NetworkAdministrator", "iam:PassRole"),
    ("job-function/SupportUser", "iam:Get*"),
    ("job-function/SystemAdministrator", "iam:PassRole"),
    ("job-function/ViewOnlyAccess", "iam:List*"),
];

pub(super) fn of(statements: &[Statement]) -> Vec<Breadth> {
    let numbered = statements.iter().enumerate();
    let found = numbered.flat_map(|(at, statement)| {
        excesses(statement).into_iter().map(move |what| Breadth {
            statement: at,
            what,
        })
    });
    found.collect()
}

fn excesses(statement: &Statement) -> Vec<OverbroadReason> {
    match (statement.effect, &statement.actions) {
        (Effect::Deny, _) => Vec::new(),
        (Effect::Allow, Actions::Only(actions)) => by_action(actions, &statement.resources),
        (Effect::Allow, Actions::AllBut(actions)) => by_not_action(actions, &statement.resources),
    }
}

fn by_action(actions: &Texts, resources: &Resources) -> Vec<OverbroadReason> {
    let every = first(actions, |action| halves_hold(action, EVERY_ACTION, covers));
    let everywhere = every.and_then(|action| match resources {
        Resources::Only(texts) if is_everywhere(texts) => {
            Some(OverbroadReason::Everything { action })
        }
        Resources::Only(_) => None,
        Resources::AllBut(_) => Some(OverbroadReason::NotResource { action }),
    });
    let iam = first(actions, |action| halves_hold(action, "iam:*", intersects))
        .map(|action| OverbroadReason::Iam { action });
    let minting = sts().find_map(|mints| {
        let action = first(actions, |action| halves_hold(action, mints, intersects))?;
        Some(OverbroadReason::Minting { action, mints })
    });
    let outliving = minting.is_none().then(|| outliving(actions)).flatten();
    [everywhere, iam, minting, outliving]
        .into_iter()
        .flatten()
        .collect()
}

/// Returns the first action that one of [`OUTLIVING_ACTIONS`] covers, except `iam:*`. A wildcard
/// that reaches further, such as `s3:*`, is meant for other actions, and the guard denies the few.
fn outliving(actions: &Texts) -> Option<OverbroadReason> {
    let beyond_iam = |pattern: &&&str| **pattern != "iam:*";
    let meant = |action: &str| {
        OUTLIVING_ACTIONS
            .iter()
            .filter(beyond_iam)
            .any(|pattern| halves_hold(pattern, action, covers))
    };
    first(actions, meant).map(|action| OverbroadReason::Outliving { action })
}

fn by_not_action(named: &Texts, resources: &Resources) -> Vec<OverbroadReason> {
    let excludes = |part: &str| first(named, |whole| halves_hold(whole, part, covers)).is_some();
    if excludes(EVERY_ACTION) {
        return Vec::new();
    }
    let kept = MINTING_ACTIONS
        .into_iter()
        .find(|minting| !excludes(minting));
    let kept = kept.map(|kept| OverbroadReason::NotActionKeeps { kept });
    let everywhere = match resources {
        Resources::Only(texts) => {
            is_everywhere(texts).then_some(OverbroadReason::NotActionEverywhere)
        }
        Resources::AllBut(_) => Some(OverbroadReason::NotResource {
            action: "NotAction".to_owned(),
        }),
    };
    kept.into_iter().chain(everywhere).collect()
}

fn sts() -> impl Iterator<Item = &'static str> {
    MINTING_ACTIONS
        .into_iter()
        .filter(|action| action.starts_with("sts:"))
}

fn first(patterns: &Texts, asked: impl Fn(&str) -> bool) -> Option<String> {
    patterns
        .0
        .iter()
        .find(|pattern| asked(pattern))
        .map(|pattern| excerpt(pattern))
}

/// Compares service with service and action with action, because no wildcard of one reaches into
/// the other. The comparison ignores case, as AWS does here.
pub(super) fn halves_hold(left: &str, right: &str, hold: fn(&str, &str) -> bool) -> bool {
    let (left, right) = (left.to_ascii_lowercase(), right.to_ascii_lowercase());
    let ((service, name), (other_service, other_name)) = (halves(&left), halves(&right));
    hold(service, other_service) && hold(name, other_name)
}

/// Splits an action at its colon. The only action without a colon is `*`: any action of any
/// service.
fn halves(action: &str) -> (&str, &str) {
    action.split_once(':').unwrap_or((action, action))
}

fn is_everywhere(resources: &Texts) -> bool {
    resources
        .0
        .iter()
        .any(|resource| covers(resource, EVERY_RESOURCE))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Document;
    use super::*;

    /// Returns what is broad in a narrow statement with `changes`: keys replaced, or removed if
    /// null.
    fn found(changes: &Value) -> Vec<OverbroadReason> {
        let mut statement =
            json!({"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"});
        for (key, value) in changes.as_object().unwrap() {
            statement[key] = value.clone();
        }
        statement
            .as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        let text = json!({"Version": "2012-10-17", "Statement": statement}).to_string();
        Document::parse(&text)
            .unwrap()
            .breadth()
            .into_iter()
            .map(|breadth| breadth.what)
            .collect()
    }

    #[test]
    fn everything_on_everything_is_broad_however_it_is_spelt() {
        for everything in ["*", "*:*", "*:**", "*:?*", "*:???*"] {
            let excesses = found(
                &json!({"Action": ["s3:GetObject", everything], "Resource": ["arn:aws:s3:::b", "*"]}),
            );
            assert_eq!(
                excesses[0],
                OverbroadReason::Everything {
                    action: everything.to_owned()
                }
            );
            assert!(
                matches!(
                    excesses[1..],
                    [OverbroadReason::Iam { .. }, OverbroadReason::Minting { .. }]
                ),
                "{excesses:?}"
            );
        }
    }

    #[test]
    fn any_action_of_iam_is_broad_whatever_the_resource() {
        for action in [
            "iam:*",
            "IAM:createuser",
            "iam:Get*",
            "*:CreateUser",
            "*:Create?*",
        ] {
            let excesses =
                found(&json!({"Action": action, "Resource": "arn:aws:iam::123456789012:user/x"}));
            assert_eq!(
                excesses,
                [OverbroadReason::Iam {
                    action: action.to_owned()
                }]
            );
        }
        assert_eq!(
            found(&json!({"Action": ["iamx:Get", "s3:iam*", "i-am:*"], "Resource": "*"})),
            []
        );
    }

    #[test]
    fn any_action_that_mints_credentials_is_broad() {
        for action in [
            "sts:*",
            "STS:assumerole",
            "sts:Assume*",
            "sts:Get*Token",
            "sts:?etSessionToken",
            "sts:GetWebIdentityToken",
        ] {
            let excesses = found(&json!({"Action": action}));
            assert!(
                matches!(excesses[..], [OverbroadReason::Minting { .. }]),
                "{action}: {excesses:?}"
            );
        }
        assert_eq!(
            found(&json!({"Action": ["sts:GetCallerIdentity", "sts:TagSession", "sts:Decode*"]})),
            []
        );
    }

    #[test]
    fn an_action_named_for_access_that_outlives_the_lease_is_broad_and_a_wildcard_over_it_is_not() {
        for action in [
            "codeartifact:GetAuthorizationToken",
            "S3:getdataaccess",
            "sts:GetServiceBearerToken",
            "signin:*",
            "lakeformation:GetTemporaryGlue*",
            "organizations:CreateAccount",
        ] {
            let told = OverbroadReason::Outliving {
                action: action.to_owned(),
            };
            assert_eq!(found(&json!({"Action": ["s3:GetObject", action]})), [told]);
        }
        for action in [
            "s3:*",
            "s3:Get*",
            "ssm:*",
            "codeartifact:*",
            "lambda:Create*",
        ] {
            assert_eq!(found(&json!({"Action": action})), [], "{action}");
        }
    }

    #[test]
    fn not_action_is_broad_unless_it_leaves_out_iam_and_minting_and_names_its_resources() {
        let narrow = json!({"Action": null, "NotAction": ["iam:*", "sts:*"]});
        assert_eq!(found(&narrow), []);
        let named = json!({"Action": null, "NotAction": MINTING_ACTIONS.map(str::to_uppercase)});
        assert_eq!(found(&named), []);
        let everywhere = json!({"Action": null, "NotAction": ["iam:*", "sts:*"], "Resource": "*"});
        assert_eq!(found(&everywhere), [OverbroadReason::NotActionEverywhere]);
        let keeps = json!({"Action": null, "NotAction": ["iam:*", "sts:Assume*", "sts:GetFederationToken"]});
        assert_eq!(
            found(&keeps),
            [OverbroadReason::NotActionKeeps {
                kept: "sts:GetSessionToken"
            }]
        );
        let partly = json!({"Action": null, "NotAction": ["iam:Create*", "sts:*"]});
        assert_eq!(
            found(&partly),
            [OverbroadReason::NotActionKeeps { kept: "iam:*" }]
        );
        assert_eq!(
            found(&json!({"Action": null, "NotAction": "*", "Resource": "*"})),
            []
        );
    }

    #[test]
    fn not_resource_is_broad_when_the_actions_are_unbounded() {
        let excesses =
            found(&json!({"Action": "*", "Resource": null, "NotResource": "arn:aws:s3:::b/*"}));
        assert_eq!(
            excesses[0],
            OverbroadReason::NotResource {
                action: "*".to_owned()
            }
        );
        let both = json!({"Action": null, "NotAction": ["iam:*", "sts:*"], "Resource": null, "NotResource": "arn:aws:s3:::b"});
        assert_eq!(
            found(&both),
            [OverbroadReason::NotResource {
                action: "NotAction".to_owned()
            }]
        );
        assert_eq!(
            found(&json!({"Resource": null, "NotResource": "arn:aws:s3:::b/*"})),
            []
        );
    }

    #[test]
    fn a_deny_is_never_broad_and_a_breadth_names_its_statement() {
        assert_eq!(
            found(&json!({"Effect": "Deny", "Action": "*", "Resource": "*"})),
            []
        );
        let narrow = Statement::deny("", ["*"], ["*"]).unwrap();
        let document = Document::new(vec![
            narrow,
            Statement::allow("", ["sts:*"], ["*"]).unwrap(),
        ])
        .unwrap();
        let told: Vec<_> = document.breadth().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "Statement[1] can make further credentials (sts:Assume*) by \"sts:*\", beyond the reach of the lease"
            ]
        );
    }

    #[test]
    fn a_policy_of_aws_that_reaches_iam_is_known_by_its_name() {
        let of = |arn: &str| breadth_of_managed(&arn.parse().unwrap());
        assert_eq!(
            of("arn:aws-cn:iam::aws:policy/AdministratorAccess"),
            Some(OverbroadReason::Everything {
                action: "*".to_owned()
            })
        );
        assert_eq!(
            of("arn:aws:iam::aws:policy/PowerUserAccess"),
            Some(OverbroadReason::NotActionEverywhere)
        );
        assert_eq!(
            of("arn:aws:iam::aws:policy/IAMFullAccess"),
            Some(OverbroadReason::Iam {
                action: "iam:*".to_owned()
            })
        );
        assert!(of("arn:aws:iam::aws:policy/job-function/SystemAdministrator").is_some());
        assert_eq!(of("arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"), None);
        assert_eq!(
            of("arn:aws:iam::123456789012:policy/AdministratorAccess"),
            None
        );
    }
}
