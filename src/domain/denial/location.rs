//! Policies that hold denials.

use std::{collections::BTreeMap, fmt, str::FromStr};

use super::PolicyOwner;
use crate::domain::{
    arn::{AccountId, RoleArn},
    policy::{MANAGED_POLICY_MAX, ROLE_INLINE_MAX, USER_INLINE_MAX},
};

/// Kind of policy that holds the denials of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// An inline policy on each role and user.
    #[default]
    Inline,
    /// One managed policy, attached to each role and user.
    Managed,
}

impl FromStr for Placement {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "inline" => Ok(Self::Inline),
            "managed" => Ok(Self::Managed),
            _ => Err("choose inline or managed"),
        }
    }
}

/// Placements of denials, by account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placements {
    /// Placement in accounts that have no placement of their own.
    pub default: Placement,
    /// Placements in single accounts.
    pub accounts: BTreeMap<AccountId, Placement>,
    /// Roles that the broker assumes to change policies in other accounts than its own.
    pub revokers: BTreeMap<AccountId, RoleArn>,
}

impl Placements {
    /// Returns the policy that holds the denials of a role's or user's sessions.
    #[must_use]
    pub fn of(&self, holder: &PolicyOwner) -> PolicyLocation {
        let account = holder.account();
        match self.accounts.get(account).unwrap_or(&self.default) {
            Placement::Inline => PolicyLocation::Inline(holder.clone()),
            Placement::Managed => PolicyLocation::Managed(account.clone()),
        }
    }

    /// Returns the other policy, which an earlier configuration may have used.
    #[must_use]
    pub fn other(&self, holder: &PolicyOwner) -> PolicyLocation {
        match self.of(holder) {
            PolicyLocation::Inline(_) => PolicyLocation::Managed(holder.account().clone()),
            PolicyLocation::Managed(_) => PolicyLocation::Inline(holder.clone()),
        }
    }
}

/// Location of denials: a policy in AWS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyLocation {
    /// The broker's inline policy of this role or user.
    Inline(PolicyOwner),
    /// The broker's managed policy of this account.
    Managed(AccountId),
}

impl PolicyLocation {
    /// Returns the account of the policy.
    #[must_use]
    pub const fn account(&self) -> &AccountId {
        match self {
            Self::Inline(holder) => holder.account(),
            Self::Managed(account) => account,
        }
    }

    /// Returns the size that AWS allows, in characters without white space.
    #[must_use]
    pub const fn room(&self) -> usize {
        match self {
            Self::Inline(PolicyOwner::Role(_)) => ROLE_INLINE_MAX,
            Self::Inline(PolicyOwner::User(_)) => USER_INLINE_MAX,
            Self::Managed(_) => MANAGED_POLICY_MAX,
        }
    }
}

impl fmt::Display for PolicyLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(holder) => write!(f, "{holder}"),
            Self::Managed(account) => write!(f, "the managed policy of account {account}"),
        }
    }
}
