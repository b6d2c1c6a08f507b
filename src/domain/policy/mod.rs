//! IAM policy documents, checked before AWS sees them.
//!
//! A [`Document`] that exists is one that AWS takes as an identity or session policy: the grammar
//! is that of <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>.
//! [`Document::breadth`] then tells whether it grants more than one service should hold.

use std::fmt;

use jiff::Timestamp;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::probe::Probe;

mod breadth;
mod check;
mod condition;
mod error;
mod grammar;
mod guard;
mod pattern;
#[cfg(test)]
mod tests;
mod tree;

pub use breadth::{Breadth, Excess, breadth_of_managed};
pub use error::{PolicyError, Problem};
pub use guard::{OUTLIVING_ACTIONS, Strength, boundary, guard_alone, strength};

/// Characters of an inline session policy, together with the managed ones beside it:
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.
pub const SESSION_POLICY_MAX: usize = 2048;
/// Characters of all inline policies of one IAM user, white space not counted:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>.
pub const USER_INLINE_MAX: usize = 2048;
/// Characters of all inline policies of one role, white space not counted; same page.
pub const ROLE_INLINE_MAX: usize = 10_240;
/// Characters of one managed policy, white space not counted; same page as [`USER_INLINE_MAX`].
pub const MANAGED_POLICY_MAX: usize = 6144;
/// Managed policies that may narrow one session; same page as [`SESSION_POLICY_MAX`].
pub const SESSION_POLICY_ARNS_MAX: usize = 10;
/// Managed policies attached to one IAM user by default; same page as [`USER_INLINE_MAX`].
pub const USER_POLICY_ARNS_MAX: usize = 10;
/// Groups one IAM user may be in; same page as [`USER_INLINE_MAX`].
pub const USER_GROUPS_MAX: usize = 10;
/// Tags on one session, user or role:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html>.
pub const TAGS_MAX: usize = 50;
/// Bytes of text that [`Document::parse`] reads at all. Far above every limit of AWS, white space
/// included, and small enough that no caller can make the parser work hard.
pub const INPUT_MAX: usize = 64 * 1024;

const VERSION: &str = "2012-10-17";

/// An IAM policy for an identity or a session that AWS accepts.
///
/// At least one statement; every `Sid` once; no principal; version 2012-10-17. It has no upper
/// size, since that differs by use: compare [`Document::size`] with the limit that applies, such
/// as [`SESSION_POLICY_MAX`]. As serde value it is a JSON object, checked again when it is read.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    id: Option<String>,
    statements: Vec<Statement>,
}

impl Document {
    /// Reads a policy document of at most [`INPUT_MAX`] bytes of JSON.
    ///
    /// # Errors
    /// The first fault found, with its place: whatever AWS would refuse as
    /// `MalformedPolicyDocument`, and what it would take but never let match (an empty condition,
    /// an older version).
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        grammar::parse(text)
    }

    /// A document of these statements, in this order.
    ///
    /// # Errors
    /// No statement at all, or a `Sid` used twice.
    pub fn new(statements: Vec<Statement>) -> Result<Self, PolicyError> {
        check::statements(&statements)?;
        Ok(Self {
            id: None,
            statements,
        })
    }

    /// This document with one more statement at its end.
    ///
    /// Nothing is ever lost: if the `Sid` is taken, the added statement gets a number behind it.
    #[must_use]
    fn with_statement(mut self, mut statement: Statement) -> Self {
        statement.sid = statement.sid.map(|sid| self.free_sid(sid));
        self.statements.push(statement);
        self
    }

    /// This document, which denies everything after a moment, by AWS's clock.
    #[must_use]
    pub fn ending(self, moment: Timestamp) -> Self {
        self.with_statement(deny_after(moment))
    }

    /// Minified JSON as it is sent to AWS: `Version`, `Id`, then the statements in their order; a
    /// list of one is written as its item.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.to_string()
    }

    /// Characters of [`Document::to_json`], which has no white space between its parts: never
    /// less than what AWS counts.
    #[must_use]
    pub fn size(&self) -> usize {
        self.to_json().chars().count()
    }

    /// Every way in which this document grants more than a single service should hold; empty if
    /// there is none.
    ///
    /// Only `Allow` statements count, each by itself: conditions and `Deny` statements may narrow
    /// what is reported here, never widen it. Nor does it know which actions an AWS service has.
    #[must_use]
    pub fn breadth(&self) -> Vec<Breadth> {
        breadth::of(&self.statements)
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
        let node = tree::Node::deserialize(deserializer)?;
        grammar::document(node).map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Document {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        Self::parse(text)
    }
}

/// One statement of a policy, correct in itself.
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
    /// A statement that allows these actions on these resources. An empty `sid` is none.
    ///
    /// # Errors
    /// A Sid, action or resource that AWS would refuse, or none of one kind.
    pub fn allow<A, R>(sid: &str, actions: A, resources: R) -> Result<Self, PolicyError>
    where
        A: IntoIterator<Item: Into<String>>,
        R: IntoIterator<Item: Into<String>>,
    {
        Self::checked(Effect::Allow, sid, actions, resources)
    }

    /// A statement that denies these actions on these resources, whatever else allows them.
    ///
    /// # Errors
    /// As for [`Statement::allow`].
    pub fn deny<A, R>(sid: &str, actions: A, resources: R) -> Result<Self, PolicyError>
    where
        A: IntoIterator<Item: Into<String>>,
        R: IntoIterator<Item: Into<String>>,
    {
        Self::checked(Effect::Deny, sid, actions, resources)
    }

    /// This statement, only when the request's `key` compares to one of `values`. Several
    /// conditions must hold together.
    ///
    /// # Errors
    /// An operator AWS does not have, a key not of the form `prefix:name` or named before under
    /// the same operator, no value, or a value the operator cannot compare.
    pub fn when<V>(mut self, operator: &str, key: &str, values: V) -> Result<Self, PolicyError>
    where
        V: IntoIterator<Item: Into<String>>,
    {
        self.condition.add(operator, key, Texts::of(values));
        check::statement(&self, "Statement")?;
        Ok(self)
    }

    /// The statement's id, if it has one.
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
        check::statement(&statement, "Statement")?;
        Ok(statement)
    }

    /// Unchecked: for constant text, which a test checks once, and for `checked`.
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

/// Allows everything: a session policy that does not narrow.
#[must_use]
pub fn everything() -> Document {
    let allow = Statement::plain(Effect::Allow, "", Texts::of(["*"]), Texts::of(["*"]));
    Document {
        id: None,
        statements: vec![allow],
    }
}

/// Denies everything after a moment, and allows nothing: beside managed session policies.
#[must_use]
pub fn nothing_after(moment: Timestamp) -> Document {
    Document {
        id: None,
        statements: vec![deny_after(moment)],
    }
}

/// Ends all access of a user at once: what its removal begins with.
#[must_use]
pub fn deny_all() -> Document {
    let deny = Statement::plain(Effect::Deny, "", Texts::of(["*"]), Texts::of(["*"]));
    Document {
        id: None,
        statements: vec![deny],
    }
}

/// The session policy of a canary: the calls of its probes and nothing else.
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

/// The moment in whole seconds:
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

/// A string or a list of strings, which mean the same to AWS.
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
