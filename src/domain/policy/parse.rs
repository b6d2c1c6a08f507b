//! Conversion of JSON to a [`Document`]. Checks the keys of each object and the kind of each value.

use super::error::{PolicyError, Problem, excerpt};
use super::json::Node;
use super::validate;
use super::{
    Actions, Comparisons, Condition, Document, Effect, INPUT_MAX, Resources, Statement, Texts,
    VERSION,
};
use crate::domain::arn::shorten;

const ROOT: &str = "document";

/// Keys of one kind of object, and their names in an error.
struct Keys {
    all: &'static [&'static str],
    shown: &'static str,
}

const DOCUMENT: Keys = Keys {
    all: &["Version", "Id", "Statement"],
    shown: "Version, Id, Statement",
};

const STATEMENT: Keys = Keys {
    all: &[
        "Sid",
        "Effect",
        "Principal",
        "NotPrincipal",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Condition",
    ],
    shown: "Sid, Effect, Action, NotAction, Resource, NotResource, Condition",
};

pub(super) fn parse(text: &str) -> Result<Document, PolicyError> {
    if text.len() > INPUT_MAX {
        return Err(PolicyError::new(
            ROOT,
            Problem::TooLarge {
                bytes: text.len(),
                max: INPUT_MAX,
            },
        ));
    }
    let node = serde_json::from_str(text);
    document(node.map_err(|error| PolicyError::new(ROOT, Problem::Syntax(error.to_string())))?)
}

pub(super) fn document(node: Node) -> Result<Document, PolicyError> {
    let mut fields = Fields::of(node, ROOT, &DOCUMENT)?;
    let version = fields.required(
        "Version",
        "\"Version\": \"2012-10-17\", without which variables are plain text",
    )?;
    if text(version, "Version")? != VERSION {
        return Err(PolicyError::new("Version", Problem::Version));
    }
    let id = fields.take("Id").map(|id| text(id, "Id")).transpose()?;
    if let Some(id) = &id {
        validate::characters(id, "Id")?;
    }
    let nodes = match fields.required("Statement", "a \"Statement\" with what to allow")? {
        Node::List(nodes) => nodes,
        node => vec![node],
    };
    let statements = nodes
        .into_iter()
        .enumerate()
        .map(|(at, node)| statement(node, &format!("Statement[{at}]")));
    let statements = statements.collect::<Result<Vec<_>, _>>()?;
    validate::statements(&statements)?;
    Ok(Document { id, statements })
}

fn statement(node: Node, place: &str) -> Result<Statement, PolicyError> {
    let mut fields = Fields::of(node, place, &STATEMENT)?;
    for principal in ["Principal", "NotPrincipal"] {
        if fields.take(principal).is_some() {
            return Err(PolicyError::new(
                &fields.place_of(principal),
                Problem::Principal(principal),
            ));
        }
    }
    let statement = Statement {
        sid: sid(&mut fields)?,
        effect: effect(&mut fields)?,
        actions: actions(&mut fields)?,
        resources: resources(&mut fields)?,
        condition: condition(&mut fields)?,
    };
    validate::statement(&statement, place)?;
    Ok(statement)
}

fn sid(fields: &mut Fields) -> Result<Option<String>, PolicyError> {
    let place = fields.place_of("Sid");
    let sid = fields
        .take("Sid")
        .map(|sid| text(sid, &place))
        .transpose()?;
    Ok(sid.filter(|sid| !sid.is_empty()))
}

fn effect(fields: &mut Fields) -> Result<Effect, PolicyError> {
    let place = fields.place_of("Effect");
    match text(
        fields.required("Effect", "\"Effect\": \"Allow\" or \"Deny\"")?,
        &place,
    )?
    .as_str()
    {
        "Allow" => Ok(Effect::Allow),
        "Deny" => Ok(Effect::Deny),
        _ => Err(PolicyError::new(&place, Problem::Effect)),
    }
}

fn actions(fields: &mut Fields) -> Result<Actions, PolicyError> {
    let pair = fields.either(
        "Action",
        "NotAction",
        "an \"Action\" such as \"s3:GetObject\"",
    )?;
    Ok(match pair {
        Either::First(texts) => Actions::Only(texts),
        Either::Second(texts) => Actions::AllBut(texts),
    })
}

fn resources(fields: &mut Fields) -> Result<Resources, PolicyError> {
    let pair = fields.either(
        "Resource",
        "NotResource",
        "a \"Resource\" such as \"arn:aws:s3:::bucket/*\"",
    )?;
    Ok(match pair {
        Either::First(texts) => Resources::Only(texts),
        Either::Second(texts) => Resources::AllBut(texts),
    })
}

fn condition(fields: &mut Fields) -> Result<Condition, PolicyError> {
    let place = fields.place_of("Condition");
    let Some(node) = fields.take("Condition") else {
        return Ok(Condition::default());
    };
    let mut operators = Vec::new();
    for (operator, node) in entries(node, &place)? {
        validate::operator(&operator, &place)?;
        let place = format!("{place}.{operator}");
        operators.push((operator, comparisons(node, &place)?));
    }
    Ok(Condition(operators))
}

fn comparisons(node: Node, place: &str) -> Result<Comparisons, PolicyError> {
    let mut comparisons = Vec::new();
    for (key, node) in entries(node, place)? {
        let place = format!("{place}.{}", shorten(&key, 20));
        let values = list(node).into_iter().map(|value| scalar(value, &place));
        comparisons.push((key, Texts(values.collect::<Result<_, _>>()?)));
    }
    Ok(Comparisons(comparisons))
}

enum Either {
    First(Texts),
    Second(Texts),
}

/// Entries of an object whose keys are all known and unique.
struct Fields {
    place: String,
    entries: Vec<(String, Node)>,
}

impl Fields {
    fn of(node: Node, place: &str, keys: &Keys) -> Result<Self, PolicyError> {
        let entries = unique(node, place)?;
        if let Some((key, _)) = entries
            .iter()
            .find(|(key, _)| !keys.all.contains(&key.as_str()))
        {
            let problem = Problem::UnknownKey {
                key: excerpt(key),
                known: keys.shown,
            };
            return Err(PolicyError::new(place, problem));
        }
        Ok(Self {
            place: place.to_owned(),
            entries,
        })
    }

    fn place_of(&self, key: &str) -> String {
        format!("{}.{key}", self.place)
    }

    fn take(&mut self, key: &str) -> Option<Node> {
        let at = self.entries.iter().position(|(name, _)| name == key)?;
        Some(self.entries.swap_remove(at).1)
    }

    fn required(&mut self, key: &'static str, cure: &'static str) -> Result<Node, PolicyError> {
        self.take(key)
            .ok_or_else(|| PolicyError::new(&self.place, Problem::Missing { key, cure }))
    }

    fn either(
        &mut self,
        first: &'static str,
        second: &'static str,
        cure: &'static str,
    ) -> Result<Either, PolicyError> {
        match (self.take(first), self.take(second)) {
            (Some(_), Some(_)) => Err(PolicyError::new(&self.place, Problem::Both(first, second))),
            (Some(node), None) => Ok(Either::First(texts(node, &self.place_of(first))?)),
            (None, Some(node)) => Ok(Either::Second(texts(node, &self.place_of(second))?)),
            (None, None) => Err(PolicyError::new(
                &self.place,
                Problem::Missing { key: first, cure },
            )),
        }
    }
}

/// Returns the entries of an object. The object must not be empty, and its keys must be unique.
fn entries(node: Node, place: &str) -> Result<Vec<(String, Node)>, PolicyError> {
    let entries = unique(node, place)?;
    if entries.is_empty() {
        let cure = "it narrows nothing; fill it or remove it";
        return Err(PolicyError::new(place, Problem::Empty { cure }));
    }
    Ok(entries)
}

fn unique(node: Node, place: &str) -> Result<Vec<(String, Node)>, PolicyError> {
    let Node::Object(entries) = node else {
        return Err(kind(&node, "an object", place));
    };
    let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(PolicyError::new(
            place,
            Problem::DuplicateKey {
                key: excerpt(twice[0]),
            },
        ));
    }
    Ok(entries)
}

fn texts(node: Node, place: &str) -> Result<Texts, PolicyError> {
    let texts = list(node)
        .into_iter()
        .enumerate()
        .map(|(at, node)| text(node, &format!("{place}[{at}]")));
    Ok(Texts(texts.collect::<Result<_, _>>()?))
}

fn list(node: Node) -> Vec<Node> {
    match node {
        Node::List(nodes) => nodes,
        node => vec![node],
    }
}

fn text(node: Node, place: &str) -> Result<String, PolicyError> {
    match node {
        Node::Text(text) => Ok(text),
        node => Err(kind(&node, "a string", place)),
    }
}

fn scalar(node: Node, place: &str) -> Result<String, PolicyError> {
    match node {
        Node::Text(text) | Node::Number(text) | Node::Bool(text) => Ok(text),
        node => Err(kind(
            &node,
            "a string, a number, true or false, or an array of these",
            place,
        )),
    }
}

fn kind(node: &Node, expected: &'static str, place: &str) -> PolicyError {
    PolicyError::new(
        place,
        Problem::Kind {
            expected,
            found: node.kind(),
        },
    )
}
