//! What credentials may do.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;

use crate::domain::grant::{Grant, InlinePolicy, KindSpec};

/// What credentials may do, as the log tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// The catalogue entry that the inline policy was made from, or `inline`; `None`
    /// without one.
    pub policy: Option<String>,
    /// SHA-256, in lower-case hexadecimal, of the inline policy as it is sent to AWS.
    pub policy_sha256: Option<String>,
    /// Managed policies.
    pub managed_policies: Vec<String>,
    /// The role that is assumed.
    pub role: Option<String>,
}

impl Permissions {
    /// What credentials of this grant may do.
    #[must_use]
    pub fn of(grant: &Grant) -> Self {
        let spec = &grant.spec;
        let template = |inline: &InlinePolicy| {
            let template = inline.template.as_ref();
            template.map_or_else(|| "inline".to_owned(), |used| used.name.clone())
        };
        let sent = spec.effective_policy();
        Self {
            policy: spec.policy.as_ref().map(template),
            policy_sha256: sent
                .map(|sent| HEXLOWER.encode(digest(&SHA256, sent.to_string().as_bytes()).as_ref())),
            managed_policies: spec
                .managed_policies
                .iter()
                .map(ToString::to_string)
                .collect(),
            role: match &spec.kind {
                KindSpec::AssumeRole { role_arn, .. } => Some(role_arn.to_string()),
                _ => None,
            },
        }
    }
}
