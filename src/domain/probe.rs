//! Probes: harmless calls that show whether AWS still accepts a session.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A read that takes no resource, works in an empty account, and can be denied by policies.
///
/// GetCallerIdentity is not a probe, because policies cannot deny it
/// (<https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html>).
/// Calls to IAM and other calls to STS are not probes, because federation sessions cannot make them
/// (<https://docs.aws.amazon.com/STS/latest/APIReference/API_GetFederationToken.html>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Probe {
    /// Lists the names of queues.
    #[default]
    SqsListQueues,
    /// Lists the names of tables.
    DynamodbListTables,
    /// Lists the names of buckets.
    S3ListAllMyBuckets,
    /// Lists the ids of keys.
    KmsListKeys,
    /// Lists the names of secrets, without their values.
    SecretsmanagerListSecrets,
    /// Lists the names of parameters, without their values.
    SsmDescribeParameters,
}

impl Probe {
    /// All probes.
    pub const ALL: [Self; 6] = [
        Self::SqsListQueues,
        Self::DynamodbListTables,
        Self::S3ListAllMyBuckets,
        Self::KmsListKeys,
        Self::SecretsmanagerListSecrets,
        Self::SsmDescribeParameters,
    ];

    /// Returns the IAM action that the call needs, as in
    /// <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SqsListQueues => "sqs:ListQueues",
            Self::DynamodbListTables => "dynamodb:ListTables",
            Self::S3ListAllMyBuckets => "s3:ListAllMyBuckets",
            Self::KmsListKeys => "kms:ListKeys",
            Self::SecretsmanagerListSecrets => "secretsmanager:ListSecrets",
            Self::SsmDescribeParameters => "ssm:DescribeParameters",
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reason why a text is not a [`Probe`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a probe: choose {choices}", choices = Probe::ALL.map(Probe::as_str).join(", "))]
pub struct ProbeError(String);

impl FromStr for Probe {
    type Err = ProbeError;

    fn from_str(text: &str) -> Result<Self, ProbeError> {
        Self::ALL
            .into_iter()
            .find(|probe| probe.as_str() == text)
            .ok_or_else(|| ProbeError(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for Probe {
    type Error = ProbeError;

    fn try_from(text: String) -> Result<Self, ProbeError> {
        text.parse()
    }
}

impl From<Probe> for String {
    fn from(probe: Probe) -> Self {
        probe.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_is_read_from_its_action_and_stored_as_it() {
        for probe in Probe::ALL {
            assert_eq!(probe.as_str().parse(), Ok(probe));
            let stored = serde_json::to_string(&probe).unwrap();
            assert_eq!(stored, format!("\"{probe}\""));
            assert_eq!(serde_json::from_str::<Probe>(&stored).unwrap(), probe);
        }
        assert_eq!(Probe::default().as_str(), "sqs:ListQueues");
    }

    #[test]
    fn another_action_is_refused_with_the_choices() {
        let refused = "sts:GetCallerIdentity".parse::<Probe>().unwrap_err();
        let words = refused.to_string();
        assert!(
            words.starts_with("\"sts:GetCallerIdentity\" is not a probe: choose sqs:ListQueues, ")
        );
        assert!(words.ends_with(", ssm:DescribeParameters"), "{words}");
    }
}
