//! A second opinion: the crate `iam-rs` judges the shipped admin policy, which the emulator cannot
//! (it knows no paths of users and no `iam:PermissionsBoundary`), and the documents that the broker
//! really wrote.

mod denials;
mod lint;
mod outliving;
mod written;

use iam_rs::{
    Arn, Context, ContextValue, Decision, IAMPolicy, IAMRequest, Principal, PrincipalId,
    evaluate_policy,
};
use serde_json::Value;

use crate::harness::aws::admin_policy;

const ACCOUNT: &str = "123456789012";
const BOUNDARY_KEY: &str = "iam:PermissionsBoundary";

/// Layers of policies: a denial anywhere denies, otherwise every layer must allow. The
/// evaluator itself knows one layer.
struct Layers(Vec<IAMPolicy>);

impl Layers {
    fn of(documents: impl IntoIterator<Item = Value>) -> Self {
        let parse = |document: Value| serde_json::from_value(document).unwrap();
        Self(documents.into_iter().map(parse).collect())
    }

    fn allow(&self, action: &str, resource: &str, context: &[(&str, &str)]) -> bool {
        let who = PrincipalId::String(format!("arn:aws:iam::{ACCOUNT}:user/someone"));
        let mut known = Context::new();
        for (key, value) in context {
            known.insert((*key).to_owned(), ContextValue::String((*value).to_owned()));
        }
        let resource = Arn::parse(resource).unwrap();
        let request = IAMRequest::new_with_context(Principal::Aws(who), action, resource, known);
        let judge = |policy| evaluate_policy(policy, &request).unwrap();
        self.0.iter().all(|policy| judge(policy) == Decision::Allow)
    }
}

fn admin() -> Layers {
    Layers::of([admin_policy(ACCOUNT)])
}

fn iam(what: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:{what}")
}

fn boundary() -> String {
    iam("policy/credbroker/credbroker-boundary")
}

const USER: &str = "user/credbroker/0123456789/payments-api.0123456789abcdefghijklmnop";

#[test]
fn the_admin_policy_gives_permissions_only_to_users_with_the_boundary() {
    let (admin, boundary) = (admin(), boundary());
    let others = [
        iam("policy/credbroker/credbroker-admin"),
        iam("policy/credbroker-boundary"),
        "arn:aws:iam::aws:policy/AdministratorAccess".to_owned(),
        "arn:aws:iam::999999999999:policy/credbroker/credbroker-boundary".to_owned(),
    ];
    for action in [
        "iam:CreateUser",
        "iam:PutUserPolicy",
        "iam:AttachUserPolicy",
    ] {
        for user in [USER, "user/credbroker/apps/payments-api.0123"] {
            let may = |context: &[(&str, &str)]| admin.allow(action, &iam(user), context);
            assert!(may(&[(BOUNDARY_KEY, &boundary)]), "{action} {user}");
            assert!(!may(&[]), "{action} {user} without a boundary");
            for other in &others {
                assert!(
                    !may(&[(BOUNDARY_KEY, other)]),
                    "{action} {user} with {other}"
                );
            }
        }
    }
}

#[test]
fn the_admin_policy_allows_everything_that_removal_takes() {
    let admin = admin();
    for action in [
        "iam:DeleteUser",
        "iam:ListUserPolicies",
        "iam:DeleteUserPolicy",
        "iam:ListAttachedUserPolicies",
        "iam:DetachUserPolicy",
        "iam:ListGroupsForUser",
        "iam:CreateAccessKey",
        "iam:UpdateAccessKey",
        "iam:DeleteAccessKey",
        "iam:ListAccessKeys",
        "iam:TagUser",
        "iam:DeleteLoginProfile",
        "iam:ListMFADevices",
        "iam:DeactivateMFADevice",
        "iam:ListSigningCertificates",
        "iam:DeleteSigningCertificate",
        "iam:ListSSHPublicKeys",
        "iam:DeleteSSHPublicKey",
        "iam:ListServiceSpecificCredentials",
        "iam:DeleteServiceSpecificCredential",
    ] {
        assert!(admin.allow(action, &iam(USER), &[]), "{action}");
        for stranger in ["user/alice", "user/credbroker", "user/apps/credbroker/x"] {
            assert!(
                !admin.allow(action, &iam(stranger), &[]),
                "{action} {stranger}"
            );
        }
        let elsewhere = format!("arn:aws:iam::999999999999:{USER}");
        assert!(!admin.allow(action, &elsewhere, &[]), "{action} elsewhere");
    }
    for action in ["iam:AddUserToGroup", "iam:RemoveUserFromGroup"] {
        assert!(
            admin.allow(action, &iam("group/credbroker/readers"), &[]),
            "{action}"
        );
        assert!(!admin.allow(action, &iam("group/admins"), &[]), "{action}");
        assert!(
            !admin.allow(action, &iam("group/apps/credbroker/x"), &[]),
            "{action}"
        );
    }
    // A deleted user has no path left.
    for user in [USER, "user/payments-api.0123"] {
        assert!(admin.allow("iam:GetUser", &iam(user), &[]), "{user}");
    }
    assert!(admin.allow("iam:ListUsers", &iam("user/"), &[]));
    for action in ["iam:GetPolicy", "iam:GetPolicyVersion"] {
        assert!(admin.allow(action, &boundary(), &[]), "{action}");
        assert!(!admin.allow(action, &iam("policy/other"), &[]), "{action}");
    }
}

#[test]
fn the_admin_policy_makes_sessions_and_nothing_else_of_sts() {
    let admin = admin();
    let roles = [
        ("arn:aws:iam::123456789012:role/credbroker/app", true),
        ("arn:aws:iam::999999999999:role/credbroker/team/app", true),
        ("arn:aws:iam::123456789012:role/app", false),
        ("arn:aws:iam::123456789012:role/credbroker-app", false),
        ("arn:aws:iam::123456789012:role/team/credbroker/app", false),
    ];
    for action in ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"] {
        for (role, may) in roles {
            assert_eq!(admin.allow(action, role, &[]), may, "{action} {role}");
        }
    }
    let federated = "arn:aws:sts::123456789012:federated-user/pay.0123456789abc";
    for action in ["sts:GetFederationToken", "sts:TagSession"] {
        assert!(admin.allow(action, federated, &[]), "{action}");
        let elsewhere = federated.replace(ACCOUNT, "999999999999");
        assert!(!admin.allow(action, &elsewhere, &[]), "{action}");
    }
    let role = roles[0].0;
    for action in [
        "sts:AssumeRoleWithSAML",
        "sts:AssumeRoleWithWebIdentity",
        "sts:AssumeRoot",
    ] {
        assert!(!admin.allow(action, role, &[]), "{action}");
    }
    assert!(!admin.allow("sts:GetSessionToken", &iam("user/credbroker-admin"), &[]));
}

#[test]
fn the_admin_policy_reaches_neither_its_own_user_nor_any_boundary_or_policy() {
    let (admin, boundary) = (admin(), boundary());
    let with_boundary: [&[(&str, &str)]; 2] = [&[], &[(BOUNDARY_KEY, &boundary)]];
    for action in [
        "iam:PutUserPermissionsBoundary",
        "iam:DeleteUserPermissionsBoundary",
        "iam:PutRolePermissionsBoundary",
        "iam:DeleteRolePermissionsBoundary",
    ] {
        for context in with_boundary {
            assert!(!admin.allow(action, &iam(USER), context), "{action}");
        }
    }
    for action in [
        "iam:CreateUser",
        "iam:PutUserPolicy",
        "iam:AttachUserPolicy",
        "iam:DeleteUser",
        "iam:CreateLoginProfile",
        "iam:UpdateUser",
    ] {
        for user in ["user/credbroker-admin", "user/alice", "user/credbroker"] {
            for context in with_boundary {
                assert!(!admin.allow(action, &iam(user), context), "{action} {user}");
            }
        }
    }
    for action in [
        "iam:CreatePolicy",
        "iam:CreatePolicyVersion",
        "iam:DeletePolicyVersion",
        "iam:SetDefaultPolicyVersion",
        "iam:DeletePolicy",
    ] {
        for policy in [
            "policy/credbroker/credbroker-boundary",
            "policy/credbroker/credbroker-admin",
            "policy/credbroker/credbroker-admin-boundary",
            "policy/x",
        ] {
            assert!(!admin.allow(action, &iam(policy), &[]), "{action} {policy}");
        }
    }
    for action in [
        "iam:CreateRole",
        "iam:DeleteRole",
        "iam:DetachRolePolicy",
        "iam:UpdateAssumeRolePolicy",
        "iam:PassRole",
    ] {
        for context in with_boundary {
            let role = iam("role/credbroker/app");
            assert!(!admin.allow(action, &role, context), "{action}");
        }
    }
    for action in [
        "iam:CreateLoginProfile",
        "iam:UpdateUser",
        "iam:CreateServiceSpecificCredential",
    ] {
        assert!(
            !admin.allow(action, &iam(USER), with_boundary[1]),
            "{action}"
        );
    }
    assert!(!admin.allow("iam:PutGroupPolicy", &iam("group/credbroker/readers"), &[]));
    assert!(!admin.allow("s3:GetObject", "arn:aws:s3:::acme/k", &[]));
}

#[test]
fn the_admin_policy_lets_the_broker_rotate_its_own_key_and_do_nothing_else_to_itself_unbounded() {
    let (admin, own) = (admin(), iam("user/credbroker-admin"));
    for action in [
        "iam:ListAccessKeys",
        "iam:CreateAccessKey",
        "iam:UpdateAccessKey",
        "iam:DeleteAccessKey",
    ] {
        assert!(admin.allow(action, &own, &[]), "{action}");
        for other in [
            "user/alice",
            "user/credbroker-admin2",
            "user/x/credbroker-admin",
        ] {
            assert!(!admin.allow(action, &iam(other), &[]), "{action} {other}");
        }
    }
    for action in [
        "iam:TagUser",
        "iam:PutUserPolicy",
        "iam:AttachUserPolicy",
        "iam:DeleteUserPolicy",
        "iam:DetachUserPolicy",
        "iam:DeleteLoginProfile",
        "iam:DeactivateMFADevice",
        "iam:AddUserToGroup",
    ] {
        assert!(!admin.allow(action, &own, &[]), "{action}");
    }
}

#[test]
fn a_wider_policy_attached_later_does_not_lift_boundaries() {
    // Two policies of one layer allow what either allows, unless either denies.
    let mut both = admin_policy(ACCOUNT);
    let wide = serde_json::json!({"Effect": "Allow", "Action": "iam:*", "Resource": "*"});
    both["Statement"].as_array_mut().unwrap().push(wide);
    let both = Layers::of([both]);
    assert!(both.allow("iam:CreateRole", &iam("role/any"), &[]));
    for action in [
        "iam:PutUserPermissionsBoundary",
        "iam:DeleteUserPermissionsBoundary",
    ] {
        assert!(!both.allow(action, &iam(USER), &[]), "{action}");
    }
    for action in [
        "iam:CreatePolicyVersion",
        "iam:SetDefaultPolicyVersion",
        "iam:DeletePolicy",
    ] {
        assert!(!both.allow(action, &boundary(), &[]), "{action}");
    }
}
