//! IAM policy documents, checked before AWS gets them.
//!
//! A [`Document`] is always one that AWS accepts as an identity or session policy. The grammar is
//! that of <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>.
//! [`Document::breadth`] reports whether a document grants more than one service should hold.

use std::fmt;

use jiff::Timestamp;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::probe::Probe;

mod condition;
mod error;
mod guard;
mod json;
mod overbroad;
mod parse;
#[cfg(test)]
mod tests;
mod validate;
mod wildcard;

pub use error::{PolicyError, Problem};
pub use guard::{OUTLIVING_ACTIONS, Strength, boundary, guard_alone, strength};
pub use overbroad::{Breadth, OverbroadReason, breadth_of_managed};

/// Maximum number of characters of an inline session policy, together with the managed ones beside
/// it:
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.
pub const SESSION_POLICY_MAX: usize = 2048;
/// Maximum number of characters of all inline policies of one IAM user, white space not counted:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>.
pub const USER_INLINE_MAX: usize = 2048;
/// Maximum number of characters of all inline policies of one role, white space not counted; same
/// page.
pub const ROLE_INLINE_MAX: usize = 10_240;
/// Maximum number of characters of one managed policy, white space not counted; same page as
/// [`USER_INLINE_MAX`].
pub const MANAGED_POLICY_MAX: usize = 6144;
/// Maximum number of managed policies that may narrow one session; same page as
/// [`SESSION_POLICY_MAX`].
pub const SESSION_POLICY_ARNS_MAX: usize = 10;
/// Maximum number of managed policies attached to one IAM user, by AWS's default; same page as
/// [`USER_INLINE_MAX`].
pub const USER_POLICY_ARNS_MAX: usize = 10;
/// Maximum number of groups that one IAM user may be in; same page as [`USER_INLINE_MAX`].
pub const USER_GROUPS_MAX: usize = 10;
/// Maximum number of tags on one session, user or role:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html>.
pub const TAGS_MAX: usize = 50;
/// Maximum number of bytes of text that [`Document::parse`] reads. The limit is far above every
/// limit of AWS, white space included. It is so small that no caller can make the parser work hard.
pub const INPUT_MAX: usize = 64 * 1024;

const VERSION: &str = "2012-10-17";

/// An IAM policy for an identity or a session that AWS accepts.
///
/// A document has at least one statement, each `Sid` once, no principal, and version 2012-10-17.
/// Its size has no upper limit here, because the limit differs by use: compare [`Document::size`]
/// with the limit that applies, such as [`SESSION_POLICY_MAX`]. As a serde value, a document is a
/// JSON object, which is checked when it is deserialized.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    id: Option<String>,
    statements: Vec<Statement>,
}

impl Document {
    /// Reads a policy document of at most [`INPUT_MAX`] bytes of JSON.
    ///
    /// # Errors
    /// The first fault found, with its path. A fault is what AWS would refuse as
    /// `MalformedPolicyDocument`, or what AWS would accept but would not mean what it seems to mean
    /// (an empty condition, an older version).
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        parse::parse(text)
    }

    /// Returns a document of these statements, in this order.
    ///
    /// # Errors
    /// The list has no statement, or a `Sid` is used twice.
    pub fn new(statements: Vec<Statement>) -> Result<Self, PolicyError> {
        validate::statements(&statements)?;
        Ok(Self {
            id: None,
            statements,
        })
    }

    /// Adds a statement at the end of this document.
    ///
    /// The statement is always added: if its `Sid` is taken, a number is appended to the `Sid`.
    #[must_use]
    fn with_statement(mut self, mut statement: Statement) -> Self {
        statement.sid = statement.sid.map(|sid| self.free_sid(sid));
        self.statements.push(statement);
        self
    }

    /// Adds a statement that denies everything after a moment, by AWS's clock.
    #[must_use]
    pub fn ending(self, moment: Timestamp) -> Self {
        self.with_statement(deny_after(moment))
    }

    /// Returns minified JSON as it is sent to AWS: `Version`, `Id`, then the statements in their
    /// order. A list of one item is written as the item.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.to_string()
    }

    /// Returns the number of characters of [`Document::to_json`], which has no white space between
    /// its parts. The number is never less than what AWS counts.
    #[must_use]
    pub fn size(&self) -> usize {
        self.to_json().chars().count()
    }

    /// Returns every way in which this document grants more than a single service should hold;
    /// empty if there is none.
    ///
    /// The check counts `Allow` statements alone, each by itself: conditions and `Deny` statements
    /// may narrow what is reported here, never widen it. The check does not know which actions an
    /// AWS service has.
    #[must_use]
    pub fn breadth(&self) -> Vec<Breadth> {
        overbroad::of(&self.statements)
    }

    fn free_sid(&self, sid: String) -> String {
        let taken = |sid: &str| {
            self.statements
                .iter()
                .any(|statement| statement.sid() == Some(sid))
        };
        if !taken(&sid) {
            return sid;
        }
        let mut number = 2_usize;
        while taken(&format!("{sid}{number}")) {
            number += 1;
        }
        format!("{sid}{number}")
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("Version", VERSION)?;
        if let Some(id) = &self.id {
            map.serialize_entry("Id", id)?;
        }
        map.serialize_entry("Statement", &self.statements)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = json::Node::deserialize(deserializer)?;
        parse::document(node).map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Document {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        Self::parse(text)
    }
}

/// Statement of a policy, correct in itself.
///
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_statement.html>
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statement {
    #[serde(rename = "Sid", skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    #[serde(rename = "Effect")]
    effect: Effect,
    #[serde(flatten)]
    actions: Actions,
    #[serde(flatten)]
    resources: Resources,
    #[serde(rename = "Condition", skip_serializing_if = "Condition::is_empty")]
    condition: Condition,
}

impl Statement {
    /// Returns a statement that allows these actions on these resources. An empty `sid` means none.
    ///
    /// # Errors
    /// A `Sid`, action or resource that AWS would refuse; no action or no resource.
    pub fn allow<A, R>(sid: &str, actions: A, resources: R) -> Result<Self, PolicyError>
    where
        A: IntoIterator<Item: Into<String>>,
        R: IntoIterator<Item: Into<String>>,
    {
        Self::checked(Effect::Allow, sid, actions, resources)
    }

    /// Returns a statement that denies these actions on these resources, whatever else allows them.
    ///
    /// # Errors
    /// The errors of [`Statement::allow`].
    pub fn deny<A, R>(sid: &str, actions: A, resources: R) -> Result<Self, PolicyError>
    where
        A: IntoIterator<Item: Into<String>>,
        R: IntoIterator<Item: Into<String>>,
    {
        Self::checked(Effect::Deny, sid, actions, resources)
    }

    /// Adds a condition: the statement applies only if the request's `key` compares to one of
    /// `values`. All conditions of a statement must hold together.
    ///
    /// # Errors
    /// An operator that AWS does not have; a key that is not of the form `prefix:name`, or that the
    /// same operator has already; no value; or a value that the operator cannot compare.
    pub fn when<V>(mut self, operator: &str, key: &str, values: V) -> Result<Self, PolicyError>
    where
        V: IntoIterator<Item: Into<String>>,
    {
        self.condition.add(operator, key, Texts::of(values));
        validate::statement(&self, "Statement")?;
        Ok(self)
    }

    /// Returns the statement's id, if it has one.
    #[must_use]
    pub fn sid(&self) -> Option<&str> {
        self.sid.as_deref()
    }

    fn checked<A, R>(
        effect: Effect,
        sid: &str,
        actions: A,
        resources: R,
    ) -> Result<Self, PolicyError>
    where
        A: IntoIterator<Item: Into<String>>,
        R: IntoIterator<Item: Into<String>>,
    {
        let statement = Self::plain(effect, sid, Texts::of(actions), Texts::of(resources));
        validate::statement(&statement, "Statement")?;
        Ok(statement)
    }

    /// Returns an unchecked statement: for constant text, which a test checks once, and for
    /// `checked`.
    fn plain(effect: Effect, sid: &str, actions: Texts, resources: Texts) -> Self {
        Self {
            sid: (!sid.is_empty()).then(|| sid.to_owned()),
            effect,
            actions: Actions::Only(actions),
            resources: Resources::Only(resources),
            condition: Condition::default(),
        }
    }
}

/// Returns a document that allows everything: a session policy that does not narrow.
#[must_use]
pub fn everything() -> Document {
    let allow = Statement::plain(Effect::Allow, "", Texts::of(["*"]), Texts::of(["*"]));
    Document {
        id: None,
        statements: vec![allow],
    }
}

/// Returns a document that denies everything after a moment and allows nothing: for use beside
/// managed session policies.
#[must_use]
pub fn nothing_after(moment: Timestamp) -> Document {
    Document {
        id: None,
        statements: vec![deny_after(moment)],
    }
}

/// Returns a document that ends all access of a user at once. The removal of a user begins with it.
#[must_use]
pub fn deny_all() -> Document {
    let deny = Statement::plain(Effect::Deny, "", Texts::of(["*"]), Texts::of(["*"]));
    Document {
        id: None,
        statements: vec![deny],
    }
}

/// Returns the session policy of a canary: the calls of its probes and nothing else.
#[must_use]
pub fn canary(probes: &[Probe]) -> Document {
    let allow = Statement::plain(
        Effect::Allow,
        "",
        Texts::of(probes.iter().map(|probe| probe.as_str())),
        Texts::of(["*"]),
    );
    Document {
        id: None,
        statements: vec![allow],
    }
}

/// Returns a statement that denies everything after a moment, in whole seconds:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html#condition-keys-currenttime>.
fn deny_after(moment: Timestamp) -> Statement {
    let moment = moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut deny = Statement::plain(Effect::Deny, "", Texts::of(["*"]), Texts::of(["*"]));
    let condition = &mut deny.condition;
    condition.add("DateGreaterThan", "aws:CurrentTime", Texts::of([moment]));
    deny
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
enum Actions {
    #[serde(rename = "Action")]
    Only(Texts),
    #[serde(rename = "NotAction")]
    AllBut(Texts),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
enum Resources {
    #[serde(rename = "Resource")]
    Only(Texts),
    #[serde(rename = "NotResource")]
    AllBut(Texts),
}

/// String or list of strings, which mean the same to AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Texts(Vec<String>);

impl Texts {
    fn of(texts: impl IntoIterator<Item: Into<String>>) -> Self {
        Self(texts.into_iter().map(Into::into).collect())
    }
}

impl Serialize for Texts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => serializer.serialize_str(one),
            many => many.serialize(serializer),
        }
    }
}

/// Operators in their order, each with its keys and their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Condition(Vec<(String, Comparisons)>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Comparisons(Vec<(String, Texts)>);

impl Condition {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, operator: &str, key: &str, values: Texts) {
        let comparison = (key.to_owned(), values);
        match self.0.iter_mut().find(|(name, _)| name == operator) {
            Some((_, comparisons)) => comparisons.0.push(comparison),
            None => self
                .0
                .push((operator.to_owned(), Comparisons(vec![comparison]))),
        }
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .iter()
                .map(|(operator, comparisons)| (operator, comparisons)),
        )
    }
}

impl Serialize for Comparisons {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, values)| (key, values)))
    }
}
