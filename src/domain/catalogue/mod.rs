//! Ready policies for common jobs, each as narrow as AWS allows.
//!
//! A [`Template`] has typed parameters; [`Template::render`] checks every value before it stands
//! in a policy, and no value can hold a wildcard or a variable. What is rendered leaves room in a
//! session policy for the guard that the broker adds.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use crate::domain::arn::{Partition, shorten};
use crate::domain::policy::{Document, PolicyError};

mod parameter;
mod templates;
#[cfg(test)]
mod tests;

pub use parameter::ParameterKind;
use parameter::Value;

/// A policy with blanks to fill in.
#[derive(Debug)]
pub struct Template {
    /// What it is called, such as `s3-read-only`.
    pub name: &'static str,
    /// What it allows, in one sentence.
    pub summary: &'static str,
    /// The blanks.
    pub parameters: &'static [Parameter],
    build: fn(&Values) -> Result<Document, Mistake>,
}

/// One blank of a [`Template`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// What it is called, such as `bucket`.
    pub name: &'static str,
    /// What its value must be.
    pub kind: ParameterKind,
    /// Whether the template cannot do without it.
    pub required: bool,
    /// What it is for, in one sentence.
    pub summary: &'static str,
}

/// Every template, in the order of their names.
#[must_use]
pub fn templates() -> &'static [Template] {
    &templates::ALL
}

/// The template of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Template> {
    templates().iter().find(|template| template.name == name)
}

/// Every template by name, with its document for the values of [`ParameterKind::example`].
#[must_use]
pub fn examples() -> Vec<(&'static str, Result<Document, CatalogueError>)> {
    templates()
        .iter()
        .map(|template| (template.name, template.example()))
        .collect()
}

impl Template {
    /// The policy with these values in its blanks, for a partition of AWS.
    ///
    /// # Errors
    /// Every mistake at once: a parameter the template does not have, one that is missing, one
    /// whose value is not what its kind asks for.
    pub fn render(
        &self,
        values: &BTreeMap<String, String>,
        partition: Partition,
    ) -> Result<Document, CatalogueError> {
        let mut mistakes = self.unknown(values);
        let mut checked = Values {
            partition,
            values: BTreeMap::new(),
        };
        for parameter in self.parameters {
            match parameter.check(values, partition) {
                Ok(value) => checked
                    .values
                    .extend(value.map(|value| (parameter.name, value))),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() {
            return (self.build)(&checked).map_err(|mistake| self.refuse(vec![mistake]));
        }
        Err(self.refuse(mistakes))
    }

    /// The policy with every blank, the optional ones too, filled by [`ParameterKind::example`].
    ///
    /// # Errors
    /// None; the type is that of [`Template::render`].
    pub fn example(&self) -> Result<Document, CatalogueError> {
        let example = |parameter: &Parameter| {
            (
                parameter.name.to_owned(),
                parameter.kind.example().to_owned(),
            )
        };
        self.render(
            &self.parameters.iter().map(example).collect(),
            Partition::Aws,
        )
    }

    fn unknown(&self, values: &BTreeMap<String, String>) -> Vec<Mistake> {
        let known = |name: &str| {
            self.parameters
                .iter()
                .any(|parameter| parameter.name == name)
        };
        let unknown = values.keys().filter(|name| !known(name));
        unknown
            .map(|name| Mistake::Unknown {
                name: shorten(name, 40),
                known: self.parameter_names(),
            })
            .collect()
    }

    fn parameter_names(&self) -> String {
        self.parameters
            .iter()
            .map(|parameter| parameter.name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn refuse(&self, mistakes: Vec<Mistake>) -> CatalogueError {
        CatalogueError {
            template: self.name,
            mistakes,
        }
    }
}

impl Parameter {
    fn check(
        &self,
        values: &BTreeMap<String, String>,
        partition: Partition,
    ) -> Result<Option<Value>, Mistake> {
        match values.get(self.name) {
            Some(text) => {
                self.kind
                    .parse(text, partition)
                    .map(Some)
                    .map_err(|why| Mistake::Invalid {
                        name: self.name,
                        kind: self.kind,
                        why,
                    })
            }
            None if self.required => Err(Mistake::Missing {
                name: self.name,
                kind: self.kind,
            }),
            None => Ok(None),
        }
    }
}

/// Values that passed the check of their kind.
struct Values {
    partition: Partition,
    values: BTreeMap<&'static str, Value>,
}

impl Values {
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(Value::as_str)
    }

    fn need(&self, name: &'static str, kind: ParameterKind) -> Result<&str, Mistake> {
        self.get(name).ok_or(Mistake::Missing { name, kind })
    }
}

/// Why a template could not be rendered: every mistake, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogueError {
    template: &'static str,
    mistakes: Vec<Mistake>,
}

impl CatalogueError {
    /// The template asked for.
    #[must_use]
    pub const fn template(&self) -> &'static str {
        self.template
    }

    /// Every mistake; at least one.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl fmt::Display for CatalogueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mistakes: Vec<String> = self.mistakes.iter().map(ToString::to_string).collect();
        write!(f, "template {}: {}", self.template, mistakes.join("; "))
    }
}

impl std::error::Error for CatalogueError {}

/// One thing wrong with the values given to a template. Values are not repeated.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Mistake {
    /// The template has no such parameter.
    #[error("there is no parameter \"{name}\": it has {known}")]
    Unknown {
        /// What was given, shortened to 40 characters and escaped.
        name: String,
        /// The parameters there are.
        known: String,
    },
    /// A parameter the template cannot do without.
    #[error("{name} is missing: give {kind}, such as {}", kind.example())]
    Missing {
        /// The parameter.
        name: &'static str,
        /// What its value must be.
        kind: ParameterKind,
    },
    /// A value that is not of the parameter's kind.
    #[error("{name} is not {kind}: {why}; an example is {}", kind.example())]
    Invalid {
        /// The parameter.
        name: &'static str,
        /// What its value must be.
        kind: ParameterKind,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A fault of the template itself.
    #[error("the policy is not valid: {0}")]
    Policy(#[from] PolicyError),
}
