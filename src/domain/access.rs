//! Access table: the callers that each RPC admits.
//!
//! A method that is not in [`TABLE`] cannot be called. A test compares the table with the proto
//! files.

use crate::domain::{
    operator::Role::{self, Admin, Auditor, GrantAdmin, Responder, Viewer},
    principal::{Identity, Principal},
};

/// Callers that may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Services, each for its own resources.
    Services,
    /// Services, and operators in any role.
    Anyone,
    /// Holders of an enrolment token.
    Enrollees,
    /// Operators in one of these roles.
    Operators(&'static [Role]),
}

/// Methods that are served at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Every method.
    Whole,
    /// Every method except those for operators only, which have an address of their own.
    Services,
}

/// Returns whether a method is for emergencies: it suspends, revokes or reinstates.
#[must_use]
pub fn is_response(method: &str) -> bool {
    TABLE.contains(&(method, RESPOND))
}

const READ: Access = Access::Operators(&[Viewer, Auditor, GrantAdmin, Responder, Admin]);
const READ_AUDIT: Access = Access::Operators(&[Auditor, Responder, Admin]);
const MANAGE: Access = Access::Operators(&[GrantAdmin, Admin]);
const RESPOND: Access = Access::Operators(&[Responder, Admin]);
/// Deletion of one proof of a service's identity, a token or a binding: for the grant admin who
/// manages the service, and for the responder who reinstates it.
const TAKE_AWAY: Access = Access::Operators(&[GrantAdmin, Responder, Admin]);
const ADMINISTER: Access = Access::Operators(&[Admin]);

/// Every RPC of the broker, by its full name.
pub const TABLE: &[(&str, Access)] = &[
    ("credbroker.v1.AdminService/ApproveChange", MANAGE),
    ("credbroker.v1.AdminService/CreateOperator", ADMINISTER),
    ("credbroker.v1.AdminService/DeleteOperator", ADMINISTER),
    ("credbroker.v1.AdminService/GetAdminKey", READ),
    ("credbroker.v1.AdminService/GetStatus", READ),
    ("credbroker.v1.AdminService/ImportAdminKey", ADMINISTER),
    ("credbroker.v1.AdminService/ListApprovals", MANAGE),
    ("credbroker.v1.AdminService/ListOperators", ADMINISTER),
    ("credbroker.v1.AdminService/RejectChange", MANAGE),
    (
        "credbroker.v1.AdminService/ReplaceStolenAdminKey",
        ADMINISTER,
    ),
    ("credbroker.v1.AdminService/RotateAdminKey", ADMINISTER),
    ("credbroker.v1.AuditService/ExportEntries", READ_AUDIT),
    ("credbroker.v1.AuditService/GetCheckpoint", READ_AUDIT),
    ("credbroker.v1.AuditService/ListAuditRecords", READ_AUDIT),
    ("credbroker.v1.AuditService/ProveLease", READ_AUDIT),
    ("credbroker.v1.AuditService/PruneRecords", ADMINISTER),
    ("credbroker.v1.AuditService/RotateLogKey", ADMINISTER),
    ("credbroker.v1.AuditService/TailAuditRecords", READ_AUDIT),
    (
        "credbroker.v1.CredentialService/IssueCredentials",
        Access::Services,
    ),
    (
        "credbroker.v1.CredentialService/ReleaseLease",
        Access::Services,
    ),
    (
        "credbroker.v1.CredentialService/RenewLease",
        Access::Services,
    ),
    (
        "credbroker.v1.CredentialService/WatchCredentials",
        Access::Services,
    ),
    (
        "credbroker.v1.CredentialService/WatchRevocations",
        Access::Services,
    ),
    ("credbroker.v1.GrantService/DeleteGrant", MANAGE),
    ("credbroker.v1.GrantService/GetGrant", READ),
    ("credbroker.v1.GrantService/ListGrants", READ),
    ("credbroker.v1.GrantService/ListPolicyTemplates", READ),
    ("credbroker.v1.GrantService/PutGrant", MANAGE),
    ("credbroker.v1.GrantService/RenderPolicyTemplate", READ),
    ("credbroker.v1.IdentityService/Enroll", Access::Enrollees),
    (
        "credbroker.v1.IdentityService/RenewCertificate",
        Access::Services,
    ),
    ("credbroker.v1.IdentityService/WhoAmI", Access::Anyone),
    ("credbroker.v1.LeaseService/GetLease", READ),
    ("credbroker.v1.LeaseService/ListLeases", READ),
    ("credbroker.v1.LeaseService/LookupAccessKeys", READ),
    ("credbroker.v1.LeaseService/RevokeLease", RESPOND),
    ("credbroker.v1.RevocationService/RevokeGrant", RESPOND),
    ("credbroker.v1.RevocationService/RevokeService", RESPOND),
    ("credbroker.v1.RevocationService/StreamRevocation", RESPOND),
    (
        "credbroker.v1.ServiceRegistry/CreateEnrollmentToken",
        MANAGE,
    ),
    ("credbroker.v1.ServiceRegistry/CreateService", MANAGE),
    ("credbroker.v1.ServiceRegistry/CreateServiceBinding", MANAGE),
    ("credbroker.v1.ServiceRegistry/CreateServiceToken", MANAGE),
    ("credbroker.v1.ServiceRegistry/DeleteService", MANAGE),
    (
        "credbroker.v1.ServiceRegistry/DeleteServiceBinding",
        TAKE_AWAY,
    ),
    (
        "credbroker.v1.ServiceRegistry/DeleteServiceToken",
        TAKE_AWAY,
    ),
    ("credbroker.v1.ServiceRegistry/GetService", READ),
    ("credbroker.v1.ServiceRegistry/ListServiceBindings", READ),
    ("credbroker.v1.ServiceRegistry/ListServiceTokens", READ),
    ("credbroker.v1.ServiceRegistry/ListServices", READ),
    ("credbroker.v1.ServiceRegistry/LookupTokens", READ),
    ("credbroker.v1.ServiceRegistry/ReinstateService", RESPOND),
    ("credbroker.v1.ServiceRegistry/SuspendService", RESPOND),
    (
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        READ,
    ),
];

/// Refusal of a call of a proven caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The method is not in the table.
    #[error("{0} is not a method of this broker")]
    UnknownMethod(String),
    /// The method is for services.
    #[error("this call is for services; an operator's token cannot make it")]
    ServicesOnly,
    /// The method is for operators.
    #[error("this call is for operators; a service's token cannot make it")]
    OperatorsOnly,
    /// The method is served only at the address for operators.
    #[error("this call is served at the address for operators alone")]
    Elsewhere,
    /// The method needs an enrolment token.
    #[error("this call takes an enrolment token")]
    EnrolleesOnly,
    /// An enrolment token admits to enrolment only.
    #[error("an enrolment token is for `credbroker enroll` alone")]
    EnrollsOnly,
    /// The operator's role does not allow the method.
    #[error("role {role} may not do this; it takes {}", list(.allowed))]
    Role {
        /// The caller's role.
        role: Role,
        /// Roles that may call the method.
        allowed: &'static [Role],
    },
}

fn list(roles: &[Role]) -> String {
    roles
        .iter()
        .map(|r| r.as_str())
        .collect::<Vec<_>>()
        .join(" or ")
}

/// A proven caller whom the table admits to the method it called. Only [`admit`] builds a `Caller`,
/// and every use case needs one.
#[derive(Clone, Debug)]
pub struct Caller(Principal);

impl Caller {
    /// Returns the proven identity behind the call.
    #[must_use]
    pub const fn principal(&self) -> &Principal {
        &self.0
    }
}

/// Admits `principal` to the method that it called, or refuses it.
///
/// # Errors
/// The table does not have the method or does not admit this caller, or the method is not served
/// at this address.
pub fn admit(principal: Principal, surface: Surface) -> Result<Caller, AccessError> {
    let method = &principal.origin().method;
    let Some((_, access)) = TABLE.iter().find(|(name, _)| name == method) else {
        return Err(AccessError::UnknownMethod(
            method.chars().take(100).collect(),
        ));
    };
    if surface == Surface::Services && matches!(access, Access::Operators(_)) {
        return Err(AccessError::Elsewhere);
    }
    match (access, principal.identity()) {
        (Access::Services, Identity::Service(_))
        | (Access::Anyone, Identity::Service(_) | Identity::Operator(..))
        | (Access::Enrollees, Identity::Enrollee(_)) => Ok(Caller(principal)),
        (_, Identity::Enrollee(_)) => Err(AccessError::EnrollsOnly),
        (Access::Enrollees, _) => Err(AccessError::EnrolleesOnly),
        (Access::Services, Identity::Operator(..)) => Err(AccessError::ServicesOnly),
        (Access::Operators(_), Identity::Service(_)) => Err(AccessError::OperatorsOnly),
        (Access::Operators(allowed), Identity::Operator(_, role)) => {
            if allowed.contains(role) {
                Ok(Caller(principal))
            } else {
                Err(AccessError::Role {
                    role: *role,
                    allowed,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::principal::{Origin, tests::by_token};

    fn call(identity: Identity, method: &str) -> Result<Caller, AccessError> {
        admit(
            Principal::proven(
                identity,
                by_token(),
                Origin {
                    peer: None,
                    method: method.to_owned(),
                },
            ),
            Surface::Whole,
        )
    }

    fn operator(role: Role) -> Identity {
        Identity::Operator("ann".parse().unwrap(), role)
    }

    fn service() -> Identity {
        Identity::Service("payments-api".parse().unwrap())
    }

    #[test]
    fn a_method_missing_from_the_table_cannot_be_called() {
        for identity in [operator(Admin), service()] {
            let refused = call(identity, "credbroker.v1.AdminService/Shutdown");
            assert!(matches!(refused, Err(AccessError::UnknownMethod(_))));
        }
    }

    #[test]
    fn a_service_reaches_the_credential_service_and_what_is_for_anyone() {
        for (method, access) in TABLE {
            let reached = call(service(), method).is_ok();
            let for_services = matches!(access, Access::Services | Access::Anyone);
            assert_eq!(reached, for_services, "{method}");
            let is_its_own = method.contains(".CredentialService/");
            let is_its_own = is_its_own || method.ends_with("/RenewCertificate");
            assert_eq!(*access == Access::Services, is_its_own, "{method}");
        }
    }

    #[test]
    fn whoever_may_enrol_may_do_nothing_else() {
        for (method, access) in TABLE {
            let enrollee = Identity::Enrollee("payments-api".parse().unwrap());
            let reached = call(enrollee, method).is_ok();
            assert_eq!(reached, *access == Access::Enrollees, "{method}");
            assert_eq!(reached, method.ends_with("/Enroll"), "{method}");
        }
    }

    #[test]
    fn response_is_what_responders_are_for() {
        let of_response = TABLE.iter().filter(|(method, _)| is_response(method));
        let names: Vec<_> = of_response
            .filter_map(|(method, _)| method.rsplit('/').next())
            .collect();
        let expected = [
            "RevokeLease",
            "RevokeGrant",
            "RevokeService",
            "StreamRevocation",
            "ReinstateService",
            "SuspendService",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn each_role_reaches_what_its_name_says() {
        let reached = |role| {
            let methods = TABLE
                .iter()
                .filter(|(m, _)| call(operator(role), m).is_ok());
            methods.map(|(m, _)| *m).collect::<Vec<_>>()
        };
        let changes = |m: &&str| {
            let reads = [
                "/Export",
                "/Get",
                "/List",
                "/Lookup",
                "/Prove",
                "/Tail",
                "/Render",
                "/Who",
                "/ServerReflection",
            ];
            !reads.iter().any(|v| m.contains(v))
        };
        assert!(!reached(Viewer).iter().any(changes));
        assert!(!reached(Auditor).iter().any(changes));
        assert!(!reached(Viewer).iter().any(|m| m.contains("Audit")));
        assert!(reached(Auditor).iter().any(|m| m.contains("Audit")));
        assert!(!reached(GrantAdmin).iter().any(|m| m.contains("Revoke")));
        assert!(
            !reached(Responder)
                .iter()
                .any(|m| m.contains("Put") || m.contains("Create"))
        );
        for role in [GrantAdmin, Responder, Admin] {
            let taken_away = reached(role).into_iter().filter(|m| {
                m.ends_with("/DeleteServiceToken") || m.ends_with("/DeleteServiceBinding")
            });
            assert_eq!(taken_away.count(), 2, "{role:?}");
        }
        let for_operators = TABLE
            .iter()
            .filter(|(_, access)| matches!(access, Access::Anyone | Access::Operators(_)))
            .count();
        assert_eq!(reached(Admin).len(), for_operators);
    }
}
