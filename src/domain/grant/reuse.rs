//! Whether callers share a session.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Who shares a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reuse {
    /// The callers of one service that prove themselves by the same.
    PerService,
}

impl Reuse {
    /// As operators write it.
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
