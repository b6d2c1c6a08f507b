//! Faults of a policy document, each with its path.

use thiserror::Error;

use crate::domain::arn::shorten;

/// Maximum number of characters of a wrong value that an error repeats, counted after escaping.
const EXCERPT: usize = 40;

/// Error in a policy document: AWS would refuse it, or it would not mean what it seems to mean.
///
/// The text is `PLACE: what is wrong and how to put it right`. The place is a path such as
/// `Statement[2].Action[0]`. The text repeats at most 80 characters of the document, escaped.
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

    /// Returns the path to the fault, such as `Statement[2].Action[0]`; `document` for the whole.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Returns the fault without its path.
    #[must_use]
    pub const fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// Fault of a policy document. Its text says how to put it right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// The text is larger than any policy that AWS accepts, so it is not parsed.
    #[error("{bytes} bytes are too many: no policy may be larger than {max}")]
    TooLarge {
        /// Size of the text.
        bytes: usize,
        /// Largest size that is parsed.
        max: usize,
    },
    /// The text is not JSON.
    #[error("is not valid JSON: {0}")]
    Syntax(String),
    /// A JSON value has the wrong kind.
    #[error("must be {expected}, not {found}")]
    Kind {
        /// Kind of value that belongs there.
        expected: &'static str,
        /// Kind of value that is there.
        found: &'static str,
    },
    /// A required key is missing.
    #[error("has no {key}: add {cure}")]
    Missing {
        /// Name of the key.
        key: &'static str,
        /// Entry to add, in words.
        cure: &'static str,
    },
    /// The grammar does not have this key.
    #[error(
        "has an unknown key \"{key}\": remove it, or write one of {known} with exactly that case"
    )]
    UnknownKey {
        /// Name of the key, shortened.
        key: String,
        /// Keys that may stand there.
        known: &'static str,
    },
    /// An object has the same key twice.
    #[error("has the key \"{key}\" twice: merge the two")]
    DuplicateKey {
        /// Name of the key, shortened.
        key: String,
    },
    /// A statement has two keys of which it takes one.
    #[error("has both {0} and {1}: keep one of them")]
    Both(&'static str, &'static str),
    /// A list or object is empty.
    #[error("is empty: {cure}")]
    Empty {
        /// Remedy, in words.
        cure: &'static str,
    },
    /// The version of the policy language is not the current one.
    #[error(
        "must be \"2012-10-17\": in the older language a variable such as ${{aws:username}} is plain text and matches nothing"
    )]
    Version,
    /// A statement has a principal, which identity and session policies do not have.
    #[error(
        "does not belong here: the service that receives the credentials carries this policy, so it has no principal; remove {0}"
    )]
    Principal(&'static str),
    /// An effect is neither `Allow` nor `Deny`.
    #[error("must be \"Allow\" or \"Deny\", written exactly so")]
    Effect,
    /// A statement id has other characters than letters and digits.
    #[error("\"{0}\" is not a statement id: use only the letters A-Z, a-z and the digits")]
    Sid(String),
    /// A statement id is used twice.
    #[error("\"{0}\" names an earlier statement already: give each its own Sid or none")]
    SidTwice(String),
    /// A character that STS and IAM refuse in a policy.
    #[error(
        "has the character U+{0:04X}: policies take only tab, line feed, carriage return and U+0020 to U+00FF"
    )]
    Character(u32),
    /// A text is not an action pattern.
    #[error("\"{text}\" is not an action: {cure}")]
    Action {
        /// The text, shortened.
        text: String,
        /// Remedy, in words.
        cure: &'static str,
    },
    /// A text is not a resource pattern.
    #[error("\"{text}\" is not a resource: {cure}")]
    Resource {
        /// The text, shortened.
        text: String,
        /// Remedy, in words.
        cure: &'static str,
    },
    /// A text is not a condition operator of AWS.
    #[error(
        "\"{0}\" is not a condition operator: write one such as StringEquals, StringLike, ArnLike, IpAddress, Bool or Null with exactly that case"
    )]
    Operator(String),
    /// A text is not a condition key.
    #[error(
        "\"{0}\" is not a condition key: write PREFIX:NAME, such as aws:SourceIp or aws:PrincipalTag/team"
    )]
    ConditionKey(String),
    /// A condition value cannot be compared by its operator.
    #[error("\"{text}\" cannot be compared by this operator: write {expected}")]
    Value {
        /// The value, shortened.
        text: String,
        /// Form that the value must have.
        expected: &'static str,
    },
    /// A policy variable is not closed, or has no name.
    #[error(
        "\"{0}\" has a policy variable that is not closed or is empty: write ${{aws:username}}, or ${{$}} for a dollar sign"
    )]
    Variable(String),
}

/// Returns the beginning of a wrong text, as an error may repeat it.
pub(super) fn excerpt(text: &str) -> String {
    shorten(text, EXCERPT)
}
