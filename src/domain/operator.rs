//! People and pipelines that manage the broker.

use std::{fmt, str::FromStr};

use jiff::Timestamp;

use crate::domain::{name::Name, token::TokenId};

/// Permissions of an operator. The table in [`super::access`] lists the roles that each method
/// admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads services, grants, leases and status.
    Viewer,
    /// Reads the audit log as well.
    Auditor,
    /// A viewer that manages services, tokens and grants.
    GrantAdmin,
    /// An auditor that may suspend, revoke and reinstate.
    Responder,
    /// Everything, operators included.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Viewer,
        Self::Auditor,
        Self::GrantAdmin,
        Self::Responder,
        Self::Admin,
    ];

    /// Returns the role's name, as users see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
            Self::GrantAdmin => "grant-admin",
            Self::Responder => "responder",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reason why a text is not a [`Role`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: choose viewer, auditor, grant-admin, responder or admin")]
pub struct RoleError(String);

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError(text.chars().take(40).collect()))
    }
}

/// A person or pipeline with one token that manages the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Name of the operator.
    pub name: Name,
    /// Role of the operator.
    pub role: Role,
    /// Id of the token that proves the operator.
    pub token_id: TokenId,
    /// Time of creation.
    pub created_at: Timestamp,
}
