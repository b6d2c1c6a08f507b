//! Changes that take a second operator.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{grant::GrantSpec, id::Id, name::Name, operator::Role, principal::Evidence};

/// How long an approval may be given and used, from when it was asked for.
pub const LIFETIME: Duration = Duration::from_hours(24);
/// Most approvals that one operator may have open at a time.
pub const OPEN_MAX: usize = 20;

/// An approval's id.
pub type ApprovalId = Id<Approval>;

/// What takes a second operator. Its JSON is what the second one is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    /// A grant that is new, or may permit more than it did.
    PutGrant {
        /// `SERVICE/NAME`.
        grant: String,
        /// Version that the grant gets. After any other change of the grant a new approval is needed.
        version: u64,
        /// All that it is to be.
        spec: Box<GrantSpec>,
    },
    /// Another key for the broker itself.
    ImportAdminKey {
        /// Its id, which AWS gives to one secret alone.
        access_key_id: String,
    },
    /// Records of the log are given up.
    PruneLog {
        /// The first so many.
        records: u64,
    },
    /// Another operator.
    CreateOperator {
        /// Its name.
        operator: String,
        /// What it may do.
        role: String,
    },
}

impl Change {
    /// Whether an approval of this lets somebody do `wanted`: the same, or to prune more,
    /// of which only what is approved is then done.
    #[must_use]
    pub fn covers(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::PruneLog { records }, Self::PruneLog { records: wanted }) => records <= wanted,
            _ => self == wanted,
        }
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_value(self).map_or_else(|_| String::new(), |value| value.to_string())
    }

    /// From [`Self::to_json`].
    ///
    /// # Errors
    /// It is something else.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Whoever could do it.
    #[must_use]
    pub const fn may_be_approved_by(&self, role: Role) -> bool {
        match self {
            Self::PutGrant { .. } => matches!(role, Role::GrantAdmin | Role::Admin),
            _ => matches!(role, Role::Admin),
        }
    }
}

impl fmt::Display for Change {
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

/// An operator, by its name and by what proves it. The name alone tells no two people apart where an
/// issuer of tokens lets it change, or two issuers give the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Name that is shown.
    pub name: Name,
    /// Lasting proof of who it is: `operator NAME` by one of the broker's tokens, or
    /// `jwt ISSUER SUBJECT`.
    pub proof: String,
}

impl Person {
    /// The operator who calls, by what it has shown.
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

    /// Returns whether both may be one person, who does not count for two.
    #[must_use]
    pub fn may_be(&self, other: &Self) -> bool {
        self.name == other.name || self.proof == other.proof
    }
}

/// A change that somebody wants to make, and perhaps may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Its id.
    pub id: ApprovalId,
    /// What is to be done.
    pub change: Change,
    /// Who wants to do it, and alone may.
    pub requested_by: Person,
    /// When that was.
    pub requested_at: Timestamp,
    /// When it is over.
    pub expires_at: Timestamp,
    /// Who agreed, never who asked.
    pub approved_by: Option<Person>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_covers_the_same_and_of_a_pruning_less() {
        let prune = |records| Change::PruneLog { records };
        assert!(prune(512).covers(&prune(512)));
        assert!(prune(512).covers(&prune(768)));
        assert!(!prune(512).covers(&prune(256)));
        let create = |role: &str| Change::CreateOperator {
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
        let prune = Change::PruneLog { records: 256 };
        let may = |role: &Role| prune.may_be_approved_by(*role);
        let those: Vec<_> = Role::ALL.into_iter().filter(may).collect();
        assert_eq!(those, [Role::Admin]);
    }
}
