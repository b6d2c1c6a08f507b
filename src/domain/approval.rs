//! Changes that need the approval of a second operator.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{grant::GrantSpec, id::Id, name::Name, operator::Role, principal::Evidence};

/// Time after the request for which an approval may be given and used.
pub const LIFETIME: Duration = Duration::from_hours(24);
/// Most approvals that one operator may have open at a time.
pub const OPEN_MAX: usize = 20;

/// Id of an approval.
pub type ApprovalId = Id<Approval>;

/// A change that needs a second operator. That operator sees the change as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum ApprovedChange {
    /// A grant that is new, or may permit more than before.
    PutGrant {
        /// `SERVICE/NAME`.
        grant: String,
        /// Version that the grant gets. Any other change of the grant makes a new approval
        /// necessary.
        version: u64,
        /// Complete new settings of the grant.
        spec: Box<GrantSpec>,
    },
    /// Another access key for the broker itself.
    ImportAdminKey {
        /// Id of the key. AWS gives each id to one secret only.
        access_key_id: String,
    },
    /// Deletion of the oldest records of the log.
    PruneLog {
        /// Number of records to delete, counted from the first.
        records: u64,
    },
    /// A new operator.
    CreateOperator {
        /// Name of the operator.
        operator: String,
        /// Role of the operator.
        role: String,
    },
}

impl ApprovedChange {
    /// Returns whether an approval of this change allows `wanted`: the same change, or a pruning of
    /// more records, of which only the approved ones are then deleted.
    #[must_use]
    pub fn covers(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::PruneLog { records }, Self::PruneLog { records: wanted }) => records <= wanted,
            _ => self == wanted,
        }
    }

    /// Returns the change as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_value(self).map_or_else(|_| String::new(), |value| value.to_string())
    }

    /// Parses the JSON of [`Self::to_json`].
    ///
    /// # Errors
    /// The text is not JSON of a change.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Returns whether an operator in this role could make the change, and so may approve it.
    #[must_use]
    pub const fn may_be_approved_by(&self, role: Role) -> bool {
        match self {
            Self::PutGrant { .. } => matches!(role, Role::GrantAdmin | Role::Admin),
            _ => matches!(role, Role::Admin),
        }
    }
}

impl fmt::Display for ApprovedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutGrant { grant, .. } => write!(f, "put grant {grant}"),
            Self::ImportAdminKey { access_key_id } => {
                write!(f, "import admin key {access_key_id}")
            }
            Self::PruneLog { records } => write!(f, "prune the first {records} records"),
            Self::CreateOperator { operator, role } => {
                write!(f, "create operator {operator} as {role}")
            }
        }
    }
}

/// An operator, identified by a name and a proof. The name alone does not distinguish two people:
/// an issuer of tokens may allow it to change, or two issuers may give the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Displayed name.
    pub name: Name,
    /// Lasting proof of the identity: `operator NAME` for one of the broker's tokens, or
    /// `jwt ISSUER SUBJECT`.
    pub proof: String,
}

impl Person {
    /// Returns the calling operator, identified by its evidence.
    #[must_use]
    pub fn of(name: &Name, evidence: &Evidence) -> Self {
        let proof = match evidence {
            Evidence::Jwt { issuer, subject } => {
                format!("jwt {issuer} {}", subject.as_deref().unwrap_or_default())
            }
            Evidence::Token(_) | Evidence::Certificate { .. } => format!("operator {name}"),
        };
        Self {
            name: name.clone(),
            proof,
        }
    }

    /// Returns whether both may be the same person, who does not count as two operators.
    #[must_use]
    pub fn may_be(&self, other: &Self) -> bool {
        self.name == other.name || self.proof == other.proof
    }
}

/// A change that an operator asks to make, with the approval of another operator once it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Id of the approval.
    pub id: ApprovalId,
    /// Change that is asked for.
    pub change: ApprovedChange,
    /// Operator who asks, and the only one who may make the change.
    pub requested_by: Person,
    /// Time of the request.
    pub requested_at: Timestamp,
    /// End of the approval, [`LIFETIME`] after the request.
    pub expires_at: Timestamp,
    /// Operator who agreed, never the one who asked; `None`: not approved yet.
    pub approved_by: Option<Person>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_covers_the_same_and_of_a_pruning_less() {
        let prune = |records| ApprovedChange::PruneLog { records };
        assert!(prune(512).covers(&prune(512)));
        assert!(prune(512).covers(&prune(768)));
        assert!(!prune(512).covers(&prune(256)));
        let create = |role: &str| ApprovedChange::CreateOperator {
            operator: "ann".to_owned(),
            role: role.to_owned(),
        };
        assert!(create("viewer").covers(&create("viewer")));
        assert!(!create("viewer").covers(&create("admin")));
        assert!(!create("viewer").covers(&prune(512)));
    }

    #[test]
    fn one_subject_under_two_names_and_one_name_of_two_subjects_may_be_one_person() {
        let person = |name: &str, issuer: &str, subject: &str| {
            let evidence = Evidence::Jwt {
                issuer: issuer.to_owned(),
                subject: Some(subject.to_owned()),
            };
            Person::of(&name.parse().unwrap(), &evidence)
        };
        let ann = person("acme-ann", "https://a", "user-1");
        assert!(ann.may_be(&person("acme-ann-two", "https://a", "user-1")));
        assert!(ann.may_be(&person("acme-ann", "https://b", "stranger-9")));
        assert!(!ann.may_be(&person("acme-bob", "https://a", "user-2")));
        assert!(!ann.may_be(&person("acme-bob", "https://b", "user-1")));
    }

    #[test]
    fn only_who_could_make_a_change_may_approve_it() {
        let prune = ApprovedChange::PruneLog { records: 256 };
        let may = |role: &Role| prune.may_be_approved_by(*role);
        let those: Vec<_> = Role::ALL.into_iter().filter(may).collect();
        assert_eq!(those, [Role::Admin]);
    }
}
