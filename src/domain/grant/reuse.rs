//! Sharing of sessions between callers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Callers that share a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reuse {
    /// Callers of one service with the same proof of identity.
    PerService,
}

impl Reuse {
    /// Returns the name, as operators write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PerService => "per-service",
        }
    }
}

impl fmt::Display for Reuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reuse {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "per-service" => Ok(Self::PerService),
            _ => Err("choose per-service, or leave it out"),
        }
    }
}
