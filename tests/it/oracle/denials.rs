//! Permissions with which the shipped policies let the broker end sessions. They widen neither a
//! role, nor the broker, nor its role in another account.

use serde_json::{Value, json};

use super::{ACCOUNT, BOUNDARY_KEY, Layers, admin, boundary, iam};
use crate::harness::aws::{admin_boundary_policy, admin_policy, revoker_policy};

const POLICY_KEY: &str = "iam:PolicyARN";
const ROLE: &str = "role/credbroker/app";
const ITSELF: &str = "user/credbroker-admin";
const ANYBODY: &str = "arn:aws:iam::aws:policy/AdministratorAccess";

fn admin_boundary() -> String {
    iam("policy/credbroker/credbroker-admin-boundary")
}

fn denials() -> String {
    iam("policy/credbroker/credbroker-denials-0123456789")
}

/// Boundaries that are not the one of roles and users.
fn other_boundaries() -> [String; 4] {
    [
        iam("policy/credbroker-boundary"),
        iam("policy/credbroker/credbroker-denials-boundary"),
        ANYBODY.to_owned(),
        boundary().replace(ACCOUNT, "999999999999"),
    ]
}

/// Policies that are no denials of this account.
fn other_policies() -> [String; 5] {
    [
        iam("policy/credbroker/credbroker-admin"),
        iam("policy/credbroker-denials-0123456789"),
        iam("policy/team/credbroker/credbroker-denials-0123456789"),
        denials().replace(ACCOUNT, "999999999999"),
        ANYBODY.to_owned(),
    ]
}

/// Permissions of the broker's user with these policies, under its boundary.
fn under_its_boundary(policies: Value) -> Layers {
    Layers::of([policies, admin_boundary_policy(ACCOUNT)])
}

/// Policy as if an administrator had attached AdministratorAccess.
fn given_everything() -> Value {
    let mut policy = admin_policy(ACCOUNT);
    let everything = json!({"Effect": "Allow", "Action": "*", "Resource": "*"});
    policy["Statement"].as_array_mut().unwrap().push(everything);
    policy
}

/// Layers that deny: the broker's policy alone, the same under its boundary, and its role in
/// another account, which is this one here.
fn all_that_deny() -> [(&'static str, Layers); 3] {
    [
        ("admin", admin()),
        ("bounded", under_its_boundary(admin_policy(ACCOUNT))),
        ("revoker", Layers::of([revoker_policy(ACCOUNT)])),
    ]
}

#[test]
fn denials_are_put_on_roles_with_the_boundary_and_on_no_others() {
    let (bound, policy) = (boundary(), denials());
    for (who, layers) in all_that_deny() {
        for action in [
            "iam:PutRolePolicy",
            "iam:DeleteRolePolicy",
            "iam:AttachRolePolicy",
        ] {
            let may = |role: &str, bounds: &[(&str, &str)]| {
                let context = [bounds, &[(POLICY_KEY, policy.as_str())]].concat();
                layers.allow(action, role, &context)
            };
            let bounded = [(BOUNDARY_KEY, bound.as_str())];
            assert!(may(&iam(ROLE), &bounded), "{who} {action}");
            assert!(!may(&iam(ROLE), &[]), "{who} {action} without a boundary");
            for other in other_boundaries() {
                let other = [(BOUNDARY_KEY, other.as_str())];
                assert!(!may(&iam(ROLE), &other), "{who} {action} {other:?}");
            }
            for role in ["role/app", "role/team/credbroker/app", ITSELF] {
                assert!(!may(&iam(role), &bounded), "{who} {action} {role}");
            }
            let elsewhere = iam(ROLE).replace(ACCOUNT, "999999999999");
            assert!(!may(&elsewhere, &bounded), "{who} {action} elsewhere");
        }
        for action in ["iam:GetRolePolicy", "iam:ListAttachedRolePolicies"] {
            assert!(layers.allow(action, &iam(ROLE), &[]), "{who} {action}");
            assert!(
                !layers.allow(action, &iam("role/app"), &[]),
                "{who} {action}"
            );
        }
    }
}

#[test]
fn the_admin_policy_attaches_only_the_policy_of_denials() {
    let (bound, own) = (boundary(), admin_boundary());
    for (who, layers) in all_that_deny() {
        let attach = |policy: &str| {
            let context = [(BOUNDARY_KEY, bound.as_str()), (POLICY_KEY, policy)];
            layers.allow("iam:AttachRolePolicy", &iam(ROLE), &context)
        };
        assert!(attach(&denials()), "{who}");
        for other in other_policies() {
            assert!(!attach(&other), "{who} {other}");
        }
    }
    let attach = |layers: &Layers, policy: &str| {
        let context = [(BOUNDARY_KEY, own.as_str()), (POLICY_KEY, policy)];
        layers.allow("iam:AttachUserPolicy", &iam(ITSELF), &context)
    };
    for layers in [admin(), under_its_boundary(admin_policy(ACCOUNT))] {
        assert!(attach(&layers, &denials()));
        for other in other_policies() {
            assert!(!attach(&layers, &other), "{other}");
        }
    }
}

#[test]
fn the_broker_puts_denials_on_itself_only_while_its_own_boundary_holds() {
    let policy = denials();
    for layers in [admin(), under_its_boundary(admin_policy(ACCOUNT))] {
        for action in [
            "iam:PutUserPolicy",
            "iam:DeleteUserPolicy",
            "iam:AttachUserPolicy",
        ] {
            let may = |user: &str, bounds: &[(&str, &str)]| {
                let context = [bounds, &[(POLICY_KEY, policy.as_str())]].concat();
                layers.allow(action, &iam(user), &context)
            };
            let bound = admin_boundary();
            let bounded = [(BOUNDARY_KEY, bound.as_str())];
            assert!(may(ITSELF, &bounded), "{action}");
            assert!(!may(ITSELF, &[]), "{action} without its boundary");
            for other in other_boundaries().into_iter().chain([boundary()]) {
                let other = [(BOUNDARY_KEY, other.as_str())];
                assert!(!may(ITSELF, &other), "{action} {other:?}");
            }
            for user in ["user/alice", "user/credbroker-admin2"] {
                assert!(!may(user, &bounded), "{action} {user}");
            }
        }
        for action in ["iam:GetUserPolicy", "iam:ListAttachedUserPolicies"] {
            assert!(layers.allow(action, &iam(ITSELF), &[]), "{action}");
            assert!(!layers.allow(action, &iam("user/alice"), &[]), "{action}");
        }
    }
}

#[test]
fn the_admin_policy_manages_only_the_policy_of_denials() {
    for (who, layers) in all_that_deny() {
        for action in [
            "iam:CreatePolicy",
            "iam:CreatePolicyVersion",
            "iam:DeletePolicyVersion",
            "iam:ListPolicyVersions",
            "iam:GetPolicy",
            "iam:GetPolicyVersion",
        ] {
            assert!(layers.allow(action, &denials(), &[]), "{who} {action}");
            // AWS's own policies, the last, are no resource to the evaluator.
            for other in &other_policies()[..4] {
                assert!(!layers.allow(action, other, &[]), "{who} {action} {other}");
            }
        }
        for action in ["iam:SetDefaultPolicyVersion", "iam:DeletePolicy"] {
            assert!(!layers.allow(action, &denials(), &[]), "{who} {action}");
        }
    }
}

/// A way to more rights: the action, its resource, and the context that IAM knows.
#[derive(Debug)]
struct Way {
    action: &'static str,
    resource: String,
    context: Vec<(&'static str, String)>,
}

impl Way {
    fn of(action: &'static str, resource: &str) -> Self {
        Self {
            action,
            resource: iam(resource),
            context: Vec::new(),
        }
    }

    /// Adds this boundary of the role or user to the context.
    fn bounded(mut self, boundary: String) -> Self {
        self.context.push((BOUNDARY_KEY, boundary));
        self
    }

    fn attaching(mut self, policy: &str) -> Self {
        self.context.push((POLICY_KEY, policy.to_owned()));
        self
    }

    fn is_open_to(&self, layers: &Layers) -> bool {
        let context = self.context.iter();
        let context: Vec<_> = context.map(|(key, value)| (*key, value.as_str())).collect();
        layers.allow(self.action, &self.resource, &context)
    }
}

/// Ways that the boundary alone bars once its user may do everything.
fn ways_barred_by_the_boundary() -> Vec<Way> {
    let user = "user/credbroker/0123456789/payments-api.0123";
    let mut ways = vec![
        Way::of("iam:CreateUser", user),
        Way::of("iam:CreateUser", user).bounded(admin_boundary()),
        Way::of("iam:CreateUser", "user/mallory").bounded(boundary()),
        Way::of("iam:PutUserPolicy", ITSELF),
        Way::of("iam:AttachUserPolicy", user).attaching(ANYBODY),
        Way::of("iam:AttachUserPolicy", ITSELF)
            .bounded(admin_boundary())
            .attaching(ANYBODY),
        Way::of("iam:PutRolePolicy", ROLE),
        Way::of("iam:PutRolePolicy", "role/other").bounded(boundary()),
        Way::of("iam:AttachRolePolicy", ROLE)
            .bounded(boundary())
            .attaching(ANYBODY),
        Way::of("iam:CreateRole", ROLE).bounded(boundary()),
        Way::of("iam:UpdateAssumeRolePolicy", ROLE),
    ];
    let others = [
        ("iam:PutUserPolicy", "user/alice"),
        ("iam:CreateAccessKey", "user/alice"),
        ("iam:UpdateLoginProfile", "user/alice"),
        ("iam:CreateLoginProfile", ITSELF),
        ("iam:AddUserToGroup", "group/admins"),
        ("iam:PutGroupPolicy", "group/credbroker/readers"),
        ("iam:UpdateAssumeRolePolicy", "role/other"),
        ("iam:PassRole", "role/other"),
        ("iam:CreateServiceLinkedRole", "role/other"),
        ("iam:AddRoleToInstanceProfile", "instance-profile/x"),
        ("iam:CreateOpenIDConnectProvider", "oidc-provider/x"),
        ("iam:CreateSAMLProvider", "saml-provider/x"),
        ("iam:CreatePolicyVersion", "policy/others"),
        ("iam:SetDefaultPolicyVersion", "policy/others"),
        ("sts:AssumeRole", "role/other"),
        ("sts:AssumeRoot", "root"),
        ("sts:GetSessionToken", ITSELF),
    ];
    ways.extend(others.map(|(action, resource)| Way::of(action, resource)));
    let beside_iam = [
        (
            "organizations:LeaveOrganization",
            "arn:aws:organizations::123456789012:account/o-1/123456789012",
        ),
        (
            "account:DisableRegion",
            "arn:aws:account::123456789012:account",
        ),
        (
            "sso:CreateAccountAssignment",
            "arn:aws:sso:::instance/ssoins-1",
        ),
        (
            "identitystore:CreateGroupMembership",
            "arn:aws:identitystore::123456789012:identitystore/d-1",
        ),
    ];
    ways.extend(beside_iam.map(|(action, resource)| Way {
        resource: resource.to_owned(),
        ..Way::of(action, "")
    }));
    ways
}

/// Ways that the policy denies explicitly.
fn ways_denied() -> Vec<Way> {
    let mut ways = vec![
        Way::of("iam:PutUserPermissionsBoundary", ITSELF),
        Way::of("iam:DeleteUserPermissionsBoundary", ITSELF),
        Way::of("iam:PutRolePermissionsBoundary", ROLE),
        Way::of("iam:DeleteRolePermissionsBoundary", ROLE),
    ];
    for action in [
        "iam:CreatePolicyVersion",
        "iam:DeletePolicyVersion",
        "iam:SetDefaultPolicyVersion",
        "iam:DeletePolicy",
    ] {
        for policy in ["admin", "admin-boundary", "boundary"] {
            let policy = format!("policy/credbroker/credbroker-{policy}");
            ways.push(Way::of(action, &policy));
        }
    }
    ways
}

#[test]
fn the_broker_cannot_widen_itself_even_if_its_user_is_given_everything() {
    let (free, bounded) = (
        Layers::of([given_everything()]),
        under_its_boundary(given_everything()),
    );
    for way in ways_barred_by_the_boundary() {
        assert!(way.is_open_to(&free), "{way:?}");
        assert!(!way.is_open_to(&bounded), "{way:?}");
    }
    for way in ways_denied() {
        assert!(!way.is_open_to(&free), "{way:?}");
        assert!(!way.is_open_to(&bounded), "{way:?}");
    }
    // Permissions for federation sessions stay, and those that the broker needs.
    assert!(bounded.allow("s3:GetObject", "arn:aws:s3:::acme/k", &[]));
    assert!(bounded.allow("sts:AssumeRole", &iam(ROLE), &[]));
}

#[test]
fn the_revoker_cannot_widen_any_role_including_itself() {
    let revoker = Layers::of([revoker_policy(ACCOUNT)]);
    for way in ways_barred_by_the_boundary().iter().chain(&ways_denied()) {
        assert!(!way.is_open_to(&revoker), "{way:?}");
    }
    // The role has no boundary, so its permissions on other roles do not cover the role itself.
    let itself = iam("role/credbroker/credbroker-revoker");
    for action in ["iam:PutRolePolicy", "sts:AssumeRole", "s3:GetObject"] {
        assert!(!revoker.allow(action, &itself, &[]), "{action}");
    }
}

/// The boundary allows the same of IAM and STS as the policy: no more, because the boundary is what
/// holds; no less, because both must allow.
#[test]
fn the_brokers_boundary_is_its_policy_and_what_gives_no_rights() {
    let statements = |policy: &Value| policy["Statement"].as_array().unwrap().clone();
    let allowed = statements(&admin_policy(ACCOUNT)).into_iter();
    let allowed: Vec<_> = allowed.filter(|it| it["Effect"] == "Allow").collect();
    let bounds = statements(&admin_boundary_policy(ACCOUNT));
    let (rest, bounds) = bounds.split_first().unwrap();
    assert_eq!(bounds, allowed);
    let without = rest["NotAction"].as_array().unwrap();
    for service in ["iam:*", "sts:*", "organizations:*", "account:*", "sso:*"] {
        assert!(without.contains(&service.into()), "{service}");
    }
    assert!(rest.get("Action").is_none());
    for statement in &allowed {
        for action in statement["Action"].as_array().into_iter().flatten() {
            let action = action.as_str().unwrap();
            assert!(action.starts_with("iam:") || action.starts_with("sts:"));
            assert!(!action.contains('*'), "{action}");
        }
    }
}

#[test]
fn the_shipped_policies_fit_into_managed_policies_of_any_partition() {
    for policy in [
        admin_policy(ACCOUNT),
        admin_boundary_policy(ACCOUNT),
        revoker_policy(ACCOUNT),
    ] {
        let policy = policy.to_string();
        let longest = policy.replace("arn:aws:", "arn:aws-us-gov:").replace(
            "user/credbroker-admin\"",
            &format!("user/{}\"", "u".repeat(64)),
        );
        assert!(longest.len() <= 6_144, "{} characters", longest.len());
    }
}
