//! Permissions of credentials, for the audit log.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;

use crate::domain::grant::{Grant, InlinePolicy, KindSpec};

/// Permissions of credentials, as the audit log records them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Name of the catalogue entry that the inline policy was made from, or `inline`; `None`
    /// without an inline policy.
    pub policy: Option<String>,
    /// SHA-256, in lower-case hexadecimal, of
    /// [`effective_policy`](crate::domain::grant::GrantSpec::effective_policy): the inline policy,
    /// for a session with the guard but without the denial at its end.
    pub policy_sha256: Option<String>,
    /// ARNs of the managed policies.
    pub managed_policies: Vec<String>,
    /// ARN of the role that is assumed.
    pub role: Option<String>,
}

impl Permissions {
    /// Returns the permissions of this grant's credentials.
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
