//! What can be wrong with a policy document, and where.

use thiserror::Error;

use crate::domain::arn::shorten;

/// How much of a wrong value an error repeats, counted in characters after escaping.
const EXCERPT: usize = 40;

/// A policy document that AWS would refuse, or that would not mean what it seems to.
///
/// Reads `PLACE: what is wrong and how to put it right`, the place being a path such as
/// `Statement[2].Action[0]`. It repeats at most 80 characters of the document, escaped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub struct PolicyError {
    place: String,
    problem: Problem,
}

impl PolicyError {
    pub(super) fn new(place: &str, problem: Problem) -> Self {
        Self {
            place: place.to_owned(),
            problem,
        }
    }

    /// The path to the fault, such as `Statement[2].Action[0]`; `document` for the whole.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The fault without its place.
    #[must_use]
    pub const fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// One fault of a policy document; its text says the cure.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// Larger than any policy AWS takes, so it is not even read.
    #[error("{bytes} bytes are too many: no policy may be larger than {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest size read.
        max: usize,
    },
    /// Not JSON.
    #[error("is not valid JSON: {0}")]
    Syntax(String),
    /// A JSON value of the wrong kind.
    #[error("must be {expected}, not {found}")]
    Kind {
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A key that must be there is not.
    #[error("has no {key}: add {cure}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to add.
        cure: &'static str,
    },
    /// A key that the grammar does not know.
    #[error(
        "has an unknown key \"{key}\": remove it, or write one of {known} with exactly that case"
    )]
    UnknownKey {
        /// The key, shortened.
        key: String,
        /// The keys known there.
        known: &'static str,
    },
    /// The same key twice in one object.
    #[error("has the key \"{key}\" twice: merge the two")]
    DuplicateKey {
        /// The key, shortened.
        key: String,
    },
    /// Two keys of which a statement takes one.
    #[error("has both {0} and {1}: keep one of them")]
    Both(&'static str, &'static str),
    /// An empty list or object.
    #[error("is empty: {cure}")]
    Empty {
        /// What to do.
        cure: &'static str,
    },
    /// A policy-language version other than the current one.
    #[error(
        "must be \"2012-10-17\": in the older language a variable such as ${{aws:username}} is plain text and matches nothing"
    )]
    Version,
    /// Identity and session policies have no principal.
    #[error(
        "does not belong here: this policy is carried by whoever receives the credentials, so it has no principal; remove {0}"
    )]
    Principal(&'static str),
    /// An effect other than the two.
    #[error("must be \"Allow\" or \"Deny\", written exactly so")]
    Effect,
    /// A statement id with other characters than letters and digits.
    #[error("\"{0}\" is not a statement id: use only the letters A-Z, a-z and the digits")]
    Sid(String),
    /// A statement id used twice.
    #[error("\"{0}\" names an earlier statement already: give each its own Sid or none")]
    SidTwice(String),
    /// A character that STS and IAM refuse in a policy.
    #[error(
        "has the character U+{0:04X}: policies take only tab, line feed, carriage return and U+0020 to U+00FF"
    )]
    Character(u32),
    /// Not an action pattern.
    #[error("\"{text}\" is not an action: {cure}")]
    Action {
        /// The text, shortened.
        text: String,
        /// What to write instead.
        cure: &'static str,
    },
    /// Not a resource pattern.
    #[error("\"{text}\" is not a resource: {cure}")]
    Resource {
        /// The text, shortened.
        text: String,
        /// What to write instead.
        cure: &'static str,
    },
    /// Not a condition operator of AWS.
    #[error(
        "\"{0}\" is not a condition operator: write one such as StringEquals, StringLike, ArnLike, IpAddress, Bool or Null with exactly that case"
    )]
    Operator(String),
    /// Not a condition key.
    #[error(
        "\"{0}\" is not a condition key: write PREFIX:NAME, such as aws:SourceIp or aws:PrincipalTag/team"
    )]
    ConditionKey(String),
    /// A condition value that its operator cannot compare.
    #[error("\"{text}\" cannot be compared by this operator: write {expected}")]
    Value {
        /// The value, shortened.
        text: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A policy variable that is not closed or has no name.
    #[error(
        "\"{0}\" has a policy variable that is not closed or is empty: write ${{aws:username}}, or ${{$}} for a dollar sign"
    )]
    Variable(String),
}

/// The beginning of a wrong text, as an error may repeat it.
pub(super) fn excerpt(text: &str) -> String {
    shorten(text, EXCERPT)
}
