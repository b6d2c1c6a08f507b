//! Policy templates for common jobs, each as narrow as AWS allows.
//!
//! A [`Template`] has typed parameters. [`Template::render`] checks every value before it puts the
//! value in a policy, and no value can hold a wildcard or a variable. The rendered policy leaves
//! room in a session policy for the guard that the broker adds.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use crate::domain::arn::{Partition, shorten};
use crate::domain::policy::{Document, PolicyError};

mod parameter;
mod ready;
#[cfg(test)]
mod tests;

pub use parameter::ParameterKind;
use parameter::Value;

/// Policy with parameters to fill in.
#[derive(Debug)]
pub struct Template {
    /// Name of the template, such as `s3-read-only`.
    pub name: &'static str,
    /// Permissions that the template gives, in one sentence.
    pub summary: &'static str,
    /// Parameters, required and optional.
    pub parameters: &'static [Parameter],
    build: fn(&Values) -> Result<Document, Mistake>,
}

/// Parameter of a [`Template`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name of the parameter, such as `bucket`.
    pub name: &'static str,
    /// Kind that the value must have.
    pub kind: ParameterKind,
    /// True if the template needs a value.
    pub required: bool,
    /// Purpose of the parameter, in one sentence.
    pub summary: &'static str,
}

/// Returns every template, sorted by name.
#[must_use]
pub fn templates() -> &'static [Template] {
    &ready::ALL
}

/// Returns the template of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Template> {
    templates().iter().find(|template| template.name == name)
}

/// Returns the name of every template, with its document for the values of
/// [`ParameterKind::example`].
#[must_use]
pub fn examples() -> Vec<(&'static str, Result<Document, CatalogueError>)> {
    templates()
        .iter()
        .map(|template| (template.name, template.example()))
        .collect()
}

impl Template {
    /// Returns the policy with these parameter values, for a partition of AWS.
    ///
    /// # Errors
    /// All mistakes at once: a parameter that the template does not have, a required parameter
    /// without a value, a value that is not of its parameter's kind.
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

    /// Returns the policy with [`ParameterKind::example`] for every parameter, optional ones too.
    ///
    /// # Errors
    /// None: the return type is that of [`Template::render`].
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

/// Error of a template that could not be rendered, with every mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogueError {
    template: &'static str,
    mistakes: Vec<Mistake>,
}

impl CatalogueError {
    /// Returns the name of the template.
    #[must_use]
    pub const fn template(&self) -> &'static str {
        self.template
    }

    /// Returns every mistake; at least one.
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

/// Mistake in the values for a template. The error does not repeat values.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Mistake {
    /// The template has no such parameter.
    #[error("there is no parameter \"{name}\": it has {known}")]
    Unknown {
        /// Name that was given, shortened to 40 characters and escaped.
        name: String,
        /// Names of the template's parameters.
        known: String,
    },
    /// A required parameter has no value.
    #[error("{name} is missing: give {kind}, such as {}", kind.example())]
    Missing {
        /// Name of the parameter.
        name: &'static str,
        /// Kind that the value must have.
        kind: ParameterKind,
    },
    /// A value is not of the parameter's kind.
    #[error("{name} is not {kind}: {why}; an example is {}", kind.example())]
    Invalid {
        /// Name of the parameter.
        name: &'static str,
        /// Kind that the value must have.
        kind: ParameterKind,
        /// Fault of the value.
        why: &'static str,
    },
    /// The template itself is faulty.
    #[error("the policy is not valid: {0}")]
    Policy(#[from] PolicyError),
}
